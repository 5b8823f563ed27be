"""The position-wise feed-forward layer."""

from flax import linen as nn
from jax import Array

from deeplearn.layers.dense import Dense

KINDS = ("gelu", "swiglu")


class MLP(nn.Module):
    """Two matrices around a GELU, or three around a gated SiLU (SwiGLU, Shazeer 2020, arXiv 2002.05202).

    x_BxLxD -> y_BxLxD. out_scale: factor on the output matrix at initialisation.
    """

    width: int
    kind: str = "gelu"
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x_BxLxD: Array) -> Array:
        hidden_BxLxF = Dense(self.width, ("embed", "mlp"), name="up")(x_BxLxD)
        if self.kind == "swiglu":
            hidden_BxLxF = nn.silu(Dense(self.width, ("embed", "mlp"), name="gate")(x_BxLxD)) * hidden_BxLxF
        else:
            hidden_BxLxF = nn.gelu(hidden_BxLxF)
        return Dense(x_BxLxD.shape[-1], ("mlp", "embed"), self.out_scale, name="down")(hidden_BxLxF)
