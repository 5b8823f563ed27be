"""The main job: a scaling law of byte-level transformers on English, and a prediction put to the test.

make sweep
"""

import dataclasses

from deeplearn.sweep.grid import Sweep, grid
from deeplearn.train.run import Run
from experiments.configs import transformer

DISPATCH = 4 * 64 * 32  # tokens of one dispatch: a budget of whole dispatches compiles one program a size


def get_config(size: int = 64) -> Run:
    """With a warm-up of 100 updates, 5 % of the smallest budget, so that the budgets of a size share a trunk."""
    run = transformer.get_config(size)
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, warmup_steps=100))


def get_sweep() -> Sweep:
    """Seven sizes, 10 k to 580 k parameters without embeddings; held out are two larger models, of 780 k and 1.2 M,
    that take over 4 times the FLOPs of the largest fitted run, with amounts of data inside the fitted range.

    The grid follows from earlier sweeps on this text. A sum of a term in N and a term in D does not hold for runs of
    under about 2,000 updates, which a start-up transient rules, nor beyond 50 tokens a parameter, where a small model
    has nothing left to learn with. Some runs have a twin with another seed, for the noise.
    """
    budget = [DISPATCH * n for n in (64, 102, 161, 256)]
    return Sweep(
        name="quickstart",
        fit=grid(size=(16, 24, 32, 48), budget=budget[:1], seed=(0, 1))
        + grid(size=(24,), budget=budget[1:2], seed=(0, 1))
        + grid(size=(32, 48), budget=budget[1:])
        + grid(size=(64,), budget=budget[:2])
        + grid(size=(80,), budget=budget[:1])
        + grid(size=(96,), budget=[DISPATCH * 48]),
        held_out=[{"size": 112, "budget": DISPATCH * 160}, {"size": 128, "budget": DISPATCH * 112}],
        count="params_no_embed",
    )
