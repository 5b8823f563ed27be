"""The main job: a scaling law of byte-level transformers on English, and a prediction put to the test.

make sweep
"""

from deeplearn.sweep.grid import Sweep, grid
from experiments.configs.transformer import get_config

__all__ = ["get_config", "get_sweep"]

DISPATCH = 4 * 64 * 32  # tokens of one dispatch: a budget of whole dispatches compiles one program a size


def get_sweep() -> Sweep:
    """Seven sizes, 10 k to 580 k parameters without embeddings, and two runs held out at 4 times the largest FLOPs.

    At most 50 tokens a parameter: beyond, a small model learns no more from more data, and a sum of a term in N and a
    term in D does not hold. The short runs of the small sizes run twice, because a seed moves their loss by 1 %.
    """
    budget = [DISPATCH * n for n in (16, 32, 64, 128, 256)]
    return Sweep(
        name="quickstart",
        fit=grid(size=(16, 24, 32, 48), budget=budget[:2], seed=(0, 1))
        + grid(size=(16,), budget=budget[2:3], seed=(0, 1))
        + grid(size=(24,), budget=budget[2:4])
        + grid(size=(32, 48), budget=budget[2:])
        + grid(size=(64,), budget=budget[:4])
        + grid(size=(80, 96), budget=budget[:2]),
        held_out=[{"size": 96, "budget": DISPATCH * 224}, {"size": 112, "budget": DISPATCH * 168}],
        count="params_no_embed",
    )
