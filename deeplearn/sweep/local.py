"""Train units on this machine: one worker a core on a CPU, one in all where there is an accelerator."""

import contextlib
import glob
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deeplearn import config
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
    """A child process and the unit that it has in hand."""

    def __init__(
        self,
        root: Path,
        core: int | None,
        events: "queue.SimpleQueue[tuple[_Worker | None, Event]]",
        arguments: Sequence[str] = (),
    ):
        pin = [] if core is None else [f"--core={core}"]
        self.core = core
        self.log = root / f"worker-{core or 0}.log"
        self.ready = False
        self.unit: Unit | None = None
        self.shape: tuple[str, int] | None = None
        command = [sys.executable, "-m", "deeplearn.sweep.worker", str(root), *pin, *arguments]
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

    def give(self, unit: Unit) -> None:
        assert self.process.stdin
        self.unit, self.shape = unit, (unit.run.family, unit.run.size)
        with contextlib.suppress(BrokenPipeError):  # it has died; the exit event says so
            self.process.stdin.write(json.dumps(config.to_dict(unit.run)) + "\n")
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


def execute(
    root: Path,
    units: list[Unit],
    tell: Callable[[Unit | None, Event], None],
    workers: int = 0,
    seconds: float = math.inf,
    may_start: Callable[[Unit], bool] = lambda unit: True,
    arguments: Sequence[str] = (),
) -> None:
    """Train the units and tell every event. Returns when each has ended, one way or another.

    seconds: after which what is in hand is saved, and nothing more begins; with such a limit the order is strictly that
    of cost. may_start: asked before a unit is given out; one for which it says no is left. arguments: of the workers.

    A worker that dies is replaced, and its unit goes on from its checkpoint, ATTEMPTS times at most. On
    KeyboardInterrupt the units in hand are saved, and the interrupt is raised on. Raises SweepError when a worker
    dies before it can take a unit.
    """
    events: queue.SimpleQueue[tuple[_Worker | None, Event]] = queue.SimpleQueue()
    waiting, tries = list(units), dict.fromkeys((u.id for u in units), 0)
    hurried = math.isfinite(seconds)
    with (
        _staff(root, places(workers)[: len(units)], events, arguments) as staff,
        _interrupts(events),
        _alarm(events, seconds),
    ):
        while staff:
            worker, event = events.get()
            if worker is None and event["event"] == "late":
                waiting, may_start = [], lambda unit: False
                for busy in staff:
                    busy.dismiss()
                continue
            if worker is None:
                raise KeyboardInterrupt
            unit = worker.unit
            tell(unit, event)
            if event["event"] in ("progress", "message"):
                continue
            if event["event"] == "exit":
                staff.remove(worker)
                worker.dismiss()
                if not worker.ready:
                    raise SweepError(f"a worker ended with code {event['code']} while it started; see {worker.log}")
                if unit and tries[unit.id] < ATTEMPTS:
                    waiting += [unit] if may_start(unit) else []
                elif unit:
                    tell(unit, {"event": "failed", "message": f"its worker died {ATTEMPTS} times"})
                if any(map(may_start, waiting)):
                    staff.append(_Worker(root, worker.core, events, arguments))
                continue
            worker.unit, worker.ready = None, True
            if event["event"] == "stopped":  # by a signal of somebody else: its exit follows, and a successor goes on
                waiting += [unit] if may_start(unit) else []
            elif able := [u for u in waiting if may_start(u)]:
                others = {w.shape for w in staff if w is not worker}
                chosen = choose(able, None, set()) if hurried else choose(able, worker.shape, others)
                waiting.remove(chosen)
                tries[chosen.id] += 1
                worker.give(chosen)
            else:
                worker.dismiss()


@contextlib.contextmanager
def _interrupts(events: "queue.SimpleQueue[tuple[_Worker | None, Event]]") -> Iterator[None]:
    """Ctrl-C as an event of no worker. Raised wherever Python is, it is lost in a callback of the garbage collector."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: events.put((None, {"event": "interrupt"})))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _alarm(events: "queue.SimpleQueue[tuple[_Worker | None, Event]]", seconds: float) -> Iterator[None]:
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


@contextlib.contextmanager
def _staff(root: Path, places: list[int | None], events: Any, arguments: Sequence[str]) -> Iterator[list[_Worker]]:
    """Workers that never outlive the block: on the way out by an exception they are asked to save, then waited for."""
    staff = [_Worker(root, place, events, arguments) for place in places]
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
