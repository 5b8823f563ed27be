"""Residual network with pre-activation (batch norm, ReLU, convolution) that classifies images.

He et al. 2016 (arXiv 1603.05027); three stages of widths w, 2w, 4w as in Zagoruyko & Komodakis 2016 (arXiv 1605.07146).
"""

import dataclasses

import jax
from flax import linen as nn
from flax.linen import initializers
from jax import Array, numpy as jnp

from deeplearn.config import ConfigError
from deeplearn.families.family import Aux, Batch, Objective, Variables
from deeplearn.layers.convolution import Conv
from deeplearn.layers.dense import Dense
from deeplearn.layers.losses import cross_entropy

UNIT = "nats/image"
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclasses.dataclass(frozen=True)
class Config:
    """width: channels of the first stage. blocks: residual blocks in each of the three stages.

    label_smoothing: share of the target that is spread evenly over the classes (Szegedy et al. 2016), in training only.
    """

    image_size: int = 28
    channels: int = 1
    classes: int = 10
    width: int = 16
    blocks: int = 1
    label_smoothing: float = 0.0

    def __post_init__(self):
        for name in ("image_size", "channels", "classes", "width", "blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"model.label_smoothing is {self.label_smoothing}; it must be in [0, 1)")


def config(size: int) -> Config:
    """The dial is the width of the first stage; each stage has one block (ten layers, WRN-10).

    Parameters are 298 * width^2 + 79 * width + 10: 1.4 k at 2, 20 k at 8, 308 k at 32, 4.9 M at 128.
    """
    return Config(width=size)


def at_size(config: Config, size: int) -> Config:
    return dataclasses.replace(config, width=size)


def batch_norm(train: bool, name: str) -> nn.BatchNorm:
    """Batch normalisation (Ioffe & Szegedy 2015) with float32 statistics over the whole, also the sharded, batch.

    The running statistics, collection "batch_stats", move by a tenth of the way at each training step.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        scale_init=nn.with_logical_partitioning(initializers.ones_init(), ("norm",)),
        bias_init=nn.with_logical_partitioning(initializers.zeros_init(), ("norm",)),
        name=name,
    )


class Block(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))); where the shape changes, x is projected from the first activation."""

    features: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x_BxHxWxC: Array) -> Array:
        y = nn.relu(batch_norm(self.train, "norm_0")(x_BxHxWxC))
        same = self.stride == 1 and self.features == x_BxHxWxC.shape[-1]
        skip = x_BxHxWxC if same else Conv(self.features, 1, self.stride, name="skip")(y)
        y = Conv(self.features, 3, self.stride, name="conv_0")(y)
        y = nn.relu(batch_norm(self.train, "norm_1")(y))
        return skip + Conv(self.features, 3, name="conv_1")(y)


class ResNet(nn.Module):
    """image_BxHxWxC -> logits_BxN."""

    config: Config
    train: bool

    @nn.compact
    def __call__(self, image_BxHxWxC: Array) -> Array:
        c = self.config
        x = Conv(c.width, 3, name="stem")(image_BxHxWxC)
        for stage in range(3):
            for block in range(c.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Block(c.width * 2**stage, stride, self.train, name=f"stage_{stage}_block_{block}")(x)
        x = nn.relu(batch_norm(self.train, "final_norm")(x))
        x_BxC = jnp.mean(x, axis=(1, 2))
        logits_BxN = Dense(c.classes, ("conv_in", "classes"), name="head")(x_BxC)
        bias_N = self.param("bias", nn.with_logical_partitioning(initializers.zeros_init(), ("classes",)), (c.classes,))
        return logits_BxN + jnp.broadcast_to(bias_N, logits_BxN.shape)


def example(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """One labelled image with values in [-1, 1]."""
    shape = (config.image_size, config.image_size, config.channels)
    return {"image": jax.ShapeDtypeStruct(shape, jnp.float32), "label": jax.ShapeDtypeStruct((), jnp.int32)}


def tokens_per_example(config: Config) -> int:
    return 1


def init(config: Config, key: Array, batch: Batch) -> Variables:
    return ResNet(config, train=False).init(key, batch["image"])


def apply(config: Config, variables: Variables, image_BxHxWxC: Array) -> Array:
    """Class logits_BxN, with the running statistics."""
    return ResNet(config, train=False).apply(variables, image_BxHxWxC)


def objectives(config: Config) -> tuple[Objective, ...]:
    """Mean cross-entropy with the batch's own statistics when training; logs the share of errors."""

    def loss(variables: Variables, batch: Batch, key: Array, train: bool) -> tuple[Array, Aux]:
        del key
        mutable = ["batch_stats"] if train else []
        logits_BxN, state = ResNet(config, train).apply(variables, batch["image"], mutable=mutable)
        losses_B = (1 - config.label_smoothing) * cross_entropy(logits_BxN, batch["label"])
        if config.label_smoothing:
            losses_B -= config.label_smoothing * jnp.mean(nn.log_softmax(logits_BxN.astype(jnp.float32)), axis=-1)
        error = jnp.mean(jnp.argmax(logits_BxN, axis=-1) != batch["label"])
        return jnp.mean(losses_B), Aux({"error": error}, state)

    return (Objective("classify", (), loss),)


def evaluate(config: Config, variables: Variables, batch: Batch, key: Array) -> tuple[Array, Array]:
    """Summed cross-entropy in nats and the number of images."""
    del key
    losses_B = cross_entropy(apply(config, variables, batch["image"]), batch["label"])
    return jnp.sum(losses_B), jnp.float32(losses_B.size)
