"""A sweep as a study: train what is fitted, fit the law, print its prediction, and only then train what it is of."""

import platform
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

MIN_RATIO = 4.0  # held-out runs take at least this many times the FLOPs of the largest fitted one


class Study(NamedTuple):
    """What a study knows when it ends. law: what law.json holds."""

    rows: list[table.Row]
    fit: laws.Fit
    law: dict[str, Any]


def versions() -> dict[str, str]:
    """What made the numbers: the code's git revision and the versions of the packages that matter."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True)
    packages = {name: metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}
    return {"git": git.stdout.strip() or "unknown", "python": platform.python_version(), **packages}


def check(units: list[Unit]) -> None:
    """Raise ConfigError for a sweep whose prediction would be no test, or whose units cannot be told apart."""
    ids = [u.id for u in units]
    twice = next((u for u in units if ids.count(u.id) > 1), None)
    if twice:
        raise ConfigError(f"two units are the same run: {twice.run.family} {twice.run.size}, {twice.run.tokens} tokens")
    largest = max(u.flops for u in units if u.split == "fit")
    for unit in units:
        if unit.split == "held_out" and unit.flops < MIN_RATIO * largest:
            raise ConfigError(
                f"the held-out run of size {unit.run.size} takes {unit.flops / largest:.1f} times the FLOPs of the "
                f"largest fitted run; at least {MIN_RATIO:g} times make it a test of the law"
            )


def run(sweep: Sweep, units: list[Unit], root: Path, console: Console, workers: int = 0) -> Study:
    """Go through the whole study in `root`, from wherever its files say that it is.

    Raises ConfigError, and RuntimeError when too few runs were done for a law.
    """
    check(units)
    root.mkdir(parents=True, exist_ok=True)
    with ledger.hold(root):
        ledger.create(root, sweep.name, {u.id: u.identity_json() for u in units}, **versions())
        _train("fit", units, root, console, workers)
        rows = table.rows(root, units)
        fit = _fit(sweep, rows)
        predictions = _predict(sweep, rows, fit, root, console)
        _train("held_out", units, root, console, workers)
        rows = table.rows(root, units)
        law = {**fit.to_json(), "count": sweep.count, "held_out": _compare(root, rows, predictions)}
        table.write(root / "runs.csv", rows)
        ledger.write_json(root / "law.json", law)
    return Study(rows, fit, law)


def _train(split: str, units: list[Unit], root: Path, console: Console, workers: int) -> None:
    ended = {u.id for u in units if ledger.status(root, u.id) in ("done", "diverged", "failed")}
    waiting = [u for u in units if u.split == split and u.id not in ended]
    if waiting:
        count = workers or len(local.cores()) or 1
        with Display(units, ended, count, console) as display:
            local.execute(root, waiting, display.tell, workers)


def _fit(sweep: Sweep, rows: list[table.Row]) -> laws.Fit:
    used = [r for r in rows if r["split"] == "fit" and r["status"] == "done"]
    if len(used) < 6:
        raise RuntimeError(f"{len(used)} runs are done, and a law with 5 parameters needs at least 6")
    columns = (np.array([r[name] for r in used], np.float64) for name in (sweep.count, "tokens", "loss"))
    return laws.fit(laws.Table(*columns, unit=used[0]["unit"]))


def _predict(sweep: Sweep, rows: list[table.Row], fit: laws.Fit, root: Path, console: Console) -> dict[str, Any]:
    """The prediction for each held-out run, made once for one set of fitted runs and kept in prediction.json."""
    path = root / "prediction.json"
    basis = {r["id"]: r["loss"] for r in rows if r["split"] == "fit" and r["status"] == "done"}
    kept = ledger.read_json(path)
    if not kept or kept["basis"] != basis:
        held_out = [r for r in rows if r["split"] == "held_out"]
        n, d = (np.array([r[name] for r in held_out], np.float64) for name in (sweep.count, "tokens"))
        band = fit.predict(n, d)
        columns = zip(held_out, band.value.tolist(), band.lo.tolist(), band.hi.tolist(), strict=True)
        made = {r["id"]: {"flops": r["flops"], "predicted": v, "lo": lo, "hi": hi} for r, v, lo, hi in columns}
        kept = {"basis": basis, "predicted_at": ledger.now(), "held_out": made}
        ledger.write_json(path, kept)
    for unit, p in kept["held_out"].items():
        console.print(
            f"predicted for {unit} ({p['flops']:.3g} FLOPs): {p['predicted']:.4f} {fit.unit}, "
            f"95 % band {p['lo']:.4f} to {p['hi']:.4f}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    return kept


def _compare(root: Path, rows: list[table.Row], kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Predicted and measured side by side, with the times that prove which came first."""
    loss = {r["id"]: r["loss"] if r["status"] == "done" else None for r in rows}
    times = {"predicted_at": kept["predicted_at"]}
    return [
        {"id": unit, **p, "measured": loss[unit], **times, "started_at": _started_at(root, unit)}
        for unit, p in kept["held_out"].items()
    ]


def _started_at(root: Path, unit: str) -> str | None:
    first = ledger.read_json(ledger.directory(root, unit) / "attempts" / "1.json")
    return first["time"] if first else None
