"""Pipeline parallelism: stages of layers on different devices, which take turns at pieces of a batch.

The batch is cut into M pieces, and while a stage works at one, the stage before it works at the next (GPipe, Huang et
al. 2018, arXiv 1811.06965). Stages lie along an axis of every array, and what a stage has done is rolled on to the
next one along that axis. A piece may go round the stages R times, through other layers each time: the circular
schedule of Narayanan et al. 2021 (arXiv 2104.04473), in which S pieces go all R rounds before the next S set out.
Of M R + S - 1 ticks a stage is idle in S - 1, the bubble: it then works at numbers that nothing reads.

Outside, the batch is spread over the stages' devices. The pieces that set out together are one of each stage, and come
to the first stage along a line that moves one stage down in every tick. There each is exchanged for a piece that has
done its rounds, and S ticks after it left it is back where it came from, done. So a tick sends two pieces a device.

S stages, P places of the batch that share no parameter, G groups of S pieces, R rounds, K layers of a stage in a round.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax, numpy as jnp
from jax.sharding import PartitionSpec

from deeplearn.layers.placement import mesh_axes, places, within

# (parameters [K, ...], x_BxLxD) -> (y_BxLxD, means over the batch [K, ...])
Stage = Callable[[Any, Array], tuple[Array, Any]]
Policy = Callable[..., bool]  # as in `jax.checkpoint_policies`

PIECES = 4  # the most pieces a stage: the bubble is then less than a fifth of the time in one round, a ninth in two
_FREE = PartitionSpec.UNCONSTRAINED
# What only moves numbers is done again for the gradient. Or the parameters of a stage, and what is put together of
# them, would be kept once for each tick.
_MOVES = {"broadcast_in_dim", "concatenate", "dynamic_slice", "gather", "reshape", "slice", "squeeze", "transpose"}


class _Cut(NamedTuple):
    """S, P and the places that share the parameters of P but for experts; and the mesh axes of S, P, batch, length."""

    stages: int
    copies: int
    sharing: int
    axes: tuple[tuple[str, ...], ...]


class _State(NamedTuple):
    """x: what each stage works at next. line: pieces to come, and in their places those that are done. told: sums."""

    x_SxPxBxLxD: Array
    line_SxPxGxBxLxD: Array
    told_SxPxRxK: Any


def bubble(stages: int, rounds: int, pieces: int) -> float:
    """The share of its time in which a stage is idle."""
    return (stages - 1) / (pieces * rounds + stages - 1)


def pieces_of(rows: int, stages: int) -> int:
    """M for a device that has these rows of the batch: as many as PIECES a stage that cut them evenly."""
    return stages * next(n for n in range(PIECES, 0, -1) if rows % n == 0)


def pipeline(
    stage: Stage,
    params: Any,
    x_BxLxD: Array,
    stages: int,
    keep: Policy = jax.checkpoint_policies.everything_saveable,
) -> tuple[Array, Any]:
    """All layers in order, over pieces of the batch. Returns y_BxLxD and what each layer told, [R, N, ...].

    Args:
      stage: some consecutive layers. What they tell must be means over the batch.
      params: leaves [R, N, ...], of layer r N + n at [r, n]; a stage has N / S layers of each round.
      x_BxLxD: B a multiple of the devices that the rules spread "batch" over, those of the stages included.
      stages: S, which the rules spread "stages" over; without rules, any divisor of N and B.
      keep: what is kept of a tick for its gradient. With `nothing_saveable` that is what comes into each stage, and its
        layers are computed again, as Huang et al. do.
    """
    cut = _cut(stages)
    rounds, layers = jax.tree.leaves(params)[0].shape[:2]
    pieces = pieces_of(x_BxLxD.shape[0] // math.prod(cut[:3]), stages)
    units = pieces * rounds  # what each stage has to do: a piece in a round
    params_SxPxRxK = jax.tree.map(lambda w: _to_stages(w, cut), params)
    work = jax.vmap(jax.vmap(functools.partial(_work, stage), in_axes=(None, 0, 0)))
    work = jax.checkpoint(work, prevent_cse=False, policy=functools.partial(_kept, keep))
    exchange = jax.checkpoint(functools.partial(_exchange, rounds=rounds, cut=cut), prevent_cse=False)

    def tick(state: _State, t: Array) -> tuple[_State, None]:
        unit_S = t - np.arange(stages, dtype=np.int32)
        round_S = unit_S // stages % rounds
        x, line = exchange(state.x_SxPxBxLxD, state.line_SxPxGxBxLxD, t)
        y, told = work(round_S, params_SxPxRxK, x)
        real_S = (unit_S >= 0) & (unit_S < units)
        now_SxR = real_S[:, None] & (round_S[:, None] == np.arange(rounds, dtype=np.int32)[None])
        sums = jax.tree.map(functools.partial(_add, now_SxR), state.told_SxPxRxK, told)
        return _State(_placed(_pass_on(y, 1), cut), line, sums), None

    line = _to_line(x_BxLxD, cut, pieces // stages)
    x = lax.stop_gradient(line[:, :, 0])  # for the bubble: any numbers that layers are made for
    nothing = jax.tree.map(
        lambda a: jnp.zeros((*a.shape[:2], rounds, *a.shape[2:]), a.dtype),
        jax.eval_shape(work, np.zeros(stages, np.int32), params_SxPxRxK, x)[1],
    )
    ticks = units + stages - 1
    state, _ = lax.scan(tick, _State(x, line, nothing), np.arange(ticks, dtype=np.int32))
    _, line = exchange(state.x_SxPxBxLxD, state.line_SxPxGxBxLxD, np.int32(ticks))
    y_BxLxD = _from_line(jnp.roll(line, -1, axis=2), cut)  # a group is exchanged for the one before it

    def mean(total_SxPxRxK: Array) -> Array:
        each = jnp.mean(total_SxPxRxK / pieces, axis=1).swapaxes(0, 1)
        return each.reshape(rounds, layers, *each.shape[3:])

    return y_BxLxD, jax.tree.map(mean, state.told_SxPxRxK)


def _cut(stages: int) -> _Cut:
    with within("stages"):
        copies, of_copies = places("expert_batch"), mesh_axes("expert_batch")
        with within("expert_batch"):
            sharing, of_batch, of_length = places("batch"), mesh_axes("batch"), mesh_axes("length")
    return _Cut(stages, copies, sharing, (mesh_axes("stages"), of_copies, of_batch, of_length))


def _work(stage: Stage, r: Array, params_RxK: Any, x_BxLxD: Array) -> tuple[Array, Any]:
    """What one stage does at one place of the batch in one tick."""
    params_K = jax.tree.map(lambda w: w[0] if w.shape[0] == 1 else lax.dynamic_index_in_dim(w, r, 0, False), params_RxK)
    with within("stages"), within("expert_batch"):
        return stage(params_K, x_BxLxD)


def _kept(keep: Policy, primitive: Any, *args: Any, **params: Any) -> bool:
    return primitive.name not in _MOVES and keep(primitive, *args, **params)


def _exchange(x_SxPxBxLxD: Array, line_SxPxGxBxLxD: Array, t: Array, rounds: int, cut: _Cut) -> tuple[Array, Array]:
    """What the stages work at in tick t, and the line after it, one stage further down."""
    block = t // cut.stages
    group = block // rounds % line_SxPxGxBxLxD.shape[2]
    here = lax.dynamic_index_in_dim(line_SxPxGxBxLxD, group, 2, keepdims=False)
    swap_S = (np.arange(cut.stages) == 0) & (block % rounds == 0)
    swap = swap_S.reshape(-1, *[1] * (here.ndim - 1))
    x, here = jnp.where(swap, here, x_SxPxBxLxD), jnp.where(swap, x_SxPxBxLxD, here)
    here = _placed(_pass_on(here, -1), cut)
    return _placed(x, cut), lax.dynamic_update_index_in_dim(line_SxPxGxBxLxD, here, group, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pass_on(x_Sx: Array, by: int) -> Array:
    """What each stage holds, to the stage so many places on, round the ring.

    Sent once each way: of the gradient that JAX writes for a roll, XLA sees two halves to send.
    """
    return jnp.roll(x_Sx, by, axis=0)


_pass_on.defvjp(lambda x, by: (_pass_on(x, by), None), lambda by, _, g: (_pass_on(g, -by),))


def _add(now_SxR: Array, total_SxPxRxK: Array, told_SxPxK: Array) -> Array:
    now = now_SxR.reshape(now_SxR.shape[0], 1, -1, *[1] * (told_SxPxK.ndim - 2))
    return total_SxPxRxK + jnp.where(now, told_SxPxK[:, :, None], 0)


# From the batch and the stacked layers to stages and places, and back: each number stays on its device.


def _to_stages(w_RxN: Array, cut: _Cut) -> Array:
    """Parameters_SxPxRxK. Each place of the batch adds up a gradient of its own, or they would meet in every tick."""
    rounds, _, *rest = w_RxN.shape
    w_SxRxK = w_RxN.reshape(rounds, cut.stages, -1, *rest).swapaxes(0, 1)
    w_SxPxRxK = jnp.broadcast_to(w_SxRxK[:, None], (cut.stages, cut.copies, *w_SxRxK.shape[1:]))
    return _constrained(w_SxPxRxK, cut, None, None, *[_FREE] * len(rest))


def _to_line(x_BxLxD: Array, cut: _Cut, groups: int) -> Array:
    x = x_BxLxD.reshape(cut.copies, cut.sharing, cut.stages, groups, -1, *x_BxLxD.shape[1:])
    x = x.transpose(2, 0, 3, 1, 4, 5, 6)
    return _placed(x.reshape(*x.shape[:3], -1, *x.shape[5:]), cut, None)


def _from_line(line_SxPxGxBxLxD: Array, cut: _Cut) -> Array:
    *left, _, length, width = line_SxPxGxBxLxD.shape
    x = line_SxPxGxBxLxD.reshape(*left, cut.sharing, -1, length, width)
    return x.transpose(1, 3, 0, 2, 4, 5, 6).reshape(-1, length, width)


def _placed(x: Array, cut: _Cut, *middle: None) -> Array:
    """x [S, P, ..., B, L, D] where it belongs."""
    return _constrained(x, cut, *middle, cut.axes[2], cut.axes[3], _FREE)


def _constrained(x: Array, cut: _Cut, *rest: Any) -> Array:
    """x [S, P, ...] with S and P over their mesh axes, and the rest as it says."""
    of_stages, of_copies, *_ = cut.axes
    return lax.with_sharding_constraint(x, PartitionSpec(of_stages, of_copies, *rest)) if of_stages else x
