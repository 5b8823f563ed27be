"""Hyperparameters that hold at every width: the maximal update parametrisation, from logical axes and shapes alone.

Numbers are chosen at a small size, `optim.base_size`. A model of another size gets, for each parameter, a factor on its
learning rate and one on its initial values, so that an update changes each activation as much at every width (muP,
Yang et al. 2022, arXiv 2203.03466, table 3). Both follow from how much the inputs and the outputs of a matrix have
grown, in the form of Yang, Simon & Bernstein 2023 (arXiv 2310.17813): the spectral norm of a matrix, and of what an
update adds to it, is to grow with sqrt(outputs / inputs).

    initial values  sqrt(outputs / inputs) where inputs grow faster than outputs, for they are drawn with the deviation
                    1 / sqrt(inputs) already; else 1
    Adam, Lion      rate 1 / inputs: each update has entries of one size, and all its inputs agree with it
    SGD             rate outputs / inputs

So hidden matrices get 1 and 1 / growth, what reads the input or is no matrix 1 and 1, what writes the output
1 / sqrt(growth) and 1 / growth. Two more follow from what a layer does with a parameter:

    lookup tables   rows are drawn with the deviation 1 / sqrt(width) and multiplied by sqrt(width) (`layers/embed.py`):
                    Adam's rate shrinks as the rows do, 1 / sqrt(width)
    queries         scores are divided by sqrt(head_dim), where muP divides by head_dim once heads get wider: queries
                    make up for it, in both factors

Weight decay is no part of it: the rate by which weights decay does not shrink with the width (Wang & Aitchison 2024,
arXiv 2405.13698). Depth is not transferred: the base model has the depth of the run. Not covered, and refused: tables
that are also the output (`model.tied`), and SGD behind a clip of the norm, which grows with the width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from deeplearn import families
from deeplearn.config import ConfigError
from deeplearn.families.family import Objective
from deeplearn.train.run import Run

_STACKED = {"layers", "rounds", "experts"}  # axes that count matrices, and are none of their sides
_HEADS = {"heads", "kv_heads"}  # of a matrix that makes them, an output together with the axis "head_dim"


class Factors(NamedTuple):
    """One parameter: factors on its learning rate and on its initial values."""

    rate: float
    initial: float


class Growth(NamedTuple):
    """How many times as large as in the base model the sides of a parameter are, and the width of its heads."""

    inputs: float
    outputs: float
    head_dim: float = 1.0


# Optimiser -> factor on the rate of a parameter that grew so. With a factor f on initial values and on what an update
# should add, Adam's rate takes f, and SGD's f^2, since the gradient has f once more.
_RATES: dict[str, Callable[[Growth, float], float]] = {
    "adamw": lambda growth, scale: scale / growth.inputs,
    "lion": lambda growth, scale: scale / growth.inputs,
    "sgd": lambda growth, scale: scale**2 * growth.outputs / growth.inputs,
}


def factors(run: Run) -> dict[str, Any] | None:
    """`Factors` for each parameter of the run, in a tree like its own; None without `optim.base_size`.

    Raises ConfigError for what muP does not cover here.
    """
    o = run.optim
    if not o.base_size:
        return None
    if o.name not in _RATES:
        raise ConfigError(f"optim.base_size: no rule is known for optim.name {o.name!r}; known: {', '.join(_RATES)}")
    if o.name == "sgd" and o.clip:
        raise ConfigError("optim.base_size with optim.name 'sgd' wants optim.clip=0: a gradient's norm grows so too")
    return _factors(run.family, run.model, o.base_size, o.name)


def rates(run: Run) -> dict[str, Any] | None:
    """The factors on learning rates alone."""
    return _part(factors(run), 0)


def scale_initial(run: Run, params: dict[str, Any]) -> dict[str, Any]:
    """Fresh parameters, boxed or not, with the run's factors on them."""
    initial = _part(factors(run), 1)
    if initial is None:
        return params
    scale = lambda factor, leaf: leaf if factor == 1 else jax.tree.map(lambda x: factor * x, leaf)  # noqa: E731
    return jax.tree.map(scale, initial, params)


