"""What language models share: windows of text as examples, and the cross-entropy of the next token."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, numpy as jnp

from deeplearn.families.family import Aux, Batch, Objective, Variables
from deeplearn.layers.losses import cross_entropy
from deeplearn.layers.ring import ordered

Apply = Callable[[Any, Variables, Array], Array]  # (config, variables, tokens_BxL) -> logits_BxLxV


def example(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """One window of text: the model reads the first L tokens and predicts the last L."""
    return {"tokens": jax.ShapeDtypeStruct((config.seq_len + 1,), jnp.int32)}


def tokens_per_example(config: Any) -> int:
    return config.seq_len


def _losses(apply: Apply, config: Any, variables: Variables, batch: Batch) -> Array:
    inputs_BxL, targets_BxL = (ordered(batch["tokens"][:, part]) for part in (slice(-1), slice(1, None)))
    return cross_entropy(apply(config, variables, inputs_BxL), targets_BxL)


def objectives(apply: Apply, config: Any) -> tuple[Objective, ...]:
    """Mean next-token cross-entropy in nats."""

    def loss(variables: Variables, batch: Batch, key: Array, train: bool) -> tuple[Array, Aux]:
        del key, train
        return jnp.mean(_losses(apply, config, variables, batch)), Aux({}, {})

    return (Objective("next_token", (), loss),)


def evaluate(apply: Apply, config: Any, variables: Variables, batch: Batch) -> tuple[Array, Array]:
    """Summed cross-entropy in nats and the number of tokens."""
    losses_BxL = _losses(apply, config, variables, batch)
    return jnp.sum(losses_BxL), jnp.float32(losses_BxL.size)
