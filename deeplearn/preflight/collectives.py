"""What a compiled program sends between devices: kind, bytes, mesh axes and how often, from its optimised HLO alone."""

import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from deeplearn.preflight import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_FORMS = {f"{kind}{form}" for kind in (*KINDS, "ragged-all-to-all") for form in ("", "-start")}
_BETWEEN_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x.*_xla_megascale_transfer_type="(\w+)"')

Groups = tuple[tuple[int, ...], ...]


class Collective(NamedTuple):
    """One collective instruction.

    kind: one of KINDS. axes: the mesh axes that it runs over, in the order of the mesh; () if its groups are none of
    them. group: devices in one group. bytes: size of the whole array, which is the result of an all-gather, the operand
    of a reduce-scatter, and both of the others. count: runs in one execution. asynchronous: begun apart from its end,
    so that it can run beside computation. source: the operation that it comes from, as JAX names it.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    bytes: int
    count: int
    asynchronous: bool
    source: str

    @property
    def sent(self) -> float:
        """Bytes that one device sends in one execution, by the ring algorithms (Chan et al. 2007, CCPE 19(13))."""
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
        return self.count * self.bytes * share * (2.0 if self.kind == "all-reduce" else 1.0)


def collectives(program: hlo.Program | str, mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective of a program, largest first; those that nothing runs, or over one device, are left out.

    Args:
      program: the optimised HLO, parsed or as text.
      mesh: sizes of the mesh axes in the order of the mesh, whose devices are numbered in C order.
    """
    if isinstance(program, str):
        program = hlo.parse(program)
    asynchronous, slices = _asynchronous(program), _slices(program)
    found, channels = [], set()
    for name, computation in program.computations.items():
        ends = {i.operands[0]: i for i in computation.values() if i.opcode.endswith("-done")}
        for instruction in computation.values():
            crosses = instruction.opcode == "send" and _BETWEEN_SLICES.search(instruction.attributes)
            if not program.runs[name] or not (crosses or instruction.opcode in _FORMS):
                continue
            # A collective that is fused with the computation beside it is written out in each of its fusions.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if channel and "fus" in name and (channel[1] in channels):
                continue
            channels |= {channel[1]} if channel else set()
            if crosses:
                one = _between_slices(instruction, computation, crosses[2], slices, mesh)
            else:
                one = _collective(instruction, ends.get(instruction.name), name, slices, mesh)
            if one.group > 1:
                is_async = one.asynchronous or name in asynchronous
                found.append(one._replace(count=program.runs[name], asynchronous=is_async))
    return sorted(found, key=lambda c: -c.sent)


def by_kind_and_axes(found: list[Collective]) -> dict[tuple[str, tuple[str, ...]], dict[str, float]]:
    """(kind, axes) -> {"count", "bytes": of whole arrays, "sent": by one device}, in one execution."""
    totals: dict[tuple[str, tuple[str, ...]], dict[str, float]] = {}
    for c in found:
        total = totals.setdefault((c.kind, c.axes), {"count": 0, "bytes": 0, "sent": 0.0})
        total["count"] += c.count
        total["bytes"] += c.count * c.bytes
        total["sent"] += c.sent
    return totals


def groups(attributes: str, devices: int) -> Groups:
    """The groups that an instruction's attributes name, in any of HLO's four ways; all devices if they name none.

    `{{0,1},{2,3}}` lists them. `[2,4]<=[8]` and `[4,2]<=[2,4]T(1,0)` reshape and transpose 0 ... 7; rows are groups.
    `mesh['a'=2,'b'=4] {'b'}` runs along axes of a mesh of its own, `'b':(2)2` along the part of size 2 of b that has 2
    before it; its devices are in order unless it says, as `device_ids=([4,2]T(1,0))`, how they are laid out.
    """
    if listed := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes):
        return tuple(tuple(int(d) for d in group.split(",")) for group in re.findall(r"\{([\d, ]+)\}", listed[1]))
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return _rows(_iota(tiled[2], tiled[3]).reshape(_sizes(tiled[1])))
    if meshed := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))?(?: \{([^}]*)\})?", attributes
    ):
        return _mesh_groups(*meshed.groups())
    return (tuple(range(devices)),)


