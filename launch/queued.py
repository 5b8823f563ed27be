"""Units on TPU machines of their own, as commands to read and to run: nothing here is executed.

    --option=--zone=us-east5-a --option=--type=v5p-8 --option=--runtime=v2-alpha-tpuv5 [--option=--spot]

For each unit a queued resource, and the command that trains it there once the machine is ready and has the code in
~/deeplearn. Whoever runs them sees to 42 and to deleting: docs.cloud.google.com/tpu/docs/queued-resources
"""

import shlex
from collections.abc import Sequence

from deeplearn.config import ConfigError, nearest
from deeplearn.sweep.grid import Unit
from launch.backend import Job, Unreadable, unit_command
from launch.gke import name_of

OPTIONS = ("zone", "type", "runtime", "spot")
GCLOUD = ["gcloud", "compute", "tpus"]


def render(units: Sequence[Unit], job: Job) -> str:
    options = {}
    for word in job.options:
        name, _, value = word.removeprefix("--").partition("=")
        if name not in OPTIONS or not word.startswith("--"):
            raise ConfigError(f"an option for queued resources is --NAME=VALUE, not {word!r}{nearest(name, OPTIONS)}")
        options[name] = value
    if missing := [name for name in ("zone", "type", "runtime") if not options.get(name)]:
        raise ConfigError(f"backend 'queued' needs --option=--{missing[0]}=...")
    if "://" not in job.root:
        raise ConfigError(f"--root={job.root}: those machines see no folder of this one; give a bucket")
    zone = f"--zone={options['zone']}"
    lines = ["# Printed, not executed."]
    for unit in units:
        name = name_of(unit.id, job)
        asked = [f"--accelerator-type={options['type']}", f"--runtime-version={options['runtime']}"]
        spot = ["--spot"] if "spot" in options else []
        trains = shlex.join(unit_command(job._replace(python="python3"), unit.id, "--distributed"))
        there = f"cd deeplearn && {trains}"
        lines += [
            shlex.join([*GCLOUD, "queued-resources", "create", name, f"--node-id={name}", zone, *asked, *spot]),
            shlex.join([*GCLOUD, "tpu-vm", "ssh", name, zone, "--worker=all", f"--command={there}"]),
            shlex.join([*GCLOUD, "queued-resources", "delete", name, zone, "--force"]),
        ]
    return "\n".join(lines) + "\n"


def validate(text: str) -> str:
    return f"{text.count('queued-resources create')} machines; run the commands yourself"


def submit(text: str, name: str) -> str:
    raise ConfigError("backend 'queued' only prints its commands: add --dry_run, and run them yourself")


def find(job: Job, units: Sequence[str]) -> str:
    return ""


def live(handle: str) -> set[str]:
    raise Unreadable("backend 'queued' starts nothing and does not know what runs: ask gcloud")


def cancel(handle: str) -> None:
    raise ConfigError("backend 'queued' starts nothing; delete the machines with gcloud")
