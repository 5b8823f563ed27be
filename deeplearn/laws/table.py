"""The table of runs that a law is fitted to."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import os
from collections.abc import Callable, Sequence

import numpy as np

# Names under which people keep these columns, best first; compared in lower case.
NAMES = {
    "params": ("params", "n", "n_params", "num_params", "parameters", "model_size", "non_embedding_params"),
    "tokens": ("tokens", "d", "n_tokens", "num_tokens", "training_tokens", "train_tokens", "examples"),
    "loss": ("loss", "val_loss", "eval_loss", "validation_loss", "test_loss", "final_loss", "l"),
    "flops": ("flops", "c", "training_flops", "train_flops", "compute"),
}

DEFAULTS = {"status": "done", "split": "fit"}  # what a run is where a table has no such column


class TableError(ValueError):
    """A table that cannot be fitted; the message names the row and the column."""

    exit_code = 2  # of the entry points: the input is wrong, so trying again will not help


@dataclasses.dataclass(frozen=True)
class Table:
    """Runs as columns.

    Attributes:
      params: N, parameters of each run [n], float64, positive.
      tokens: D, training tokens (or examples) of each run [n], float64, positive.
      loss: final held-out loss of each run [n], float64, positive.
      unit: unit of the loss.
      notes: what a reader left out of this table, one sentence each; a fit repeats them among its warnings.

    Raises:
      TableError: on columns of unequal length, values that are not positive and finite, and duplicate runs.
    """

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    unit: str = "nats/token"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("params", "tokens", "loss"):
            try:
                column = np.array(getattr(self, name), np.float64)
            except (TypeError, ValueError) as error:
                raise TableError(f"column {name!r} is not a 1-d array of numbers: {error}") from None
            if column.ndim != 1:
                raise TableError(f"column {name!r} has {column.ndim} dimensions, not 1")
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        if not len(self.params) == len(self.tokens) == len(self.loss):
            raise TableError(
                f"columns differ in length: params {len(self.params)}, tokens {len(self.tokens)}, loss {len(self.loss)}"
            )
        _check({"params": self.params, "tokens": self.tokens, "loss": self.loss}, lambda row: f"row {row}")

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def flops(self) -> np.ndarray:
        """Training FLOPs C = 6 N D of each run [n]."""
        return 6.0 * self.params * self.tokens

    def take(self, rows: np.ndarray) -> Table:
        """The runs that an index or boolean array selects."""
        return dataclasses.replace(self, params=self.params[rows], tokens=self.tokens[rows], loss=self.loss[rows])


def _check(columns: dict[str, np.ndarray], where: Callable[[int], str]) -> None:
    """Refuses values that no law can have. Columns by the user's names; `where` names a row."""
    for name, values in columns.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise TableError(f"{where(bad[0])}, column {name!r}: {values[bad[0]]:g} is not a positive finite number")
    rows = np.stack(list(columns.values()), axis=1)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    original = first[inverse.ravel()]
    repeats = np.flatnonzero(original != np.arange(len(rows)))
    if len(repeats):
        same = ", ".join(repr(name) for name in columns)
        raise TableError(f"{where(repeats[0])} repeats {where(original[repeats[0]])}: columns {same} are all equal")


def _find(header: Sequence[str], kind: str, given: str | None) -> str | None:
    if given is not None:
        if given in header:
            return given
        near = difflib.get_close_matches(given, header, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the file has {', '.join(header)}"
        raise TableError(f"no column {given!r} for {kind}; {hint}")
    lower = {name.strip().lower(): name for name in reversed(header)}
    return next((lower[name] for name in NAMES[kind] if name in lower), None)


def _number(text: str, line: int, column: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise TableError(f"line {line}, column {column!r}: {text.strip()!r} is not a number") from None


def read_csv(
    path: str | os.PathLike[str],
    params: str | None = None,
    tokens: str | None = None,
    loss: str | None = None,
    flops: str | None = None,
    unit: str | None = None,
    split: str | None = "fit",
) -> Table:
    """Reads anyone's table of runs.

    Column names that are not given are guessed (`NAMES`). Without a column of tokens, D = C / (6 N) from one of FLOPs.
    In a table with a `status` column only the runs that are "done" are kept, in one with a `split` column only those
    of `split` (None: all of them; without the column every run is of split "fit"). What was left out is said in
    `Table.notes`. The unit comes from a `unit` column
    where there is one and `unit` is not given.

    Raises:
      TableError: one sentence that names the line and column at fault.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [name for name in (reader.fieldnames or []) if name]
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise TableError(f"cannot read {os.fspath(path)!r}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{os.fspath(path)!r} is not a csv file in UTF-8: {error}") from None
    if not header:
        raise TableError(f"{os.fspath(path)!r} is empty: its first line must name the columns")

    n_column, loss_column = _find(header, "params", params), _find(header, "loss", loss)
    # Tokens asked for by name, then FLOPs asked for by name, then whichever is found.
    d_column = _find(header, "tokens", tokens) if tokens or not flops else None
    c_column = _find(header, "flops", flops) if d_column is None else None
    for kind, column in (("params", n_column), ("tokens", d_column or c_column), ("loss", loss_column)):
        if column is None:
            known = ", ".join(NAMES[kind] + (NAMES["flops"] if kind == "tokens" else ()))
            raise TableError(f"no column for {kind}: the file has {', '.join(header)}; known names are {known}")

    notes = []
    for column, wanted in (("status", "done"), ("split", split)):
        if wanted is not None:
            kept = [(line, row) for line, row in rows if row.get(column, DEFAULTS[column]) == wanted]
            if len(kept) < len(rows):
                notes.append(f"{len(rows) - len(kept)} of {len(rows)} runs left out: {column} is not {wanted!r}")
            rows = kept
    for line, row in rows:
        short = [name for name in (n_column, d_column or c_column, loss_column) if row[name] is None]
        if short:
            raise TableError(f"line {line}, column {short[0]!r}: the line ends before it")

    names = (n_column, d_column or c_column, loss_column)
    n, size, value = (np.array([_number(row[name], line, name) for line, row in rows]) for name in names)
    if unit is None:
        units = {row["unit"] for _, row in rows} if "unit" in header else set()
        if len(units) > 1:
            raise TableError(f"column 'unit' mixes {', '.join(sorted(map(str, units)))}: a law needs one unit")
        unit = units.pop() if units else "nats/token"
    _check(dict(zip(names, (n, size, value), strict=True)), lambda row: f"line {rows[row][0]}")
    return Table(n, size if d_column else size / (6.0 * n), value, unit, tuple(notes))
