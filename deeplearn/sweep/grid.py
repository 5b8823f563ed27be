"""What a sweep trains: lists of overrides, turned into units with ids."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from deeplearn import config, families
from deeplearn.families import counting
from deeplearn.train.run import Run

Overrides = dict[str, Any]


def grid(**axes: Iterable[Any]) -> list[Overrides]:
    """All combinations: grid(size=(16, 32), budget=(1e5, 2e5)) gives four. Dotted: `**{"optim.clip": ...}`."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """fit: overrides of the runs that the law is fitted to. held_out: of those that it must predict before they are
    trained. count: the column that is N in the law, "params" or "params_no_embed". candidates: runs that an active
    sweep may choose after those of fit; one of them twice, with two seeds, may be made twice."""

    name: str
    fit: list[Overrides]
    held_out: list[Overrides]
    count: str = "params"
    candidates: list[Overrides] = dataclasses.field(default_factory=list)


class Unit(NamedTuple):
    """One run of a sweep. flops are those of its training, counted from the traced computation."""

    id: str
    split: str
    run: Run
    params: int
    params_no_embed: int
    params_active: int
    flops: float

    @property
    def flops_6nd(self) -> float:
        """The usual approximation, 6 N D, with N without embeddings."""
        return 6.0 * self.params_no_embed * self.run.tokens

    def identity_json(self) -> dict[str, Any]:
        """What defines the unit, for the ledger."""
        return json.loads(config.canonical_json(self.run, identity_only=True))


@functools.lru_cache(maxsize=64)
def _counts(family: str, model: Any) -> tuple[counting.Parameters, float]:
    """Parameters, and training FLOPs per example; the same for every budget of one model."""
    module = families.get(family)
    return counting.parameters(module, model), counting.flops_per_example(module, model)


def unit_of(run: Run, split: str) -> Unit:
    """Count a run and name it by the hash of what defines its result."""
    count, per_example = _counts(run.family, run.model)
    flops = per_example * run.batch_size * run.steps
    return Unit(config.identity(run), split, run, count.total, count.without_embeddings, count.active, flops)
