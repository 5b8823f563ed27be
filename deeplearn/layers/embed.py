"""The table that turns token ids into vectors."""

from flax import linen as nn
from flax.linen import initializers
from jax import Array, numpy as jnp

from deeplearn.layers.dense import product


class Embed(nn.Module):
    """Rows of embedding_VxD. tokens_BxL -> x_BxLxD; `attend` uses the same table as an output head."""

    vocab: int
    width: int

    def setup(self):
        init = nn.with_logical_partitioning(initializers.normal(self.width**-0.5), ("vocab", "embed"))
        self.embedding = self.param("embedding", init, (self.vocab, self.width))

    def __call__(self, tokens_BxL: Array) -> Array:
        table_VxD = nn.with_logical_constraint(self.embedding, ("as_cut", "embed_activation"))
        return jnp.take(table_VxD, tokens_BxL, axis=0) * self.width**0.5

    def attend(self, x_BxLxD: Array) -> Array:
        return product(x_BxLxD, self.embedding.T)
