"""What of a run no mesh changes: its parameters and their uses, its state, and what one example costs and leaves."""

import dataclasses
import functools
from collections import Counter
from types import ModuleType
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from deeplearn import families, sharding
from deeplearn.config import overlay
from deeplearn.preflight import fits, roofline
from deeplearn.preflight.uses import Use, uses
from deeplearn.train import state as states
from deeplearn.train.run import Run


class Leaf(NamedTuple):
    """One parameter. module: the path of what it belongs to."""

    module: str
    names: tuple[str | None, ...]
    shape: tuple[int, ...]
    uses: tuple[Use, ...]


class Model(NamedTuple):
    """boxed: shapes of the parameters with their logical axes. state: (names, shape, bytes of an element) -> count."""

    boxed: Any
    leaves: tuple[Leaf, ...]
    state: Counter


class Kept(NamedTuple):
    """An array that the backward pass keeps of one example. bytes: of all layers; layer: of one. last: last axis."""

    bytes: float
    layer: float
    last: int


class Pass(NamedTuple):
    """Of one example. everything: what would be kept if nothing were computed again. flops, done: of the model, and
    with what is computed again. again: share of the forward pass that is computed again."""

    kept: tuple[Kept, ...]
    everything: tuple[Kept, ...]
    flops: float
    done: float
    again: float


def of_model(run: Run) -> Model:
    """The parameters and the state, which recomputation does not change either."""
    return _of_model(_alone(dataclasses.replace(run, model=_plain(run.model))))


def of_pass(run: Run) -> Pass:
    """What one example costs."""
    return _of_pass(_alone(run))


def _alone(run: Run) -> Run:
    """The run without what does not matter here, so that runs share what is known of them."""
    return dataclasses.replace(run, batch_size=1, microbatches=1, budget=1, seed=0, mesh="")


def _plain(model: Any) -> Any:
    return overlay(model, roofline.without_recomputation(model))


@functools.lru_cache(maxsize=16)
def _of_model(run: Run) -> Model:
    shapes = states.boxed(run)
    boxed = lambda tree: jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_boxed)  # noqa: E731
    state = Counter((*_named(x), _value(x).dtype.itemsize) for _, x in boxed(shapes))
    found: dict[int, list[Use]] = {}
    for use in uses(families.get(run.family), run.model):
        found.setdefault(use.leaf, []).append(use)
    leaves = tuple(
        Leaf(jax.tree_util.keystr(path[:-1], simple=True, separator="/"), *_named(x), tuple(found.get(i, ())))
        for i, (path, x) in enumerate(boxed(shapes.params))
    )
    return Model(shapes.params, leaves, state)


@functools.lru_cache(maxsize=64)
def _of_pass(run: Run) -> Pass:
    family, work = families.get(run.family), roofline.flops(run, sharding.one_device())
    kept, everything = (_kept(family, model, run.precision) for model in (run.model, _plain(run.model)))
    again = min(1.0, 3 * (work.done / work.model - 1)) if work.model else 0.0  # a forward pass is a third of the FLOPs
    return Pass(kept, everything, work.model, work.done, again)


def _kept(family: ModuleType, config: Any, precision: str) -> tuple[Kept, ...]:
    """What the backward pass keeps of one example: that which two examples have more of than one."""
    found = []
    for objective in family.objectives(config):
        pairs = (fits.residuals(family, objective, config, precision, n) for n in (1, 2))
        for one, two in zip(*pairs, strict=True):
            more = (two.size - one.size) * one.dtype.itemsize
            if more:
                layers = 1 if one.shape[0] != two.shape[0] else one.shape[0]
                found.append(Kept(more, more / layers, one.shape[-1]))
    return tuple(found)


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _value(leaf: Any) -> Any:
    return leaf.value if _is_boxed(leaf) else leaf


def _named(leaf: Any) -> tuple[tuple[str | None, ...], tuple[int, ...]]:
    shape = _value(leaf).shape
    return (leaf.names if _is_boxed(leaf) else (None,) * len(shape)), shape
