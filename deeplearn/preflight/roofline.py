"""What bounds a step: arithmetic, main memory or the links between chips (Williams et al. 2009, CACM 52(4))."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from deeplearn import families
from deeplearn.config import overlay
from deeplearn.families import counting
from deeplearn.preflight import topology as topologies
from deeplearn.preflight.chips import Chip
from deeplearn.preflight.collectives import Collective
from deeplearn.preflight.topology import Machine
from deeplearn.train import loop
from deeplearn.train.run import Run

_RINGS = ("all-reduce", "all-gather", "reduce-scatter")


class Flops(NamedTuple):
    """Training FLOPs of a step on all chips. model: what it needs. done: with what is computed twice, or for nothing
    in the bubble of a pipeline. how: a sentence."""

    model: float
    done: float
    how: str


class Link(NamedTuple):
    """Collectives over the same mesh axes.

    sent: bytes by one device a step. bandwidth: bytes/s of one device over the links that these axes use, a mean over
    what is sent; None if the table has no number. seconds: sent over bandwidth. waits: of these, seconds in
    collectives that the program does not run beside computation; none for an emulated machine, whose compiler does not
    tell. over: which links.
    """

    axes: tuple[str, ...]
    sent: float
    bandwidth: float | None
    seconds: float
    waits: float
    over: str


class Roofline(NamedTuple):
    """Seconds of one step.

    compute, memory: at the chip's peak rates. step: the longest of compute, memory and links that run beside them, and
    then the links that they wait for. best: if all ran side by side. bound: what is longest. mfu: model FLOPs over what
    the chips could do in `step` seconds.
    """

    compute: float
    memory: float
    links: tuple[Link, ...]
    step: float
    best: float
    bound: str
    mfu: float


def flops(run: Run, mesh: Mesh) -> Flops:
    """FLOPs of one step, counted from the traced computation; 6 N D where it cannot be read."""
    family = families.get(run.family)
    with loop.on_mesh(mesh):
        idle = family.idle(run.model, run.batch_size // run.microbatches) if hasattr(family, "idle") else 0.0
    try:
        done = run.batch_size * counting.flops_per_example(family, run.model) / (1 - idle)
    except NotImplementedError as error:
        active = counting.parameters(family, run.model).active
        needed = 6.0 * active * run.tokens_per_step
        return Flops(needed, needed / (1 - idle), f"6 N D, since: {error}")
    plain = overlay(run.model, without_recomputation(run.model))
    return Flops(run.batch_size * counting.flops_per_example(family, plain), done, "counted from the traced step")


def without_recomputation(model: object) -> dict[str, str]:
    """The override that keeps all activations, for models that know recomputation."""
    fields = {field.name: field.default for field in dataclasses.fields(model)}
    return {"remat": str(fields["remat"])} if "remat" in fields else {}


def roofline(
    work: Flops, moved: float, found: list[Collective], machine: Machine, mesh: Mesh, efficiency: float = 1.0
) -> Roofline:
    """The times of one step.

    Args:
      work: FLOPs of all chips.
      moved: bytes that one device moves to and from its main memory.
      found: the program's collectives.
      machine: the devices; mesh: how they are arranged.
      efficiency: share of the peak FLOP/s that matrix products reach; 1 makes every time a lower bound.
    """
    chip = machine.topology.chip
    share = machine.topology.chips / len(machine.devices)  # of a chip that one device is
    compute = work.done / (machine.topology.chips * chip.peak * efficiency)
    memory = moved / (chip.bandwidth * share)
    links = tuple(_link(found, axes, machine, mesh, share) for axes in sorted({c.axes for c in found}))
    beside = sum(link.seconds - link.waits for link in links)
    waits = sum(link.waits for link in links)
    step = max(compute, memory, beside) + waits
    best = {"arithmetic": compute, "main memory": memory, "links": beside + waits}
    bound = max(best, key=best.__getitem__)
    mfu = work.model / (step * machine.topology.chips * chip.peak)
    return Roofline(compute, memory, links, step, max(best.values()), bound, mfu)


def _link(found: list[Collective], axes: tuple[str, ...], machine: Machine, mesh: Mesh, share: float) -> Link:
    here = [c for c in found if c.axes == axes]
    names = axes or mesh.axis_names  # groups of no axes: as if they ran over all
    members = topologies.group(machine, mesh, names)
    sent, seconds, waits, over = sum(c.sent for c in here), 0.0, 0.0, ""
    for c in here:
        bandwidth, over = bandwidth_of(machine.topology.chip, machine.topology.sizes, members, c.kind)
        if bandwidth is None:
            return Link(axes, sent, None, 0.0, 0.0, over)
        seconds += c.sent / (bandwidth * share)
        waits += 0.0 if c.asynchronous or machine.bound else c.sent / (bandwidth * share)
    return Link(axes, sent, sent / seconds, seconds, waits, over)


def bandwidth_of(
    chip: Chip, sizes: tuple[int, ...], places: np.ndarray, kind: str = "all-reduce"
) -> tuple[float | None, str]:
    """Bytes/s that one chip can send to a group of chips, and over which links.

    On a torus a group has both directions of each dimension that it spans whole and that closes to a ring, and one
    direction of others (Jouppi et al. 2023, arXiv 2304.01433). Behind a switch it has all links of the chip; across
    slices or switches, the slow network, in which sums and gathers of a group with n members in each slice go round n
    rings, each of which crosses at another member.

    Args:
      chip: the chip; sizes: of the torus. places: [members, 1 + dimensions] as in `Machine`. kind: of the collective.
    """
    spans = [len(set(column)) for column in places.T.tolist()]
    if spans[0] > 1:
        rings = len(places) / spans[0] if kind in _RINGS else 1.0
        return chip.network and min(rings * chip.network, chip.link or math.inf), "the network between slices"
    if not chip.dimensions:
        return chip.link, "the switch"
    if chip.link is None:
        return None, "the links of the torus"
    rings = lines = 0
    for span, size in zip(spans[1:], sizes, strict=False):
        closes = span == size and chip.ring is not None and size % int(chip.ring) == 0
        rings, lines = rings + (span > 1 and closes), lines + (span > 1 and not closes)
    over = " and ".join(f"{n} {kind}{'s' * (n > 1)}" for n, kind in ((rings, "ring"), (lines, "open line")) if n)
    return chip.link * max(1, 2 * rings + lines), over or "one chip"
