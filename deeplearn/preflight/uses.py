"""Where a model uses its parameters: in which products and lookups, and with how many rows of activations.

Read from the traced loss, so that nothing here knows a family. Nothing is allocated or executed.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, JaxprEqn

from deeplearn import sharding
from deeplearn.families import counting

_EXAMPLES = 8  # that are traced together, so that what is padded to a block counts for little

# What a value is made of: None if of data, else of these parameters alone, each with the layers that it stacks.
Origin = frozenset[tuple[int, int]] | None


class Use(NamedTuple):
    """A product of a parameter with rows of activations, or a lookup of its rows.

    leaf: which parameter, in the order of the tree's leaves. rows: for one example, all layers together. inputs: what
    each result sums over; 0 for a lookup. outputs: results of each row. order: in the computation.
    """

    leaf: int
    rows: float
    inputs: int
    outputs: int
    order: int = 0


def uses(family: ModuleType, model: Any) -> list[Use]:
    """The uses of one example in all objectives."""
    batch = {k: jax.ShapeDtypeStruct((_EXAMPLES, *s.shape), s.dtype) for k, s in family.example(model).items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda k, b: sharding.unbox(family.init(model, k, b)), key, batch)
    rest = {name: value for name, value in variables.items() if name != "params"}
    sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
    found: list[Use] = []
    for objective in family.objectives(model):

        def loss(params, rest, batch, key, objective=objective):
            return objective.loss({"params": params, **rest}, batch, key, True)[0]

        jaxpr = jax.make_jaxpr(loss)(variables["params"], rest, batch, key).jaxpr
        origins: list[Origin] = [frozenset({(i, 1)}) for i in range(len(sizes))]
        _walk(jaxpr, origins + [None] * (len(jaxpr.invars) - len(sizes)), 1, sizes, found)
    return [use._replace(rows=use.rows / _EXAMPLES, order=i) for i, use in enumerate(found)]


def _walk(jaxpr: Jaxpr, origins: list[Origin], times: int, sizes: list[int], found: list[Use]) -> list[Origin]:
    """Adds the uses of a computation that runs so many times; returns what its results are made of."""
    known = dict(zip(map(id, jaxpr.invars), origins, strict=True))
    for equation in jaxpr.eqns:
        given = [known.get(id(v), frozenset()) for v in equation.invars]
        inner, inputs, turns = _inner(equation, given)
        if inner is not None:
            results = _walk(inner, inputs, times * turns, sizes, found)
        else:
            found += [use._replace(rows=use.rows * times) for use in _used(equation, given, sizes)]
            made_of = None if None in given else frozenset().union(*given)
            results = [made_of] * len(equation.outvars)
        known.update(zip(map(id, equation.outvars), results, strict=True))
    return [known.get(id(v), frozenset()) for v in jaxpr.outvars]


def _inner(equation: JaxprEqn, given: list[Origin]) -> tuple[Jaxpr | None, list[Origin], int]:
    """The computation that an equation runs, what its inputs are made of, and how often it runs."""
    name, p = equation.primitive.name, equation.params
    if name == "scan":
        first, second = p["num_consts"], p["num_consts"] + p["num_carry"]
        layers = [x and frozenset((leaf, n * p["length"]) for leaf, n in x) for x in given[second:]]
        return p["jaxpr"].jaxpr, given[:first] + [None] * p["num_carry"] + layers, p["length"]
    if name == "while":
        first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        return p["body_jaxpr"].jaxpr, given[first:second] + [None] * (len(given) - second), 1
    if name == "cond":  # of computations that differ by platform the last is the common one
        return p["branches"][-1].jaxpr, given[1:], 1
    for jaxpr in counting.inner_jaxprs(p):
        if len(jaxpr.invars) == len(given) and len(jaxpr.outvars) == len(equation.outvars):
            return jaxpr, given, 1
    return None, [], 1


def _used(equation: JaxprEqn, given: list[Origin], sizes: list[int]) -> list[Use]:
    name, p = equation.primitive.name, equation.params
    shapes = [v.aval.shape for v in equation.invars[:2]]
    result = equation.outvars[0].aval
    if name == "gather" and given[0] and given[1] is None:
        rows = math.prod(shapes[1][:-1])
        return [Use(leaf, rows, 0, result.size // rows) for leaf, _ in given[0]]
    if name == "conv_general_dilated" and given[1] and given[0] is None:
        features = shapes[1][p["dimension_numbers"].rhs_spec[0]]
        inputs = math.prod(shapes[1]) // features
        return [Use(leaf, result.size / features, inputs, features) for leaf, _ in given[1]]
    if name != "dot_general" or (given[0] is None) == (given[1] is None):
        return []
    side = 1 if given[0] is None else 0
    contracted, batched = (numbers[side] for numbers in p["dimension_numbers"])
    inputs, apart = (math.prod(shapes[side][d] for d in dims) for dims in (contracted, batched))
    rows = math.prod(shapes[1 - side]) / inputs
    return [Use(leaf, rows, inputs, sizes[leaf] // (layers * apart * inputs)) for leaf, layers in given[side]]