def axes_of(found: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes whose product of places these groups are; () if they are not those of any axes."""
    places = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
    wanted = {frozenset(group) for group in found}
    names = [name for name, size in mesh.items() if size > 1]
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            along = [i for i, name in enumerate(mesh) if name in chosen]
            moved = np.moveaxis(places, along, range(-len(along), 0))
            rows = moved.reshape(-1, math.prod(mesh[name] for name in chosen))
            if {frozenset(row.tolist()) for row in rows} == wanted:
                return chosen
    return ()


def axes_of_pairs(pairs: list[tuple[int, int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which source and target differ, in any of the pairs."""
    shape = tuple(mesh.values())
    ends = [np.stack(np.unravel_index([pair[i] for pair in pairs], shape)) for i in (0, 1)]
    return tuple(name for name, moved in zip(mesh, (ends[0] != ends[1]).any(axis=1), strict=True) if moved)


def _slices(program: hlo.Program) -> int:
    """How many slices of TPUs a program runs on. It is written for one of them, and sends to the others by the host."""
    sends = (i for c in program.computations.values() for i in c.values() if i.opcode == "send")
    targets = (match[1] for i in sends if (match := _BETWEEN_SLICES.search(i.attributes)))
    return max((len(target.split(",")) for target in targets), default=1)


def _between_slices(
    send: hlo.Instruction, computation: hlo.Computation, name: str, slices: int, mesh: Mapping[str, int]
) -> Collective:
    """A collective over the network between slices: each device sends its part to the host, and receives the result."""
    inside = math.prod(mesh.values()) // slices
    rendezvous = re.search(r'_xla_host_transfer_rendezvous="[^"]*"', send.attributes)[0]
    ends = [i for i in computation.values() if i.opcode in ("send", "recv") and rendezvous in i.attributes]
    across = _rows(np.arange(inside * slices).reshape(slices, inside).T)
    kind = {"ONE_TO_ONE": "collective-permute"}.get(name, name.lower().replace("_", "-"))
    source = re.search(r'op_name="([^"]*)"', send.attributes)
    size = max(end.arrays[0].bytes for end in ends)
    return Collective(kind, axes_of(across, mesh), slices, size, 1, True, source[1] if source else "")


def _collective(
    i: hlo.Instruction, end: hlo.Instruction | None, computation: str, slices: int, mesh: Mapping[str, int]
) -> Collective:
    kind = i.opcode.removesuffix("-start").removeprefix("ragged-")
    size = (end or i).bytes
    source = re.search(r'op_name="([^"]*)"', i.attributes)
    name, apart = source[1] if source else "", i.opcode.endswith("-start")
    if kind == "collective-permute":
        pairs = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", i.attributes)]
        pairs = [pair for pair in pairs if pair[0] != pair[1]]
        axes = axes_of_pairs(pairs, mesh) if pairs else ()
        group = math.prod(mesh[axis] for axis in axes)
        return Collective(kind, axes, group, size, 1, apart, name)
    inside = math.prod(mesh.values()) // slices
    here = groups(i.attributes, inside)
    found = tuple(tuple(inside * k + d for d in group) for k in range(slices) for group in here)
    group = max(map(len, found))
    if kind == "reduce-scatter":
        size *= group
    if kind == "all-reduce" and "all-reduce-scatter" in computation:  # how TPUs write a reduce-scatter: a slice follows
        kind = "reduce-scatter"
    return Collective(kind, axes_of(found, mesh), group, size, 1, apart, name)


def _asynchronous(program: hlo.Program) -> set[str]:
    """The computations that run beside others: those that an async-start calls."""
    starts = (i for c in program.computations.values() for i in c.values() if i.opcode == "async-start")
    return {name for start in starts for name in hlo.called(start)}


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def _iota(sizes: str, transposed: str | None) -> np.ndarray:
    """0, 1, 2 ... in this shape, transposed."""
    places = np.arange(math.prod(_sizes(sizes))).reshape(_sizes(sizes))
    return places.transpose(_sizes(transposed)) if transposed else places


def _rows(places: np.ndarray) -> Groups:
    return tuple(tuple(row) for row in places.tolist())


def _mesh_groups(shape: str, order: str | None, along: str | None) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", shape)}
    flat = np.arange(math.prod(sizes.values()))
    if order:
        tiled = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
        flat = _iota(*tiled.groups()).reshape(-1) if tiled else np.array(_sizes(order))
    parts: list[int] = []
    moved: list[int] = []
    used = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along or "")}
    for name, size in sizes.items():
        before, taken = used.get(name, ("", ""))
        split = [int(before), int(taken), size // int(before) // int(taken)] if before else [size]
        if name in used:
            moved.append(len(parts) + (1 if before else 0))
        parts += split
    moved = moved or list(range(len(parts)))
    places = np.moveaxis(flat.reshape(parts), moved, range(-len(moved), 0))
    return _rows(places.reshape(-1, math.prod(parts[i] for i in moved)))
