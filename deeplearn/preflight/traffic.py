"""Bytes that a compiled program moves to and from main memory, counted instruction by instruction."""

from deeplearn.preflight import hlo

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "async-start", "async-update", "async-done", "opt-barrier", "domain",
}  # fmt: skip
_RUNS_A_PROGRAM = {"while", "conditional", "call", "async-start"}  # other callees are written into their caller
_VIEWS = {"bitcast", "copy", "convert", "reshape", "transpose"}


def main_memory_bytes(program: hlo.Program) -> float:
    """Bytes read and written by one device in one execution.

    Every instruction reads its operands and writes its result, except that a slice reads only what it takes and an
    update in place writes only what it changes, also within a fusion. Arrays in other memory spaces (the scratchpad of
    a TPU) are free. Loops count all their turns. Caches are not modelled: an upper bound where arrays fit into them.
    A kernel of the platform (a custom call, such as fused attention) counts as if it read each operand once.
    """
    inner = {
        name
        for computation in program.computations.values()
        for i in computation.values()
        if i.opcode not in _RUNS_A_PROGRAM
        for name in hlo.called(i)
    }
    total = 0.0
    for name, computation in program.computations.items():
        if program.runs[name] and name not in inner:
            total += program.runs[name] * sum(_moved(program, computation, i) for i in computation.values())
    return total


def _moved(program: hlo.Program, computation: hlo.Computation, i: hlo.Instruction) -> float:
    if i.opcode in _FREE:
        return 0.0
    if i.opcode.endswith("-done"):
        return _main(i.arrays)
    reads = [_main(computation[name].arrays) if name in computation else 0 for name in i.operands]
    if i.opcode.endswith("-start"):  # the result is written when it is done
        return sum(reads)
    if i.opcode == "fusion":
        return _fused(program, i, reads)
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _main(i.arrays)
    if i.opcode in ("dynamic-update-slice", "scatter"):
        changed = reads[1] if i.opcode == "dynamic-update-slice" else reads[-1]
        return 2 * changed
    return sum(reads) + _main(i.arrays)


def _fused(program: hlo.Program, fusion: hlo.Instruction, reads: list[float]) -> float:
    body = program.computations[hlo.called(fusion)[0]]
    inputs = {int(i.arguments): i for i in body.values() if i.opcode == "parameter"}
    total = 0.0
    for k, whole in enumerate(reads):
        total += min(whole, _taken(body, inputs[k].name, whole)) if k in inputs else whole
    root = next(i for i in body.values() if i.root)
    results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    in_main = [array.space == 0 for array in fusion.arrays]
    return total + sum(_written(body, r) for r, main in zip(results, in_main, strict=False) if main)


def _taken(body: hlo.Computation, name: str, whole: float) -> float:
    """What the instructions of a fusion read of one input of theirs."""
    taken = 0.0
    for user in body.values():
        if name not in user.operands:
            continue
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            taken += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            taken += 0.0  # the rest stays where it is
        elif user.opcode in ("bitcast", "reshape"):
            taken += _taken(body, user.name, whole)
        else:
            return whole
    return taken


def _written(body: hlo.Computation, result: hlo.Instruction) -> float:
    while result.opcode in _VIEWS and result.operands[0] in body:
        inside = body[result.operands[0]]
        if inside.opcode not in _VIEWS | {"dynamic-update-slice"}:
            break
        result = inside
    if result.opcode == "dynamic-update-slice":
        return body[result.operands[1]].bytes
    return result.bytes


def _main(arrays: tuple[hlo.Array, ...]) -> float:
    return sum(array.bytes for array in arrays if array.space == 0)
