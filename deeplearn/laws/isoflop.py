"""IsoFLOP lines: where a table of runs holds compute fixed, and which model size is best there."""

from __future__ import annotations

import dataclasses

import numpy as np

from deeplearn.laws.table import Table

WIDTH = 0.1  # decades of compute that one line spans at most
LEAST_SIZES = 5  # of a line: a cubic has four coefficients
SAME_SIZE = 0.02  # in log params: closer sizes are one size, read off or counted differently


@dataclasses.dataclass(frozen=True)
class Line:
    """Runs of nearly equal compute.

    Attributes:
      flops: geometric mean of their C = 6 N D.
      rows: which runs of the table they are [m].
    """

    flops: float
    rows: np.ndarray


def levels(values: np.ndarray, gap: float) -> np.ndarray:
    """Label of each value [n], 0 to the number of levels - 1: a gap in the sorted logarithms starts a new level."""
    order = np.argsort(values, kind="stable")
    labels = np.empty(len(values), np.int64)
    labels[order] = np.cumsum(np.diff(np.log(values[order]), prepend=np.log(values[order[0]])) > gap)
    return labels


def find_lines(table: Table, budgets: np.ndarray | None = None) -> tuple[Line, ...]:
    """The isoFLOP lines of a table, cheapest first.

    Without budgets, a line is a window of WIDTH decades of compute, the fullest taken first, that stands out: it holds
    LEAST_SIZES model sizes or more, and at least half of all runs of the three windows around it. Runs in between
    belong to no line.

    Args:
      table: runs with params and tokens.
      budgets: FLOPs at which lines are; each takes the runs within WIDTH / 2 decades of it.
    """
    log_c = np.log10(6.0 * table.params * table.tokens)
    sizes = levels(table.params, SAME_SIZE)
    if budgets is not None:
        windows = [np.flatnonzero(abs(log_c - np.log10(budget)) <= WIDTH / 2) for budget in np.unique(budgets)]
    else:
        windows = [rows for rows in _windows(log_c) if _stands_out(log_c, rows)]
    lines = [Line(10 ** log_c[rows].mean(), rows) for rows in windows if len(np.unique(sizes[rows])) >= LEAST_SIZES]
    return tuple(sorted(lines, key=lambda line: line.flops))


def _windows(log_c: np.ndarray):
    """Windows [m] of the runs, fullest first, that do not overlap."""
    order = np.argsort(log_c)
    x = log_c[order]
    end = np.searchsorted(x, x + WIDTH, side="right")
    left = np.ones(len(x))
    while True:
        before = np.concatenate([[0.0], np.cumsum(left)])
        held = before[end] - before[:-1]
        first = int(held.argmax())
        if held[first] < LEAST_SIZES:
            return
        inside = np.arange(first, end[first])
        inside = inside[left[inside] > 0]
        left[inside] = 0
        yield order[inside]


def _stands_out(log_c: np.ndarray, rows: np.ndarray) -> bool:
    middle = (log_c[rows].min() + log_c[rows].max()) / 2
    return 2 * len(rows) >= np.sum(abs(log_c - middle) <= 1.5 * WIDTH)


def minimum(table: Table, line: Line, weights: np.ndarray, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """The best model size of a line: least squares of loss on a polynomial in log N.

    Compute that is not quite fixed along the line enters as one more column, log C.

    Args:
      table: the runs.
      line: some of them.
      weights: of the runs of the table, for each of R fits [R, n].
      degree: 2 for a parabola, 3 for a cubic.

    Returns:
      log N at the minimum [R]; whether the sizes bracket it [R]: it is inside them and the ends are higher. Where not,
      or where too few sizes have weight, log N is nan.
    """
    log_n = np.log(table.params[line.rows])
    middle, half = (log_n.max() + log_n.min()) / 2, np.ptp(log_n) / 2
    z = (log_n - middle) / half
    u = np.log(table.tokens[line.rows]) + log_n
    u = u - u.mean()
    columns = [z**k for k in range(degree + 1)]
    if np.ptp(u) > 1e-3:
        columns.append(u)
    x_MxK = np.stack(columns, axis=1)
    w_RxM = weights[:, line.rows]
    gram = np.einsum("rm,mi,mj->rij", w_RxM, x_MxK, x_MxK, optimize=True)
    right = (w_RxM * table.loss[line.rows]) @ x_MxK
    ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(len(columns)) + 1e-300
    c = np.linalg.solve(gram + ridge, right[..., None])[..., 0]

    c1, c2, c3 = c[:, 1], c[:, 2], c[:, 3] if degree == 3 else np.zeros(len(c))
    with np.errstate(invalid="ignore", divide="ignore"):
        best = -c1 / (c2 + np.sqrt(c2**2 - 3 * c1 * c3))  # the root of the slope where the curve bends upwards

        def height(at):
            return c1 * at + c2 * at**2 + c3 * at**3

        used = w_RxM > 0
        low = np.min(np.where(used, z, np.inf), axis=1)
        high = np.max(np.where(used, z, -np.inf), axis=1)
        inside = (low < best) & (best < high) & (height(best) < np.minimum(height(low), height(high)))
    sizes = levels(table.params[line.rows], SAME_SIZE)
    kinds = np.sum(used @ np.eye(sizes.max() + 1)[sizes] > 0, axis=1)
    bracketed = inside & (kinds > len(columns) - 1)
    return np.where(bracketed, middle + half * np.where(bracketed, best, 0.0), np.nan), bracketed


def unbracketed(table: Table) -> list[float]:
    """FLOPs of the lines whose minimum the sizes do not bracket, for a table that is mostly isoFLOP lines."""
    lines = find_lines(table)
    if len(lines) < 2 or 2 * sum(len(line.rows) for line in lines) < len(table):
        return []
    ones = np.ones((1, len(table)))
    return [line.flops for line in lines if not minimum(table, line, ones, 2)[1][0]]
