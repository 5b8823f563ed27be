"""How many parameters a model has and how many FLOPs one training example costs, from the abstract computation.

Nothing is allocated or executed: both come from shapes alone, for a model of any size.
"""

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from deeplearn.families.family import Batch, Objective, Variables

_BATCH = 8  # FLOPs are counted for this many examples together, and divided


class Parameters(NamedTuple):
    """Numbers of trained scalars. active: those that one token (or image) passes through; fewer in a mixture."""

    total: int
    without_embeddings: int
    active: int


def parameters(family: ModuleType, config: Any) -> Parameters:
    """Count the collection "params". Lookup tables, the leaves called "embedding", are the embeddings.

    `active` is the total unless the family defines `active_parameters(config, boxed_params) -> int`.
    """
    boxed, _, _ = _abstract(family, config, 1)
    leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed["params"]))
    total = sum(leaf.size for _, leaf in leaves)
    embeddings = sum(leaf.size for path, leaf in leaves if path[-1].key == "embedding")
    active = family.active_parameters(config, boxed["params"]) if hasattr(family, "active_parameters") else total
    return Parameters(total, total - embeddings, active)


def flops_per_example(family: ModuleType, config: Any) -> float:
    """Training FLOPs per example: one forward and backward pass of each objective for the parameters that it trains.

    Matrix products and convolutions count 2 per multiply-add, all else 0. A scan counts length times its body, a
    cond its dearest branch. Products with zeros that a convolution inserts (padding, dilation) do not count, so a
    convolution's two gradients each cost what it does; `layers/convolution.py` has a branch of matrix products, which
    counts padding, and so is the same on every platform. Attention counts all its scores, masked or not, and is counted
    in its plain form on every platform. What `jax.checkpoint` computes twice counts twice.

    Raises NotImplementedError for a loop whose number of steps is not known, and for kernels that cannot be read.
    """
    boxed, batch, key = _abstract(family, config, _BATCH)
    variables = nn.meta.unbox(boxed)
    return sum(_objective_flops(o, variables, batch, key) for o in family.objectives(config)) / _BATCH


def jaxpr_flops(jaxpr: Jaxpr) -> float:
    """FLOPs of a traced computation (`jax.make_jaxpr(f)(...).jaxpr`), by the rules of `flops_per_example`.

    Equations whose results nothing needs are left out, as the compiler leaves them out: a `custom_vjp` writes the
    gradients of all its inputs, wanted or not.
    """
    flops = 0.0
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed.update(id(variable) for variable in equation.invars)
            flops += _equation_flops(equation)
    return flops


def _abstract(family: ModuleType, config: Any, batch_size: int) -> tuple[Variables, Batch, jax.ShapeDtypeStruct]:
    """The shapes of the family's variables, boxed with logical axes, of a batch and of a key."""
    example = family.example(config)
    batch = {name: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype) for name, x in example.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda key, batch: family.init(config, key, batch), key, batch)
    return variables, batch, key


def _objective_flops(objective: Objective, variables: Variables, batch: Batch, key: jax.ShapeDtypeStruct) -> float:
    params = variables["params"]
    trained = {name: params[name] for name in objective.trains or params}

    def step(trained, params, state, batch, key):
        def loss(trained):
            return objective.loss({**state, "params": {**params, **trained}}, batch, key, True)

        return jax.value_and_grad(loss, has_aux=True)(trained)

    state = {name: collection for name, collection in variables.items() if name != "params"}
    return jaxpr_flops(jax.make_jaxpr(step)(trained, params, state, batch, key).jaxpr)


def _equation_flops(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    inner = [jaxpr_flops(jaxpr) for jaxpr in inner_jaxprs(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name in _UNREADABLE or (name == "while" and sum(inner) > 0):
        raise NotImplementedError(f"cannot count the FLOPs of the primitive {name!r}; use lax.scan or plain operations")
    return sum(inner)


# Kernels and per-shard bodies, whose cost the jaxpr inside does not tell, and products that nothing here uses yet.
_UNREADABLE = {"pallas_call", "shard_map", "ragged_dot", "ragged_dot_general"}


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The computations among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _convolution_flops(equation: JaxprEqn) -> float:
    """2 * outputs * input channels of the group * pairs (output position, kernel tap) that meet an input value."""
    p = equation.params
    lhs, rhs, out = (v.aval.shape for v in (*equation.invars, *equation.outvars))
    numbers = p["dimension_numbers"]
    pairs = 1
    for i, padding in enumerate(p["padding"]):
        sizes = lhs[numbers.lhs_spec[2 + i]], rhs[numbers.rhs_spec[2 + i]], out[numbers.out_spec[2 + i]]
        pairs *= _meetings(*sizes, p["window_strides"][i], p["lhs_dilation"][i], p["rhs_dilation"][i], padding[0])
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    return 2.0 * batch * features * rhs[numbers.rhs_spec[1]] * pairs


def _meetings(inputs: int, taps: int, outputs: int, stride: int, lhs_dilation: int, rhs_dilation: int, low: int) -> int:
    """Along one axis: pairs (output, tap) that read one of the inputs, and neither padding nor a hole of dilation."""
    positions = (o * stride - low + t * rhs_dilation for o in range(outputs) for t in range(taps))
    return sum(0 <= at <= (inputs - 1) * lhs_dilation and at % lhs_dilation == 0 for at in positions)
