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
from deeplearn.sweep import ledger, trunks
from deeplearn.sweep.grid import Unit
from deeplearn.train import checkpoint

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
    """A child process and the unit that it has in hand."""

    def __init__(self, root: Path, core: int | None, events: "queue.SimpleQueue[tuple[_Worker | None, Event]]"):
        pin = [] if core is None else [f"--core={core}"]
        self.core = core
        self.log = root / f"worker-{core or 0}.log"
        self.ready = False
        self.unit: Unit | None = None
        self.shape: tuple[str, int] | None = None
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

    def give(self, unit: Unit, branches: list[Unit]) -> None:
        """Have it train a unit, and on the way start these branches of it."""
        assert self.process.stdin
        line = {"run": config.to_dict(unit.run), "branches": [config.to_dict(b.run) for b in branches]}
        self.unit, self.shape = unit, (unit.run.family, unit.run.size)
        with contextlib.suppress(BrokenPipeError):  # it has died; the exit event says so
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """No more units. One that is in hand still is saved first."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def choose(waiting: list[Unit], worker_shape: tuple[str, int] | None, other_shapes: set[Any]) -> Unit:
    """The next unit: cheapest first, of the size that the worker has compiled, else of one that no other is at."""

    def rank(unit: Unit) -> tuple[bool, bool, float]:
        shape = (unit.run.family, unit.run.size)
        return shape != worker_shape, shape in other_shapes, unit.flops

    return min(waiting, key=rank)


def _held(root: Path, units: list[Unit]) -> dict[str, str]:
    """The trunk's id of each branch by its id, of branches that have no start and were never begun."""

    def waits(branch: str) -> bool:
        start = ledger.directory(root, branch) / "checkpoints"
        return ledger.status(root, branch) == "new" and not checkpoint.exists(start)

    return {branch: trunk for branch, trunk in trunks.trunk_of(trunks.group(units)).items() if waits(branch)}


def execute(root: Path, units: list[Unit], tell: Callable[[Unit | None, Event], None], workers: int = 0) -> None:
    """Train the units and tell every event. Returns when each has ended, one way or another.

    A branch is held back until its trunk has given it its start, or has ended in whatever way.

    A worker that dies is replaced, and its unit goes on from its checkpoint, ATTEMPTS times at most. On
    KeyboardInterrupt the units in hand are saved, and the interrupt is raised on. Raises SweepError when a worker
    dies before it can take a unit.
    """
    events: queue.SimpleQueue[tuple[_Worker | None, Event]] = queue.SimpleQueue()
    waiting, tries = list(units), dict.fromkeys((u.id for u in units), 0)
    by_id, held = {u.id: u for u in units}, _held(root, units)
    idle: list[_Worker] = []
    with _staff(root, places(workers)[: len(units)], events) as staff, _interrupts(events):
        while staff:
            worker, event = events.get()
            if worker is None:
                raise KeyboardInterrupt
            unit, kind = worker.unit, event["event"]
            about = by_id[event["id"]] if kind == "branch" else unit
            tell(about, event)
            if kind in ("progress", "message"):
                continue
            if kind == "branch":
                held.pop(about.id, None)
            elif kind == "exit":
                staff.remove(worker)
                worker.dismiss()
                if not worker.ready:
                    raise SweepError(f"a worker ended with code {event['code']} while it started; see {worker.log}")
                if worker in idle:
                    idle.remove(worker)
                if unit and tries[unit.id] < ATTEMPTS:
                    waiting.append(unit)
                elif unit:
                    tell(unit, {"event": "failed", "message": f"its worker died {ATTEMPTS} times"})
                    _let_go(held, unit)
                if waiting:
                    staff.append(_Worker(root, worker.core, events))
            else:
                worker.unit, worker.ready = None, True
                if kind == "stopped":  # by somebody else's signal: its exit follows, and a successor goes on
                    waiting.append(unit)
                else:
                    idle.append(worker)
                    _let_go(held, unit)
            _serve(idle, staff, waiting, held, tries)


def _let_go(held: dict[str, str], trunk: Unit | None) -> None:
    """The branches of a trunk that has ended wait for nothing more."""
    for branch in [b for b, of in held.items() if trunk and of == trunk.id]:
        del held[branch]


def _serve(
    idle: list[_Worker], staff: list[_Worker], waiting: list[Unit], held: dict[str, str], tries: dict[str, int]
) -> None:
    """Give idle workers what may start. One for which there is nothing now waits; where nothing is left, it goes."""
    for worker in list(idle):
        free = [u for u in waiting if u.id not in held]
        if waiting and not free:
            continue
        idle.remove(worker)
        if not waiting:
            worker.dismiss()
            continue
        chosen = choose(free, worker.shape, {w.shape for w in staff if w is not worker})
        waiting.remove(chosen)
        tries[chosen.id] += 1
        worker.give(chosen, [u for u in waiting if held.get(u.id) == chosen.id])


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
