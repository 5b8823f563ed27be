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
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplearn.config import ConfigError, nearest

# slice: a copy of the parameters in each slice of a machine, outside all other axes, so that only sums of gradients
# cross the slow network. data: a copy of the parameters in each place. fsdp: the batch and the parameters are both
# spread (ZeRO-3, Rajbhandari et al. 2019, arXiv 1910.02054). tensor: heads, MLP columns and the vocabulary are spread,
# the batch is not (Shoeybi et al. 2019, arXiv 1909.08053). expert: experts are spread, and the batch. context: the
# sequence is spread, and attention goes round a ring (`layers/ring.py`). pipeline: layers are spread in stages, which
# take turns at pieces of the batch (`layers/pipeline.py`); the batch is spread where there are no layers.
AXES = ("slice", "data", "fsdp", "tensor", "expert", "context", "pipeline")
# Runs that train together are spread, of which each lies on the rest of the mesh (`train/cohort.py`).
MEMBERS = "cohort"
BATCH = ("slice", "data", "fsdp", "expert", "pipeline")  # the axes that the batch is spread over, slowest first
REPLICAS = ("slice", "data")  # the axes along which parameters are copied: only sums of gradients go along them

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
ACTIVATIONS = {
    "experts": "expert",
    "vocab": "tensor",
    "attention_heads": "tensor",
    "length": "context",
    "stages": "pipeline",
}


def parse(flag: str) -> dict[str, int]:
    """`"data:4,fsdp:2"` -> {"data": 4, "fsdp": 2}; "" -> {}. Raises ConfigError."""
    sizes: dict[str, int] = {}
    for part in filter(None, flag.split(",")):
        name, _, size = part.partition(":")
        if name not in (*AXES, MEMBERS):
            raise ConfigError(f"mesh {flag!r} names an unknown axis {name!r}{nearest(name, (*AXES, MEMBERS))}")
        if name in sizes:
            raise ConfigError(f"mesh {flag!r} names axis {name!r} twice")
        if not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"mesh {flag!r} gives axis {name!r} the size {size!r}; write for example data:4,fsdp:2")
        sizes[name] = int(size)
    if "slice" in sizes and next(iter(sizes)) != "slice":
        raise ConfigError(f"mesh {flag!r} must name axis 'slice' first: the other axes lie inside a slice")
    return sizes


def make_mesh(flag: str = "", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `--mesh` names, of the first of the devices; "" spreads data over all of them.

    On TPUs "slice" must be the number of slices, and each other axis lies along dimensions of the torus: those written
    last get the most of them. Elsewhere devices are laid out in their own order, the last axis fastest.

    devices: those of all processes if left out. Raises ConfigError if there are too few, or for slices that are not.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = parse(flag) or _all_data(devices)
    count = math.prod(sizes.values())
    if count > len(devices):
        raise ConfigError(f"mesh {flag!r} needs {count} devices and {len(devices)} are here")
    grid = np.asarray(devices[:count]).reshape(tuple(sizes.values()))
    if count == len(devices) and devices[0].platform == "tpu":
        grid = _on_torus(sizes, devices)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _slices(devices: list[jax.Device]) -> int:
    """How many slices the devices are in. Other machines than TPUs are wired too differently to say."""
    return len({getattr(d, "slice_index", 0) for d in devices}) if devices[0].platform == "tpu" else 1


def _all_data(devices: list[jax.Device]) -> dict[str, int]:
    slices = _slices(devices)
    return ({"slice": slices} if slices > 1 else {}) | {"data": len(devices) // slices}


def _on_torus(sizes: dict[str, int], devices: list[jax.Device]) -> np.ndarray:
    """TPUs [*sizes]: the axis of slices crosses them, and every other axis stays inside one."""
    slices, named = _slices(devices), sizes.get("slice", 1)
    if named != slices:
        inside = len(devices) // slices
        right = f"slice:{slices},fsdp:{inside}" if slices > 1 else f"fsdp:{inside}"
        what = f"mesh {sizes}: axis 'slice' is {named}, and the number of slices {slices}"
        raise ConfigError(f"{what}; write for example {right}")
    inner = tuple(1 if name == "slice" else size for name, size in sizes.items())
    if slices == 1:
        return mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    outer = tuple(size if name == "slice" else 1 for name, size in sizes.items())
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def single_axis(devices: int, slices: int = 1) -> list[str]:
    """The meshes that spread each slice of a machine over one axis, as flags."""
    outer = f"slice:{slices}," if slices > 1 else ""
    return [f"{outer}{axis}:{devices // slices}" for axis in AXES if axis != "slice"]


def check_all_used(mesh: Mesh) -> None:
    """Raise ConfigError for a mesh that leaves devices over; one device alone is no mistake, but in many processes."""
    here = jax.device_count()
    if mesh.size == here or mesh.size == jax.process_count() == 1:
        return
    sizes = dict(mesh.shape)
    first = next(iter(sizes))
    grown = sizes | {first: sizes[first] * here // mesh.size} if here % mesh.size == 0 else {"data": here}
    right = ",".join(f"{name}:{size}" for name, size in grown.items())
    raise ConfigError(f"mesh {sizes} has {mesh.size} places and {here} devices are here; write for example {right}")


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


def rows_here(mesh: Mesh, size: int) -> np.ndarray:
    """The places in a batch of `size` of those examples that the devices of this process hold, in order."""
    parts = of_batch(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[part] for part in parts]))


def members_axis(mesh: Mesh) -> str | None:
    """The mesh axis that the members of a cohort are spread over, if there is one."""
    return MEMBERS if MEMBERS in mesh.shape else None


def mesh_of_members(flag: str, members: int) -> Mesh:
    """The mesh of a cohort: the one that is named, or else one with a share of the members on each device."""
    spread = flag == "" and members % jax.local_device_count() == 0
    return make_mesh(f"{MEMBERS}:{jax.local_device_count()}" if spread else flag)


def of_members(one: NamedSharding) -> NamedSharding:
    """Sharding of arrays [members, ...] whose rows are spread like this."""
    return NamedSharding(one.mesh, PartitionSpec(members_axis(one.mesh), *one.spec))


def one_each(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays [mesh.size, ...] of which every device holds one row."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def sequence_places(mesh: Mesh) -> int:
    """Into how many parts this mesh cuts a sequence."""
    return mesh.shape.get(ACTIVATIONS["length"], 1)


def check(boxed: Any, mesh: Mesh) -> None:
    """Raise ConfigError for a mesh axis that is there to cut parameters and cuts none, or would cut one of them twice.

    boxed: a tree of shapes, boxed with logical names.
    """
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_boxed)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves if _is_boxed(x)]
    for path, x in named:
        twice = {name for name in x.names if name is not None and x.names.count(name) > 1}
        for logical, axis in RULES:
            if logical in twice and mesh.shape.get(axis, 1) > 1:
                what = f"{path} {x.names} of {x.value.shape} has two axes {logical!r}"
                raise ConfigError(f"mesh {dict(mesh.shape)}: {what}, and axis {axis!r} can cut only one of them")
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
