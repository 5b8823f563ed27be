"""Convolutions over [batch, height, width, channels] with "SAME" padding and logical axis names on their kernels.

On CPU a convolution is one matrix product over gathered patches: XLA's own runs up to 50 times slower inside a loop
(as in `lax.scan` over steps) than outside. Elsewhere it is XLA's own. The choice is made when the program is lowered.
"""

import functools

import jax
from flax import linen as nn
from flax.linen import initializers
from flax.linen.dtypes import promote_dtype
from jax import Array, lax, numpy as jnp

from deeplearn.layers.initializers import fan_in_normal

_KERNEL = nn.with_logical_partitioning(fan_in_normal(2.0), ("conv_height", "conv_width", "conv_in", "conv_out"))
_BIAS = nn.with_logical_partitioning(initializers.zeros_init(), ("conv_out",))


def convolve(x_BxHxWxC: Array, kernel_KxKxCxF: Array, stride: int) -> Array:
    """y_BxH'xW'xF with H' = ceil(H / stride); x and kernel have one type."""
    native, by_patches = (functools.partial(f, stride=stride) for f in (_native, _by_patches))
    return lax.platform_dependent(x_BxHxWxC, kernel_KxKxCxF, cpu=by_patches, default=native)


def _native(x_BxHxWxC: Array, kernel_KxKxCxF: Array, stride: int) -> Array:
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x_BxHxWxC, kernel_KxKxCxF, (stride, stride), "SAME", dimension_numbers=dimensions)


def _by_patches(x_BxHxWxC: Array, kernel_KxKxCxF: Array, stride: int) -> Array:
    (batch, height, width, channels), (size, _, _, features) = x_BxHxWxC.shape, kernel_KxKxCxF.shape
    pads = lax.padtype_to_pads((height, width), (size, size), (stride, stride), "SAME")
    x = jnp.pad(x_BxHxWxC, ((0, 0), *pads, (0, 0)))
    rows, columns = -(-height // stride), -(-width // stride)

    def tap(i: int, j: int) -> Array:
        last = (batch, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, channels)
        return lax.slice(x, (0, i, j, 0), last, (1, stride, stride, 1))

    patches = jnp.concatenate([tap(i, j) for i in range(size) for j in range(size)], axis=-1)
    y_TxF = jnp.dot(patches.reshape(batch * rows * columns, -1), kernel_KxKxCxF.reshape(-1, features))
    return y_TxF.reshape(batch, rows, columns, features)


class Conv(nn.Module):
    """A size x size convolution that divides height and width by stride. x_BxHxWxC -> y_BxH'xW'xF."""

    features: int
    size: int
    stride: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _KERNEL, (self.size, self.size, x.shape[-1], self.features))
        y = convolve(*promote_dtype(x, kernel), self.stride)
        return _add_bias(self, y) if self.bias else y


class ConvTranspose(nn.Module):
    """Multiplies height and width by stride: the transpose of the convolution from the result's shape to x's.

    x_BxHxWxC -> y_BxH'xW'xF.
    """

    features: int
    size: int
    stride: int
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _KERNEL, (self.size, self.size, x.shape[-1], self.features))
        x, kernel = promote_dtype(x, kernel)
        batch, height, width, _ = x.shape
        shape = (batch, height * self.stride, width * self.stride, self.features)
        down = functools.partial(convolve, kernel_KxKxCxF=kernel.swapaxes(2, 3), stride=self.stride)
        (y,) = jax.linear_transpose(down, jax.ShapeDtypeStruct(shape, x.dtype))(x)
        return _add_bias(self, y) if self.bias else y


def _add_bias(module: nn.Module, y: Array) -> Array:
    return y + jnp.broadcast_to(module.param("bias", _BIAS, (y.shape[-1],)), y.shape)
