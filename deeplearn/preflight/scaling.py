"""Weak and strong scaling of a run over slices of a chip, from theory, anchored where it is compiled."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from deeplearn import sharding
from deeplearn.preflight import fits, flight as flights, search as searches, topology as topologies
from deeplearn.preflight.chips import Chip, Grid
from deeplearn.preflight.flight import Flight
from deeplearn.preflight.search import Candidate
from deeplearn.preflight.topology import Topology
from deeplearn.train.run import Run

CHIPS = (8, 16, 32, 64, 128, 256, 512)
KINDS = ("strong", "weak")


class Point(NamedTuple):
    """A run on a number of chips.

    kind: "strong" has the same batch on all numbers of chips, "weak" the same for each chip. overrides: the fastest of
    its kind of mesh; {} if none divides. step: seconds, of the compiled program or of theory times how far off theory
    is where it was compiled. efficiency: tokens/s of a chip over that of the fewest chips. note: "" or why not.
    """

    kind: str
    topology: Topology
    batch: float
    overrides: dict[str, str]
    step: float | None = None
    tokens_per_s: float | None = None
    efficiency: float | None = None
    mfu: float | None = None
    compiled: bool = False
    note: str = ""


def shape(chip: Chip, count: int) -> Topology:
    """The slice of `count` chips, a power of two, whose dimensions are most alike; several, where one has not so many.

    A slice of a torus of two dimensions is at most the whole ring by the whole ring.
    """
    if not chip.dimensions:
        return Topology(chip, (count,))
    most = int(chip.ring or count) ** 2 if chip.dimensions == 2 else count
    slices = max(1, count // most)
    doublings, left = divmod(round(math.log2(count // slices)), chip.dimensions)
    sizes = [2 ** (doublings + (i >= chip.dimensions - left)) for i in range(chip.dimensions)]
    return Topology(chip, tuple(sizes), slices)


def scaling(
    run: Run,
    topology: Topology,
    grid: Grid,
    tokens: float,
    efficiency: float = 1.0,
    known: tuple[Flight, ...] = (),
    tell: Callable[[str], None] = lambda sentence: None,
) -> list[Point]:
    """Both kinds on `CHIPS` and on the topology itself, with meshes of the axes that the run's own mesh has.

    Args:
      run: with its mesh on the topology, and the batch that strong scaling keeps.
      known: flights that need not be compiled again. tell: hears what is being compiled.
    """
    counts = sorted({*CHIPS, topology.chips})
    slices = {n: topology if n == topology.chips else shape(topology.chip, n) for n in counts}
    axes = tuple(axis for axis, size in sharding.parse(run.mesh).items() if size > 1) or sharding.BATCH[:1]
    compiled = {flight.run: flight for flight in known}
    points = []
    for kind in KINDS:
        found: dict[int, Candidate] = {}
        for n, there in slices.items():
            batch = run.batch_size if kind == "strong" else run.batch_size * n / topology.chips
            if batch == int(batch):
                there = topologies.described(there)
                best = _best(dataclasses.replace(run, batch_size=int(batch), microbatches=1), there, efficiency, axes)
                found |= {n: best} if best else {}
        fitting = [n for n, c in found.items() if _fits(c, slices[n])]
        for n in {*fitting[:1], *(fitting and {topology.chips} & {*fitting})}:
            c = found[n]
            if c.run not in compiled:
                tell(f"compiling {kind} scaling for {n} chips: mesh {c.run.mesh}")
                machine = topologies.machine(slices[n])
                compiled[c.run] = flights.preflight(c.run, machine, grid, tokens, efficiency, mend=False)
        points += _points(kind, run, topology, slices, found, compiled)
    return points


def to_json(points: list[Point]) -> list[dict[str, Any]]:
    """Plain JSON types."""
    return [
        {
            "chips": p.topology.chips,
            **p._asdict(),
            "topology": {"sizes": list(p.topology.sizes), "slices": p.topology.slices},
        }
        for p in points
    ]


def _best(run: Run, there: topologies.Machine, efficiency: float, axes: tuple[str, ...]) -> Candidate | None:
    tried = list(searches.candidates(run, there, efficiency, axes))
    order = lambda c: (c.estimate.bytes > fits.LIMIT * there.room, c.estimate.roofline.step)  # noqa: E731
    return min(tried, key=order, default=None)


def _fits(c: Candidate, topology: Topology) -> bool:
    return c.estimate.bytes <= fits.LIMIT * topology.chip.hbm


def _points(
    kind: str, run: Run, given: Topology, slices: dict[int, Topology], found: dict[int, Candidate], compiled: dict
) -> list[Point]:
    anchors = {n: compiled[c.run] for n, c in found.items() if c.run in compiled and compiled[c.run].roofline}
    off = {n: math.log(flight.roofline.step / found[n].estimate.roofline.step) for n, flight in anchors.items()}
    points, first = [], None
    for n, there in slices.items():
        batch = run.batch_size if kind == "strong" else run.batch_size * n / given.chips
        if n not in found:
            points.append(Point(kind, there, batch, {}, note=f"no such mesh divides a batch of {batch:g}"))
            continue
        c, flight = found[n], anchors.get(n)
        line = flight.roofline if flight else c.estimate.roofline
        factor = 1.0 if flight or not off else math.exp(np.interp(math.log(n), np.log(list(off)), list(off.values())))
        step = line.step * factor
        rate = c.run.tokens_per_step / step
        first = first or rate / n
        note = "" if (flight.fits if flight else _fits(c, there)) else "does not fit"
        figures = step, rate, rate / n / first, line.mfu / factor
        points.append(Point(kind, there, batch, c.overrides, *figures, bool(flight), note))
    return points
