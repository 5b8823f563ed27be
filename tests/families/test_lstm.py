import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from setups import make_key, make_setup

from deeplearn.families import lstm
from deeplearn.layers.recurrent import LSTM


@pytest.fixture(scope="module")
def small():
    return make_setup(lstm, lstm.Config(seq_len=12, width=8, depth=2))


def test_logits_do_not_depend_on_later_tokens(small):
    """With a different token at each position, row p of the table is the input at position p."""
    tokens_1xL = jax.device_put(np.arange(12, dtype=np.int32)[None])

    def logit_sum_L(table):
        params = {**small.variables["params"], "embed": {"embedding": table}}
        return jnp.sum(lstm.apply(small.config, {"params": params}, tokens_1xL), axis=(0, 2))

    jacobian = jax.jit(jax.jacrev(logit_sum_L))(small.variables["params"]["embed"]["embedding"])
    reach_LxL = np.abs(jax.device_get(jacobian)[:, :12]).max(axis=2)
    assert (np.triu(reach_LxL, 1) == 0).all()
    assert (reach_LxL[np.tril_indices(12)] > 0).all()


def test_layer_is_flax_lstm_cell_scanned():
    layer, reference = LSTM(6), nn.RNN(nn.OptimizedLSTMCell(6))
    x_BxLxD = jax.device_put(np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32))
    params = nn.meta.unbox(jax.jit(layer.init)(make_key(0), x_BxLxD))["params"]
    np.testing.assert_array_equal(jax.device_get(params["bias"]), np.repeat([0, 1, 0, 0], 6))

    gates = {name: slice(6 * i, 6 * (i + 1)) for i, name in enumerate("ifgo")}
    values = jax.device_get(params)
    u, b = values["recurrent_kernel"], values["bias"]
    cell = {f"i{g}": {"kernel": values["input_kernel"][:, at]} for g, at in gates.items()}
    cell |= {f"h{g}": {"kernel": u[:, at], "bias": b[at]} for g, at in gates.items()}
    expected = jax.jit(reference.apply)({"params": {"cell": jax.device_put(cell)}}, x_BxLxD)
    actual, (c_BxH, h_BxH) = jax.jit(layer.apply)({"params": params}, x_BxLxD)
    np.testing.assert_allclose(*jax.device_get((actual, expected)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jax.device_get(h_BxH), jax.device_get(actual)[:, -1])
    assert c_BxH.dtype == jnp.float32


def test_sampling_without_noise_is_the_argmax_of_the_whole_sequence(small):
    prompt = jax.device_get(small.batch["tokens"])[:, :3]
    tokens_BxM, logits_BxMxV = jax.jit(
        lambda v, k, p: (t := lstm.sample(small.config, v, k, p, 6, 1e-6), lstm.apply(small.config, v, t))
    )(small.variables, small.key, jax.device_put(prompt))
    tokens, logits = jax.device_get((tokens_BxM, logits_BxMxV))
    assert tokens.shape == (4, 9) and tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens[:, :3], prompt)
    np.testing.assert_array_equal(tokens[:, 3:], logits[:, 2:-1].argmax(-1))
