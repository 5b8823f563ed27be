"""The mesh and the rules from logical to mesh axes: the only file that names mesh axes.

Families give every parameter axis a logical name. A rule spreads a logical axis over mesh axes; an axis whose
size they do not divide stays whole, and no mesh axis is used twice in one array.
"""

import math
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplearn.config import ConfigError, nearest

# data: a copy of the parameters in each place. fsdp: the batch and the parameters are both spread (ZeRO-3).
AXES = ("data", "fsdp")

# Logical axis -> mesh axes, most wanted first: of two logical axes that want one mesh axis, the first listed gets it.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("batch", ("data", "fsdp")),
    ("embed", ("fsdp",)),
    ("conv_out", ("fsdp",)),
    ("mlp", ("fsdp",)),
    ("latent", ("fsdp",)),
)


def parse(flag: str) -> dict[str, int]:
    """`"data:4,fsdp:2"` -> {"data": 4, "fsdp": 2}; "" -> {}. Raises ConfigError."""
    sizes: dict[str, int] = {}
    for part in filter(None, flag.split(",")):
        name, _, size = part.partition(":")
        if name not in AXES:
            raise ConfigError(f"mesh {flag!r} names an unknown axis {name!r}{nearest(name, AXES)}")
        if name in sizes:
            raise ConfigError(f"mesh {flag!r} names axis {name!r} twice")
        if not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"mesh {flag!r} gives axis {name!r} the size {size!r}; write for example data:4,fsdp:2")
        sizes[name] = int(size)
    return sizes


def make_mesh(flag: str = "") -> Mesh:
    """The mesh that `--mesh` names; "" spreads data over all devices. Raises ConfigError if there are too few."""
    sizes = parse(flag) or {"data": len(jax.devices())}
    count = math.prod(sizes.values())
    if count > len(jax.devices()):
        raise ConfigError(f"mesh {flag!r} needs {count} devices and {len(jax.devices())} are here")
    devices = np.asarray(jax.devices()[:count]).reshape(tuple(sizes.values()))
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def one_device() -> Mesh:
    """The mesh of a single device."""
    return make_mesh("data:1")


def spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where each axis of an array with these logical names and this shape goes."""
    places: list[tuple[str, ...] | None] = [None] * len(names)
    used: set[str] = set()
    for logical, wanted in RULES:
        axes = tuple(a for a in wanted if a in mesh.shape and a not in used)
        if logical not in names or not axes:
            continue
        i = names.index(logical)
        if shape[i] % math.prod(mesh.shape[a] for a in axes) == 0:
            places[i] = axes
            used.update(axes)
    return PartitionSpec(*places)


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def unbox(tree: Any) -> Any:
    """The tree without its logical names (flax's own unbox also constrains, which needs a traced array)."""
    return jax.tree.map(lambda leaf: leaf.value if _is_boxed(leaf) else leaf, tree, is_leaf=_is_boxed)


def of_state(abstract: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of shapes, boxed with logical names or not; the tree comes back unboxed."""

    def place(leaf):
        names, shape = (leaf.names, leaf.value.shape) if _is_boxed(leaf) else ((), ())
        return NamedSharding(mesh, spec(names, shape, mesh))

    return jax.tree.map(place, abstract, is_leaf=_is_boxed)


def of_batch(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of arrays [..., B, ...] whose batch axis comes after `leading` others."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, tuple(mesh.shape)))


def rules(mesh: Mesh) -> list[tuple[str, tuple[str, ...]]]:
    """The rule for activations on this mesh, as flax's logical constraints want it: the batch goes over every axis."""
    return [("batch", tuple(mesh.shape))]
