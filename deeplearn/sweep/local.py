"""Train units on this machine."""

import contextlib
import math
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deeplearn import config
from deeplearn.sweep import cohorts, ledger, trunks
from deeplearn.sweep.grid import Unit
from deeplearn.sweep.staff import Event, Staff, Worker
from deeplearn.train import checkpoint, cohort, spent

ATTEMPTS = 3  # of one unit in one call, when its worker dies


class SweepError(RuntimeError):
    """The sweep cannot go on, for a reason that is not in its configuration."""

    exit_code = 1


def execute(
    root: Path,
    units: list[Unit],
    tell: Callable[[Unit | None, Event], None],
    staff: Staff,
    seconds: float = math.inf,
    may_start: Callable[[Unit], bool] = lambda unit: True,
    margin: float = math.inf,
) -> None:
    """Train the units and tell every event. Returns when each has ended, one way or another.

    seconds: after which what is in hand is saved, and nothing more begins; with such a limit the cheapest come first.
    may_start: asked before a unit is given out; one for which it says no is left. margin: of `hopeless.watch`.

    Units that differ only in traced numbers train together (`cohorts.py`). A branch is held back until its trunk has
    given it its start, or has ended in whatever way (`trunks.py`). A worker that dies is replaced, and its
    units go on from their checkpoints, ATTEMPTS times at most. On KeyboardInterrupt, the staff saves what is in hand as
    it leaves. Raises SweepError when a worker dies before it can take a unit.
    """
    staff.start()
    late, waiting, tries = False, list(units), dict.fromkeys((u.id for u in units), 0)
    measured = cohorts.rates(units, ledger.results(root))
    together = {u.id: ids for u in units if (ids := ledger.begun_with(root, u.id))}
    by_id, held = {u.id: u for u in units}, _held(root, units)
    started = {u.id: party for u in units if u.id not in together and (party := _party(root, u.id))}

    def is_free(unit: Unit) -> bool:
        """Not held back, nor one of several branches of one cohort of which some are: they go on together."""
        party, key = started.get(unit.id, ()), cohort.key(unit.run)
        siblings = (u for u in waiting if party and held.get(u.id) in party and cohort.key(u.run) == key)
        return unit.id not in held and next(siblings, None) is None

    def choose() -> list[Unit]:
        free = [u for u in waiting if is_free(u) and may_start(u)]
        hurried = math.isfinite(seconds)
        return cohorts.choose(free, measured, together, started, len(staff.places), hurried) if free else []

    def feed(worker: Worker) -> None:
        nonlocal waiting
        if not worker.ready or worker.units or worker.stopped or not (chosen := choose()):
            return
        waiting = [u for u in waiting if u not in chosen]
        tries.update({u.id: tries[u.id] + 1 for u in chosen})
        # A worker with a core to itself has none left to compile with while it trains.
        ahead = choose() if worker.core is None else []
        branches = [[u for u in waiting if held.get(u.id) == trunk.id] for trunk in chosen]
        task = {"runs": _described(chosen), "branches": [_described(b) for b in branches], "ahead": _described(ahead)}
        worker.give({u.id: u for u in chosen}, {"root": str(root), "margin": margin, **task})

    def back(unit: Unit) -> None:
        waiting.append(unit)
        together[unit.id] = ledger.begun_with(root, unit.id) or (unit.id,)

    def feed_all() -> None:
        for worker in staff.workers:
            feed(worker)

    with _interrupts(staff.events), _alarm(staff.events, seconds):
        feed_all()
        while any(worker.units for worker in staff.workers) or choose():
            worker, event = staff.events.get()
            kind = event["event"]
            if kind == "interrupt":
                raise KeyboardInterrupt
            if kind == "late":
                late, may_start = True, lambda unit: False
                for busy in staff.workers:
                    busy.dismiss()
                continue
            if kind == "exit":
                log = worker.keep_log(root)
                if not worker.ready:
                    staff.remove(worker)
                    raise SweepError(f"a worker ended with code {event['code']} while it started; see {log}")
                for unit in worker.units.values() or [None]:
                    tell(unit, event)
                for unit in worker.units.values():
                    if tries[unit.id] < ATTEMPTS:
                        back(unit)
                    else:
                        tell(unit, {"event": "failed", "message": f"its worker died {ATTEMPTS} times"})
                        _let_go(held, unit)
                staff.remove(worker)
                if waiting and not late:
                    staff.add(worker.core)
                continue
            worker.ready = True
            unit = by_id.get(event.get("id", ""))
            tell(unit, event)
            if kind in ("progress", "message"):
                continue
            if kind == "branch":
                held.pop(unit.id, None)
                started |= {unit.id: party} if (party := _party(root, unit.id)) else {}
            elif kind != "ready":
                worker.units.pop(unit.id, None)
                if kind == "stopped":  # by somebody else's signal: its exit follows, and a successor goes on
                    back(unit)
                    worker.stopped = True
                else:
                    _let_go(held, unit)
                if kind == "done":
                    cohorts.record(measured, unit, event)
            feed_all()
    for worker in staff.workers:
        worker.keep_log(root)


@contextlib.contextmanager
def _alarm(events: "queue.SimpleQueue[tuple[Worker | None, Event]]", seconds: float) -> Iterator[None]:
    """The end of the time as an event of no worker."""
    if math.isinf(seconds):
        yield
        return
    timer = threading.Timer(seconds, events.put, [(None, {"event": "late"})])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _described(units: list[Unit]) -> list[dict[str, Any]]:
    return [config.to_dict(u.run) for u in units]


def _checkpoints(root: Path, unit: str) -> Path:
    return ledger.directory(root, unit) / "checkpoints"


def _party(root: Path, unit: str) -> tuple[str, ...]:
    """The ids of the cohort of trunks, one of which has left this unit its start; () if none has."""
    trunk = spent.trunk(ledger.directory(root, unit))
    return ledger.begun_with(root, trunk) if trunk and checkpoint.exists(_checkpoints(root, unit)) else ()


def _held(root: Path, units: list[Unit]) -> dict[str, str]:
    """The trunk's id of each branch by its id, of branches that have no start and were never begun."""

    def waits(branch: str) -> bool:
        return ledger.status(root, branch) == "new" and not checkpoint.exists(_checkpoints(root, branch))

    return {branch: trunk for branch, trunk in trunks.trunk_of(trunks.group(units)).items() if waits(branch)}


def _let_go(held: dict[str, str], trunk: Unit) -> None:
    """The branches of a trunk that has ended wait for nothing more."""
    for branch in [b for b, of in held.items() if of == trunk.id]:
        del held[branch]


@contextlib.contextmanager
def _interrupts(events: "queue.SimpleQueue[tuple[Worker | None, Event]]") -> Iterator[None]:
    """Ctrl-C as an event of no worker. Raised wherever Python is, it is lost in a callback of the garbage collector."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: events.put((None, {"event": "interrupt"})))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
