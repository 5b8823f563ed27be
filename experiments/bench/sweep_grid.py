"""A sweep to be timed: 24 units of three sizes, two budgets and four learning rates."""

from deeplearn.sweep.grid import Sweep, grid
from experiments.configs.transformer import get_config

__all__ = ["get_config", "get_sweep"]


def get_sweep() -> Sweep:
    rates = {"optim.learning_rate": (2e-3, 4e-3, 8e-3, 16e-3)}
    return Sweep("bench-grid", grid(size=(16, 32, 48), budget=(262_144, 524_288), **rates), held_out=[])
