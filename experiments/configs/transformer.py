"""A byte-level transformer on English: one run of about 1 M tokens.

python -m experiments.train --config=transformer --workdir=runs/transformer
python -m experiments.sample --workdir=runs/transformer --prompt="KING. "
"""

from deeplearn.data import Data
from deeplearn.families import transformer
from deeplearn.optim import Optim
from deeplearn.train.run import Run


def get_config(size: int = 64) -> Run:
    model = transformer.config(size)
    return Run(
        family="transformer",
        size=size,
        model=model,
        data=Data("shakespeare", seq_len=model.seq_len),
        optim=Optim(learning_rate=learning_rate(size)),
        batch_size=8,
        microbatches=4,
        budget=1024 * 1024,
    )


def learning_rate(width: int) -> float:
    """In inverse proportion to the width, as for hidden matrices under muP (Yang et al. 2022, arXiv 2203.03466).

    On this text the best of a grid in powers of two was within a factor of 1.6 of it at widths 16 to 96.
    """
    return 0.4 / width
