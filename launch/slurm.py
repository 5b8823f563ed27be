"""Units as one Slurm array: a task of the array is one unit, on one node or on several.

What a shell or sbatch reads is quoted, or made of characters that mean nothing to them. A task that ends with 42 is put
back into the queue by its own script, and so are failures, a few times; 2 and 3 end it.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence

from deeplearn.config import ConfigError
from deeplearn.sweep.grid import Unit
from launch.backend import FAILURES, STOPS, Job, Unreadable, unit_command

PATIENCE_S = 120  # with a controller that does not answer

# sbatch reads the units' ids back from here when it makes the handle.
SCRIPT = """\
#!/bin/bash
{directives}
units=({units})
unit=${{units[$SLURM_ARRAY_TASK_ID]}}
cd {code} || exit 1
exec >>{logs}/"$unit.log" 2>&1 </dev/null || exit 1
export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}{devices}
srun --mpi=none --kill-on-bad-exit=0 {command} --unit="$unit"{flags}
code=$?
case $code in
    0 | 2 | 3) exit $code ;;
    42) most={stops} ;;
    *) most={failures} ;;
esac
if [ "${{SLURM_RESTART_COUNT:-0}}" -lt "$most" ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit $code
"""


def render(units: Sequence[Unit], job: Job) -> str:
    at_once = f"%{job.max_parallel}" if job.max_parallel else ""
    options = [
        f"--job-name={job.name}",
        f"--array=0-{len(units) - 1}{at_once}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        "--output=/dev/null",  # the script writes to a file of its own, whose name sbatch need not understand
        "--open-mode=append",
        "--requeue",
        "--signal=TERM@120",
        *([f"--time={job.minutes}"] if job.minutes else []),
        *job.options,
    ]
    if broken := [option for option in options if not option.startswith("--") or "\n" in option]:
        raise ConfigError(f"an option for sbatch is one word that begins with --, not {broken[0]!r}")
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {shlex.quote(option)}" for option in options),
        units=" ".join(shlex.quote(unit.id) for unit in units),
        code=shlex.quote(job.code),
        logs=shlex.quote(job.logs),
        devices=f"\nexport JAX_NUM_CPU_DEVICES={int(job.devices)}" if job.devices else "",
        command=shlex.join(unit_command(job, "")[:-1]),
        flags=" --distributed" if job.nodes > 1 else "",
        stops=STOPS,
        failures=FAILURES,
    )


def validate(text: str) -> str:
    done = _call(["sbatch", "--test-only"], text)
    return (done.stdout + done.stderr).strip()


def submit(text: str, name: str) -> str:
    number = _call(["sbatch", "--parsable"], text).stdout.strip().split(";")[0]
    units = re.search(r"^units=\((.*)\)$", text, re.MULTILINE)
    return _handle(name, number, shlex.split(units[1]) if units else [])


def find(job: Job, units: Sequence[str]) -> str:
    numbers = {task.partition("_")[0] for task, name in _queue("--states=all") if name == job.name}
    return _handle(job.name, numbers.pop(), units) if numbers else ""


def live(handle: str) -> set[str]:
    name, *words = handle.split()
    tasks = dict(word.split(":") for word in words)
    return {tasks[task] for task, of in _queue() if of == name and task in tasks}


def cancel(handle: str) -> None:
    _call(["scancel", "--me", f"--name={handle.split()[0]}"])


def _handle(name: str, number: str, units: Sequence[str]) -> str:
    """The name, and for each unit the task that trains it: NAME 12_0:abc 12_1:def."""
    return " ".join([name, *(f"{number}_{i}:{unit}" for i, unit in enumerate(units))])


def _queue(*flags: str) -> list[tuple[str, str]]:
    """(task, name) of each of this user's tasks that wait or run."""
    lines = _call(["squeue", "--me", "--noheader", "--array", "--format=%i %j", *flags]).stdout.splitlines()
    return [(words[0], words[1]) for line in lines if len(words := line.split(maxsplit=1)) == 2]


def _call(words: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm. Raises Unreadable if it fails, ConfigError if it is not here."""
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=PATIENCE_S, env=_environment())
    except FileNotFoundError:
        raise ConfigError(f"there is no {words[0]} here: backend 'slurm' is for a machine of a Slurm cluster") from None
    except subprocess.TimeoutExpired:
        raise Unreadable(f"Slurm does not answer: {words[0]} took more than {PATIENCE_S} s") from None
    if done.returncode:
        raise Unreadable(f"Slurm does not answer as it should: {words[0]} said '{done.stderr.strip()}'")
    return done


def _environment() -> dict[str, str]:
    """Without what users have set for their own eyes, such as SQUEUE_STATES."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SCANCEL_"))}
