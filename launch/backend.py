"""What every backend is, and the backends by name.

A backend is a module of this package with these functions:

    render(units: Sequence[Unit], job: Job) -> str    the text that the engine takes, for `submit --dry_run` to show
    submit(text: str, name: str) -> str               hands the text to the engine; returns a handle
    live(handle: str) -> set[str]                     ids of units that wait or run there; raises Unreadable
    cancel(handle: str) -> None                       ends them
    validate(text: str) -> str                        what the engine says of the text without running it
    find(job: Job, units: Sequence[str]) -> str       the handle of what was submitted under job.name, for a command
                                                      that died before it could write the handle down; "" if nothing was

Every backend starts the same command for one unit, which `unit_command` gives as words.
"""

import importlib
import types
from typing import NamedTuple

from deeplearn.config import ConfigError, nearest

BACKENDS = ("local", "slurm", "gke", "queued")
STOPS = 100  # times that a unit is started again after 42: preempted, or let down by a machine
FAILURES = 2  # times that it is after a failure; 0, 2 and 3 end it


class Unreadable(RuntimeError):
    """The engine does not say what is running. That never means that nothing is."""

    exit_code = 1


class Job(NamedTuple):
    """What a backend knows of one submission besides its units.

    name: unique among all submissions, and safe everywhere: lower-case letters, digits and dashes.
    root: the sweep's ledger, an absolute folder or a bucket. python: the interpreter. code: the folder that holds the
    package. logs: an absolute folder for what units print. max_parallel: units at once; 0 is no limit.
    nodes: machines a unit. devices: emulated or real devices a unit; 0 is what is there. minutes: time limit a unit; 0
    is the engine's own. options: what else to tell the engine, one word each.
    """

    name: str
    root: str
    python: str
    code: str
    logs: str
    max_parallel: int = 0
    nodes: int = 1
    devices: int = 0
    minutes: int = 0
    options: tuple[str, ...] = ()


def get(name: str) -> types.ModuleType:
    """The backend that is called so. Raises ConfigError."""
    if name not in BACKENDS:
        raise ConfigError(f"no backend is called '{name}'{nearest(name, BACKENDS)}")
    return importlib.import_module(f"launch.{name}")


def unit_command(job: Job, unit: str, *flags: str) -> list[str]:
    """The words that train one unit, on a machine that has `job.code` as its folder."""
    return [job.python, "-m", "launch.unit", f"--root={job.root}", f"--unit={unit}", *flags]
