"""How far apart two sets of images are: a number for generative models that needs no pretrained network."""

import jax
from jax import Array, lax, numpy as jnp

from deeplearn.layers.convolution import convolve
from deeplearn.layers.initializers import fan_in_normal


def features(image_BxHxWxC: Array) -> Array:
    """A fixed feature map of images with values in [-1, 1]: the pixels at a quarter of the resolution (coarse shape)
    beside two random strided ReLU convolutions (strokes and edges), each part scaled to count the same.

    Random networks rank generators much as pretrained ones do (Naeem et al. 2020, arXiv 2002.09797). The kernels come
    from key 0, so the map is the same for every model, run and machine. Returns float32 features_BxF.
    """
    x = image_BxHxWxC.astype(jnp.float32)
    key_0, key_1 = jax.random.split(jax.random.key(0))
    edges = _relu_conv(_relu_conv(x, key_0, 16), key_1, 32)
    pixels = lax.reduce_window(x, 0.0, lax.add, (1, 4, 4, 1), (1, 4, 4, 1), "VALID") / 16
    parts = [part.reshape(part.shape[0], -1) for part in (pixels, edges)]
    width = sum(part.shape[1] for part in parts)
    return jnp.concatenate([part * (width / len(parts) / part.shape[1]) ** 0.5 for part in parts], axis=1)


def kernel_distance(x_BxF: Array, y_MxF: Array) -> Array:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012) with the kernel (x . y / F + 1)^3, which makes it
    the Kernel Inception Distance (Binkowski et al. 2018, arXiv 1801.01401) of whatever the features are.

    Its mean over batches is 0 when both sets come from one distribution, so a single value may be negative. At least
    two examples of each. Returns a float32 scalar.
    """
    within = _mean_off_diagonal(_kernel(x_BxF, x_BxF)) + _mean_off_diagonal(_kernel(y_MxF, y_MxF))
    return within - 2 * jnp.mean(_kernel(x_BxF, y_MxF))


def _kernel(x_BxF: Array, y_MxF: Array) -> Array:
    return (jnp.dot(x_BxF, y_MxF.T, precision=lax.Precision.HIGHEST) / x_BxF.shape[1] + 1) ** 3


def _mean_off_diagonal(k_BxB: Array) -> Array:
    count = k_BxB.shape[0]
    return (jnp.sum(k_BxB) - jnp.trace(k_BxB)) / (count * (count - 1))


def _relu_conv(x_BxHxWxC: Array, key: Array, features: int) -> Array:
    kernel = fan_in_normal(2.0)(key, (5, 5, x_BxHxWxC.shape[-1], features))
    with jax.default_matmul_precision("highest"):
        return jax.nn.relu(convolve(x_BxHxWxC, kernel, stride=2))
