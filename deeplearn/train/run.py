"""Everything that defines one training run, as one frozen value."""

import dataclasses
from typing import Any

from deeplearn import families
from deeplearn.config import ConfigError, aside, from_dict, nearest
from deeplearn.data import Data
from deeplearn.optim import TRACED, Optim
from deeplearn.train.precision import PRECISIONS


@dataclasses.dataclass(frozen=True)
class Run:
    """One run. The fields made with `aside` do not define its result, and are not part of its identity.

    budget: D, training data in the family's own count (tokens, or images); rounded up to whole steps.
    microbatches: pieces that a batch is cut into within a step, whose gradients are averaged.
    precision: type of the computation; parameters and optimiser are float32 always.
    mesh: for example "data:4,fsdp:2"; "" spreads data over all devices.
    steps_per_dispatch: updates in one call of the compiled program.
    checkpoint_seconds: pause between checkpoints. max_epochs: a budget that needs more passes over the data is refused.
    """

    family: str
    size: int
    model: Any
    data: Data
    optim: Optim = Optim()
    batch_size: int = 32
    microbatches: int = 1
    budget: int = 1_000_000
    seed: int = 0
    precision: str = "float32"
    eval_examples: int = 1024
    eval_batch: int = 64
    mesh: str = aside("")
    steps_per_dispatch: int = aside(8)
    checkpoint_seconds: float = aside(30.0)
    max_epochs: int = aside(1)

    def __post_init__(self):
        whole = (
            "batch_size",
            "microbatches",
            "budget",
            "eval_examples",
            "eval_batch",
            "steps_per_dispatch",
            "max_epochs",
        )
        for name in whole:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.batch_size % self.microbatches:
            raise ConfigError(f"batch_size {self.batch_size} is not a multiple of microbatches {self.microbatches}")
        wanted = families.get(self.family).Config
        if not isinstance(self.model, wanted):
            raise ConfigError(
                f"family {self.family!r} takes a {wanted.__module__}.Config as model; start from its config"
            )
        if self.eval_examples % self.eval_batch:
            raise ConfigError(f"eval_examples {self.eval_examples} is not a multiple of eval_batch {self.eval_batch}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision {self.precision!r} is unknown{nearest(self.precision, PRECISIONS)}")

    @property
    def tokens_per_step(self) -> int:
        """What one update takes from the budget."""
        return self.batch_size * families.get(self.family).tokens_per_example(self.model)

    @property
    def steps(self) -> int:
        """Number of updates: the budget, rounded up."""
        return -(-self.budget // self.tokens_per_step)

    @property
    def tokens(self) -> int:
        """D as trained."""
        return self.steps * self.tokens_per_step


def program(run: Run) -> Run:
    """The run without the numbers that are traced: runs with equal programs share compiled code."""
    recipe = dataclasses.replace(run.optim, **dict.fromkeys(TRACED, 0.0))
    return dataclasses.replace(
        run, optim=recipe, budget=1, seed=0, eval_examples=run.eval_batch, checkpoint_seconds=0.0, max_epochs=1
    )


def from_json(data: dict[str, Any]) -> Run:
    """The run that `config.to_dict` wrote. Raises ConfigError."""
    family = families.get(str(data.get("family")))
    return from_dict(Run, data, classes={"model": family.Config})
