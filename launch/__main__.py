"""Train a sweep on an engine: python -m launch VERB --sweep=CONFIG --root=DIR --backend=local|slurm|gke

VERB is one of
    plan     the units, what differs between them, what they cost, and how each stands
    check    every unit's configuration, shapes and mesh; all that is wrong at once
    submit   hand the units that have no result and do not run to the engine; --dry_run shows what it would get
    status   how each unit stands, and what it has told last
    cancel   end what is at work; what is done is kept, and `submit` goes on from there
    collect  write runs.csv, and prediction.json once every fitted unit has ended

The held-out units are submitted once their prediction is made, so: submit, wait, collect, submit, wait, collect. Then
`python -m experiments.sweep` with the same config and DIR trains nothing more, and writes law and report.
DIR must be a folder that all machines see. Overrides apply to every run: --set optim.weight_decay=0.1

    python -m launch check --sweep=quickstart
    python -m launch submit --sweep=quickstart --root=runs/launched --backend=local --max_parallel=2
    python -m launch submit --sweep=quickstart --root=runs/launched --backend=slurm --option=--partition=gpu --dry_run
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console

from deeplearn.config import ConfigError, nearest
from deeplearn.sweep import ledger
from experiments import cli
from launch import backend

cli.define_config_flags("sweep")
_ROOT = flags.DEFINE_string("root", None, "Folder of the sweep, seen by all machines; made if it is not there.")
_BACKEND = flags.DEFINE_string("backend", "local", f"Where to train: {', '.join(backend.BACKENDS)}.")
_PARALLEL = flags.DEFINE_integer("max_parallel", 0, "Units at once; 0: as many as the engine takes.", 0)
_NODES = flags.DEFINE_integer("nodes", 1, "Machines that train one unit together.", 1)
_DEVICES = flags.DEFINE_integer("devices", 0, "Devices of a unit on each machine; on a CPU they are emulated.", 0)
_MINUTES = flags.DEFINE_integer("minutes", 0, "Time limit of a unit; 0: the engine's own.", 0)
_OPTIONS = flags.DEFINE_multi_string("option", [], "A further option for the engine; may be repeated.")
_RETRY = flags.DEFINE_bool("retry_failed", False, "submit: units that failed, too.")
_SPLIT = flags.DEFINE_enum("split", "due", ["due", "all"], "submit: held-out units when they are due, or at once.")
_DRY = flags.DEFINE_bool("dry_run", False, "submit: print what the engine would get, and what it says of it.")
_PARTIAL = flags.DEFINE_bool("partial", False, "collect: though units have no result.")


class Command(NamedTuple):
    """What a verb works on. made: the points of the sweep that its units come from."""

    sweep: Any
    made: list[Any]
    units: list[Any]
    root: str
    console: Console

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def main(argv: list[str]) -> int:
    verb = argv[1]
    if verb not in VERBS:
        raise ConfigError(f"launch has no verb '{verb}'{nearest(verb, VERBS)}")
    backend.get(_BACKEND.value)
    if flags.FLAGS.sweep is None:
        raise ConfigError("which sweep? pass --sweep=NAME, for example --sweep=quickstart")
    if _ROOT.value is None and verb != "check":
        raise ConfigError("where to? pass --root=DIR")
    if broken := {"\\", "\n", "\0"} & set(_ROOT.value or ""):
        raise ConfigError(
            f"--root={_ROOT.value!r} has a {broken.pop()!r} in it, which checkpoints cannot be written under"
        )
    ledger.reach(_ROOT.value or "")
    module = cli.load_sweep(flags.FLAGS.sweep)
    overrides = cli.parse_overrides(flags.FLAGS.set)
    from launch import plan  # slow to import: a wrong flag should not wait for it

    sweep, root = module.get_sweep(), _ROOT.value or ""
    made, wrong = plan.points(module, sweep, overrides)
    plan.emulate(made, _NODES.value * _DEVICES.value)
    units, misshapen = plan.units(made)
    wrong += misshapen
    if verb in ("check", "submit"):
        wrong += [told for told in plan.check(made, _NODES.value * _DEVICES.value) if told not in wrong]
        wrong += [] if wrong else plan.check_law(units)
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    if wrong:
        return ConfigError.exit_code
    root = root if "://" in root else os.path.abspath(root)
    return VERBS[verb](Command(sweep, made, units, root, _console()))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)  # a file has room for a table


def show_plan(command: Command) -> int:
    from launch import plan

    standings = _standings(command)
    command.console.print(plan.table(command.units, standings))
    command.say(plan.totals(command.units, standings))
    return 0


def check(command: Command) -> int:
    command.say(f"all {len(command.units)} units are sound")
    return 0


def submit(command: Command) -> int:
    from deeplearn import config
    from deeplearn.sweep import study
    from launch import submissions

    engine, root = backend.get(_BACKEND.value), command.root
    job = _job(command, submissions.new_name(command.sweep.name))
    if _DRY.value:
        text = engine.render(_pending(command), job)
        print(text)
        command.say(engine.validate(text))
        return 0
    try:
        Path(job.logs).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder '{job.logs}': {error.strerror}") from None
    with ledger.hold(root):
        described = {u.id: config.to_dict(u.run) for u in command.units}
        ledger.create(root, command.sweep.name, described, **study.versions())
        if pending := _pending(command):
            submissions.submit(root, _BACKEND.value, pending, job)
            command.say(f"sent {len(pending)} units as {job.name}; each tells where it is in {job.logs}/ID.log")
        else:
            command.say("nothing to send")
    return 0


def status(command: Command) -> int:
    from launch import plan

    standings = _standings(command)
    last = {unit.id: plan.last(command.root, unit) for unit in command.units}
    command.console.print(plan.table(command.units, standings, last))
    command.say(plan.totals(command.units, standings))
    return 0


def cancel(command: Command) -> int:
    from launch import submissions

    found = submissions.live(command.root)
    for submission in {s.path: s for s in found.values()}.values():
        submissions.cancel(submission)
        count = sum(s.path == submission.path for s in found.values())
        command.say(f"cancelled {submission.job.name} with {count} units")
    if not found:
        command.say("nothing is at work")
    return 0


def collect(command: Command) -> int:
    from launch import collect

    collect.collect(command.sweep, command.units, command.root, _PARTIAL.value, command.console)
    return 0


VERBS: dict[str, Callable[[Command], int]] = {
    "plan": show_plan,
    "check": check,
    "submit": submit,
    "status": status,
    "cancel": cancel,
    "collect": collect,
}


def _standings(command: Command) -> dict[str, str]:
    """How each unit stands. An engine that does not answer is told, and its units count as begun or new."""
    from launch import plan, submissions

    try:
        live = set(submissions.live(command.root))
    except backend.Unreadable as error:
        command.say(f"which units are live is not known: {error}")
        live = set()
    return {u.id: plan.standing(command.root, u.id, live) for u in command.units}


def _pending(command: Command) -> list[Any]:
    """The units to send, dearest first; says which are left, and why."""
    from launch import collect, plan, submissions

    live = set(submissions.live(command.root))
    due = collect.predicted(command.root)
    sent, left = [], dict.fromkeys(("live", "failed", "held out"), 0)
    for unit in sorted(command.units, key=lambda u: -u.flops):
        standing = plan.standing(command.root, unit.id, live)
        if standing == "live" or (standing == "failed" and not _RETRY.value):
            left[standing] += 1
        elif standing in ("new", "stopped", "failed"):
            is_early = unit.split == "held_out" and unit.id not in due and _SPLIT.value != "all"
            left["held out"] += is_early
            sent += [] if is_early else [unit]
    reasons = {
        "live": "are live",
        "failed": "failed: --retry_failed sends them again",
        "held out": "are held out: `collect` makes their prediction first",
    }
    for name, count in left.items():
        if count:
            command.say(f"{count} units {reasons[name]}")
    return sent


def _job(command: Command, name: str) -> backend.Job:
    from deeplearn.data.sources import cache_dir

    logs = cache_dir() / "logs" / name if "://" in command.root else Path(command.root) / "logs"
    return backend.Job(
        name=name,
        root=command.root,
        python=sys.executable,
        code=str(Path(__file__).resolve().parents[1]),
        logs=str(logs),
        max_parallel=_PARALLEL.value,
        nodes=_NODES.value,
        devices=_DEVICES.value,
        minutes=_MINUTES.value,
        options=tuple(_OPTIONS.value),
    )


if __name__ == "__main__":
    cli.run(main, ["VERB"])
