"""The main job: a scaling law of byte-level transformers on English, and a prediction put to the test.

make sweep
"""

from deeplearn.sweep.grid import Sweep, grid
from experiments.configs.transformer import get_config

__all__ = ["get_config", "get_sweep"]

DISPATCH = 8 * 128 * 8  # tokens of one dispatch: a budget of whole dispatches compiles one program a size


def get_sweep() -> Sweep:
    budgets = {n: DISPATCH * n for n in (16, 32, 64, 128, 256)}
    small, middle = (12, 16, 24, 32), (48,)
    return Sweep(
        name="quickstart",
        fit=grid(size=small, budget=budgets.values())
        + grid(size=middle, budget=[budgets[n] for n in (16, 32, 64, 128)])
        + grid(size=(64,), budget=[budgets[n] for n in (16, 32, 64)]),
        held_out=[{"size": 80, "budget": DISPATCH * 384}, {"size": 96, "budget": DISPATCH * 240}],
    )
