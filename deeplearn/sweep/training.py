"""Training the units of a study: those without a result that the limits allow, and why the others are left."""

import dataclasses
import math
import time
from pathlib import Path

from rich.console import Console

from deeplearn.sweep import budget, hopeless, ledger, local
from deeplearn.sweep.grid import Unit
from deeplearn.sweep.progress import Display
from deeplearn.sweep.staff import Staff

WAITING = ("new", "started")  # of a unit: without a result and without a failure


@dataclasses.dataclass(frozen=True)
class Job:
    """A command at work on a root. start: on the monotonic clock. rates: FLOPs/s of a worker by size, as measured."""

    root: Path
    console: Console
    staff: Staff
    limits: budget.Limits = budget.Limits()
    start: float = dataclasses.field(default_factory=time.monotonic)
    rates: dict[int, float] = dataclasses.field(default_factory=dict)

    def seconds_left(self) -> float:
        return self.limits.seconds - (time.monotonic() - self.start)

    def over(self, units: list[Unit]) -> set[str]:
        """The units that have ended with a result."""
        return {u.id for u in units if ledger.status(self.root, u.id) in ledger.OVER}

    def affordable(self, units: list[Unit]) -> list[Unit]:
        """The units that the budget of FLOPs pays for, cheapest first."""
        if math.isinf(self.limits.flops):
            return sorted(units, key=lambda u: u.flops)
        return budget.affordable(units, budget.spent(self.root, units), self.over(units), self.limits.flops)


def learn_rates(job: Job, units: list[Unit]) -> None:
    """Take the rates of workers from the results that the root has."""
    results = ledger.results(job.root)
    for unit in units:
        if rate := results.get(unit.id, {}).get("tokens_per_s"):
            job.rates[unit.run.size] = rate * unit.flops / unit.run.tokens


def train(job: Job, units: list[Unit], split: str, aim: str = "") -> None:
    """Train what has no result yet and is paid for; a run that failed is tried anew by each command.

    What units leave that end early may pay for others, until nothing more is.

    Args:
      job: the command.
      units: all of the sweep, for which room is kept and progress is shown.
      split: of those to train.
      aim: what the sweep is after, for the display.
    """
    tried: set[str] = set()
    while True:
        over, paid = job.over(units), job.affordable(units)
        waiting = [u for u in paid if u.split == split and u.id not in over | tried]
        if not waiting or job.seconds_left() <= 0:
            return
        tried |= {u.id for u in waiting}
        _execute(job, paid, waiting, over, aim)


def _execute(job: Job, paid: list[Unit], waiting: list[Unit], over: set[str], aim: str) -> None:
    failed = {u.id for u in paid if ledger.status(job.root, u.id) == "failed" and u not in waiting}
    test = budget.test_of([u for u in paid if u.id not in over])
    margin, seconds = job.limits.hopeless, job.seconds_left()
    with Display(paid, over | failed, len(job.staff.places), job.console, job.rates, aim) as display:

        def may_start(unit: Unit) -> bool:
            """By the rates so far: does it fit into the time, with room for the test of a law once there is one?"""
            law = sum(u.id in display.done for u in paid if u.split == "fit") >= budget.MIN_RUNS
            kept = display.seconds(test) or 0.0 if test and law and unit.split == "fit" else 0.0
            kept = kept if kept < job.limits.seconds else 0.0
            return job.seconds_left() >= (display.seconds(unit) or 0.0) + kept

        local.execute(job.root, waiting, display.tell, job.staff, seconds, may_start, margin)


def room(job: Job, units: list[Unit]) -> float:
    """FLOPs that the limits leave for further units; none, if some of these are to be fitted and not trained yet."""
    over = job.over(units)
    if job.seconds_left() <= 0 or any(ledger.status(job.root, u.id) in WAITING for u in units if u.split == "fit"):
        return 0.0
    if math.isinf(job.limits.flops):
        return math.inf
    taken, test = budget.spent(job.root, units), budget.test_of(units)
    kept = test.flops - taken.get(test.id, 0.0) if test and test.id not in over else 0.0
    return job.limits.flops - sum(taken.values()) - kept


def not_fitted(job: Job, units: list[Unit]) -> list[dict[str, str]]:
    """Every unit that gave the study no loss, by name: its id, what it ended as, and why.

    A unit that the rule of `hopeless` finds only when all is trained is among them, though it has a loss.
    """
    results, paid = ledger.results(job.root), {u.id for u in job.affordable(units)}
    late = {} if math.isinf(job.limits.hopeless) else hopeless.found(job.root, units, job.limits.hopeless)
    told = []
    for unit in units:
        status, result = ledger.status(job.root, unit.id), results.get(unit.id, {})
        if status == "done" and unit.id in late:
            told.append((unit, "hopeless", late[unit.id]))
        elif status in ledger.OVER and status != "done":
            told.append((unit, status, result.get("message", "")))
        elif status == "failed":
            error = ledger.read_json(ledger.directory(job.root, unit.id) / "error.json") or {}
            told.append((unit, status, f"{error.get('class')}: {error.get('message')}"))
        elif status != "done" and unit.id not in paid:
            told.append((unit, "left_out", f"its {unit.flops:.3g} FLOPs are more than the budget has left for it"))
        elif status != "done" and not math.isinf(job.limits.seconds):
            begun = "it is saved, and goes on from there" if status == "started" else "it was not begun"
            told.append((unit, "left_out", f"the time did not suffice: {begun}"))
        elif status != "done":
            told.append((unit, "pending", "it has no result yet"))
    return [{"id": u.id, "status": status, "why": why} for u, status, why in told]
