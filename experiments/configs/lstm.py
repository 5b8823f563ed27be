"""A byte-level LSTM on English: one run of about 1 M tokens.

python -m experiments.train --config=lstm --workdir=runs/lstm
python -m experiments.sample --workdir=runs/lstm --prompt="KING. "
"""

from deeplearn.data import Data
from deeplearn.families import lstm
from deeplearn.optim import Optim
from deeplearn.train.run import Run


def get_config(size: int = 64) -> Run:
    model = lstm.config(size)
    return Run(
        family="lstm",
        size=size,
        model=model,
        data=Data("shakespeare", seq_len=model.seq_len),
        optim=Optim(learning_rate=8e-3),
        batch_size=8,
        budget=1024 * 1024,
    )
