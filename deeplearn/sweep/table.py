"""The runs table: one row a run, from the ledger's files alone."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deeplearn.sweep import ledger
from deeplearn.sweep.grid import Unit
from deeplearn.train import metrics, spent

COLUMNS = (
    "id", "family", "size", "params", "params_no_embed", "params_active", "tokens", "flops", "flops_6nd", "flops_spent",
    "loss", "unit", "seed", "wall_s", "tokens_per_s", "status", "split",
)  # fmt: skip

Row = dict[str, Any]


def rows(root: Path, units: Iterable[Unit], statuses: Mapping[str, str] | None = None) -> list[Row]:
    """What is known of each unit now; "" where nothing is. statuses: id -> what else a unit is than its files say."""
    results, told = ledger.results(root), statuses or {}

    def row(unit: Unit) -> Row:
        status = told.get(unit.id) or ledger.status(root, unit.id)
        return _row(unit, results.get(unit.id, {}), status, spent.steps(ledger.directory(root, unit.id)))

    return [row(unit) for unit in units]


def _row(unit: Unit, result: dict[str, Any], status: str, steps_spent: int) -> Row:
    known = {
        **unit._asdict(),
        "family": unit.run.family,
        "size": unit.run.size,
        "tokens": unit.run.tokens,
        "flops_6nd": unit.flops_6nd,
        "flops_spent": unit.flops * steps_spent / unit.run.steps,
        "seed": unit.run.seed,
        "status": "pending" if status in ("new", "started") else status,
    }
    return {name: known.get(name, result.get(name, "")) for name in COLUMNS}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write runs.csv at once, so that a reader never sees half of it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    metrics.write_whole(path, text.getvalue())
