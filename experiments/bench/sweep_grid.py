"""A sweep to be timed: 24 units of three sizes, two budgets and four learning rates."""

from deeplearn.sweep.grid import Sweep, grid
from experiments.configs.transformer import get_config

__all__ = ["get_config", "get_sweep"]


def get_sweep() -> Sweep:
    rates = {"optim.learning_rate": (2e-3, 4e-3, 8e-3, 16e-3)}
    # Evaluated on 32,768 tokens, an eighth of the smallest budget: the usual 131,072 would be a half of it.
    points = grid(size=(16, 32, 48), budget=(262_144, 524_288), eval_examples=(512,), **rates)
    return Sweep("bench-grid", points, held_out=[])
