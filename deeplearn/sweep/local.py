"""Train units on this machine: one worker a core on a CPU, one in all where there is an accelerator."""

import contextlib
import glob
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deeplearn import config
from deeplearn.sweep import cohorts, ledger
from deeplearn.sweep.grid import Unit

ATTEMPTS = 3  # of one unit in one call, when its worker dies

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")

Event = dict[str, Any]


class SweepError(RuntimeError):
    """The sweep cannot go on, for a reason that is not in its configuration."""

    exit_code = 1


def cores() -> list[int]:
    """The cores that a CPU's workers are pinned to, one each; [] where an accelerator is here, for one worker."""
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(glob.glob(pattern) for pattern in _ACCELERATORS):
        return []
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def places(workers: int = 0) -> list[int | None]:
    """Where workers run: the core of each, or None for the one that may use the whole machine. workers 0: all."""
    found = cores() or [None]
    return found[: workers or len(found)]


class _Worker:
    """A child process and the units that it has in hand."""

    def __init__(self, root: Path, core: int | None, events: "queue.SimpleQueue[tuple[_Worker | None, Event]]"):
        pin = [] if core is None else [f"--core={core}"]
        self.core = core
        self.log = root / f"worker-{core or 0}.log"
        self.ready = False
        self.stopped = False
        self.units: dict[str, Unit] = {}
        command = [sys.executable, "-m", "deeplearn.sweep.worker", str(root), *pin]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: "queue.SimpleQueue[tuple[_Worker | None, Event]]") -> None:
        assert self.process.stdout
        with self.process.stdout:
            for line in self.process.stdout:
                events.put((self, json.loads(line)))
        events.put((self, {"event": "exit", "code": self.process.wait()}))

    def give(self, units: list[Unit], next_units: list[Unit]) -> None:
        """Units to train together, and those that are likely to come after them."""
        assert self.process.stdin
        self.units = {u.id: u for u in units}
        # A worker with a core to itself has none left to compile with while it trains.
        ahead = next_units if self.core is None else []
        line = {"runs": [config.to_dict(u.run) for u in units], "ahead": [config.to_dict(u.run) for u in ahead]}
        with contextlib.suppress(BrokenPipeError):  # it has died; the exit event says so
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """No more units. One that is in hand still is saved first."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def execute(
    root: Path,
    units: list[Unit],
    tell: Callable[[Unit | None, Event], None],
    workers: int = 0,
    cheapest_first: bool = False,
) -> None:
    """Train the units and tell every event. Returns when each has ended, one way or another.

    Units that differ only in traced numbers train together (`cohorts.py`). A worker that dies is replaced, and its
    units go on from their checkpoints, ATTEMPTS times at most. On KeyboardInterrupt the units in hand are saved, and
    the interrupt is raised on. Raises SweepError when a worker dies before it can take a unit.
    """
    events: queue.SimpleQueue[tuple[_Worker | None, Event]] = queue.SimpleQueue()
    waiting, tries = list(units), dict.fromkeys((u.id for u in units), 0)
    measured = cohorts.rates(units, ledger.results(root))
    together = {u.id: ids for u in units if (ids := ledger.begun_with(root, u.id))}

    def choose(left: list[Unit]) -> list[Unit]:
        return cohorts.choose(left, measured, together, max(1, len(staff)), cheapest_first) if left else []

    with _staff(root, places(workers)[: len(units)], events) as staff, _interrupts(events):
        while staff:
            worker, event = events.get()
            if worker is None:
                raise KeyboardInterrupt
            kind, unit = event["event"], worker.units.get(event.get("id", ""))
            if kind == "exit":
                for lost in worker.units.values() or [None]:
                    tell(lost, event)
            else:
                tell(unit, event)
            if kind in ("progress", "message"):
                continue
            if kind == "exit":
                staff.remove(worker)
                worker.dismiss()
                if not worker.ready:
                    raise SweepError(f"a worker ended with code {event['code']} while it started; see {worker.log}")
                for lost in worker.units.values():
                    if tries[lost.id] < ATTEMPTS:
                        waiting.append(lost)
                        together[lost.id] = ledger.begun_with(root, lost.id) or (lost.id,)
                    else:
                        tell(lost, {"event": "failed", "message": f"its worker died {ATTEMPTS} times"})
                if waiting:
                    staff.append(_Worker(root, worker.core, events))
                continue
            worker.ready = True
            worker.units.pop(event.get("id", ""), None)
            if kind == "stopped":  # by somebody else's signal: its exit follows, and a successor goes on
                waiting.append(unit)
                together[unit.id] = ledger.begun_with(root, unit.id)
                worker.stopped = True
            if kind == "done":
                cohorts.record(measured, unit, event)
            if worker.units or worker.stopped:
                continue
            if chosen := choose(waiting):
                waiting = [u for u in waiting if u not in chosen]
                tries |= {u.id: tries[u.id] + 1 for u in chosen}
                worker.give(chosen, choose(waiting))
            else:
                worker.dismiss()


@contextlib.contextmanager
def _interrupts(events: "queue.SimpleQueue[tuple[_Worker | None, Event]]") -> Iterator[None]:
    """Ctrl-C as an event of no worker. Raised wherever Python is, it is lost in a callback of the garbage collector."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: events.put((None, {})))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _staff(root: Path, places: list[int | None], events: Any) -> Iterator[list[_Worker]]:
    """Workers that never outlive the block: on the way out by an exception they are asked to save, then waited for."""
    staff = [_Worker(root, place, events) for place in places]
    try:
        yield staff
    except BaseException:
        for worker in staff:
            worker.dismiss()
        for worker in staff:
            try:
                worker.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                worker.process.kill()
        raise
