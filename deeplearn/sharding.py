"""The mesh and the rules from logical to mesh axes: the only file that names mesh axes.

Families give every parameter axis a logical name. A rule spreads a logical axis over mesh axes; an axis whose
size they do not divide stays whole, and no mesh axis is used twice in one array.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplearn.config import ConfigError, nearest

# data: a copy of the parameters in each place. fsdp: the batch and the parameters are both spread (ZeRO-3, Rajbhandari
# et al. 2019, arXiv 1910.02054). tensor: heads, MLP columns and the vocabulary are spread, the batch is not (Shoeybi et
# al. 2019, arXiv 1909.08053). expert: experts are spread, and the batch. context: the sequence is spread, and attention
# goes round a ring (`layers/ring.py`). pipeline: layers are spread in stages, which take turns at pieces of the batch
# (`layers/pipeline.py`); the batch is spread where there are no layers.
AXES = ("data", "fsdp", "tensor", "expert", "context", "pipeline")
BATCH = ("data", "fsdp", "expert", "pipeline")  # the axes that the batch is spread over, slowest first

# Logical axis of a parameter -> mesh axis, most wanted first: a logical axis goes to the first mesh axis that is here,
# divides it and is not taken.
RULES: tuple[tuple[str, str], ...] = (
    ("layers", "pipeline"),
    ("experts", "expert"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("conv_out", "tensor"),
    ("latent", "tensor"),
    ("embed", "fsdp"),
    ("conv_out", "fsdp"),
    ("mlp", "fsdp"),
    ("latent", "fsdp"),
    ("conv_in", "fsdp"),
)

# Logical axis of an activation -> mesh axis.
ACTIVATIONS = {"experts": "expert", "vocab": "tensor", "length": "context", "stages": "pipeline"}


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


def make_mesh(flag: str = "", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `--mesh` names, of the first of the devices; "" spreads data over all of them.

    devices: those of this machine if left out. Raises ConfigError if there are too few.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parse(flag) or {"data": len(devices)}
    count = math.prod(sizes.values())
    if count > len(devices):
        raise ConfigError(f"mesh {flag!r} needs {count} devices and {len(devices)} are here")
    grid = np.asarray(devices[:count]).reshape(tuple(sizes.values()))
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def one_device() -> Mesh:
    """The mesh of a single device."""
    return make_mesh("data:1")


def spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where each axis of an array with these logical names and this shape goes."""
    places: list[str | None] = [None] * len(names)
    for logical, axis in RULES:
        if logical not in names or axis not in mesh.shape or axis in places:
            continue
        i = names.index(logical)
        if places[i] is None and shape[i] % mesh.shape[axis] == 0:
            places[i] = axis
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


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of this mesh that the batch is spread over."""
    return tuple(axis for axis in BATCH if axis in mesh.shape)


def batch_places(mesh: Mesh) -> int:
    """Into how many parts this mesh cuts a batch."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def sequence_places(mesh: Mesh) -> int:
    """Into how many parts this mesh cuts a sequence."""
    return mesh.shape.get(ACTIVATIONS["length"], 1)


def check(boxed: Any, mesh: Mesh) -> None:
    """Raise ConfigError for a mesh axis that is there to cut parameters and cuts none.

    boxed: a tree of shapes, boxed with logical names.
    """
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_boxed)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves if _is_boxed(x)]
    for axis, size in mesh.shape.items():
        wanting = {logical for logical, wanted in RULES if wanted == axis}
        if size == 1 or not wanting or any(axis in spec(x.names, x.value.shape, mesh) for _, x in named):
            continue
        near = [f"{path} {x.names} of {x.value.shape}" for path, x in named if wanting & set(x.names)]
        why = f"for example of {near[0]}" if near else f"and no parameter has an axis {' or '.join(sorted(wanting))}"
        raise ConfigError(f"mesh {dict(mesh.shape)}: axis {axis!r} of size {size} divides no dimension, {why}")


def of_batch(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of arrays [..., B, ...] whose batch axis comes after `leading` others."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, batch_axes(mesh)))


def rules(mesh: Mesh) -> list[tuple[str, Any]]:
    """Where the named axes of activations go on this mesh, as flax's logical constraints want it.

    "as_cut" is an axis of a parameter that is used as it is cut; the parameter's other axes are gathered.
    "expert_batch" is the batch of what has come to the experts.
    """
    here = {"batch": batch_axes(mesh), "expert_batch": tuple(a for a in batch_axes(mesh) if a != "expert")} | {
        logical: axis if axis in mesh.shape else None for logical, axis in ACTIVATIONS.items()
    }
    return [*here.items(), ("as_cut", PartitionSpec.UNCONSTRAINED)]
