"""The meshes, recomputation and microbatches worth trying for a run, ranked by theory, the best then compiled.

Theory (`theory.py`) is off by about the same factor for all meshes of the same axes. So what the compiler says of the
best corrects the rest, and the next best is compiled, until the first `BEST` of the corrected ranking are confirmed.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from deeplearn import families, sharding
from deeplearn.config import ConfigError, overlay
from deeplearn.layers.ring import positions
from deeplearn.preflight import anatomy, fits, flight as flights, theory
from deeplearn.preflight.chips import Grid
from deeplearn.preflight.flight import Flight
from deeplearn.preflight.topology import Machine
from deeplearn.train.run import Run

BEST = 3  # that are confirmed
TRIES = 6  # compilations at most
_WHOLE = 0.1  # share of the parameters that an axis is there to cut, and may leave whole, on a mesh worth trying


class Candidate(NamedTuple):
    """overrides: what to set, by dotted name; run: with them. estimate: by theory. flight: by the compiler, or None if
    it was not asked. refused: what it says if the program cannot be made at all."""

    overrides: dict[str, str]
    run: Run
    estimate: theory.Estimate
    flight: Flight | None = None
    refused: str = ""


class Off(NamedTuple):
    """The compiler's figures over theory's."""

    bytes: float = 1.0
    step: float = 1.0


class Search(NamedTuple):
    """candidates: ranked. room: bytes of one device. off: of meshes of the same axes, and of all that are compiled."""

    candidates: tuple[Candidate, ...]
    room: int
    off: dict[tuple[str, ...] | None, Off] = {}  # noqa: RUF012

    def off_of(self, c: Candidate | None = None) -> Off:
        """The correction of a candidate, or of all."""
        return self.off.get(c and _axes(c), self.off.get(None, Off()))

    @property
    def best(self) -> Candidate | None:
        """The first that the compiler says fits."""
        return next((c for c in self.candidates if c.flight is not None and c.flight.fits), None)

    def bytes(self, c: Candidate) -> float:
        """Of one device: the compiler's, else corrected theory."""
        return c.flight.compiled.memory.total if c.flight else c.estimate.bytes * self.off_of(c).bytes

    def step(self, c: Candidate) -> float:
        """Seconds: the compiler's, else corrected theory."""
        known = c.flight is not None and c.flight.roofline is not None
        return c.flight.roofline.step if known else c.estimate.roofline.step * self.off_of(c).step

    def fits(self, c: Candidate) -> bool:
        return not c.refused and (c.flight.fits if c.flight else self.bytes(c) <= fits.LIMIT * self.room)

    def verdict(self, c: Candidate) -> str:
        """In a few words."""
        if c.refused:
            return "cannot be compiled"
        return f"{'compiled' if c.flight else 'estimated'}: {'fits' if self.fits(c) else 'does not fit'}"


