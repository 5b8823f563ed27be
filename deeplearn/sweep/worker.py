"""A process that trains units one after another: `python -m deeplearn.sweep.worker ROOT [--core=I] ...`.

It reads runs as JSON from standard input, one a line, and answers on standard output with one JSON object a line.
One process for many units keeps its imports and compiled programs; one process a core, each with one thread, uses a
CPU 1.5 to 1.9 times as well as one process with all threads does (small models).
"""

import argparse
import contextlib
import json
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deeplearn.sweep.worker", description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--core", type=int, help="run on this core alone")
    parser.add_argument("--stop_hopeless", type=float, default=math.inf, help="end units this far behind (hopeless.py)")
    args = parser.parse_args()
    if args.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {args.core})  # before JAX starts, which counts its threads then
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it sends SIGTERM
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(lines, stopping), daemon=True).start()
    # Whatever a library prints goes to standard error; the answers keep the real standard output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent has died: that stops the unit, and is no failure of it
            answers.write(json.dumps(fields) + "\n")
            answers.flush()

    import jax  # slow, and the affinity comes first

    from deeplearn.data.sources import cache_dir

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    answer(event="ready")
    while not stopping.is_set() and (line := lines.get()):
        train_unit(args.root, line, answer, stopping, args.stop_hopeless)


def _read(lines: "queue.Queue[str | None]", stopping: threading.Event) -> None:
    """Queue what arrives. The input ends when the parent has no more units, or has died while one was in hand:
    both mean stop, and the second saves."""
    for line in sys.stdin:
        lines.put(line)
    stopping.set()
    lines.put(None)


def train_unit(
    root: Path, line: str, answer: Callable[..., None], stopping: threading.Event, margin: float = math.inf
) -> None:
    """Train one run as a unit of the ledger, record how it ended, and answer that. margin: of `hopeless.watch`."""
    from deeplearn import config, sharding
    from deeplearn.sweep import hopeless, ledger
    from deeplearn.train import loop
    from deeplearn.train.run import from_json

    run = from_json(json.loads(line))
    unit = config.identity(run)
    last = 0.0
    watch = hopeless.watch(root, run, margin)

    def observe(progress: loop.Progress) -> None:
        nonlocal last
        watch(progress.step)
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            answer(event="progress", id=unit, **progress._asdict())

    def tell(message: str) -> None:
        answer(event="message", id=unit, message=message)

    def train(claim: ledger.Claim) -> dict[str, Any]:
        folder = ledger.directory(root, unit)
        sharding.check_all_used(sharding.make_mesh(run.mesh))
        try:
            result = loop.train(run, folder, observe, claim.check, stopping.is_set, tell)
            return {"status": "done", **result._asdict()}
        except loop.Ended as error:
            return {"status": error.status, "loss": None, "message": str(error)}

    try:
        claim = ledger.claim(root, unit)
        try:
            result = train(claim)
        except (loop.Stopped, ledger.Fenced):
            raise
        except Exception as error:  # one unit's failure is not the sweep's
            message = f"{type(error).__name__}: {error}"
            ledger.fail(claim, type(error).__name__, str(error))
            answer(event="failed", id=unit, message=message)
            return
        ledger.finish(claim, result)
        answer(event=result["status"], id=unit, **{k: v for k, v in result.items() if k != "status"})
    except loop.Stopped as error:
        answer(event="stopped", id=unit, message=str(error))
    except ledger.Fenced as error:
        answer(event="fenced", id=unit, message=str(error))


if __name__ == "__main__":
    main()
