"""The table of runs that a law is fitted to."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

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
      columns: name -> value of each run [n], float64, positive. "params" is N, "tokens" is D (training tokens or
        examples), "loss" the final held-out loss; a law may ask for others, and fit another than "loss".
      response: the column that a law is to predict.
      unit: unit of the response.
      notes: what a reader left out of this table, one sentence each; a fit repeats them among its warnings.
      clusters: label of each run [n]: runs of one label are resampled together. Each run its own, if left out.
      lines: the line of the file that each run [n] comes from, by which it is then named.

    Raises:
      TableError: on columns of unequal length, values that are not positive and finite, and duplicate runs.
    """

    columns: Mapping[str, np.ndarray]
    response: str = "loss"
    unit: str = "nats/token"
    notes: tuple[str, ...] = ()
    clusters: np.ndarray | None = None
    lines: np.ndarray | None = None

    def __post_init__(self) -> None:
        columns = {name: _column(name, values) for name, values in self.columns.items()}
        object.__setattr__(self, "columns", columns)
        self[self.response]
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise TableError(f"columns differ in length: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
        _check(columns, self.where)

    def __len__(self) -> int:
        return len(self.columns[self.response])

    def __getitem__(self, name: str) -> np.ndarray:
        """A column. Raises TableError if there is none of that name."""
        if name not in self.columns:
            near = difflib.get_close_matches(name, self.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.columns)}"
            raise TableError(f"the table has no column {name!r}; {hint}")
        return self.columns[name]

    @property
    def params(self) -> np.ndarray:
        """N, parameters of each run [n]."""
        return self["params"]

    @property
    def tokens(self) -> np.ndarray:
        """D, training tokens of each run [n]."""
        return self["tokens"]

    @property
    def loss(self) -> np.ndarray:
        """The response of each run [n]."""
        return self[self.response]

    @property
    def flops(self) -> np.ndarray:
        """Training FLOPs C of each run [n]: the column of that name, else 6 N D."""
        return self.columns["flops"] if "flops" in self.columns else 6.0 * self.params * self.tokens

    def where(self, row: int) -> str:
        """Where a user finds a run: "line 7" of the file, or "row 5" of a table that was made otherwise."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"

    def take(self, rows: np.ndarray) -> Table:
        """The runs that an index or boolean array selects."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        clusters, lines = (None if labels is None else labels[rows] for labels in (self.clusters, self.lines))
        return dataclasses.replace(self, columns=columns, clusters=clusters, lines=lines)

    def sample(self, most: int, seed: int = 0) -> Table:
        """At most so many of the runs, drawn at random, in their order, and a note of it."""
        if len(self) <= most:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False))
        note = f"a random sample of {most:,} of {len(self):,} runs"
        return dataclasses.replace(self.take(rows), notes=(*self.notes, note))


def runs(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, unit: str = "nats/token") -> Table:
    """The table of a sweep over N and D: columns [n] of params, tokens and final held-out loss."""
    return Table({"params": params, "tokens": tokens, "loss": loss}, unit=unit)


def _column(name: str, values: np.ndarray) -> np.ndarray:
    try:
        column = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise TableError(f"column {name!r} is not a 1-d array of numbers: {error}") from None
    if column.ndim != 1:
        raise TableError(f"column {name!r} has {column.ndim} dimensions, not 1")
    column.setflags(write=False)
    return column


def _check(columns: dict[str, np.ndarray], where: Callable[[int], str]) -> None:
    """Refuses values that no law can have. Columns by the user's names; `where` names a row."""
    for name, values in columns.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise TableError(f"{where(bad[0])}, column {name!r}: {values[bad[0]]:g} is not a positive finite number")
    # Stable, so that of equal rows the first of the table comes first.
    order = np.lexsort([*columns.values()])
    equal = np.all([column[order[1:]] == column[order[:-1]] for column in columns.values()], axis=0)
    if np.any(equal):
        later = order[1:][equal].min()
        same = ", ".join(repr(name) for name in columns)
        first = np.flatnonzero(np.all([column == column[later] for column in columns.values()], axis=0))[0]
        raise TableError(f"{where(later)} repeats {where(first)}: columns {same} are all equal")


