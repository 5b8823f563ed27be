"""The devices of a machine that is not here: those that the TPU compiler describes, or as many emulated ones."""

import dataclasses
import importlib.util
import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deeplearn.config import ConfigError
from deeplearn.preflight.chips import Chip, Table


@dataclasses.dataclass(frozen=True)
class Topology:
    """chip: what it is made of. sizes: chips along each dimension of a slice, or in all. slices: how many such."""

    chip: Chip
    sizes: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return math.prod(self.sizes) * self.slices


@dataclasses.dataclass(frozen=True)
class Machine:
    """devices: as JAX lists them. places: [n, 1 + dimensions], the slice (or switch) of each and its place there.

    bound: "" if the devices are compiled for by their own compiler, else why what they tell is only a bound.
    """

    topology: Topology
    devices: list[Any]
    places: np.ndarray
    bound: str

    @property
    def room(self) -> int:
        """Bytes of one device's memory."""
        return int(self.topology.chip.hbm * self.topology.chips / len(self.devices))


def parse(flag: str, slices: int, table: Table) -> Topology:
    """`"v5p:4x4x4"` or `"h100:16"` with chips of the table. Raises ConfigError."""
    name, _, shape = flag.partition(":")
    chip = table.chip(name)
    sizes = shape.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        example = f"{name}:{'x'.join(['4'] * chip.dimensions) or 8}"
        raise ConfigError(f"topology {flag!r} gives chip {name!r} the shape {shape!r}; write for example {example}")
    if len(sizes) > max(1, chip.dimensions):
        kind = f"a torus of {chip.dimensions} dimensions" if chip.dimensions else "no torus: give a number of chips"
        raise ConfigError(f"topology {flag!r} has {len(sizes)} dimensions, and {chip.title} stands in {kind}")
    if slices < 1:
        raise ConfigError(f"slices must be at least 1, not {slices}")
    return Topology(chip, tuple(int(size) for size in sizes), slices)


def machine(topology: Topology) -> Machine:
    """The topology's devices. Raises ConfigError for a shape that the compiler does not know, or too few devices."""
    chip = topology.chip
    if not chip.dimensions:
        return _emulated(
            topology, "" if chip.name == "cpu" else f"emulated, as {chip.title} compiles only where one is"
        )
    if importlib.util.find_spec("libtpu") is None:
        return _emulated(topology, "emulated, as libtpu is not installed (pip install 'deeplearn[preflight]')")
    devices = _tpu(topology)
    places = np.array([(getattr(d, "slice_index", 0) or 0, *d.coords[: chip.dimensions]) for d in devices])
    return Machine(topology, devices, places, "")


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Stands for a device that is neither here nor described."""

    platform: str = "none"


def described(topology: Topology) -> Machine:
    """The topology's devices, for what needs no compiler: of any number. Raises as `machine`."""
    if topology.chip.dimensions and importlib.util.find_spec("libtpu") is not None:
        return machine(topology)
    return Machine(topology, [Place() for _ in range(topology.chips)], _standing(topology), "not compiled")


def group(machine: Machine, mesh: Mesh, axes: tuple[str, ...]) -> np.ndarray:
    """[members, 1 + dimensions]: the places of the first device and of those that differ from it along these axes."""
    at = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    return _places(machine, mesh)[at].reshape(-1, machine.places.shape[1])


def crossing(machine: Machine, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which devices lie in different slices, or behind different switches."""
    slices = _places(machine, mesh)[..., 0]
    return tuple(name for i, name in enumerate(mesh.axis_names) if np.diff(slices, axis=i).any())


def _places(machine: Machine, mesh: Mesh) -> np.ndarray:
    """[*mesh, 1 + dimensions]: where the devices of a mesh stand."""
    order = {id(device): i for i, device in enumerate(machine.devices)}
    return machine.places[[order[id(device)] for device in mesh.devices.flat]].reshape(*mesh.devices.shape, -1)


def _tpu(topology: Topology) -> list[Any]:
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud's metadata server what hardware this is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs, so several compilers may work side by side
    for name, value in {"TPU_ACCELERATOR_TYPE": "v5p-8", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
        os.environ.setdefault(name, value)  # of no effect on what is compiled for; without them it complains
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.sizes))}"
    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"the TPU compiler does not know the topology {name!r}: {str(error).splitlines()[0]}"
        ) from None


def _emulated(topology: Topology, bound: str) -> Machine:
    """As many CPU devices."""
    devices = jax.devices("cpu")[: topology.chips]
    if len(devices) < topology.chips:
        raise ConfigError(f"{topology.chips} emulated devices are needed and {len(devices)} are here")
    return Machine(topology, devices, _standing(topology), bound)


def _standing(topology: Topology) -> np.ndarray:
    """Places on a torus in C order, else in domains of one switch."""
    if not topology.chip.dimensions:
        return np.stack(np.divmod(np.arange(topology.chips), int(topology.chip.domain or topology.chips)), axis=1)
    padded = (*topology.sizes, *[1] * (topology.chip.dimensions - len(topology.sizes)))
    return np.stack(np.unravel_index(np.arange(topology.chips), (topology.slices, *padded)), axis=1)


def emulate(count: int) -> None:
    """Make sure that JAX has `count` CPU devices; call it before anything asks JAX for its devices."""
    jax.config.update("jax_num_cpu_devices", count)
