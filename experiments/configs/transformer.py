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
        budget=1024 * 1024,
    )


def learning_rate(size: int) -> float:
    return 4e-3 * (64 / size) ** 0.5
