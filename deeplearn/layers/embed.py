"""The table that turns token ids into vectors."""

from flax import linen as nn
from flax.linen import initializers
from jax import Array, numpy as jnp


class Embed(nn.Module):
    """Rows of embedding_VxD. tokens_BxL -> x_BxLxD; `attend` uses the same table as an output head."""

    vocab: int
    width: int

    def setup(self):
        init = nn.with_logical_partitioning(initializers.normal(self.width**-0.5), ("vocab", "embed"))
        self.embedding = self.param("embedding", init, (self.vocab, self.width))

    def __call__(self, tokens_BxL: Array) -> Array:
        return jnp.take(self.embedding, tokens_BxL, axis=0) * self.width**0.5

    def attend(self, x_BxLxD: Array) -> Array:
        x_TxD = x_BxLxD.reshape(-1, self.width)
        return jnp.dot(x_TxD, self.embedding.T).reshape(*x_BxLxD.shape[:-1], self.vocab)
