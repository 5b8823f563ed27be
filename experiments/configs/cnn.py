"""A residual network with batch normalisation on 9,000 handwritten digits: five epochs.

python -m experiments.train --config=cnn --workdir=runs/cnn
"""

from deeplearn.data import Data
from deeplearn.families import cnn
from deeplearn.optim import Optim
from deeplearn.train.run import Run


def get_config(size: int = 8) -> Run:
    return Run(
        family="cnn",
        size=size,
        model=cnn.config(size),
        data=Data("mnist_digits"),
        optim=Optim(learning_rate=1e-2, weight_decay=1e-3),
        batch_size=32,
        budget=45_000,
        max_epochs=20,
        eval_examples=1000,
        eval_batch=200,
    )
