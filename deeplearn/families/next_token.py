"""What language models share: windows of text as examples, and the cross-entropy of the next token."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, numpy as jnp

from deeplearn.families.family import Aux, Batch, Objective, Variables
from deeplearn.layers.ring import ordered

# (config, variables, inputs_BxL, targets_BxL) -> summed cross-entropy in nats, what training adds to its mean, metrics
Total = Callable[[Any, Variables, Array, Array], tuple[Array, Array | float, dict[str, Array]]]


def example(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """One window of text: the model reads the first L tokens and predicts the last L."""
    return {"tokens": jax.ShapeDtypeStruct((config.seq_len + 1,), jnp.int32)}


def tokens_per_example(config: Any) -> int:
    return config.seq_len


def _inputs_and_targets(batch: Batch) -> tuple[Array, Array]:
    return ordered(batch["tokens"][:, :-1]), ordered(batch["tokens"][:, 1:])


def objectives(total: Total, config: Any) -> tuple[Objective, ...]:
    """Mean next-token cross-entropy in nats, and what the model adds to it."""

    def loss(variables: Variables, batch: Batch, key: Array, train: bool) -> tuple[Array, Aux]:
        del key, train
        inputs_BxL, targets_BxL = _inputs_and_targets(batch)
        summed, added, metrics = total(config, variables, inputs_BxL, targets_BxL)
        return summed / targets_BxL.size + added, Aux(metrics, {})

    return (Objective("next_token", (), loss),)


def evaluate(total: Total, config: Any, variables: Variables, batch: Batch) -> tuple[Array, Array]:
    """Summed cross-entropy in nats and the number of tokens."""
    inputs_BxL, targets_BxL = _inputs_and_targets(batch)
    return total(config, variables, inputs_BxL, targets_BxL)[0], jnp.float32(targets_BxL.size)
