"""Train units on this machine."""

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from deeplearn import config
from deeplearn.sweep import cohorts, ledger
from deeplearn.sweep.grid import Unit
from deeplearn.sweep.staff import Event, Staff, Worker

ATTEMPTS = 3  # of one unit in one call, when its worker dies


class SweepError(RuntimeError):
    """The sweep cannot go on, for a reason that is not in its configuration."""

    exit_code = 1


def execute(
    root: Path,
    units: list[Unit],
    tell: Callable[[Unit | None, Event], None],
    staff: Staff,
    cheapest_first: bool = False,
) -> None:
    """Train the units and tell every event. Returns when each has ended, one way or another.

    Units that differ only in traced numbers train together (`cohorts.py`). A worker that dies is replaced, and its
    units go on from their checkpoints, ATTEMPTS times at most. On KeyboardInterrupt, the staff saves what is in hand as
    it leaves. Raises SweepError when a worker dies before it can take a unit.
    """
    staff.start()
    waiting, tries = list(units), dict.fromkeys((u.id for u in units), 0)
    measured = cohorts.rates(units, ledger.results(root))
    together = {u.id: ids for u in units if (ids := ledger.begun_with(root, u.id))}

    def choose(left: list[Unit]) -> list[Unit]:
        return cohorts.choose(left, measured, together, len(staff.workers), cheapest_first) if left else []

    def feed(worker: Worker) -> None:
        nonlocal waiting
        if not waiting or not worker.ready or worker.units or worker.stopped:
            return
        chosen = choose(waiting)
        waiting = [u for u in waiting if u not in chosen]
        tries.update({u.id: tries[u.id] + 1 for u in chosen})
        # A worker with a core to itself has none left to compile with while it trains.
        ahead = choose(waiting) if worker.core is None else []
        runs = {name: [config.to_dict(u.run) for u in some] for name, some in (("runs", chosen), ("ahead", ahead))}
        worker.give({u.id: u for u in chosen}, {"root": str(root), **runs})

    def back(unit: Unit) -> None:
        waiting.append(unit)
        together[unit.id] = ledger.begun_with(root, unit.id) or (unit.id,)

    with _interrupts(staff.events):
        for worker in staff.workers:
            feed(worker)
        while waiting or any(worker.units for worker in staff.workers):
            worker, event = staff.events.get()
            if worker is None:
                raise KeyboardInterrupt
            kind = event["event"]
            if kind == "exit":
                log = worker.keep_log(root)
                if not worker.ready:
                    staff.remove(worker)
                    raise SweepError(f"a worker ended with code {event['code']} while it started; see {log}")
                staff.replace(worker)
                for unit in worker.units.values() or [None]:
                    tell(unit, event)
                for unit in worker.units.values():
                    if tries[unit.id] < ATTEMPTS:
                        back(unit)
                    else:
                        tell(unit, {"event": "failed", "message": f"its worker died {ATTEMPTS} times"})
                continue
            worker.ready = True
            unit = worker.units.get(event.get("id", ""))
            tell(unit, event)
            if kind in ("ready", "progress", "message"):
                feed(worker)
                continue
            worker.units.pop(event["id"], None)
            if kind == "stopped":  # by somebody else's signal: its exit follows, and a successor goes on
                back(unit)
                worker.stopped = True
            if kind == "done":
                cohorts.record(measured, unit, event)
            feed(worker)
    for worker in staff.workers:
        worker.keep_log(root)


@contextlib.contextmanager
def _interrupts(events: "queue.SimpleQueue[tuple[Worker | None, Event]]") -> Iterator[None]:
    """Ctrl-C as an event of no worker. Raised wherever Python is, it is lost in a callback of the garbage collector."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: events.put((None, {})))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
