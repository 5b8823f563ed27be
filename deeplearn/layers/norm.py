"""Normalisation."""

import jax
from flax import linen as nn
from flax.linen import initializers
from jax import Array, numpy as jnp


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467).

    Statistics are float32 whatever the type of x; the result has the type of x. axis: logical name of the scale's axis.
    """

    axis: str = "norm"
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.with_logical_partitioning(initializers.ones_init(), (self.axis,))
        scale_D = self.param("scale", init, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
        y = (x32 * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype)
        return y * jnp.broadcast_to(scale_D, y.shape)
