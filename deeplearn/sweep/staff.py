"""The worker processes of a sweep: one a core on a CPU, one in all where there is an accelerator.

They live as long as the sweep's command, so that one stage after another finds them with their imports and compiled
programs. Nothing here imports JAX: workers can be started first, and import theirs while the command imports its own.
"""

import contextlib
import glob
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")

Event = dict[str, Any]


def cores() -> list[int]:
    """The cores that a CPU's workers are pinned to, one each; [] where an accelerator is here, for one worker."""
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(glob.glob(pattern) for pattern in _ACCELERATORS):
        return []
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def places(workers: int = 0) -> list[int | None]:
    """Where workers run: the core of each, or None for the one that may use the whole machine. workers 0: all."""
    found = cores() or [None]
    return found[: workers or len(found)]


class Worker:
    """A child process and what it has in hand: id -> unit."""

    def __init__(self, core: int | None, events: "queue.SimpleQueue[tuple[Worker | None, Event]]"):
        self.core, self.units, self.ready, self.stopped = core, {}, False, False
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the process)
        self._kept = 0  # bytes of it that are in the sweep's folder
        pin = [] if core is None else [f"--core={core}"]
        command = [sys.executable, "-m", "deeplearn.sweep.worker", *pin]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self.process = subprocess.Popen(command, **pipes, text=True)
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: "queue.SimpleQueue[tuple[Worker | None, Event]]") -> None:
        assert self.process.stdout
        with self.process.stdout:
            for line in self.process.stdout:
                events.put((self, json.loads(line)))
        events.put((self, {"event": "exit", "code": self.process.wait()}))

    def give(self, units: dict[str, Any], task: dict[str, Any]) -> None:
        """Units and the line that describes them to the worker."""
        assert self.process.stdin
        self.units = dict(units)
        with contextlib.suppress(BrokenPipeError):  # it has died; the exit event says so
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """No more units. What is in hand still is saved first."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self) -> None:
        """Wait for the process to end, and let go of what is kept for it."""
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def keep_log(self, root: Path) -> Path:
        """Add what the worker has said since, beside its answers, to the log in the sweep's folder."""
        path = root / f"worker-{self.core or 0}.log"
        # Not by reading the file: the worker writes where that would leave its position.
        said = os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size - self._kept, self._kept)
        self._kept += len(said)
        with path.open("ab") as file:
            file.write(said)
        return path


class Staff:
    """Workers that never outlive the block: on the way out they are asked to save what is in hand, then waited for.

    workers: how many; 0 is one for each place.
    """

    def __init__(self, workers: int = 0):
        self.events: queue.SimpleQueue[tuple[Worker | None, Event]] = queue.SimpleQueue()
        self.places = places(workers)
        self.workers: list[Worker] = []

    def start(self) -> None:
        """Start the workers, unless they are there already."""
        if not self.workers:
            self.workers = [Worker(core, self.events) for core in self.places]

    def add(self, place: int | None) -> None:
        """A new worker, where one has ended."""
        self.workers.append(Worker(place, self.events))

    def remove(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.dismiss()
        worker.end()

    def __enter__(self) -> "Staff":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self.workers:
            worker.dismiss()
            if not worker.units:
                worker.process.kill()  # it has nothing to save
        for worker in self.workers:
            worker.end()
