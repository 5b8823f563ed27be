"""A sweep as a study: train what is fitted, fit the law, print its prediction, and only then train what it is of."""

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from deeplearn import laws
from deeplearn.config import ConfigError
from deeplearn.sweep import ledger, local, table
from deeplearn.sweep.grid import Sweep, Unit
from deeplearn.sweep.progress import Display
from deeplearn.sweep.staff import Staff
from deeplearn.train import loop

MIN_RUNS = 6  # the law has 5 parameters
MIN_RATIO = 4.0  # held-out runs take at least this many times the FLOPs of the largest fitted one


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


def run(sweep: Sweep, units: list[Unit], root: Path, console: Console, staff: Staff) -> Study:
    """Go through the whole study in `root`, from wherever its files say that it is.

    Raises ConfigError, and SweepError when workers do not start or too few runs were done for a law.
    """
    check(units)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder '{root}': {error.strerror}") from None
    with ledger.hold(root):
        ledger.create(root, sweep.name, {u.id: u.identity_json() for u in units}, **versions())
        for unit in units:
            if ledger.status(root, unit.id) != "done":
                loop.check_data(unit.run)
        _train("fit", units, root, console, staff)
        rows = table.rows(root, units)
        fit = _fit(sweep, rows)
        predictions = _predict(sweep, rows, fit, root, console)
        _train("held_out", units, root, console, staff)
        rows = table.rows(root, units)
        law = {**fit.to_json(), "count": sweep.count, "held_out": _compare(root, rows, predictions)}
        table.write(root / "runs.csv", rows)
        ledger.write_json(root / "law.json", law)
    return Study(rows, fit, law)


def _train(split: str, units: list[Unit], root: Path, console: Console, staff: Staff) -> None:
    """Train what has no result yet; a run that failed is tried anew by each command."""
    status = {u.id: ledger.status(root, u.id) for u in units}
    waiting = [u for u in units if u.split == split and status[u.id] not in ("done", "diverged")]
    if waiting:
        ended = {u.id for u in units if status[u.id] not in ("new", "started") and u not in waiting}
        with Display(units, ended, len(staff.places), console) as display:
            local.execute(root, waiting, display.tell, staff)


def _fit(sweep: Sweep, rows: list[table.Row]) -> laws.Fit:
    used = [r for r in rows if r["split"] == "fit" and r["status"] == "done"]
    if len(used) < MIN_RUNS:
        raise local.SweepError(f"{len(used)} runs are done, and a law with 5 parameters needs {MIN_RUNS} at least")
    columns = (np.array([r[name] for r in used], np.float64) for name in (sweep.count, "tokens", "loss"))
    return laws.fit(laws.runs(*columns, unit=used[0]["unit"]))


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
