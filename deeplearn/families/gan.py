"""Generative adversarial network for small images: two networks, two objectives, one step.

The networks are DCGAN's (Radford et al. 2016, arXiv 1511.06434): strided convolutions down, transposed ones up. The
loss is non-saturating (Goodfellow et al. 2014) with the R1 penalty on real images (Mescheder et al. 2018, arXiv
1801.04406), which needs no batch statistics: the generator's norm is PixelNorm (Karras et al. 2018, arXiv 1710.10196).
"""

import dataclasses

import jax
from flax import linen as nn
from jax import Array, numpy as jnp

from deeplearn.config import ConfigError
from deeplearn.families.family import Aux, Batch, Objective, Variables
from deeplearn.layers.convolution import Conv, ConvTranspose
from deeplearn.layers.dense import Dense
from deeplearn.layers.kernel_distance import features, kernel_distance

UNIT = "squared kernel distance"
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclasses.dataclass(frozen=True)
class Config:
    """width: channels at half the images' resolution; twice as many at a quarter. latent: width of the noise.

    r1: weight gamma of the penalty gamma / 2 * |gradient of the discriminator at a real image|^2.
    """

    image_size: int = 28
    channels: int = 1
    latent: int = 64
    width: int = 16
    r1: float = 1.0

    def __post_init__(self):
        for name in ("channels", "latent", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.image_size < 4 or self.image_size % 4:
            raise ConfigError(f"model.image_size is {self.image_size}; it must be a multiple of 4")
        if self.r1 < 0:
            raise ConfigError(f"model.r1 is {self.r1}; it must not be negative")


def config(size: int) -> Config:
    """The dial is the width of both networks.

    Parameters of both together are 64 * width^2 + 6405 * width + 1: 13 k at 2, 55 k at 8, 270 k at 32, 1.9 M at 128.
    """
    return Config(width=size)


def at_size(config: Config, size: int) -> Config:
    return dataclasses.replace(config, width=size)


def pixel_norm(x_BxHxWxC: Array) -> Array:
    """Each pixel's channels divided by their root mean square. Statistics are float32."""
    x = x_BxHxWxC.astype(jnp.float32)
    return (x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)).astype(x_BxHxWxC.dtype)


class Generator(nn.Module):
    """latent_BxZ -> image_BxHxWxC in [-1, 1]."""

    config: Config

    @nn.compact
    def __call__(self, latent_BxZ: Array) -> Array:
        c = self.config
        side = c.image_size // 4
        x = Dense(side * side * 2 * c.width, ("latent", "conv_out"), name="project")(latent_BxZ)
        x = nn.relu(pixel_norm(x.reshape(-1, side, side, 2 * c.width)))
        x = nn.relu(pixel_norm(ConvTranspose(c.width, 4, 2, name="up_0")(x)))
        return jnp.tanh(ConvTranspose(c.channels, 4, 2, bias=True, name="up_1")(x))


class Discriminator(nn.Module):
    """image_BxHxWxC -> logit_B, positive for "real"."""

    config: Config

    @nn.compact
    def __call__(self, image_BxHxWxC: Array) -> Array:
        c = self.config
        x = nn.leaky_relu(Conv(c.width, 4, 2, bias=True, name="down_0")(image_BxHxWxC), 0.2)
        x = nn.leaky_relu(Conv(2 * c.width, 4, 2, bias=True, name="down_1")(x), 0.2)
        x_BxF = x.reshape(x.shape[0], -1)
        return Dense(1, ("conv_in", "classes"), name="logit")(x_BxF)[:, 0]


def example(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """One image with values in [-1, 1]."""
    shape = (config.image_size, config.image_size, config.channels)
    return {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}


def tokens_per_example(config: Config) -> int:
    return 1


def init(config: Config, key: Array, batch: Batch) -> Variables:
    key_g, key_d = jax.random.split(key)
    generator = Generator(config).init(key_g, jnp.zeros((1, config.latent)))["params"]
    discriminator = Discriminator(config).init(key_d, batch["image"])["params"]
    return {"params": {"generator": generator, "discriminator": discriminator}}


def sample(config: Config, variables: Variables, key: Array, n: int) -> Array:
    """n generated images_NxHxWxC in [-1, 1]."""
    params = variables["params"]["generator"]
    dtype = params["project"]["kernel"].dtype
    return Generator(config).apply({"params": params}, jax.random.normal(key, (n, config.latent), dtype))


def _logits(config: Config, variables: Variables, image_BxHxWxC: Array) -> Array:
    params = variables["params"]["discriminator"]
    return Discriminator(config).apply({"params": params}, image_BxHxWxC).astype(jnp.float32)


def objectives(config: Config) -> tuple[Objective, ...]:
    """First the discriminator tells real from generated, then the generator deceives the updated discriminator."""

    def discriminate(variables: Variables, batch: Batch, key: Array, train: bool) -> tuple[Array, Aux]:
        del train
        real = batch["image"]
        real_B, pull_back = jax.vjp(lambda image: _logits(config, variables, image), real)
        (slope,) = pull_back(jnp.ones_like(real_B))
        r1 = jnp.mean(jnp.sum(jnp.square(slope.astype(jnp.float32)), axis=(1, 2, 3)))
        fake_B = _logits(config, variables, sample(config, variables, key, real.shape[0]))
        loss = jnp.mean(nn.softplus(-real_B)) + jnp.mean(nn.softplus(fake_B)) + 0.5 * config.r1 * r1
        metrics = {"real_logit": jnp.mean(real_B), "fake_logit": jnp.mean(fake_B), "r1": r1}
        return loss, Aux(metrics, {})

    def generate(variables: Variables, batch: Batch, key: Array, train: bool) -> tuple[Array, Aux]:
        del train
        fake_B = _logits(config, variables, sample(config, variables, key, batch["image"].shape[0]))
        return jnp.mean(nn.softplus(-fake_B)), Aux({}, {})

    return (
        Objective("discriminator", ("discriminator",), discriminate),
        Objective("generator", ("generator",), generate),
    )


def evaluate(config: Config, variables: Variables, batch: Batch, key: Array) -> tuple[Array, Array]:
    """Unbiased squared kernel distance between the batch and as many generated images, times the number of images.

    The mean over batches is unbiased whatever their size; its noise falls with larger batches faster than with more.
    """
    real = batch["image"]
    fake = sample(config, variables, key, real.shape[0])
    weight = jnp.float32(real.shape[0])
    return weight * kernel_distance(features(real), features(fake)), weight
