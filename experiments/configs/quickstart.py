"""The main job: a scaling law of byte-level transformers on English, and a prediction put to the test.

make sweep
"""

from deeplearn.sweep.grid import Sweep, grid
from experiments.configs.transformer import get_config

__all__ = ["get_config", "get_sweep"]

DISPATCH = 8 * 128 * 8  # tokens of one dispatch: a budget of whole dispatches compiles one program a size


def get_sweep() -> Sweep:
    budgets = [DISPATCH * n for n in (8, 16, 32, 64)]
    return Sweep(
        name="quickstart",
        fit=grid(size=(12, 16, 24, 32, 48, 64), budget=budgets)
        + grid(size=(12, 16, 24, 32, 48), budget=[DISPATCH * 128]),
        held_out=[{"size": 80, "budget": DISPATCH * 192}, {"size": 96, "budget": DISPATCH * 128}],
    )
