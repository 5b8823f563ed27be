"""What the rules in force (`sharding.rules`) say of where activations lie; without rules, all in one place."""

import contextlib
import math
from collections.abc import Iterator

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


@contextlib.contextmanager
def within(logical: str) -> Iterator[None]:
    """The rules inside one place of a logical axis: nothing is spread over its mesh axes there."""
    taken = mesh_axes(logical)

    def left(axes):
        named = (axes,) if isinstance(axes, str) else axes
        return tuple(axis for axis in named if axis not in taken) if isinstance(named, tuple) else axes

    with nn.logical_axis_rules([(name, left(axes)) for name, axes in nn.get_logical_axis_rules()]):
        yield


def platform() -> str:
    """That of the mesh in force: "cpu", "gpu", "tpu"; "" without a mesh."""
    return getattr(jax.sharding.get_abstract_mesh().abstract_device, "platform", "")