def table(run: Run) -> list[tuple[str, tuple[str | None, ...], tuple[int, ...], Factors]]:
    """(path, logical axes, shape, factors) of each parameter, for people to read."""
    boxed, found = _boxed(families.get(run.family), run.model), factors(run)
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box)
    each = jax.tree.leaves(found, is_leaf=_is_factors) if found else [Factors(1.0, 1.0)] * len(leaves)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return [(name(path), box.names, box.value.shape, f) for (path, box), f in zip(leaves, each, strict=True)]


@functools.lru_cache(maxsize=64)
def _factors(name: str, model: Any, base_size: int, optimiser: str) -> dict[str, Any]:
    family, rate = families.get(name), _RATES[optimiser]
    try:
        base = family.at_size(model, base_size)
    except ConfigError as error:
        raise ConfigError(f"optim.base_size {base_size} makes no model of family {name!r}: {error}") from None
    boxed, small = _boxed(family, model), _boxed(family, base)
    growths = jax.tree.map(_growth, boxed, small, is_leaf=_is_box)
    for objective in family.objectives(model):
        _check(objective, growths, name)
    of_leaf = lambda path, box, growth: _of_leaf(path[-1].key, box.names, growth, rate)  # noqa: E731
    return jax.tree_util.tree_map_with_path(of_leaf, boxed, growths, is_leaf=_is_box)


def _boxed(family: Any, model: Any) -> dict[str, Any]:
    """Shapes of the parameters, boxed with logical names."""
    batch = {k: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for k, x in family.example(model).items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key, batch: family.init(model, key, batch), key, batch)["params"]


def _growth(box: nn.LogicallyPartitioned, small: nn.LogicallyPartitioned) -> Growth:
    sizes = [
        (name, size / before)
        for name, size, before in zip(box.names, box.value.shape, small.value.shape, strict=True)
        if name not in _STACKED
    ]
    makes_heads = sizes[-1][0] == "head_dim"
    outputs = [i for i, (name, _) in enumerate(sizes) if i == len(sizes) - 1 or (makes_heads and name in _HEADS)]
    inputs = math.prod(growth for i, (_, growth) in enumerate(sizes) if i not in outputs)
    return Growth(inputs, math.prod(sizes[i][1] for i in outputs), sizes[-1][1] if makes_heads else 1.0)


def _of_leaf(leaf: str, names: tuple[str | None, ...], growth: Growth, rate: Callable[..., float]) -> Factors:
    if leaf == "embedding":  # rows are looked up, not summed
        return Factors(rate(Growth(1.0, growth.outputs), growth.outputs**-0.5), 1.0)
    bound = min if growth.inputs * growth.outputs >= 1 else max  # the base model may also be the larger one
    query = growth.head_dim**-0.5 if names[-2:] == ("heads", "head_dim") else 1.0
    return Factors(rate(growth, query), query * bound(1.0, growth.outputs / growth.inputs) ** 0.5)


def _check(objective: Objective, growths: dict[str, Any], family: str) -> None:
    """Raise ConfigError where nothing that this objective trains turns what grows into what does not."""
    trained = {name: growths[name] for name in objective.trains or growths}
    found = jax.tree.leaves(trained, is_leaf=lambda x: isinstance(x, Growth))
    if all(g.inputs == g.outputs == 1 for g in found):
        return  # the base size itself
    if not any(g.inputs != 1 and g.outputs == 1 for g in found):
        raise ConfigError(
            f"optim.base_size: what objective {objective.name!r} of family {family!r} trains has no output matrix of "
            "its own, and an output that shares a lookup table (model.tied) does not transfer"
        )


def _part(tree: dict[str, Any] | None, i: int) -> dict[str, Any] | None:
    return None if tree is None else jax.tree.map(lambda f: f[i], tree, is_leaf=_is_factors)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _is_factors(leaf: Any) -> bool:
    return isinstance(leaf, Factors)
