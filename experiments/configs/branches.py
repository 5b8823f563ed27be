"""The runs of `experiments.branches`: transformers of six sizes on English, with up to five budgets a size.

python -m experiments.branches --config=branches --root=runs/branches
"""

import dataclasses

from deeplearn.sweep.grid import Sweep, grid
from deeplearn.train.run import Run
from experiments.configs import transformer

DISPATCH = 4 * 64 * 32  # tokens of one dispatch: branches leave where one starts


def get_config(size: int = 64) -> Run:
    """The quickstart's run with a cooldown over the last fifth, and a warm-up of 100 updates: 5 % of the shortest."""
    run = transformer.get_config(size)
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, warmup_steps=100, decay=0.2))


def get_sweep() -> Sweep:
    """As in the quickstart, no run is shorter than 2,000 updates nor longer than some 50 tokens a parameter: outside
    of that a sum of a term in N and a term in D does not hold, and two laws would differ by what neither of them says.
    """
    budget = [DISPATCH * n for n in (64, 91, 128, 181, 256)]
    return Sweep(
        name="branches",
        fit=grid(size=(16, 80), budget=budget[:1])
        + grid(size=(24,), budget=budget[:3])
        + grid(size=(32, 48), budget=budget)
        + grid(size=(64,), budget=budget[:4]),
        held_out=[],
        count="params_no_embed",
    )
