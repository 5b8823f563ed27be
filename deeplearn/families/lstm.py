"""LSTM language model: embedding, a stack of LSTM layers, linear head.

Graves 2013 (arXiv 1308.0850), with the layer of Gers et al. 2000; see `layers/recurrent.py`.
"""

import dataclasses

import jax
from flax import linen as nn
from jax import Array, numpy as jnp

from deeplearn.config import ConfigError
from deeplearn.families import next_token
from deeplearn.families.family import Batch, Objective, Variables
from deeplearn.layers.dense import Dense
from deeplearn.layers.embed import Embed
from deeplearn.layers.losses import cross_entropy
from deeplearn.layers.recurrent import LSTM, Carry

UNIT = "nats/token"
SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclasses.dataclass(frozen=True)
class Config:
    vocab: int = 256
    seq_len: int = 128
    width: int = 64
    depth: int = 2

    def __post_init__(self):
        for name in ("vocab", "seq_len", "width", "depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1")


def config(size: int) -> Config:
    """The dial is the width; there are always two layers.

    Two layers do better than one on bytes and a third adds little (Karpathy et al. 2015, arXiv 1506.02078), so depth
    stays fixed and the ladder is smooth. Parameters without the embedding are 16 * width^2 + 264 * width: 8 k at 16,
    82 k at 64, 1.1 M at 256, 17 M at 1024.
    """
    return Config(width=size)


def at_size(config: Config, size: int) -> Config:
    return dataclasses.replace(config, width=size)


class LanguageModel(nn.Module):
    """tokens_BxL -> logits_BxLxV and the layers' carries; logits at position t see tokens up to and including t."""

    config: Config

    @nn.compact
    def __call__(self, tokens_BxL: Array, carries: tuple[Carry, ...] | None = None) -> tuple[Array, tuple[Carry, ...]]:
        c = self.config
        x_BxLxD = Embed(c.vocab, c.width, name="embed")(tokens_BxL)
        new_carries = []
        for i in range(c.depth):
            x_BxLxD, carry = LSTM(c.width, name=f"layer_{i}")(x_BxLxD, carries and carries[i])
            x_BxLxD = nn.with_logical_constraint(x_BxLxD, ("batch", "length", "embed_activation"))
            new_carries.append(carry)
        return Dense(c.vocab, ("embed", "vocab"), name="head")(x_BxLxD), tuple(new_carries)


example = next_token.example
tokens_per_example = next_token.tokens_per_example


def init(config: Config, key: Array, batch: Batch) -> Variables:
    return LanguageModel(config).init(key, batch["tokens"][:, :-1])


def apply(config: Config, variables: Variables, tokens_BxL: Array) -> Array:
    """Next-token logits_BxLxV."""
    return LanguageModel(config).apply(variables, tokens_BxL)[0]


def _total(
    config: Config, variables: Variables, inputs_BxL: Array, targets_BxL: Array
) -> tuple[Array, float, dict[str, Array]]:
    return jnp.sum(cross_entropy(apply(config, variables, inputs_BxL), targets_BxL)), 0.0, {}


def objectives(config: Config) -> tuple[Objective, ...]:
    return next_token.objectives(_total, config)


def evaluate(config: Config, variables: Variables, batch: Batch, key: Array) -> tuple[Array, Array]:
    del key
    return next_token.evaluate(_total, config, variables, batch)


def sample(
    config: Config, variables: Variables, key: Array, prompt_BxL: Array, length: int, temperature: float = 1.0
) -> Array:
    """Continue each prompt by `length` tokens. Returns tokens_BxM, prompt included."""
    model = LanguageModel(config)
    logits_BxLxV, carries = model.apply(variables, prompt_BxL)

    def step(state, i):
        logits_BxV, carries = state
        token_B = jax.random.categorical(jax.random.fold_in(key, i), logits_BxV / temperature).astype(prompt_BxL.dtype)
        logits_Bx1xV, carries = model.apply(variables, token_B[:, None], carries)
        return (logits_Bx1xV[:, 0], carries), token_B

    _, tokens_MxB = jax.lax.scan(step, (logits_BxLxV[:, -1], carries), jnp.arange(length))
    return jnp.concatenate([prompt_BxL, tokens_MxB.T], axis=1)
