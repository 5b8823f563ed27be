"""A sweep to be timed: 24 units of three sizes and eight seeds."""

from deeplearn.sweep.grid import Sweep, grid
from experiments.configs.transformer import get_config

__all__ = ["get_config", "get_sweep"]


def get_sweep() -> Sweep:
    return Sweep("bench-seeds", grid(size=(16, 32, 48), budget=(393_216,), seed=range(8)), held_out=[])
