"""One preflight: a run, a machine and a budget of tokens in; whether it fits, what bounds it and what it costs out."""

import dataclasses
from typing import Any, NamedTuple

from jax.sharding import Mesh

from deeplearn import sharding
from deeplearn.config import ConfigError, to_dict
from deeplearn.families import counting, get as get_family
from deeplearn.preflight import fits, hlo, topology as topologies, traffic
from deeplearn.preflight.bill import Bill, bill
from deeplearn.preflight.chips import Grid
from deeplearn.preflight.collectives import by_kind_and_axes, collectives
from deeplearn.preflight.compiled import Compiled, compile_step
from deeplearn.preflight.roofline import Flops, Roofline, flops, roofline
from deeplearn.preflight.topology import Machine
from deeplearn.train.run import Run


class Fix(NamedTuple):
    """overrides: what makes the run fit. bytes: on one device then; compiled: whether the compiler said so."""

    overrides: dict[str, str]
    bytes: int
    compiled: bool


class Flight(NamedTuple):
    """compiled: with the text of the program. collectives: as `by_kind_and_axes` gives. moved: bytes of main memory by
    one device a step. fix: None if it fits, or if nothing was found. notes: what is a bound or not known."""

    run: Run
    machine: Machine
    mesh: dict[str, int]
    parameters: counting.Parameters
    compiled: Compiled
    room: int
    flops: Flops
    moved: float
    collectives: dict[tuple[str, tuple[str, ...]], dict[str, float]]
    roofline: Roofline | None
    bill: Bill | None
    fix: Fix | None
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.compiled.refused and self.compiled.memory.total <= self.room


def preflight(
    run: Run, machine: Machine, grid: Grid, tokens: float, efficiency: float = 1.0, mend: bool = True
) -> Flight:
    """Compile one step of `run` on its own mesh over the machine's devices, and say what follows from the program.

    tokens: what the bill is for. efficiency: share of the peak FLOP/s that matrix products reach. mend: look for the
    nearest change that would make it fit, if it does not.
    Raises ConfigError for a mesh that leaves devices over, or a batch that does not divide over it.
    """
    mesh = _whole(run, machine)
    compiled = compile_step(run, mesh)
    room = machine.room
    work, parameters = flops(run, mesh), counting.parameters(get_family(run.family), run.model)
    notes = [f"a bound, not the chip's own program: {machine.bound}"] if machine.bound else []
    notes += [compiled.refused] if compiled.refused else []
    notes += [
        f"axis {axis!r} of size {mesh.shape[axis]} crosses the network between slices: only gradients should, so write "
        f"an axis of copies ({' or '.join(sharding.REPLICAS)}) first, of as many places as there are slices"
        for axis in topologies.crossing(machine, mesh)
        if axis not in sharding.REPLICAS
    ]
    found, moved, line, costs = {}, 0.0, None, None
    if compiled.text:
        program = hlo.parse(compiled.text)
        each = collectives(program, mesh.shape)
        found, moved = by_kind_and_axes(each), traffic.main_memory_bytes(program)
        line = roofline(work, moved, each, machine, mesh, efficiency)
        costs = bill(tokens, run.tokens_per_step, line.step, machine.topology, grid)
        notes += [f"the turns of loop {name} are not known; counted once" for name in program.unknown]
        notes += [
            f"the table has no bandwidth of {link.over}: no time given" for link in line.links if not link.bandwidth
        ]
        notes += costs.missing
    if work.how != "counted from the traced step":
        notes.append(f"FLOPs are {work.how}")
    here = Flight(
        run, machine, dict(mesh.shape), parameters, compiled, room, work, moved, found, line, costs, None, tuple(notes)
    )
    return here if here.fits or not mend else here._replace(fix=_fix(run, machine, mesh, here))


def to_json(flight: Flight) -> dict[str, Any]:
    """All of a flight but the program's text, as plain JSON types."""
    chip = flight.machine.topology.chip
    return {
        "config": to_dict(flight.run),
        "chip": dataclasses.asdict(chip),
        "topology": {"sizes": list(flight.machine.topology.sizes), "slices": flight.machine.topology.slices},
        "chips": flight.machine.topology.chips,
        "mesh": flight.mesh,
        "parameters": flight.parameters._asdict(),
        "fits": flight.fits,
        "room": flight.room,
        "refused": flight.compiled.refused,
        "memory": flight.compiled.memory._asdict() | {"total": flight.compiled.memory.total},
        "lowering_s": flight.compiled.lowering_s,
        "compiling_s": flight.compiled.compiling_s,
        "flops": flight.flops._asdict(),
        "main_memory_bytes": flight.moved,
        "collectives": [{"kind": k, "axes": list(axes), **total} for (k, axes), total in flight.collectives.items()],
        "roofline": _plain(flight.roofline),
        "bill": _plain(flight.bill),
        "fix": _plain(flight.fix),
        "notes": list(flight.notes),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _whole(run: Run, machine: Machine) -> Mesh:
    mesh = sharding.make_mesh(run.mesh, machine.devices)
    if mesh.size != len(machine.devices):
        shape = ",".join(f"{name}:{size}" for name, size in mesh.shape.items())
        raise ConfigError(f"mesh {shape} has {mesh.size} places and the topology {len(machine.devices)} devices")
    return mesh


def _fix(run: Run, machine: Machine, mesh: Mesh, flight: Flight) -> Fix | None:
    """The first changes that the estimate finds, tried by the compiler: the first that it agrees with."""
    miss = max(1.0, flight.compiled.memory.total / fits.estimate(run, mesh))
    for change in fits.changes(run, machine.devices, flight.room, miss, machine.topology.slices)[:2]:
        tried = compile_step(change.run, sharding.make_mesh(change.run.mesh, machine.devices))
        if not tried.refused and tried.memory.total <= flight.room:
            return Fix(change.overrides, tried.memory.total, True)
    return None
