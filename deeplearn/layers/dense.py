"""The linear layer: one matrix product over the last axis."""

import math

import jax
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array, lax, numpy as jnp

from deeplearn.layers.initializers import fan_in_normal
from deeplearn.layers.placement import places


@jax.custom_vjp
def matmul(x_TxD: Array, kernel_DxF: Array) -> Array:
    """x @ kernel, with the gradient of the kernel computed smaller side first.

    XLA on CPU runs the product [F, T] @ [T, D] twice as fast when F < D as the same numbers in the other order; its
    transpose has to be hidden behind a barrier, or XLA folds it back. Measured in isolation: 110 against 55 GFLOP/s.
    """
    return jnp.dot(x_TxD, kernel_DxF)


def _matmul_forward(x_TxD: Array, kernel_DxF: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.dot(x_TxD, kernel_DxF), (x_TxD, kernel_DxF)


def _matmul_backward(residuals: tuple[Array, Array], g_TxF: Array) -> tuple[Array, Array]:
    x_TxD, kernel_DxF = residuals
    return jnp.dot(g_TxF, kernel_DxF.T), kernel_gradient(x_TxD, g_TxF)


def kernel_gradient(x_TxD: Array, g_TxF: Array) -> Array:
    if x_TxD.shape[1] <= g_TxF.shape[1]:
        return jnp.dot(x_TxD.T, g_TxF)
    swapped = lambda x, g: lax.optimization_barrier(jnp.dot(g.T, x)).T  # noqa: E731
    return lax.platform_dependent(x_TxD, g_TxF, cpu=swapped, default=lambda x, g: jnp.dot(x.T, g))


matmul.defvjp(_matmul_forward, _matmul_backward)


def product(x: Array, kernel_DxF: Array) -> Array:
    """y_...xF = x_...xD @ kernel_DxF.

    Leading axes are flattened to one around the product: XLA on CPU runs [tokens, D] @ [D, F] about 1.4 times as
    fast as the same product with (batch, length) kept apart, and elsewhere the reshape costs nothing. Where both are
    spread over a mesh they stay apart, as their product could not be.
    """
    if places("length") > 1:
        return jnp.dot(x, kernel_DxF)
    y_TxF = matmul(x.reshape(-1, x.shape[-1]), kernel_DxF)
    return y_TxF.reshape(*x.shape[:-1], kernel_DxF.shape[1])


class Dense(nn.Module):
    """y_...xF = x_...xD @ kernel_DxF, where D may be several axes.

    axes: logical names of the kernel's axes, F last. scale: factor on the standard deviation 1/sqrt(D) at
    initialisation.
    """

    features: int
    axes: tuple[str, ...]
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inputs = x.shape[x.ndim - len(self.axes) + 1 :]
        init = nn.with_logical_partitioning(fan_in_normal(self.scale**2), self.axes)
        kernel = self.param("kernel", init, (*inputs, self.features))
        x, kernel = promote_dtype(x, kernel)
        flat = x.reshape(*x.shape[: x.ndim - len(inputs)], math.prod(inputs))
        return product(flat, kernel.reshape(-1, self.features))
