"""What a compiled program sends between devices, by kind and shape."""

import collections

from deeplearn.preflight import hlo
from deeplearn.preflight.collectives import KINDS


def collectives(text: str) -> collections.Counter:
    """How often each (kind, shape) is run, e.g. {("all-reduce", "f32[8,64]"): 3}; bodies of loops count their length.

    A collective of several arrays counts once for each.
    """
    program = hlo.parse(text)
    found = collections.Counter()
    for name, computation in program.computations.items():
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS and program.runs[name]:
                for array in instruction.arrays:
                    found[kind, f"{array.dtype}[{','.join(map(str, array.shape))}]"] += program.runs[name]
    return found
