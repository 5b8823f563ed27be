"""Variables and random batches of a family, made without implicit transfers."""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

BATCH = 4


class Setup(NamedTuple):
    family: ModuleType
    config: Any
    variables: dict[str, Any]
    batch: dict[str, jax.Array]
    key: jax.Array


def make_key(seed: int) -> jax.Array:
    return jax.random.key(jax.device_put(np.uint32(seed)))


def make_batch(family: ModuleType, config: Any, size: int = BATCH, seed: int = 0) -> dict[str, jax.Array]:
    """Random integers below the number of classes (256 for tokens) and normal floats, in the shapes of `example`."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, leaf in family.example(config).items():
        shape = (size, *leaf.shape)
        if np.issubdtype(leaf.dtype, np.integer):
            below = 256 if name == "tokens" else config.classes
            batch[name] = rng.integers(0, below, shape).astype(leaf.dtype)
        else:
            batch[name] = rng.normal(size=shape).astype(leaf.dtype)
    return jax.device_put(batch)


@functools.cache
def compiled_init(family: ModuleType, config: Any) -> Any:
    """(key, batch) -> variables without their boxes."""
    return jax.jit(lambda key, batch: nn.meta.unbox(family.init(config, key, batch)))


def make_setup(family: ModuleType, config: Any) -> Setup:
    batch, key = make_batch(family, config), make_key(0)
    return Setup(family, config, compiled_init(family, config)(key, batch), batch, key)