def _find(header: Sequence[str], kind: str, given: str | None) -> str | None:
    if given is not None:
        if given in header:
            return given
        near = difflib.get_close_matches(given, header, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the file has {', '.join(header)}"
        raise TableError(f"no column {given!r} for {kind}; {hint}")
    lower = {name.strip().lower(): name for name in reversed(header)}
    return next((lower[name] for name in NAMES.get(kind, (kind,)) if name in lower), None)


def _numbers(cells: Sequence[str], line_of: np.ndarray, column: str) -> np.ndarray:
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        line, text = next((line, text) for line, text in zip(line_of, cells, strict=True) if not _is_number(text))
        raise TableError(f"line {line}, column {column!r}: {text.strip()!r} is not a number") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_csv(
    path: str | os.PathLike[str],
    wanted: Sequence[str] = ("params", "tokens"),
    response: str = "loss",
    names: Mapping[str, str] | None = None,
    unit: str | None = None,
    split: str | None = "fit",
    clusters: str | None = None,
    also: Sequence[str] = (),
) -> Table:
    """Reads anyone's table of runs.

    Args:
      path: a csv file, in a folder or a bucket, whose first line names its columns.
      wanted: the columns that the law reads (`Form.columns`).
      response: the column that it predicts.
      names: wanted name -> the file's name for it; names that are not given are guessed (`NAMES`). Without a column of
        tokens, D = C / (6 N) from one of "flops".
      unit: of the response; else what the `unit` column says, else nats/token.
      split: in a table with a `split` column only runs of this split are kept, and without one every run is of split
        "fit"; None keeps all. In a table with a `status` column only runs that are "done" are kept. What was left out
        is said in `Table.notes`.
      clusters: the file's column whose equal values mark runs to resample together.
      also: columns to read if the file has them under these names.

    Raises:
      TableError: one sentence that names the line and column at fault.
    """
    names = dict(names or {})
    lines = _lines(path)
    _, names_of_file = next(lines, (0, []))
    header = [name for name in names_of_file if name]
    if not header:
        raise TableError(f"{os.fspath(path)!r} is empty: its first line must name the columns")
    found = {}  # wanted name -> name in the file
    for name in (*wanted, response):
        # Tokens asked for by name, then FLOPs asked for by name, then whichever is found.
        instead = name == "tokens" and "tokens" not in names
        column = None if instead and "flops" in names else _find(header, name, names.get(name))
        if column is None and instead:
            name, column = "flops", _find(header, "flops", names.get("flops"))
        if column is None:
            known = ", ".join(NAMES.get(name, (name,)) + (NAMES["tokens"] if instead else ()))
            kind = "tokens" if instead else name
            raise TableError(f"no column for {kind}: the file has {', '.join(header)}; known names are {known}")
        found[name] = column
    found |= {name: name for name in also if name in header}
    if clusters is not None:
        _find(header, "clusters", clusters)

    extra = {"status", "split", "unit", clusters} & set(header)
    places = {name: place for place, name in enumerate(names_of_file) if name in {*found.values(), *extra}}
    line_of, cells = _cells(lines, places)
    notes, rows = [], range(len(line_of))
    for column, kept in (("status", "done"), ("split", split)):
        if kept is not None:
            here = cells.get(column, [DEFAULTS[column]] * len(line_of))
            left = [row for row in rows if here[row] == kept]
            if len(left) < len(rows):
                notes.append(f"{len(rows) - len(left)} of {len(rows)} runs left out: {column} is not {kept!r}")
            rows = left
    cells = {name: [column[row] for row in rows] for name, column in cells.items()}
    line_of = np.array(line_of, np.int64)[np.array(rows, np.int64)]
    for name in found.values():
        if None in cells[name]:
            raise TableError(f"line {line_of[cells[name].index(None)]}, column {name!r}: the line ends before it")
    columns = {name: _numbers(cells[column], line_of, column) for name, column in found.items()}
    if unit is None:
        units = set(cells.get("unit", ()))
        if len(units) > 1:
            raise TableError(f"column 'unit' mixes {', '.join(sorted(map(str, units)))}: a law needs one unit")
        unit = units.pop() if units else "nats/token"
    _check({found[name]: column for name, column in columns.items()}, lambda row: f"line {line_of[row]}")
    if "tokens" in wanted and "tokens" not in columns:
        columns["tokens"] = columns["flops"] / (6.0 * columns["params"])
    columns = {name: column for name, column in columns.items() if name in (*wanted, response, *also)}
    labels = None if clusters is None else np.array(cells[clusters])
    return Table(columns, response, unit, tuple(notes), labels, line_of)


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """The lines of a csv file that are not empty, each with its number in the file; the first names the columns."""
    try:
        in_bucket = "://" in os.fspath(path)
        with epath.Path(path).open() if in_bucket else open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in filter(None, reader):
                yield reader.line_num, row
    except OSError as error:
        raise TableError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{os.fspath(path)!r} is not a csv file in UTF-8: {error}") from None


def _cells(
    lines: Iterator[tuple[int, list[str]]], places: Mapping[str, int]
) -> tuple[list[int], dict[str, list[str | None]]]:
    """The number of each line, and name -> its cell in each line; None where the line ends before it.

    Only these are held: a million lines are a gigabyte and more as a dictionary each.
    """
    line_of, cells = [], {name: [] for name in places}
    columns, width = [(cells[name], place) for name, place in places.items()], 1 + max(places.values())
    for number, row in lines:
        line_of.append(number)
        row += [None] * (width - len(row))
        for column, place in columns:
            column.append(row[place])
    return line_of, cells
