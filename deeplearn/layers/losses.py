"""Losses over classes or tokens."""

import jax
from jax import Array, numpy as jnp


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label] in nats. logits [..., C], labels int [...] -> float32 [...]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
