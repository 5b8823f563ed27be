"""Which units of a sweep train together, and how many: decided when a worker is free, from what was measured so far."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deeplearn.sweep.grid import Unit
from deeplearn.train import cohort, loop

FIRST = 4  # members of the first cohort of a program
GAIN = 1.05  # so many times the rate make another width worth it
PATIENCE_S = 120.0  # work left of a program that makes the compilation of another width worth a try
SPLIT_S = 60.0  # and that makes it worth to cut the last cohort in parts, one for each worker

Rates = dict[int, float]  # members -> tokens/s of all together


def rates(units: Iterable[Unit], results: Mapping[str, Mapping[str, Any]]) -> dict[Any, Rates]:
    """Program -> the best rate at each width, from the results that are there."""
    found: dict[Any, Rates] = {}
    for unit in units:
        result = results.get(unit.id, {})
        if result.get("tokens_per_s"):
            record(found, unit, result)
    return found


def record(found: dict[Any, Rates], unit: Unit, result: Mapping[str, Any]) -> None:
    """Add the result of one unit. Members share the time, so the rate of one is that of its cohort."""
    width, rate = int(result.get("members", 1)), float(result["tokens_per_s"])
    of_program = found.setdefault(loop.program(unit.run), {})
    of_program[width] = max(rate, of_program.get(width, 0.0))


def width(measured: Rates, tokens_left: int) -> int:
    """How many members the next cohort should have: the best width known, or a neighbour of it that was never tried.

    measured: of this program. tokens_left: of all units of it that wait.
    """
    if not measured:
        return FIRST
    best = max(measured, key=lambda w: measured[w] * (GAIN if w == min(measured) else 1.0))
    untried = [w for w in (2 * best, best // 2) if w and w not in measured]
    worth = tokens_left / measured[best] > PATIENCE_S
    return untried[0] if untried and worth else best


def choose(
    waiting: Sequence[Unit],
    measured: Mapping[Any, Rates],
    together: Mapping[str, Sequence[str]],
    started: Mapping[str, Sequence[str]],
    workers: int,
    cheapest_first: bool,
) -> list[Unit]:
    """The units that a free worker takes next: the dearest, so that none is left to the end alone, and those like it.

    measured: see `rates`. together: unit -> ids of the cohort that it was begun in, which goes on as it was. started:
    unit -> ids of the cohort of trunks that gave it its start; their branches go on together. workers: none is left
    idle for long for a wider cohort. cheapest_first: where a budget may end the sweep early.
    """
    first = min(waiting, key=lambda u: (u.flops if cheapest_first else -u.flops, u.id))
    if first.id in together:
        return [u for u in waiting if u.id in together[first.id]]
    program, key = loop.program(first.run), cohort.key(first.run)
    others = [u for u in waiting if u is not first and u.id not in together and cohort.key(u.run) == key]
    others = [u for u in others if started.get(u.id) == started.get(first.id)]
    rates_here = measured.get(program, {})
    tokens = sum(u.run.tokens for u in waiting if loop.program(u.run) == program)
    members = width(rates_here, tokens)
    if rates_here and tokens / max(rates_here.values()) > SPLIT_S:
        members = min(members, -(-len(waiting) // workers))
    return [first, *sorted(others, key=lambda u: u.id)[: members - 1]]
