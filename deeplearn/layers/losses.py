"""Losses over classes or tokens."""

import functools

import jax
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array, lax, numpy as jnp

from deeplearn.config import ConfigError
from deeplearn.layers.placement import places


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label] in nats. logits [..., C], labels int [...] -> float32 [...]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def chunked_cross_entropy(
    x_BxLxD: Array, kernel_DxV: Array, targets_BxL: Array, chunk: int, z_loss: float = 0.0
) -> Array:
    """Sum over tokens of -log softmax(x @ kernel)[target] + z_loss * log(sum(exp(x @ kernel)))^2 in nats, float32.

    Logits exist for `chunk` positions of each sequence at a time. A differentiated call takes the gradient of a chunk
    with its loss, from the same logits, so it costs the three products of the plain form and not a fourth (Hsu et al.
    2024, arXiv 2410.10989). z_loss: Chowdhery et al. 2022 (arXiv 2204.02311) use 1e-4. The softmax is float32.

    On a mesh, a chunk has `chunk` positions of the part of a sequence that one place holds, and places meet once,
    after the last chunk. Logical axes: x ("batch", "length", None), kernel (None, "vocab").
    Raises ConfigError if chunk does not divide the positions of a place; a larger chunk means all of them.
    """
    rows, columns = places("batch"), places("length")
    batch, length = targets_BxL.shape
    chunk = min(chunk, length // columns)
    if length % (columns * chunk):
        here = length // columns
        near = min((c for c in range(1, here + 1) if here % c == 0), key=lambda c: abs(c - chunk))
        raise ConfigError(f"a loss chunk of {chunk} does not divide {here} positions; the nearest that does is {near}")
    x_BxLxD, kernel_DxV = promote_dtype(x_BxLxD, kernel_DxV)
    kernel_DxV = nn.with_logical_constraint(kernel_DxV, (None, "vocab"))  # gathered once, not in every chunk

    def chunks(x: Array) -> Array:
        rest = x.shape[2:]
        x = x.reshape(rows, batch // rows, columns, length // columns // chunk, chunk, *rest)
        x = jnp.moveaxis(x, (3, 0, 2), (0, 1, 2)).reshape(-1, rows, columns, batch // rows * chunk, *rest)
        return nn.with_logical_constraint(x, (None, "batch", "length", None, *[None] * len(rest)))

    return _total(z_loss, chunks(x_BxLxD), kernel_DxV, chunks(targets_BxL))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(z_loss: float, x_NxPxQxTxD: Array, kernel_DxV: Array, targets_NxPxQxT: Array) -> Array:
    """N chunks of T tokens at each of P x Q places: rows of the batch and parts of the length."""

    def body(loss_PxQ, chunk):
        return loss_PxQ + _chunk(z_loss, chunk[0], kernel_DxV, chunk[1])[0], None

    return jnp.sum(lax.scan(body, _zeros(x_NxPxQxTxD), (x_NxPxQxTxD, targets_NxPxQxT))[0])


def _total_forward(
    z_loss: float, x_NxPxQxTxD: Array, kernel_DxV: Array, targets_NxPxQxT: Array
) -> tuple[Array, tuple[Array, Array]]:
    # Each place adds up a gradient of its own. One sum for all would make them meet in every chunk.
    def body(carry, chunk):
        loss_PxQ, kernel_gradient_PxQxDxV = carry
        x_PxQxTxD, targets_PxQxT = chunk
        more_PxQ, g_PxQxTxV = _chunk(z_loss, x_PxQxTxD, kernel_DxV, targets_PxQxT)
        g_PxQxTxV = g_PxQxTxV.astype(x_PxQxTxD.dtype)
        dims = (((2,), (2,)), ((0, 1), (0, 1)))
        more_PxQxDxV = lax.dot_general(x_PxQxTxD, g_PxQxTxV, dims, preferred_element_type=jnp.float32)
        x_gradient_PxQxTxD = lax.dot_general(g_PxQxTxV, kernel_DxV, (((3,), (1,)), ((), ())))
        return (loss_PxQ + more_PxQ, kernel_gradient_PxQxDxV + more_PxQxDxV), x_gradient_PxQxTxD

    start = _zeros(x_NxPxQxTxD), _zeros(x_NxPxQxTxD, None, "vocab", shape=kernel_DxV.shape)
    (loss_PxQ, kernel_gradient), x_gradient = lax.scan(body, start, (x_NxPxQxTxD, targets_NxPxQxT))
    # As one axis of places, or rows and columns of the mesh would send the whole kernel once each.
    kernel_gradient_DxV = jnp.sum(kernel_gradient.reshape(-1, *kernel_DxV.shape), axis=0).astype(kernel_DxV.dtype)
    return jnp.sum(loss_PxQ), (x_gradient, kernel_gradient_DxV)


def _total_backward(z_loss: float, residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array, None]:
    del z_loss
    x_gradient, kernel_gradient = ((x * g).astype(x.dtype) for x in residuals)
    return x_gradient, kernel_gradient, None


_total.defvjp(_total_forward, _total_backward)


def _zeros(x_NxPxQxTxD: Array, *names: str | None, shape: tuple[int, ...] = ()) -> Array:
    """Something to add up in at each place."""
    zeros = jnp.zeros((*x_NxPxQxTxD.shape[1:3], *shape), jnp.float32)
    return nn.with_logical_constraint(zeros, ("batch", "length", *names))


def _chunk(z_loss: float, x_PxQxTxD: Array, kernel_DxV: Array, targets_PxQxT: Array) -> tuple[Array, Array]:
    """The summed loss at each place, float32 [P, Q], and the gradient of the logits, float32 [P, Q, T, V]."""
    dims = (((3,), (0,)), ((), ()))
    logits = lax.dot_general(x_PxQxTxD, kernel_DxV, dims, preferred_element_type=jnp.float32)
    # By comparison and not by index, which would gather the logits of a vocabulary that is spread over devices.
    is_target = targets_PxQxT[..., None] == lax.broadcasted_iota(targets_PxQxT.dtype, logits.shape, 3)
    shift = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - shift)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    log_total = jnp.log(total) + shift
    picked = jnp.sum(jnp.where(is_target, logits, 0), axis=-1, keepdims=True)
    loss = jnp.sum(log_total - picked + z_loss * log_total**2, axis=(2, 3))
    return loss, weights * ((1 + 2 * z_loss * log_total) / total) - is_target
