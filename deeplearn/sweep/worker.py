"""A process that trains units, one cohort after another: `python -m deeplearn.sweep.worker [--core=I]`.

It reads {"root": ..., "runs": [...], "branches": [[...], ...], "ahead": [...]} from standard input, one a line: runs to
train together as units of that ledger, the shorter runs that get their start from each, and those to compile for
meanwhile. It answers on standard output with one JSON object a line; each run ends in exactly one of them.
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
    parser.add_argument("--core", type=int, help="run on this core alone")
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

    # Slow: after the affinity, and now, while the parent still counts, not at the first task.
    from deeplearn.sweep import attempt
    from deeplearn.train import cohort  # noqa: F401

    attempt.keep_programs()
    answer(event="ready")
    while not stopping.is_set() and (line := lines.get()):
        task = json.loads(line)
        if task["ahead"]:
            threading.Thread(target=_prepare, args=(task["ahead"],), daemon=True).start()
        train_units(Path(task["root"]), task["runs"], task["branches"], answer, stopping, task["margin"])


def _prepare(runs: list[dict[str, Any]]) -> None:
    from deeplearn.train import cohort
    from deeplearn.train.run import from_json

    with contextlib.suppress(Exception):  # what is wrong with them is said when they train
        cohort.prepare([from_json(run) for run in runs])


def _read(lines: "queue.Queue[str | None]", stopping: threading.Event) -> None:
    """Queue what arrives. The input ends when the parent has no more units, or has died while one was in hand:
    both mean stop, and the second saves."""
    for line in sys.stdin:
        lines.put(line)
    stopping.set()
    lines.put(None)


def train_units(
    root: Path,
    runs: list[dict[str, Any]],
    branches: list[list[dict[str, Any]]],
    answer: Callable[..., None],
    stopping: threading.Event,
    margin: float = math.inf,
) -> None:
    """Train runs together as units of the ledger, record how each ended, and answer that.

    branches: of each run, those that it is the trunk of. margin: of `hopeless.watch`.
    """
    from deeplearn import config
    from deeplearn.sweep import hopeless, ledger
    from deeplearn.train.run import from_json

    claims: Claims = {}
    parsed = {config.identity(run): run for run in map(from_json, runs)}
    for (unit, run), shorter in zip(parsed.items(), branches, strict=True):
        try:
            claim = ledger.claim(root, unit, cohort=" ".join(parsed))
            sharing = [_branch(root, from_json(data), answer) for data in shorter]
            claims[unit] = run, claim, sharing, hopeless.watch(root, run, margin)
        except ledger.Fenced as error:
            answer(event="fenced", id=unit, message=str(error))
    _train(claims, answer, stopping)


def _branch(root: Path, run: Any, answer: Callable[..., None]) -> Any:
    """A unit that may get its start from a longer one, and tells when it has."""
    from deeplearn import config
    from deeplearn.sweep import ledger
    from deeplearn.train.branches import Branch

    unit = config.identity(run)

    def ready(step: int) -> None:
        answer(event="branch", id=unit, step=step, steps=run.steps)

    return Branch(run, ledger.directory(root, unit), lambda: ledger.status(root, unit) == "new", ready)


# Unit -> its run, its claim, its branches, and who says when it is hopeless; those that have ended are taken out.
Claims = dict[str, tuple[Any, Any, Any, Any]]


def _train(claims: Claims, answer: Callable[..., None], stopping: threading.Event) -> None:
    """Train the claimed runs together; what cannot be is tried in two halves, so that one run fails alone."""
    from deeplearn.sweep import attempt, ledger
    from deeplearn.train import loop

    groups = [claims]
    while groups:
        group = groups.pop()
        error = _attempt(group, answer, stopping) if group else None
        if isinstance(error, loop.Stopped):
            for unit in [u for g in (group, *groups) for u in g]:
                answer(event="stopped", id=unit, message=str(error))
            return
        for unit in [u for u, (_, claim, *_) in group.items() if not attempt.is_mine(claim)]:
            _end(group, unit, answer, event="fenced", message=f"unit {unit} belongs to a later attempt")
            error = None
        if not group:
            continue
        if error is None:
            groups.append(group)
            continue
        text, units = f"{type(error).__name__}: {error}", list(group)
        if len(units) == 1:
            ledger.fail(group[units[0]][1], type(error).__name__, str(error))
            _end(group, units[0], answer, event="failed", message=text)
            continue
        why = text.splitlines()[0][:200]
        answer(event="message", id=units[0], message=f"{len(units)} units do not train together, so halves do: {why}")
        middle = len(units) // 2
        groups += [{u: group[u] for u in half} for half in (units[middle:], units[:middle])]


def _attempt(claims: Claims, answer: Callable[..., None], stopping: threading.Event) -> Exception | None:
    """Train until all have ended. Returns what went wrong, without what it holds of the device's memory."""
    from deeplearn.train import cohort

    members = [_member(claims, unit, answer) for unit in claims]

    def tell(message: str) -> None:
        answer(event="message", id=next(iter(claims), None), message=message)

    try:
        if len(members) > 1:
            cohort.train(members, stopping.is_set, tell)
        else:
            _alone(members[0], stopping, tell)
    except Exception as error:  # one unit's failure is not the sweep's
        return error.with_traceback(None)
    return None


def _alone(member: Any, stopping: threading.Event, tell: Callable[[str], None]) -> None:
    """Train one run by the loop that has no axis of members."""
    from deeplearn.sweep import attempt

    writes = {"observe": member.observe, "may_write": member.may_write, "should_stop": stopping.is_set}
    member.end(attempt.train(member.run, member.folder, **writes, tell=tell, branches=member.branches))


def _member(claims: Claims, unit: str, answer: Callable[..., None]) -> Any:
    """A claimed unit as a member of a cohort: it tells where it is, and records how it ends."""
    from deeplearn.sweep import attempt, ledger
    from deeplearn.train import cohort, loop

    run, claim, branches, watch = claims[unit]
    members = len(claims)
    last = 0.0

    def observe(progress: loop.Progress) -> None:
        nonlocal last
        watch(progress.step)
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            answer(event="progress", id=unit, **progress._asdict())

    def end(how: loop.Result | loop.Ended) -> None:
        result = attempt.result(how, claim.folder, members)
        ledger.finish(claim, result)
        _end(claims, unit, answer, event=result.pop("status"), **result)

    return cohort.Member(run, claim.folder, observe, claim.check, end, branches)


def _end(claims: Claims, unit: str, answer: Callable[..., None], /, **event: Any) -> None:
    del claims[unit]
    answer(id=unit, **event)


if __name__ == "__main__":
    main()
