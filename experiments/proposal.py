"""From a law and a budget to a run: the compute-optimal model of a family, where it trains, its loss and its bill."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deeplearn import families, laws
from deeplearn.config import ConfigError
from deeplearn.families import counting
from deeplearn.laws import written
from deeplearn.preflight import fits, search as searches
from deeplearn.preflight.bill import Bill, bill
from deeplearn.preflight.chips import Chip, Grid
from deeplearn.preflight.search import Search
from deeplearn.preflight.topology import Machine
from deeplearn.train import rules
from deeplearn.train.run import Run

COUNTS = {"params": "total", "params_no_embed": "without_embeddings"}
ROUNDS = 3  # of compiling, until the model that the utilisation pays for is the one that it was measured of
_GUESS = 0.4  # utilisation to begin with


class Law(NamedTuple):
    """law: what predicts. count: which parameters its N are, one of COUNTS. assumed: the file did not say."""

    law: laws.Written
    count: str
    assumed: bool


class Proposal(NamedTuple):
    """run: with its tokens as budget. params: N as the law counts. ideal: N and D that the law itself would take for
    as many FLOPs as `search.best` does in the time. loss: of one such run, with its band. notes: one sentence each."""

    run: Run
    search: Search
    chip_hours: float
    params: int
    ideal: tuple[float, float]
    loss: laws.Prediction
    unit: str
    bill: Bill
    notes: tuple[str, ...]


def read(path: Path) -> Law:
    """A law.json of a sweep or of `experiments.fit --out`. Raises ConfigError: one sentence."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it holds no object")
        law = written.read(data)
    except OSError as error:
        raise ConfigError(f"cannot read the law {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"cannot read the law {path}: {error}") from None
    count = data.get("count", "params")
    if count not in COUNTS:
        raise ConfigError(f"{path} counts {count!r}, and a family counts {' or '.join(COUNTS)}")
    return Law(law, count, "count" not in data)


def chip_hours(dollars: float | None, hours: float | None, chip: Chip) -> float:
    """The budget in hours of one chip. Raises ConfigError unless exactly one is given, and not for nothing."""
    if (dollars is None) == (hours is None) or not (dollars or hours):
        raise ConfigError("--law wants one budget: --dollars=1000 or --chip_hours=200")
    if dollars is None:
        return hours
    if chip.dollars is None:
        raise ConfigError(f"the table has no price of {chip.title}: give the budget as --chip_hours")
    return dollars / chip.dollars


def propose(
    law: Law,
    hours: float,
    make_run: Callable[[int], Run],
    machine: Machine,
    grid: Grid,
    efficiency: float = 1.0,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Proposal:
    """The model whose size is nearest to what the law would train with the FLOPs that `hours` chip-hours do.

    Those FLOPs follow from the utilisation, which follows from the model: both are sought together, first by theory,
    then with what the compiler says. make_run: a run of the family's size. Raises ConfigError.
    """
    chip, chips = machine.topology.chip, machine.topology.chips
    seconds = 3600 * hours / chips
    family = families.get(make_run(None).family)
    sizes = {size: counted(make_run(size), law.count) for size in family.SIZES}

    def optimum(mfu: float) -> tuple[float, float]:
        try:
            return law.law.optimal(seconds * chips * chip.peak * mfu)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    size = _settled(lambda mfu: _nearest(sizes, optimum(mfu)[0]), make_run, machine, efficiency)
    seen = []
    for _ in range(ROUNDS):
        found = searches.search(make_run(size), machine, grid, 1, efficiency, tell)
        if found.best is None:
            least = found.candidates[0]
            if least.refused:
                raise ConfigError(f"size {size}, the nearest to the optimum, cannot be compiled: {least.refused}")
            raise ConfigError(
                f"size {size}, the nearest to the optimum, fits no mesh of {chips} x {chip.title}: the smallest needs "
                f"{found.bytes(least) / 1e9:.3g} of {found.room / 1e9:.3g} GB a device"
            )
        seen.append(size)
        line = found.best.flight.roofline
        better = _nearest(sizes, optimum(line.mfu)[0])
        if better in seen:
            break
        size = better
    size = seen[-1]
    run = found.best.run
    steps = math.floor(seconds / line.step)
    if steps < 1:
        raise ConfigError(f"{hours:.3g} chip-hours are less than one step of size {size} on {chips} x {chip.title}")
    tokens = steps * run.tokens_per_step
    loss = law.law.predict(sizes[size], tokens)
    ideal = optimum(line.mfu)
    notes = _notes(law, family.SIZES, sizes[size], tokens, ideal)
    if law.law.unit == "nats/token":
        notes = (*notes[:-1], _batch_note(run.tokens_per_step, sizes[size], tokens), notes[-1])
    costs = bill(tokens, run.tokens_per_step, line.step, machine.topology, grid)
    run = dataclasses.replace(run, budget=tokens)
    return Proposal(run, found, hours, sizes[size], ideal, loss, law.law.unit, costs, notes)


def counted(run: Run, count: str) -> int:
    """Parameters of a run as a law counts them."""
    return getattr(counting.parameters(families.get(run.family), run.model), COUNTS[count])


def to_json(p: Proposal) -> dict[str, Any]:
    """A proposal without its search, as plain JSON types."""
    return {
        "size": p.run.size,
        "params": p.params,
        "tokens": p.run.budget,
        "chip_hours": p.chip_hours,
        "ideal": {"params": p.ideal[0], "tokens": p.ideal[1]},
        "loss": laws.plain(p.loss),
        "unit": p.unit,
        "overrides": p.search.best.overrides,
        "bill": p.bill._asdict() | {"missing": list(p.bill.missing)},
        "notes": list(p.notes),
    }


def _settled(best: Callable[[float], int], make_run: Callable[[int], Run], machine: Machine, efficiency: float) -> int:
    """The size that theory's utilisation of itself pays for; the first that comes back, if it goes in circles."""
    size, seen = best(_GUESS), set()
    while size not in seen:
        seen.add(size)
        tried = list(searches.candidates(make_run(size), machine, efficiency))
        fitting = [c for c in tried if c.estimate.bytes <= fits.LIMIT * machine.room]
        if not fitting:
            break  # the search says why
        size = best(min((c.estimate.roofline for c in fitting), key=lambda line: line.step).mfu)
    return size


def _nearest(sizes: dict[int, int], params: float) -> int:
    return min(sizes, key=lambda size: abs(math.log(sizes[size] / params)))


def _batch_note(batch: int, params: int, tokens: int) -> str:
    """What published rules say of a batch that the user has chosen."""
    step_law, deepseek = rules.step_law_batch(tokens), rules.deepseek_batch(6.0 * params * tokens)
    return (
        f"an update takes {batch:.3g} tokens, as configured; for such a run the Step Law (arXiv 2503.04715) says "
        f"{step_law:.3g}, and DeepSeek's rule (arXiv 2401.02954) {deepseek:.3g}"
    )


def _notes(law: Law, ladder: Sequence[int], params: int, tokens: int, ideal: tuple[float, float]) -> tuple[str, ...]:
    """What a reader must know before believing the prediction."""
    notes = []
    asked = {"FLOPs (6 N D)": ("flops", 6 * params * tokens), "N": ("params", params), "D": ("tokens", tokens)}
    beyond = [
        f"{x / law.law.ranges[column][1]:.3g} times the {name}"
        for name, (column, x) in asked.items()
        if column in law.law.ranges and x > law.law.ranges[column][1]
    ]
    if beyond:
        notes.append(f"the prediction extrapolates: the run has {', '.join(beyond)} of the largest of the fitted runs")
    elif not law.law.ranges:
        notes.append("law.json does not tell which runs were fitted, so how far this extrapolates is not known")
    if not law.law.draws:
        notes.append("law.json has no bootstrap draws, so there is no band: fit again to get one")
    if law.assumed:
        notes.append("law.json does not say which parameters N counts; all are taken, embeddings too")
    if not 0.5 < params / ideal[0] < 2:
        notes.append(
            f"the nearest size of the family's ladder, {ladder[0]} to {ladder[-1]}, has {params / ideal[0]:.3g} times "
            "the optimal N"
        )
    notes.append(
        "the law is of the data, tokens and recipe of its runs, and so is this loss: a law of bytes of one text does "
        "not carry over to other data, nor to other tokens"
    )
    return tuple(notes)
