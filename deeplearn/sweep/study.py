"""A sweep as a study: train what is fitted, fit the law, print its prediction, and only then train what it is of."""

import dataclasses
import math
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from deeplearn import config, laws
from deeplearn.config import ConfigError
from deeplearn.sweep import active, budget, findings, hopeless, ledger, local, table, training
from deeplearn.sweep.budget import MIN_RUNS
from deeplearn.sweep.grid import Sweep, Unit
from deeplearn.sweep.staff import Staff
from deeplearn.train import loop

NO_LIMITS = budget.Limits()
MIN_RATIO = 4.0  # held-out runs take at least this many times the FLOPs of the largest fitted one


class OutOfTime(local.SweepError):
    """The limits of this command ended it before there was a law."""

    exit_code = 42


class Study(NamedTuple):
    """What a study knows when it ends. law: what law.json holds."""

    rows: list[table.Row]
    fit: laws.Fit
    law: dict[str, Any]


def versions() -> dict[str, str]:
    """What made the numbers: the code's git revision and the versions of the packages that matter."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    # A bare machine has no git, and an installed package no repository.
    git = subprocess.run(describe, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    packages = {name: metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}
    return {"git": git or "unknown", "python": platform.python_version(), **packages}


def check(units: list[Unit]) -> None:
    """Raise ConfigError for a sweep whose prediction would be no test, or whose units cannot be told apart."""
    fitted = [u for u in units if u.split == "fit"]
    if len(fitted) < MIN_RUNS:
        raise ConfigError(f"the sweep fits {len(fitted)} runs, and a law with 5 parameters needs {MIN_RUNS} at least")
    ids = [u.id for u in units]
    twice = next((u for u in units if ids.count(u.id) > 1), None)
    if twice:
        raise ConfigError(f"two units are the same run: {twice.run.family} {twice.run.size}, {twice.run.tokens} tokens")
    largest = max(u.flops for u in fitted)
    for unit in units:
        if unit.split == "held_out" and unit.flops < MIN_RATIO * largest:
            raise ConfigError(
                f"the held-out run of size {unit.run.size} takes {unit.flops / largest:.1f} times the FLOPs of the "
                f"largest fitted run; at least {MIN_RATIO:g} times make it a test of the law"
            )


def run(
    sweep: Sweep,
    units: list[Unit],
    root: Path,
    console: Console,
    staff: Staff,
    limits: budget.Limits = NO_LIMITS,
    candidates: Sequence[Unit] = (),
    aim: active.Aim | None = None,
) -> Study:
    """Go through the whole study in `root`, from wherever its files say that it is.

    Args:
      sweep: what is studied.
      units: its runs, fitted and held out.
      root: the folder.
      console: where to tell what happens.
      staff: the workers.
      limits: of what may be spent.
      candidates: for an active sweep; those that earlier commands chose are fitted too.
      aim: of an active sweep.

    Raises ConfigError, and SweepError when workers do not start or too few runs were done for a law.
    """
    check([*units, *(candidates if aim else ())])
    if not math.isinf(limits.hopeless):
        hopeless.check(u.run for u in (*units, *candidates))
    if aim:
        active.check(aim, candidates)
    job = training.Job(root, console, staff, limits)
    units = [*units, *active.chosen(active.read(root), candidates)]
    if not math.isinf(limits.flops):
        budget.check(units, budget.spent(root, units), job.over(units), limits.flops)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder '{root}': {error.strerror}") from None
    with ledger.hold(root):
        _enter(sweep, units, job)
        training.learn_rates(job, units)
        units, fit = _fitted(sweep, units, list(candidates), aim, job)
        predictions = _predict(sweep, rows(job, units), fit, root, console)
        training.train(job, units, "held_out")
        told = rows(job, units)
        without = training.not_fitted(job, units)
        law = {**fit.to_json(), "count": sweep.count, "held_out": _compare(root, told, predictions)}
        law |= {"not_fitted": without, "rounds": active.read(root)}
        law |= {"noise_floor": laws.plain(_floor(fit.table, _used(told), units))}
        table.write(root / "runs.csv", told)
        ledger.write_json(root / "law.json", law)
    return Study(told, fit, law)


def predict(sweep: Sweep, units: list[Unit], job: training.Job) -> dict[str, Any]:
    """Fit what is there, and predict the held-out runs; returns what prediction.json says of each, by id.

    For units that others train. Raises ConfigError as `check` does, and SweepError when too few runs were done.
    """
    check(units)
    told = rows(job, units)
    return _predict(sweep, told, _fit(sweep, told, units, job), job.root, job.console)


def _enter(sweep: Sweep, units: list[Unit], job: training.Job) -> None:
    """Enter the units into the ledger; raise ConfigError for data that one of them cannot be trained on."""
    ledger.create(job.root, sweep.name, {u.id: u.identity_json() for u in units}, **versions())
    for unit in units:
        if ledger.status(job.root, unit.id) != "done":
            loop.check_data(unit.run)


def _fitted(
    sweep: Sweep, units: list[Unit], candidates: list[Unit], aim: active.Aim | None, job: training.Job
) -> tuple[list[Unit], laws.Fit]:
    """Train what is to be fitted and fit it; with an aim, round after round until it is reached."""
    rounds = active.read(job.root)
    while True:
        training.train(job, units, "fit", active.note(rounds, aim))
        told = rows(job, units)
        fit = _fit(sweep, told, units, job)
        if aim is None:
            return units, fit
        left = [u for u in candidates if u not in units]
        flops = sum(r["flops"] for r in _used(told))
        decided = active.decide(fit, flops, aim, left, sweep.count, training.room(job, units))
        rounds = [*(r for r in rounds if r["chosen"]), decided]
        active.write(job.root, rounds)
        for line in active.sentences(rounds, candidates, fit.unit):
            job.console.print(line, markup=False, highlight=False, soft_wrap=True)
        new = active.chosen(rounds[-1:], candidates)
        if not new:
            return units, fit
        units = [*units, *new]
        _enter(sweep, new, job)


def rows(job: training.Job, units: list[Unit]) -> list[table.Row]:
    """The runs table as it is now."""
    return table.rows(job.root, units, {told["id"]: told["status"] for told in training.not_fitted(job, units)})


def _fit(sweep: Sweep, rows: list[table.Row], units: list[Unit], job: training.Job) -> laws.Fit:
    used = _used(rows)
    if len(used) < MIN_RUNS:
        few = f"{len(used)} runs are done, and a law with 5 parameters needs {MIN_RUNS} at least"
        for line in findings.not_fitted(rows, {"not_fitted": training.not_fitted(job, units)}):
            job.console.print(line, markup=False, highlight=False, soft_wrap=True)
        if any(r["status"] == "left_out" for r in rows):
            raise OutOfTime(f"{few}; every run is saved: the same command goes on from here")
        raise local.SweepError(few)
    names = {"params": sweep.count, "tokens": "tokens", "loss": "loss", "seed": "seed"}
    columns = {name: np.array([r[column] for r in used], np.float64) for name, column in names.items()}
    columns["seed"] += 1  # positive, as all columns are; it tells runs of equal loss apart
    runs = laws.Table(columns, unit=used[0]["unit"])
    return laws.fit(runs, noise=_floor(runs, used, units))


def _used(rows: list[table.Row]) -> list[table.Row]:
    return [r for r in rows if r["split"] == "fit" and r["status"] == "done"]


def _floor(runs: laws.Table, used: list[table.Row], units: list[Unit]) -> laws.NoiseFloor | None:
    """The noise of runs, from those that differ in nothing but their seed."""
    group = {u.id: config.identity(dataclasses.replace(u.run, seed=0)) for u in units}
    return laws.noise_floor(runs, np.array([group[r["id"]] for r in used]))


def _predict(sweep: Sweep, rows: list[table.Row], fit: laws.Fit, root: Path, console: Console) -> dict[str, Any]:
    """The prediction for each held-out run, made once for one set of fitted runs and kept in prediction.json."""
    path = root / "prediction.json"
    losses = {r["id"]: r["loss"] for r in rows if r["split"] == "fit" and r["status"] == "done"}
    basis = {"count": sweep.count, "losses": losses}
    kept = ledger.read_json(path) or {}
    made = kept["held_out"] if kept.get("basis") == basis else {}
    held_out = [r for r in rows if r["split"] == "held_out"]
    for row in held_out:
        if row["id"] not in made:
            band = fit.predict(np.array([row[sweep.count]], np.float64), np.array([row["tokens"]], np.float64))
            value, lo, hi = (end.item() for end in (band.value, band.lo, band.hi))
            times = {"predicted_at": ledger.now()}
            made[row["id"]] = {"flops": row["flops"], "predicted": value, "lo": lo, "hi": hi, **times}
    ledger.write_json(path, {"basis": basis, "held_out": made})
    for row in held_out:
        p = made[row["id"]]
        console.print(
            f"predicted for {row['id']} ({p['flops']:.3g} FLOPs): {p['predicted']:.4f} {fit.unit}, "
            f"95 % band {p['lo']:.4f} to {p['hi']:.4f}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    return made


def _compare(root: Path, rows: list[table.Row], predictions: dict[str, Any]) -> list[dict[str, Any]]:
    """Predicted and measured side by side, with the times that prove which came first."""
    return [
        {
            "id": r["id"],
            **predictions[r["id"]],
            "measured": r["loss"] if r["status"] == "done" else None,
            "started_at": _started_at(root, r["id"]),
        }
        for r in rows
        if r["split"] == "held_out"
    ]


def _started_at(root: Path, unit: str) -> str | None:
    first = ledger.read_json(ledger.directory(root, unit) / "attempts" / "1.json")
    return first["time"] if first else None
