"""A small generative adversarial network on handwritten digits: 20 epochs.

python -m experiments.train --config=gan --workdir=runs/gan
python -m experiments.sample --workdir=runs/gan --length=64
"""

from deeplearn.data import Data
from deeplearn.families import gan
from deeplearn.optim import Optim
from deeplearn.train.run import Run


def get_config(size: int = 16) -> Run:
    return Run(
        family="gan",
        size=size,
        model=gan.config(size),
        data=Data("mnist_digits"),
        optim=Optim(learning_rate=1e-3, b1=0.5, schedule="constant", clip=0.0),
        batch_size=32,
        budget=180_000,
        max_epochs=50,
        eval_examples=1000,
        eval_batch=200,
    )
