"""A byte-level transformer on English with 8 experts in each layer, of which a token passes through two.

python -m experiments.train --config=moe --workdir=runs/moe
python -m experiments.train --config=moe --workdir=runs/moe --mesh=expert:2
"""

import dataclasses

from deeplearn.train.run import Run
from experiments.configs import transformer


def get_config(size: int = 64) -> Run:
    """The transformer of this size with experts of half its MLP's width, so that a token costs what it costs there."""
    run = transformer.get_config(size)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, experts=8, top_k=2, mlp_width=2 * size))
