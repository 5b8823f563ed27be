import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from setups import make_key

from deeplearn.layers.convolution import Conv, ConvTranspose, _by_patches, _native


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 7), (3, 2, 8), (4, 2, 9), (1, 2, 6), (5, 3, 8)])
def test_both_ways_to_convolve_agree_and_so_do_their_gradients(size, stride, side):
    rng = np.random.default_rng(0)
    shapes = (2, side, side + 1, 3), (size, size, 3, 5)
    arguments = jax.device_put([rng.normal(size=shape).astype(np.float32) for shape in shapes])

    def value_and_gradients(f):
        return jax.jit(lambda x, k: jax.value_and_grad(lambda x, k: (f(x, k, stride) ** 2).sum(), (0, 1))(x, k))

    a, b = (jax.device_get(value_and_gradients(f)(*arguments)) for f in (_native, _by_patches))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), a, b)


def test_layers_are_flax_layers():
    x = jax.device_put(np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32))
    conv, transpose = Conv(4, 3, 2, bias=True), ConvTranspose(4, 4, 2, bias=True)
    params = [nn.meta.unbox(jax.jit(m.init)(make_key(0), x)) for m in (conv, transpose)]
    reference = nn.Conv(4, (3, 3), (2, 2))
    np.testing.assert_allclose(
        *jax.device_get([jax.jit(m.apply)(params[0], x) for m in (conv, reference)]), rtol=1e-4, atol=1e-5
    )

    kernel = params[1]["params"]["kernel"]
    expected = jax.jit(lambda x, k: lax.conv_transpose(x, k.swapaxes(2, 3), (2, 2), "SAME", transpose_kernel=True))(
        x, kernel
    )
    actual = jax.device_get(jax.jit(transpose.apply)(params[1], x))
    assert actual.shape == (2, 12, 12, 4)
    np.testing.assert_allclose(actual, jax.device_get(expected), rtol=1e-4, atol=1e-5)
