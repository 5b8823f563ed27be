"""Recurrent layers, scanned over time."""

import jax
from flax import linen as nn
from jax import Array, numpy as jnp

from deeplearn.layers.initializers import fan_in_normal

Carry = tuple[Array, Array]


class LSTM(nn.Module):
    """One LSTM layer without peepholes (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    i, f, g, o = split(x_t @ W + h_{t-1} @ U + b)
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
    h_t = sigmoid(o) tanh(c_t)

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015). Input projections of the whole sequence are one matrix
    product before the scan. The gates' nonlinearities and the cell state are float32 whatever the type of x.
    """

    width: int

    @nn.compact
    def __call__(self, x_BxLxD: Array, carry: Carry | None = None) -> tuple[Array, Carry]:
        """x_BxLxD -> h_BxLxH and the last (c_BxH, h_BxH); the carry starts at zero unless it is given."""
        batch, length, features = x_BxLxD.shape
        gates = 4 * self.width
        kernel_init = nn.with_logical_partitioning(fan_in_normal(), ("embed", "mlp"))
        input_DxG = self.param("input_kernel", kernel_init, (features, gates))
        recurrent_HxG = self.param("recurrent_kernel", kernel_init, (self.width, gates))
        # Gathered once, where it is spread over its rows, and not in each step of the scan.
        recurrent_HxG = nn.with_logical_constraint(recurrent_HxG, ("embed_activation", "as_cut"))
        bias_G = self.param("bias", nn.with_logical_partitioning(_forget_bias, ("mlp",)), (gates,))

        z_TxG = jnp.dot(x_BxLxD.reshape(-1, features), input_DxG)
        z_TxG = z_TxG + jnp.broadcast_to(bias_G, z_TxG.shape)
        z_LxBxG = z_TxG.reshape(batch, length, gates).swapaxes(0, 1)

        if carry is None:
            carry = jnp.zeros((batch, self.width), jnp.float32), jnp.zeros((batch, self.width), z_TxG.dtype)
        h_LxBxH, carry = _recur(z_LxBxG, recurrent_HxG, carry)
        return h_LxBxH.swapaxes(0, 1), carry


def _scan(z_LxBxG: Array, recurrent_HxG: Array, carry: Carry) -> tuple[Array, Carry]:
    def step(carry: Carry, z_BxG: Array) -> tuple[Carry, Array]:
        c_BxH, h_BxH = carry
        z_BxG = (z_BxG + jnp.dot(h_BxH, recurrent_HxG)).astype(jnp.float32)
        i, f, g, o = jnp.split(z_BxG, 4, axis=-1)
        c_BxH = nn.sigmoid(f) * c_BxH + nn.sigmoid(i) * jnp.tanh(g)
        h_BxH = (nn.sigmoid(o) * jnp.tanh(c_BxH)).astype(h_BxH.dtype)
        return (c_BxH, h_BxH), h_BxH

    carry, h_LxBxH = jax.lax.scan(step, carry, z_LxBxG)
    return h_LxBxH, carry


@jax.custom_vjp
def _recur(z_LxBxG: Array, recurrent_HxG: Array, carry: Carry) -> tuple[Array, Carry]:
    """h_LxBxH and the last carry, from the projected inputs.

    The gradient of the recurrent kernel is one product over all steps after the backward scan: the gradient of z is all
    that it needs. Left to the scan, it would be added up, and under data parallelism sent, in every step.
    """
    return _scan(z_LxBxG, recurrent_HxG, carry)


def _recur_forward(z_LxBxG: Array, recurrent_HxG: Array, carry: Carry):
    (h_LxBxH, last), backward = jax.vjp(lambda z, carry: _scan(z, recurrent_HxG, carry), z_LxBxG, carry)
    before_LxBxH = jnp.concatenate([carry[1][None], h_LxBxH[:-1]])
    return (h_LxBxH, last), (backward, before_LxBxH)


def _recur_backward(residuals, g):
    backward, before_LxBxH = residuals
    z_gradient, carry_gradient = backward(g)
    kernel_gradient_HxG = jnp.einsum("lbh,lbg->hg", before_LxBxH, z_gradient)
    return z_gradient, kernel_gradient_HxG, carry_gradient


_recur.defvjp(_recur_forward, _recur_backward)


def _forget_bias(key: Array, shape: tuple[int], dtype: jnp.dtype = jnp.float32) -> Array:
    del key
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1.0)
