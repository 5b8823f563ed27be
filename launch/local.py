"""Units as processes of this machine, started by one that outlives the command: `python -m launch.local FOLDER`.

A process belongs to a submission if its environment says so: no other process does, whatever its number, and whoever
started it may be dead. So Linux only: it is read from /proc.
"""

import glob
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deeplearn.config import ConfigError
from deeplearn.sweep.grid import Unit
from launch.backend import FAILURES, STOPS, Job, Unreadable, unit_command

MARK = "DEEPLEARN_JOB"


def render(units: Sequence[Unit], job: Job) -> str:
    if job.nodes > 1:
        raise ConfigError(f"--nodes={job.nodes}: backend 'local' has one machine; --devices=N gives a unit N devices")
    return json.dumps({"units": [unit.id for unit in units], **job._asdict()}, indent=1)


def validate(text: str) -> str:
    plan = json.loads(text)
    return f"{len(plan['units'])} processes, {_at_once(plan)} at once"


def submit(text: str, name: str) -> str:
    plan = json.loads(text)
    folder = Path(plan["logs"]) / name
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(text)
    handle = _handle(name, folder)
    with (folder / "started.log").open("w") as log:
        subprocess.Popen(
            [sys.executable, "-m", "launch.local", str(folder)],
            cwd=plan["code"],
            env=os.environ | {MARK: name},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return handle


def find(job: Job, units: Sequence[str]) -> str:
    del units
    folder = Path(job.logs) / job.name
    return _handle(job.name, folder) if (folder / "plan.json").exists() else ""


def live(handle: str) -> set[str]:
    name, host, folder = handle.split(" ", 2)
    if host != socket.gethostname():
        raise Unreadable(f"{name} was started on {host}, and only there one sees what is left of it")
    running = _processes(name)
    units = {word.removeprefix("--unit=") for words in running.values() for word in words if word.startswith("--unit=")}
    if any("launch.local" in words for words in running.values()):
        units |= set(_left(Path(folder)))
    return units


def cancel(handle: str) -> None:
    name, _, _ = handle.split(" ", 2)
    live(handle)  # which refuses on another machine
    starters = {pid: "launch.local" in words for pid, words in _processes(name).items()}
    for pid in sorted(starters, key=lambda pid: not starters[pid]):  # so that it starts no more
        os.kill(pid, signal.SIGTERM)


def run(folder: Path) -> None:
    """Start the units of a plan, so many at once, and those again that were stopped or failed, a bounded number of
    times. SIGTERM stops all."""
    plan = json.loads((folder / "plan.json").read_text())
    waiting, running, tries = list(plan["units"]), {}, dict.fromkeys(plan["units"], 0)
    places, stopped = list(range(_at_once(plan))), []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    while running or (waiting and not stopped):
        while waiting and places and not stopped:
            place, unit = places.pop(0), waiting.pop(0)
            running[unit] = _start(plan, unit, place), place
        time.sleep(0.1)
        for unit, (process, place) in list(running.items()):
            if stopped:
                process.terminate()
            if (code := process.poll()) is None:
                continue
            del running[unit]
            places.append(place)
            tries[unit] += 1
            if code not in (0, 2, 3) and tries[unit] <= (STOPS if code == 42 else FAILURES):
                waiting.append(unit)
            _write_left(folder, [*waiting, *running])


def _start(plan: dict, unit: str, place: int) -> subprocess.Popen:
    job = Job(**{name: plan[name] for name in Job._fields})
    env = dict(os.environ)
    if job.devices:
        env["JAX_NUM_CPU_DEVICES"] = str(job.devices)
        if glob.glob("/dev/nvidia[0-9]*"):
            first = place * job.devices
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(first, first + job.devices)))
    with open(Path(job.logs) / f"{unit}.log", "a") as log:
        words = unit_command(job, unit)
        return subprocess.Popen(words, cwd=job.code, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _at_once(plan: dict) -> int:
    return plan["max_parallel"] or os.cpu_count() or 1


def _handle(name: str, folder: Path) -> str:
    return f"{name} {socket.gethostname()} {folder}"


def _left(folder: Path) -> list[str]:
    """Units that have not ended yet, as the process that starts them says."""
    path = folder / "left.json"
    return json.loads(path.read_text()) if path.exists() else json.loads((folder / "plan.json").read_text())["units"]


def _write_left(folder: Path, units: list[str]) -> None:
    whole = folder / ".left.json"
    whole.write_text(json.dumps(units))
    whole.replace(folder / "left.json")


def _processes(name: str) -> dict[int, list[str]]:
    """pid -> words of its command, of each process of the submission. Raises Unreadable."""
    if not Path("/proc/self/environ").exists():
        raise Unreadable("backend 'local' reads what is running from /proc, and there is none")
    found, mark = {}, f"{MARK}={name}".encode()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended, or is another user's
            continue
    return found


if __name__ == "__main__":
    run(Path(sys.argv[1]))
