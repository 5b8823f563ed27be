"""What the rules in force (`sharding.rules`) say of where activations lie; without rules, all in one place."""

import math

import jax
from flax import linen as nn


def mesh_axes(logical: str) -> tuple[str, ...]:
    """The mesh axes that a logical axis is spread over."""
    axes = nn.logical_to_mesh_axes((logical,))[0] or ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def places(logical: str) -> int:
    """Over how many devices a logical axis is spread."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in mesh_axes(logical))
