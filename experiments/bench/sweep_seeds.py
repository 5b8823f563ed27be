"""A sweep to be timed: 24 units of three sizes and eight seeds."""

from deeplearn.sweep.grid import Sweep, grid
from experiments.configs.transformer import get_config

__all__ = ["get_config", "get_sweep"]


def get_sweep() -> Sweep:
    points = grid(size=(16, 32, 48), budget=(393_216,), eval_examples=(512,), seed=range(8))
    return Sweep("bench-seeds", points, held_out=[])
