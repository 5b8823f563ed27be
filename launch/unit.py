"""Train one unit of a sweep's ledger, from its newest checkpoint if there is one: what every backend starts.

    python -m launch.unit --root=runs/quickstart --unit=0123456789ab

A signal saves, and so does whoever takes the unit over: a later attempt fences this one out. Over several processes the
same command runs in each, with --distributed where Slurm, MPI, GKE or a TPU started them, or with
--coordinator=HOST:PORT --processes=N --process=I. Process 0 alone claims the unit and writes how it ended.

It ends with 0: there is a result. 2: the configuration is wrong. 3: another attempt has the unit. 42: a signal stopped
it, after saving, or the machines did: start the same again. Anything else: a failure, which error.json tells.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from deeplearn import config
from deeplearn.config import ConfigError
from deeplearn.sweep import ledger
from experiments import cli, processes

processes.define_flags()
_ROOT = flags.DEFINE_string("root", None, "The sweep's folder or bucket.")
_UNIT = flags.DEFINE_string("unit", None, "The unit's id: a folder of ROOT/units.")
_GRACE = flags.DEFINE_float("grace", 100.0, "Seconds from a signal to the end, saved or not.", 0)
_PATIENCE = flags.DEFINE_float("patience", 600.0, "Seconds that a dispatch may take: after that all stacks, and 42.", 0)

STOPPED = 42


def main(argv: list[str]) -> int:
    del argv
    if _ROOT.value is None or _UNIT.value is None:
        raise ConfigError("which unit? pass --root=DIR --unit=ID")
    stopping = on_signals(_GRACE.value)
    root, unit = _ROOT.value, _UNIT.value
    ledger.reach(root)
    ledger.config(root, unit)  # a wrong name should not wait for JAX
    if ledger.status(root, unit) in ledger.OVER:
        print(f"unit {unit} has a result already")
        return 0
    is_first = processes.join()
    stopping = on_signals(_GRACE.value, stopping)  # JAX has put a handler of its own there
    claim = _claim(root, unit, is_first)
    if claim is None:
        return 0
    try:
        _train(root, unit, claim, is_first, stopping)
    except Exception as error:
        if getattr(error, "exit_code", None) in (None, ConfigError.exit_code):
            with contextlib.suppress(OSError):  # a disk that is full takes no record of it either
                ledger.fail(claim, type(error).__name__, str(error))
        raise
    return 0


def _claim(root: str, unit: str, is_first: bool) -> ledger.Claim | None:
    """Process 0's attempt, in all processes; None if there is a result by now. Raises Fenced."""
    from deeplearn.train import together

    number = 0
    if is_first and ledger.status(root, unit) not in ledger.OVER:
        try:
            number = ledger.claim(root, unit, job=_job()).attempt
        except ledger.Fenced:
            number = -1
    number = together.from_first(number)
    if number < 0:
        raise ledger.Fenced(f"another process took unit {unit} at this moment")
    return ledger.Claim(ledger.directory(root, unit), unit, number) if number else None


def _train(root: str, unit: str, claim: ledger.Claim, is_first: bool, stopping: threading.Event) -> None:
    """Train, and write the result. Raises what `loop.train` raises, and Fenced in all processes alike."""
    from deeplearn.sweep import attempt
    from deeplearn.train import together
    from deeplearn.train.run import from_json

    run, folder = from_json(ledger.config(root, unit)), claim.folder
    if config.identity(run) != unit:
        raise ConfigError(f"the config.json of unit {unit} describes another run, {config.identity(run)}")
    attempt.keep_programs()

    def may_write() -> None:
        if not together.everywhere(attempt.is_mine(claim)):
            raise ledger.Fenced(f"attempt {claim.attempt} of unit {unit} has been taken over by a later one")

    def tell(message: str) -> None:
        if is_first:
            print(message, flush=True)

    tell(f"unit {unit}, attempt {claim.attempt}, on {socket.gethostname()}")
    given = {"observe": _observer(tell), "may_write": may_write, "should_stop": stopping.is_set, "tell": tell}
    how = attempt.train(run, folder, patience_s=_PATIENCE.value, **given)
    if is_first:
        result = attempt.result(how, folder)
        ledger.finish(claim, result)
        tell(f"{result['status']}: {result.get('message') or result['loss']}")


def _observer(tell: Callable[[str], None]) -> Callable[[Any], None]:
    """Tells where the run is, at most every ten seconds."""
    last = 0.0

    def observe(progress: Any) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            where = f"step {progress.step}/{progress.steps}"
            tell(f"{where}  loss {progress.loss:.4f}  {progress.tokens_per_s:,.0f} tokens/s")

    return observe


def on_signals(grace: float, stopping: threading.Event | None = None) -> threading.Event:
    """An event that SIGTERM and SIGINT set; `grace` seconds later the process ends with 42, saved or not.

    It comes through a pipe to a thread: a handler in Python would wait for the main thread to leave the compiler.
    """
    stopping = stopping or threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())

    def listen() -> None:
        os.read(reader, 1)
        stopping.set()
        time.sleep(grace)
        print(f"not saved within {grace:g} s of the signal", flush=True)
        os._exit(STOPPED)

    threading.Thread(target=listen, daemon=True).start()
    return stopping


def _job() -> str:
    """The engine's name for this job, for people who look for its log."""
    return os.environ.get("DEEPLEARN_JOB") or os.environ.get("SLURM_JOB_ID") or ""


if __name__ == "__main__":
    cli.run(main)
