"""Ring attention: causal attention over a sequence that is spread over devices.

Keys and values go round the ring of devices, and each device attends to a block while the next one is on its way
(Liu et al. 2023, arXiv 2310.01889). The sequence lies in zig-zag order: of 2n chunks, device i holds chunks i and
2n-1-i, so that the causal mask leaves every device the same work (after Brandon et al. 2023, arXiv 2311.09431).

Within a device, N blocks of S positions meet in pairs: only pairs that the mask leaves something of are computed, and
scores exist for one pair at a time. M = R S are the queries of a block, of the R heads that share a key head.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from flax import linen as nn
from jax import Array, lax, numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from deeplearn.config import ConfigError
from deeplearn.layers.placement import places
from deeplearn.layers.remat import of_attention

BLOCK = 512
Indices = tuple[np.ndarray | Array, np.ndarray | Array]  # of the query block and of the key block of each pair
AnyArray = TypeVar("AnyArray", np.ndarray, Array)


def positions(length: int, devices: int) -> np.ndarray:
    """The position in the sequence of what lies at each place of the zig-zag order, int32 [L].

    Device i of n has the places from i L/n up to (i+1) L/n. Raises ConfigError if 2 n does not divide L.
    """
    if length % (2 * devices):
        near = max(1, round(length / (2 * devices))) * 2 * devices
        raise ConfigError(f"{2 * devices} chunks, two a device, do not divide {length} positions; {near} they would")
    chunks = np.arange(length, dtype=np.int32).reshape(2 * devices, -1)
    return np.stack([chunks[:devices], chunks[: devices - 1 : -1]], axis=1).reshape(-1)


def zigzag(x: AnyArray, devices: int, axis: int = 1) -> AnyArray:
    """The sequence along `axis` in zig-zag order."""
    return x.take(positions(x.shape[axis], devices), axis=axis)


def unzigzag(x: AnyArray, devices: int, axis: int = 1) -> AnyArray:
    """The inverse of `zigzag`."""
    return x.take(np.argsort(positions(x.shape[axis], devices)).astype(np.int32), axis=axis)


def ordered(x_BxL: Array) -> Array:
    """A sequence as the rules in force want it: in zig-zag order where its length is spread over devices."""
    devices = places("length")
    return x_BxL if devices == 1 else nn.with_logical_constraint(zigzag(x_BxL, devices), ("batch", "length"))


def own_pairs(blocks: int) -> Indices:
    """Pairs of a device's own blocks: each query block with the key blocks up to its own."""
    queries, keys = np.tril_indices(blocks)
    return queries.astype(np.int32), keys.astype(np.int32)


def visiting_pairs(blocks: int, earlier: bool | Array) -> Indices:
    """Pairs with the key blocks of another device, half of all; earlier: that device comes before this one.

    The second chunk here comes after the first chunk there. Of an earlier device, the first chunk here comes after
    the first there as well; of a later one, the second here comes after the second there. All else is masked.
    """
    half = blocks // 2
    rows, columns = (x.reshape(-1).astype(np.int32) for x in np.mgrid[:half, :half])
    second = np.repeat(np.int32([0, half]), half**2) * (1 - earlier)
    return np.concatenate([rows + half, rows]) + second, np.concatenate([columns, columns]) + second