def search(
    run: Run,
    machine: Machine,
    grid: Grid,
    tokens: float,
    efficiency: float = 1.0,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Search:
    """Rank what `run` could be on the machine, whatever its own mesh, recomputation and microbatches.

    tokens, efficiency: as for `flight.preflight`. tell: hears what is being compiled.
    Raises ConfigError if no mesh of all devices divides the batch and has something to cut with every axis.
    """
    found = Search(tuple(candidates(run, machine, efficiency)), machine.room)
    if not found.candidates:
        raise ConfigError(
            f"no mesh of {len(machine.devices)} devices divides batch_size {run.batch_size}; set a multiple of it"
        )
    found = _ranked(found)
    for attempt in range(TRIES):
        first = found.candidates[:BEST] if found.fits(found.candidates[0]) else found.candidates[:1]
        waiting = [c for c in first if c.flight is None and not c.refused]
        if not waiting:
            break
        settings = " ".join(f"{name}={value}" for name, value in waiting[0].overrides.items())
        tell(f"compiling {attempt + 1} of at most {TRIES}: {settings}")
        done = _compiled(waiting[0], machine, grid, tokens, efficiency)
        found = _ranked(found._replace(candidates=tuple(done if c is waiting[0] else c for c in found.candidates)))
    return found


def candidates(
    run: Run, machine: Machine, efficiency: float = 1.0, only: tuple[str, ...] = sharding.AXES
) -> Iterator[Candidate]:
    """For each mesh worth trying the recomputation and microbatches that are fastest and fit; else the smallest.

    only: the mesh axes to use, beside those that slices need.
    """
    for flag, mesh in meshes(run, machine, only):
        tried = [
            Candidate(overrides, changed, theory.estimate(changed, mesh, machine, efficiency))
            for overrides, changed in _settings(run, flag, mesh, fits.LIMIT * machine.room)
        ]
        fitting = [c for c in tried if c.estimate.bytes <= fits.LIMIT * machine.room]
        by_step = lambda c: (c.estimate.roofline.step, c.estimate.bytes)  # noqa: E731
        yield min(fitting, key=by_step) if fitting else min(tried, key=lambda c: c.estimate.bytes)


def meshes(run: Run, machine: Machine, only: tuple[str, ...] = sharding.AXES) -> Iterator[tuple[str, Mesh]]:
    """The meshes of all devices whose every axis has something to cut, and their flags."""
    model, count, slices = anatomy.of_model(run), len(machine.devices), machine.topology.slices
    # Axes that copy the parameters are told apart by where they lie: the first crosses slices.
    cutting = {axis for _, axis in sharding.RULES} | set(sharding.ACTIVATIONS.values())
    copies = [axis for axis in sharding.AXES if axis in sharding.BATCH and axis not in cutting]
    crossing = copies[:-1] if slices > 1 else ()
    allowed = {}
    for axis in sharding.AXES:
        sizes = [n for n in range(1, count + 1) if count % n == 0]
        if axis in copies[:-1]:
            sizes = [slices if axis in crossing else 1]
        elif axis not in only:
            sizes = [1]
        allowed[axis] = [n for n in sizes if n == 1 or _worth(run, model, AbstractMesh((n,), (axis,)))]
    for shape in _products(count, allowed):
        if shape and not _worth(run, model, AbstractMesh(tuple(shape.values()), tuple(shape))):
            continue
        flag = ",".join(f"{axis}:{size}" for axis, size in shape.items())
        try:
            yield flag, sharding.make_mesh(flag, machine.devices)
        except (ConfigError, NotImplementedError, ValueError):  # a shape that the machine's links do not have
            continue


def to_json(search: Search, most: int = 32) -> list[dict[str, Any]]:
    """The first candidates as plain JSON types."""
    return [
        {
            **c.overrides,
            "estimated": {"bytes": c.estimate.bytes, "step": c.estimate.roofline.step, "mfu": c.estimate.roofline.mfu},
            "corrected": {"bytes": search.bytes(c), "step": search.step(c)},
            "compiled": c.flight and {
                "bytes": c.flight.compiled.memory.total,
                "step": c.flight.roofline and c.flight.roofline.step,
                "mfu": c.flight.roofline and c.flight.roofline.mfu,
            },
            "fits": search.fits(c),
            "refused": c.refused,
        }
        for c in search.candidates[:most]
    ]  # fmt: skip


def _ranked(search: Search) -> Search:
    """Corrected by what is compiled, and in order: what fits by its step, then the rest by its bytes."""
    compiled = [c for c in search.candidates if c.flight is not None]
    off = {axes: _off([c for c in compiled if axes in (None, _axes(c))]) for axes in (None, *map(_axes, compiled))}
    search = search._replace(off=off)

    def key(c: Candidate) -> tuple[Any, ...]:
        return (0, search.step(c), search.bytes(c)) if search.fits(c) else (1, bool(c.refused), search.bytes(c))

    return search._replace(candidates=tuple(sorted(search.candidates, key=key)))


def _axes(c: Candidate) -> tuple[str, ...]:
    return tuple(sharding.parse(c.run.mesh))


def _off(compiled: list[Candidate]) -> Off:
    lined = [(c.flight.roofline.step, c.estimate.roofline.step) for c in compiled if c.flight.roofline is not None]
    return Off(
        _mean(c.flight.compiled.memory.total / c.estimate.bytes for c in compiled),
        _mean(real / guessed for real, guessed in lined),
    )


def _mean(ratios: Iterator[float]) -> float:
    """Geometric; 1 of none."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


def _compiled(c: Candidate, machine: Machine, grid: Grid, tokens: float, efficiency: float) -> Candidate:
    try:
        return c._replace(flight=flights.preflight(c.run, machine, grid, tokens, efficiency, mend=False))
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        return c._replace(refused=(str(error) or type(error).__name__).splitlines()[0])


def _settings(run: Run, flag: str, mesh: Mesh, room: float) -> Iterator[tuple[dict[str, str], Run]]:
    """For each kind of recomputation the fewest microbatches that fit, or the most if none do."""
    pieces = run.batch_size // sharding.batch_places(mesh)
    for remat in fits.remats(run.model) or (None,):
        chosen = {} if remat is None else {"model.remat": remat}
        count = 1
        while True:
            overrides = {"mesh": flag, **chosen, "microbatches": str(count)}
            changed = overlay(run, overrides)
            if theory.held(changed, mesh) <= room or pieces % (2 * count):
                break
            count *= 2
        yield overrides, changed


def _worth(run: Run, model: anatomy.Model, mesh: AbstractMesh) -> bool:
    """Whether a mesh divides the batch, the sequence, and most of the parameters that each of its axes is there for."""
    family = families.get(run.family)
    if run.batch_size % sharding.batch_places(mesh):
        return False
    try:
        sharding.check(model.boxed, mesh)
        if (places := sharding.sequence_places(mesh)) > 1:
            if not getattr(family, "SPREADS_SEQUENCE", False):
                return False
            positions(family.tokens_per_example(run.model), places)
    except ConfigError:
        return False
    return all(_whole(model, axis, mesh) <= _WHOLE for axis in mesh.shape if axis not in sharding.batch_axes(mesh))


def _whole(model: anatomy.Model, axis: str, mesh: AbstractMesh) -> float:
    """The share that an axis leaves whole of the parameters that it is there to cut."""
    wanting = {logical for logical, wanted in sharding.RULES if wanted == axis}
    sizes = [
        (math.prod(leaf.shape), axis in theory.cuts(leaf, mesh)) for leaf in model.leaves if wanting & {*leaf.names}
    ]
    return sum(size for size, cut in sizes if not cut) / max(1, sum(size for size, _ in sizes))


def _products(count: int, allowed: dict[str, list[int]]) -> Iterator[dict[str, int]]:
    """Every way to write `count` as a product of one allowed size of each axis; axes of size 1 are left out."""
    if not allowed:
        if count == 1:
            yield {}
        return
    (axis, sizes), *rest = allowed.items()
    for size in sizes:
        if count % size == 0:
            for more in _products(count // size, dict(rest)):
                yield ({axis: size} if size > 1 else {}) | more
