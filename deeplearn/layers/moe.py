"""A mixture of expert MLPs: each token passes through the few that a router picks for it.

The choices of tokens (N = tokens * top_k) are moved to slots (S) in which every expert finds its own rows together,
through the expert's matrices, and back. Two dispatches differ in what the slots are:

capacity: each sequence has C = ceil(capacity_factor * top_k * L / E) slots at each expert (GShard, Lepikhin et al.
    2020, arXiv 2006.16668, with sequences as its groups). A choice over capacity is dropped: it adds nothing, and the
    token passes by the residual alone. Places go in the order of the tokens, not of the ranks of their choices as in
    GShard, so that no token is dropped for the sake of a later one and a causal model stays causal. Where a mesh
    spreads the experts, the tokens go to them by an all-to-all.
dropless: experts have as many slots as they are given choices, in blocks of one expert each (MegaBlocks, Gale et al.
    2022, arXiv 2211.15841). Where a mesh spreads the experts, their matrices come to the tokens.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.linen.spmd import RulesFallback
from jax import Array, lax, numpy as jnp

from deeplearn.layers.dense import kernel_gradient, matmul
from deeplearn.layers.initializers import fan_in_normal

DISPATCHES = ("capacity", "dropless")

Kernels = dict[str, Array]  # up and gate [E, D, F], down [E, F, D]; gate for "swiglu" alone
Product = Callable[[Array, Array], Array]  # rows of slots [., ., D] times the kernel_ExDxF of each row's expert


class Routing(NamedTuple):
    """Float32 means over the tokens of one layer, so that those of parts of a batch have a mean too.

    share_E: of all choices, those of each expert. probability_E: of each expert. z: the squared logsumexp of the
    router's logits (ST-MoE, Zoph et al. 2022, arXiv 2202.08906, eq. 5). dropped: the share of choices over capacity.
    z and balance are losses, to be weighted (1e-3 and 1e-2 in the papers) and added.
    """

    share_E: Array
    probability_E: Array
    z: Array
    dropped: Array

    @property
    def balance(self) -> Array:
        """1 where tokens are spread evenly over the experts, E where one gets them all, of all choices before any is
        dropped (Switch, Fedus et al. 2021, arXiv 2101.03961, eq. 4)."""
        return self.share_E.shape[-1] * (self.share_E * self.probability_E).sum(axis=-1)


class MoE(nn.Module):
    """`mlp.MLP` of this width and kind, once for each expert. x_BxLxD -> (y_BxLxD, Routing).

    top_k: experts that a token passes through, at most `experts`. The router's product and softmax are float32.
    """

    width: int
    experts: int
    top_k: int = 2
    kind: str = "gelu"
    dispatch: str = "capacity"
    capacity_factor: float = 1.25
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x_BxLxD: Array) -> tuple[Array, Routing]:
        inner, outer = ("up", "gate") if self.kind == "swiglu" else ("up",), x_BxLxD.shape[-1]
        kernels = {name: self._kernel(name, outer, self.width, ("embed", "mlp")) for name in inner}
        kernels["down"] = self._kernel("down", self.width, outer, ("mlp", "embed"), self.out_scale)
        router_spec = nn.with_logical_partitioning(fan_in_normal(), ("embed", None))
        router_DxE = self.param("router", router_spec, (outer, self.experts))
        logits_BxLxE = jnp.dot(
            x_BxLxD.astype(jnp.float32), router_DxE.astype(jnp.float32), precision=lax.Precision.HIGHEST
        )
        gates_BxLxK, expert_BxLxK, share_E, probability_E = route(logits_BxLxE, self.top_k)
        z = jnp.mean(jax.nn.logsumexp(logits_BxLxE, axis=-1) ** 2)
        x_BxLxD, *values = promote_dtype(x_BxLxD, *kernels.values())
        inputs = x_BxLxD, gates_BxLxK.astype(x_BxLxD.dtype), expert_BxLxK, dict(zip(kernels, values, strict=True))
        if self.dispatch == "dropless":
            dropless = functools.partial(_dropless, kind=self.kind)
            # The one example that parameters are made with divides among no devices.
            y_BxLxD = (dropless if self.is_initializing() else _on_each_device(dropless))(*inputs)
            return y_BxLxD, Routing(share_E, probability_E, z, jnp.zeros_like(z))
        y_BxLxD, dropped = _within_capacity(*inputs, self.kind, self.capacity_factor)
        return y_BxLxD, Routing(share_E, probability_E, z, dropped)

    def _kernel(self, name: str, inputs: int, features: int, axes: tuple[str, str], scale: float = 1.0) -> Array:
        # The initialiser takes every axis but the last for inputs; those of one expert alone are what it sums over.
        init = nn.with_logical_partitioning(fan_in_normal(scale**2 * self.experts), ("experts", *axes))
        return self.param(name, init, (self.experts, inputs, features))


def route(logits_BxLxE: Array, top_k: int) -> tuple[Array, Array, Array, Array]:
    """Gates_BxLxK, experts_BxLxK (most probable first), and share_E and probability_E of `Routing`.

    The gates are the softmax's probabilities, divided by their sum over the chosen experts: the softmax over the chosen
    logits alone of Shazeer et al. 2017 (arXiv 1701.06538, without its noise) and Mixtral (arXiv 2401.04088). With
    top_k = 1 that would be 1 and teach the router nothing, so the gate is then the probability itself (Switch, Fedus
    et al. 2021, arXiv 2101.03961, eq. 2).
    """
    experts = logits_BxLxE.shape[-1]
    probabilities = jax.nn.softmax(logits_BxLxE, axis=-1)
    # By argmax and products with zeros and ones: lax.top_k gathers what is spread over devices, indexing scatters back.
    chosen, left = [], lax.stop_gradient(probabilities)
    for _ in range(top_k):
        chosen.append(jax.nn.one_hot(jnp.argmax(left, axis=-1), experts, dtype=jnp.float32))
        left = left - 2 * chosen[-1]
    chosen_BxLxKxE = jnp.stack(chosen, axis=2)
    gates_BxLxK = jnp.sum(chosen_BxLxKxE * probabilities[:, :, None], axis=-1)
    if top_k > 1:
        gates_BxLxK /= jnp.sum(gates_BxLxK, axis=-1, keepdims=True)
    share_E, probability_E = jnp.mean(chosen_BxLxKxE, axis=(0, 1, 2)), jnp.mean(probabilities, axis=(0, 1))
    return gates_BxLxK, jnp.argmax(chosen_BxLxKxE, axis=-1), share_E, probability_E


def active_parameters(params: Any, top_k: int) -> int:
    """Parameters that one token passes through: of every leaf with a logical axis "experts", top_k experts' part.

    params: shapes or arrays, still boxed with their logical names, as `Module.init` returns them.
    """
    total = 0
    for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        boxed = isinstance(leaf, nn.LogicallyPartitioned)
        value, names = (leaf.value, leaf.names) if boxed else (leaf, ())
        total += value.size * top_k // value.shape[names.index("experts")] if "experts" in names else value.size
    return total


def _mlp(x: Array, kernels: Kernels, kind: str, product: Product) -> Array:
    hidden = product(x, kernels["up"])
    hidden = nn.silu(product(x, kernels["gate"])) * hidden if kind == "swiglu" else nn.gelu(hidden)
    return product(hidden, kernels["down"])


# Capacity: slots [E, C] for each sequence.


def _within_capacity(
    x_BxLxD: Array, gates_BxLxK: Array, expert_BxLxK: Array, kernels: Kernels, kind: str, factor: float
) -> tuple[Array, Array]:
    (batch, length, width), (experts, *_) = x_BxLxD.shape, kernels["up"].shape
    choices = length * expert_BxLxK.shape[-1]
    capacity = min(length, math.ceil(factor * choices / experts))
    slots = experts * capacity
    position_BxN, expert_BxN = jax.vmap(_positions, (0, None))(expert_BxLxK, experts)
    slot_BxN = jnp.where(position_BxN < capacity, expert_BxN * capacity + position_BxN, slots)
    choice_BxS = jax.vmap(_inverse, (0, None))(slot_BxN, slots)
    x_BxSxD = jax.vmap(_to_slots)(x_BxLxD, choice_BxS, slot_BxN)
    x_BxExCxD = _exchange(x_BxSxD.reshape(batch, experts, capacity, width), _AT_HOME, _AT_EXPERTS)
    y_ExTxD = _mlp(x_BxExCxD.swapaxes(0, 1).reshape(experts, -1, width), kernels, kind, jax.vmap(matmul))
    y_BxExCxD = y_ExTxD.reshape(experts, batch, capacity, width).swapaxes(0, 1)
    y_BxExCxD = _exchange(y_BxExCxD, _AT_EXPERTS, _AT_HOME)
    y_BxLxD = jax.vmap(_from_slots)(y_BxExCxD.reshape(batch, slots, width), slot_BxN, choice_BxS, gates_BxLxK)
    return y_BxLxD, jnp.mean((slot_BxN == slots).astype(jnp.float32))


# The batch of a dispatched array is spread over all that spreads the batch elsewhere, or over that without the
# experts' share. From one to the other is an all-to-all; both have to be said, or the compiler gathers the tokens.
_AT_HOME = ("batch", None, None, None)
_AT_EXPERTS = ("expert_batch", "experts", None, None)


def _exchange(x_BxExCxD: Array, origin: tuple[str | None, ...], goal: tuple[str | None, ...]) -> Array:
    for names in (origin, goal):
        x_BxExCxD = nn.with_logical_constraint(x_BxExCxD, names, fallback=RulesFallback.NO_CONSTRAINT)
    return x_BxExCxD


# Dropless: slots [blocks, rows of a block], in which a block has one expert.


def _dropless(x_BxLxD: Array, gates_BxLxK: Array, expert_BxLxK: Array, kernels: Kernels, kind: str) -> Array:
    experts, choices = kernels["up"].shape[0], expert_BxLxK.size
    rows = _rows(choices, experts)
    blocks = (choices + experts * (rows - 1)) // rows  # enough however the choices fall
    position_N, expert_N = _positions(expert_BxLxK, experts)
    counts_E = jnp.sum(expert_N[:, None] == jnp.arange(experts)[None], axis=0)
    end_E = jnp.cumsum(-(-counts_E // rows))
    start_E = jnp.concatenate([jnp.zeros_like(end_E[:1]), end_E[:-1]])
    slot_N = start_E[expert_N] * rows + position_N
    owner_G = jnp.minimum(jnp.sum(jnp.arange(blocks)[:, None] >= end_E[None], axis=1), experts - 1)
    choice_S = _inverse(slot_N, blocks * rows)
    x_SxD = _to_slots(x_BxLxD.reshape(-1, x_BxLxD.shape[-1]), choice_S, slot_N)
    product = functools.partial(_block_matmul, owner_G=owner_G)
    y_GxRxD = _mlp(x_SxD.reshape(blocks, rows, -1), kernels, kind, product)
    gates_TxK = gates_BxLxK.reshape(-1, gates_BxLxK.shape[-1])
    return _from_slots(y_GxRxD.reshape(blocks * rows, -1), slot_N, choice_S, gates_TxK).reshape(x_BxLxD.shape)


def _rows(choices: int, experts: int) -> int:
    """Rows of a block: an eighth of an expert's even share, so that an eighth of the rows is padding; 32 to 512."""
    return min(choices, max(32, min(512, -(-choices // (8 * experts)))))


def _on_each_device(f: Callable[..., Array]) -> Callable[..., Array]:
    """f(x_BxLxD, gates_BxLxK, experts_BxLxK, kernels), by each device for its own tokens if the rules spread them."""

    def apply(x_BxLxD: Array, gates_BxLxK: Array, expert_BxLxK: Array, kernels: Kernels) -> Array:
        tokens = nn.logical_to_mesh_axes(("batch", "length", None))
        axes = set(jax.tree.leaves(tuple(tokens)))
        if not axes:
            return f(x_BxLxD, gates_BxLxK, expert_BxLxK, kernels)
        specs = (tokens, tokens, tokens, jax.P())
        spread = jax.shard_map(f, in_specs=specs, out_specs=tokens, axis_names=axes, check_vma=False)
        return spread(x_BxLxD, gates_BxLxK, expert_BxLxK, kernels)

    return apply


@jax.custom_vjp
def _block_matmul(x_GxRxD: Array, kernel_ExDxF: Array, owner_G: Array) -> Array:
    """Block g times the kernel of expert owner_G[g].

    Block after block: XLA computes lax.ragged_dot on CPU as E full products, which took 8 times as long with 8 experts.
    """
    return lax.map(lambda a: jnp.dot(a[0], kernel_ExDxF[a[1]]), (x_GxRxD, owner_G))


def _block_matmul_forward(x_GxRxD: Array, kernel_ExDxF: Array, owner_G: Array) -> tuple[Array, tuple[Array, ...]]:
    return _block_matmul(x_GxRxD, kernel_ExDxF, owner_G), (x_GxRxD, kernel_ExDxF, owner_G)


def _block_matmul_backward(residuals: tuple[Array, ...], g_GxRxF: Array) -> tuple[Array, Array, None]:
    x_GxRxD, kernel_ExDxF, owner_G = residuals

    def step(total_ExDxF, block):
        x_RxD, g_RxF, owner = block
        total_ExDxF = total_ExDxF.at[owner].add(kernel_gradient(x_RxD, g_RxF).astype(jnp.float32))
        return total_ExDxF, jnp.dot(g_RxF, kernel_ExDxF[owner].T)

    zeros_ExDxF = jnp.zeros_like(kernel_ExDxF, jnp.float32)  # many blocks are added, too many for bfloat16
    total_ExDxF, x_gradient = lax.scan(step, zeros_ExDxF, (x_GxRxD, g_GxRxF, owner_G))
    return x_gradient, total_ExDxF.astype(kernel_ExDxF.dtype), None


_block_matmul.defvjp(_block_matmul_forward, _block_matmul_backward)


# Moving rows between tokens and slots.


def _positions(expert_TxK: Array, experts: int) -> tuple[Array, Array]:
    """(position_N, expert_N): how many earlier choices, of earlier tokens or ranks, went to the same expert."""
    expert_N = expert_TxK.reshape(-1)
    chosen_NxE = (expert_N[:, None] == jnp.arange(experts)[None]).astype(jnp.int32)
    return jnp.sum(chosen_NxE * jnp.cumsum(chosen_NxE, axis=0), axis=1) - 1, expert_N


def _inverse(slot_N: Array, slots: int) -> Array:
    """choice_S: which choice is in each slot; N, one past the last, where there is none."""
    empty_S = jnp.full(slots, slot_N.size, jnp.int32)
    return empty_S.at[slot_N].set(jnp.arange(slot_N.size, dtype=jnp.int32), mode="drop")


def _to_slots(x_TxD: Array, choice_S: Array, slot_N: Array) -> Array:
    return _move(slot_N.size // x_TxD.shape[0], x_TxD, choice_S, slot_N)


def _from_slots(y_SxD: Array, slot_N: Array, choice_S: Array, gates_TxK: Array) -> Array:
    y_TxKxD = _move(1, y_SxD, slot_N, choice_S).reshape(*gates_TxK.shape, -1)
    return jnp.sum(gates_TxK[:, :, None] * y_TxKxD, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _move(copies: int, x_MxD: Array, source_N: Array, goal: Array) -> Array:
    """y[n] = x[source_N[n] // copies], zero where that is past the end; goal [M * copies] is the inverse of source_N.

    The gradient knows where each row went, and so gathers too, where that of plain indexing would add one by one.
    """
    return x_MxD.at[source_N // copies].get(mode="fill", fill_value=0)


def _move_forward(copies: int, x_MxD: Array, source_N: Array, goal: Array) -> tuple[Array, Array]:
    return _move(copies, x_MxD, source_N, goal), goal


def _move_backward(copies: int, goal: Array, g_NxD: Array) -> tuple[Array, None, None]:
    g = g_NxD.at[goal].get(mode="fill", fill_value=0)
    return jnp.sum(g.reshape(-1, copies, g.shape[-1]), axis=1), None, None


_move.defvjp(_move_forward, _move_backward)