def ring_attention(q_BxLxHxK: Array, k_BxLxGxK: Array, v_BxLxGxK: Array, axis: str, block: int = BLOCK) -> Array:
    """`attention.causal_attention` inside `jax.shard_map`: L positions here, in zig-zag order over one mesh axis.

    Query head h reads key head h // (H / G). Returns y_BxLxHxK. The softmax and all sums are float32. On n devices,
    keys and values take n-1 steps; in the gradient again, and their gradients, in float32, n steps. Kept for the
    gradient: inputs, output and the logarithm of the softmax's denominator.
    block: the most positions of a block; the largest that divides L/2 is taken. Raises ConfigError if L is odd.
    """
    batch, length, heads, width = q_BxLxHxK.shape
    groups = k_BxLxGxK.shape[2]
    if length % 2:
        raise ConfigError(f"{length} positions on each device are not two chunks of the same length")
    size = next(s for s in range(min(block, length // 2), 0, -1) if length // 2 % s == 0)

    def blocks(x_BxLxHxK: Array) -> Array:
        x = x_BxLxHxK.reshape(batch, -1, size, groups, x_BxLxHxK.shape[2] // groups, width)
        return x.transpose(1, 0, 3, 4, 2, 5).reshape(length // size, batch, groups, -1, width)

    y = _ring(axis, *map(blocks, (q_BxLxHxK * width**-0.5, k_BxLxGxK, v_BxLxGxK)))
    y = y.reshape(-1, batch, groups, heads // groups, size, width).transpose(1, 0, 4, 2, 3, 5)
    return y.reshape(q_BxLxHxK.shape)


def context_attention(
    q_BxLxHxK: Array, k_BxLxGxK: Array, v_BxLxGxK: Array, mesh: Mesh | AbstractMesh, axis: str, block: int = BLOCK
) -> Array:
    """`ring_attention` for whole arrays, L in zig-zag order. Other mesh axes stay as they are. Returns y_BxLxHxK."""
    here = PartitionSpec(None, axis)
    attend = functools.partial(ring_attention, axis=axis, block=block)
    spread = jax.shard_map(attend, mesh=mesh, in_specs=(here,) * 3, out_specs=here, axis_names={axis})
    return spread(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)


class _Softmax(NamedTuple):
    """Of each query, over the keys seen so far: the sum of values, the largest score and the sum of weights."""

    y_NxBxGxMxK: Array
    top_NxBxGxM: Array
    total_NxBxGxM: Array


def _dot(x: Array, y: Array, over_x: int, over_y: int) -> Array:
    """Product of [B, G, ., .] arrays, summed over one axis of each, in float32."""
    return lax.dot_general(x, y, (((over_x,), (over_y,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _at(x: Array, i: Array) -> Array:
    return lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x: Array, new: Array, i: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, new, i, 0)


def _scores(q_BxGxMxK: Array, k_BxGxSxK: Array, masked: bool | Array) -> Array:
    """Scores_BxGxMxS of a pair; masked: it is a block with itself, whose later keys are hidden."""
    scores = _dot(q_BxGxMxK, k_BxGxSxK, 3, 3)
    query, key = (lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (2, 3))
    return jnp.where(masked & (key > query % k_BxGxSxK.shape[2]), -1e30, scores)


def _bound(pairs: Indices, x: Array) -> Indices:
    """The same indices, as if they came from x.

    They are constants, and so are masks: the gradient of a scan over layers would take the masks of all pairs out of
    the scan and keep them.
    """
    return lax.optimization_barrier((tuple(map(jnp.asarray, pairs)), x))[0]


def _attend(state: _Softmax, q: Array, k: Array, v: Array, pairs: Indices, own: bool = False) -> _Softmax:
    """The state with the keys and values of these pairs seen too."""

    def pair(state, indices):
        i, j = indices
        y, top, total = (_at(x, i) for x in state)
        scores = _scores(_at(q, i), _at(k, j), own & (i == j))
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
        weights, fade = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
        y = y * fade[..., None] + _dot(weights.astype(v.dtype), _at(v, j), 3, 2)
        total = total * fade + jnp.sum(weights, axis=-1)
        new = _Softmax(y, new_top, total)
        return jax.tree.map(lambda x, y: _put(x, y, i), state, new), None

    return lax.scan(pair, state, _bound(pairs, q))[0]


def _gradients(
    sums: Sequence[Array], saved: Sequence[Array], k: Array, v: Array, pairs: Indices, own: bool = False
) -> tuple[Array, Array, Array]:
    """Add what these pairs give to the gradients of queries [N, B, G, M, K], keys and values [N, B, G, K, S].

    Those of keys and values lie transposed: XLA on CPU runs the products with the narrow factor first.
    """
    q, g, log_total, mean = saved

    def pair(sums, indices):
        i, j = indices
        q_i, g_i, k_j = _at(q, i), _at(g, i), _at(k, j)
        weights = jnp.exp(_scores(q_i, k_j, own & (i == j)) - _at(log_total, i)[..., None])
        d_weights = _dot(g_i, _at(v, j), 3, 3) - _at(mean, i)[..., None]
        d_scores = (weights * d_weights).astype(k.dtype)
        more = _dot(d_scores, k_j, 3, 2), _dot(q_i, d_scores, 2, 2), _dot(g_i, weights.astype(v.dtype), 2, 2)
        return tuple(_put(x, _at(x, at) + y, at) for x, y, at in zip(sums, more, (i, j, j), strict=True)), None

    return lax.scan(pair, tuple(sums), _bound(pairs, q))[0]


def _pass_on(x: tuple[Array, Array], axis: str) -> tuple[Array, Array]:
    """What the device before this one held."""
    devices = lax.axis_size(axis)
    return lax.ppermute(x, axis, [(i, (i + 1) % devices) for i in range(devices)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(axis: str, q_NxBxGxMxK: Array, k_NxBxGxSxK: Array, v_NxBxGxSxK: Array) -> Array:
    return _ring_forward(axis, q_NxBxGxMxK, k_NxBxGxSxK, v_NxBxGxSxK)[0]


def _ring_forward(axis: str, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    devices, here, blocks = lax.axis_size(axis), lax.axis_index(axis), q.shape[0]
    nothing = jnp.zeros_like(q[..., 0], jnp.float32)
    state = _Softmax(jnp.zeros_like(q, jnp.float32), nothing - 1e30, nothing)
    state = _attend(state, q, k, v, own_pairs(blocks), own=True)

    def visit(state, kv, distance):  # from the device so many places before this one, round the ring
        return _attend(state, q, *kv, visiting_pairs(blocks, distance <= here))

    def step(carry, distance):
        state, kv = carry
        coming = _pass_on(kv, axis)
        return (visit(state, kv, distance), coming), None

    if devices > 1:
        (state, kv), _ = lax.scan(step, (state, _pass_on((k, v), axis)), np.arange(1, devices - 1))
        state = visit(state, kv, devices - 1)
    y = of_attention((state.y_NxBxGxMxK / state.total_NxBxGxM[..., None]).astype(q.dtype))
    return y, (q, k, v, y, of_attention(state.top_NxBxGxM + jnp.log(state.total_NxBxGxM)))


def _ring_backward(axis: str, residuals: tuple[Array, ...], g: Array) -> tuple[Array, Array, Array]:
    q, k, v, y, log_total = residuals
    # Or XLA keeps what the forward pass's first step brought. (XLA on CPU does so anyway, where it sees both passes.)
    k, v, g = lax.optimization_barrier((k, v, g))
    devices, here, blocks = lax.axis_size(axis), lax.axis_index(axis), q.shape[0]
    mean = jnp.sum(g.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)
    saved = q, g, log_total, mean
    nothing = tuple(jnp.zeros_like(x.swapaxes(3, 4), jnp.float32) for x in (k, v))
    d_q, *d_kv = _gradients((jnp.zeros_like(q, jnp.float32), *nothing), saved, k, v, own_pairs(blocks), own=True)
    d_kv = tuple(d_kv)

    def visit(d_q, d_kv, kv, distance):  # the gradients so far travel behind their keys and values, and during the work
        d_kv = _pass_on(d_kv, axis)
        d_q, *more = _gradients((d_q, *nothing), saved, *kv, visiting_pairs(blocks, distance <= here))
        return d_q, tuple(map(jnp.add, d_kv, more))

    def step(carry, distance):
        d_q, d_kv, kv = carry
        coming = _pass_on(kv, axis)
        return (*visit(d_q, d_kv, kv, distance), coming), None

    if devices > 1:
        (d_q, d_kv, kv), _ = lax.scan(step, (d_q, d_kv, _pass_on((k, v), axis)), np.arange(1, devices - 1))
        d_q, d_kv = visit(d_q, d_kv, kv, devices - 1)
        d_kv = _pass_on(d_kv, axis)
    d_k, d_v = (d.swapaxes(3, 4) for d in d_kv)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


_ring.defvjp(_ring_forward, _ring_backward)
