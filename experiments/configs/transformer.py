"""A byte-level transformer on English: one run of about 1 M tokens.

python -m experiments.train --config=transformer --workdir=runs/transformer
python -m experiments.sample --workdir=runs/transformer --prompt="KING. "
"""

import dataclasses

from deeplearn.data import Data
from deeplearn.families import transformer
from deeplearn.optim import Optim
from deeplearn.train.run import Run


def get_config(size: int = 64) -> Run:
    """Short windows and 256 tokens an update: at these budgets a run is short of updates before it is short of data,
    and a law in N and D needs the second."""
    model = dataclasses.replace(transformer.config(size), seq_len=64)
    return Run(
        family="transformer",
        size=size,
        model=model,
        data=Data("shakespeare", seq_len=model.seq_len),
        optim=Optim(learning_rate=learning_rate(size), b2=0.98),
        batch_size=4,
        budget=1024 * 1024,
        eval_examples=2048,
        steps_per_dispatch=32,
    )


def learning_rate(width: int) -> float:
    """In inverse proportion to the width, as for hidden matrices under muP (Yang et al. 2022, arXiv 2203.03466)."""
    return 0.25 / width
