"""Reads the text of a compiled program: its computations, their instructions, and how often each of them runs.

The text is what `compiled.as_text()` gives (HLO, https://openxla.org/xla/operation_semantics). Instructions are lines

    %name = SHAPE opcode(%operand, ...), attribute=..., ...

of named computations, and loops are `while` instructions that name a condition and a body.
"""

import re
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}


class Array(NamedTuple):
    """dtype: as HLO writes it. shape: sizes. bytes: without padding. space: memory space, 0 is the main memory."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    space: int


class Instruction(NamedTuple):
    """arrays: of the result, one for each leaf of a tuple. operands: names. text: all after the opcode's name."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """computations: by name. entry: the name of the first. runs: how often one execution runs each computation.

    unknown: loops whose number of turns the text does not tell; they count as one turn.
    """

    computations: dict[str, Computation]
    entry: str
    runs: dict[str, int]
    unknown: tuple[str, ...]


def parse(text: str) -> Program:
    """Read the text of one module. Raises ValueError if it holds no entry computation."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            head = _HEAD.match(line)
            if head and not line.startswith("HloModule"):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line == "}" or line.startswith("}, "):  # not "}}" of an attribute that has lines of its own
            current = None
        elif match := _LINE.match(line):
            instruction = _instruction(match[2], match[3], bool(match[1]))
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text holds no ENTRY computation")
    runs: dict[str, int] = dict.fromkeys(computations, 0)
    unknown: set[str] = set()
    _count(computations, entry, 1, runs, unknown)
    return Program(computations, entry, runs, tuple(sorted(unknown)))


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays in a shape's text: `(f32[2,3]{1,0}, u32[])` has two."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        sizes = tuple(int(size) for size in sizes.split(",") if size)
        digits = re.match(r"[a-z]+(\d+)", dtype)
        bits = _BITS.get(dtype) if dtype in _BITS else int(digits[1]) if digits else 0
        count = 1
        for size in sizes:
            count *= size
        space = re.search(r"S\((\d+)\)", layout)
        found.append(Array(dtype, sizes, -(-count * bits // 8), int(space[1]) if space else 0))
    return tuple(found)


def called(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs once each time it runs; of a conditional, all branches."""
    names = _CALLED.findall(instruction.attributes)
    for branches in _BRANCHES.findall(instruction.attributes):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    return names


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"a parenthesis does not close: {text[start : start + 60]}")


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    opcode = rest[end:opening].strip()
    return Instruction(
        name, opcode, arrays(rest[:end]), tuple(_NAME.findall(arguments)), arguments, rest[closing + 1 :], root
    )


def _count(
    computations: dict[str, Computation], name: str, times: int, runs: dict[str, int], unknown: set[str]
) -> None:
    """Add `times` runs of a computation and of all that it calls."""
    runs[name] += times
    for instruction in computations[name].values():
        for callee in called(instruction):
            if callee in computations:
                _count(computations, callee, times, runs, unknown)
        if instruction.opcode == "while":
            turns = _turns(computations, name, instruction)
            if turns is None:
                unknown.add(instruction.name)
            body = re.search(r"\bbody=%?([\w.\-]+)", instruction.attributes)[1]
            _count(computations, body, times * (1 if turns is None else turns), runs, unknown)


def _turns(computations: dict[str, Computation], parent: str, loop: Instruction) -> int | None:
    """Turns of a loop: what the compiler noted, or what follows from a condition `counter < constant`."""
    if noted := re.search(r"known_trip_count\D+(\d+)", loop.attributes):
        return int(noted[1])
    condition = computations[re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)[1]]
    body = computations[re.search(r"\bbody=%?([\w.\-]+)", loop.attributes)[1]]
    compare = next(i for i in condition.values() if i.root)
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, limit = (condition[operand] for operand in compare.operands)
    if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
        return None
    place = int(re.search(r"\bindex=(\d+)", counter.attributes)[1])
    step = _added(body, next(i for i in body.values() if i.root).operands[place], place)
    initial = computations[parent].get(loop.operands[0])
    start = _constant(computations[parent], initial.operands[place]) if initial and initial.opcode == "tuple" else None
    return -(-(int(limit.arguments) - (start or 0)) // (step or 1))


def _constant(computation: Computation, name: str) -> int | None:
    """The value of an integer constant, or of a copy of one."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast"):
        instruction = computation.get(instruction.operands[0])
    constant = instruction is not None and instruction.opcode == "constant"
    return int(instruction.arguments) if constant and re.fullmatch(r"-?\d+", instruction.arguments) else None


def _added(body: Computation, name: str, place: int) -> int | None:
    """What one turn adds to the counter at `place` of the carried tuple; None if it is not a chain of additions."""
    total = 0
    instruction = body[name]
    while instruction.opcode == "add":
        numbers = [_constant(body, operand) for operand in instruction.operands]
        if numbers.count(None) != 1:
            return None
        total += next(n for n in numbers if n is not None)
        instruction = body[instruction.operands[numbers.index(None)]]
    carried = instruction.opcode == "get-tuple-element" and f"index={place}" in instruction.attributes
    return total if carried else None
