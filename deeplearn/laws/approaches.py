"""The three approaches of Hoffmann et al. 2022 (arXiv 2203.15556) to compute-optimal training, side by side.

All under C = 6 N D, and all from the same runs:

1. envelope: at each compute, which size has the lowest loss; a power law through these sizes.
2. isoFLOP: on each line of fixed compute, the minimum of loss over size; a power law through these minima. By a
   parabola in log N, as published, and by a cubic. Even without noise the parabola is off when alpha and beta differ
   and when the sizes are spread widely or off centre (arXiv 2603.22339); the cubic takes up the first term of that.
3. parametric: the optimum of the fitted law L = E + A N^-alpha + B D^-beta.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from deeplearn.laws import isoflop, search
from deeplearn.laws.fitting import Fit, fit
from deeplearn.laws.plain import plain
from deeplearn.laws.table import Table
from deeplearn.laws.uncertainty import Interval, percentile_interval

LEAST_POINTS = 3  # of a power law of optimal sizes
MOST = 2**12  # runs that approaches 1 and 2 look at, in every replicate at once
ENVELOPE = 200  # computes at which approach 1 looks for the best size


@dataclasses.dataclass(frozen=True)
class Approach:
    """What one approach says; None where the table does not allow it, and then `notes` says why.

    Attributes:
      name: of the approach.
      exponent: a of N_opt ~ C^a, with its 95 % bootstrap interval. Of D_opt it is 1 - a.
      params: N_opt at each budget.
      tokens: D_opt = C / (6 N_opt) at each budget.
      tokens_per_param: D_opt / N_opt at each budget.
      notes: what was left out or is wanting, one sentence each.
    """

    name: str
    exponent: Interval | None
    params: Interval | None
    tokens: Interval | None
    tokens_per_param: Interval | None
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Approaches:
    """The approaches at the same budgets.

    Attributes:
      flops: budgets C [m], training FLOPs.
      rows: the approaches.
      spread: largest over smallest tokens per parameter among the approaches, at each budget [m]; nan with fewer than
        two of them.
      sentences: the spread in words, one sentence a budget.
    """

    flops: np.ndarray
    rows: tuple[Approach, ...]
    spread: np.ndarray
    sentences: tuple[str, ...]

    def __getitem__(self, name: str) -> Approach:
        """An approach by its name. Raises KeyError for another."""
        return {row.name: row for row in self.rows}[name]

    def to_json(self) -> dict:
        """In plain JSON types; open ends of intervals are None."""
        return plain(self)


def compare_approaches(
    table: Table,
    flops: np.ndarray | float,
    budgets: np.ndarray | None = None,
    fitted: Fit | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Approaches:
    """Optimal params and tokens at budgets of C = 6 N D FLOPs by each of the approaches.

    Intervals are 95 % percentiles of the pairs bootstrap, by clusters if the table has them. A replicate in which an
    approach finds no power law counts as anything, so that with more than a few of them the approach is not heard.
    Approaches 1 and 2 see a random sample of more than MOST runs.

    Args:
      table: runs with params, tokens and loss.
      flops: the budgets asked for.
      budgets: FLOPs of the isoFLOP lines; found by `isoflop.find_lines` if left out.
      fitted: approach 3, where these runs are fitted already.
      replicates: bootstrap replicates.
      seed: of the resampling.
    """
    flops = np.atleast_1d(np.asarray(flops, np.float64))
    fitted = fit(table, replicates=replicates, seed=seed) if fitted is None else fitted
    whole, table = table, table.sample(MOST, seed)
    draws = search.pairs(np.random.default_rng(seed), len(table), replicates, table.clusters, None)
    weights = np.concatenate([np.ones((1, len(table))), *(w for w, _ in draws)])
    own = _compute_notes(table)
    notes = (*table.notes[len(whole.notes) :], *own)
    rows = (
        _envelope(table, flops, weights, notes),
        _isoflop(table, flops, weights, budgets, 2, notes),
        _isoflop(table, flops, weights, budgets, 3, notes),
        _parametric(fitted, flops, own),
    )
    spread, sentences = _spread(rows, flops)
    return Approaches(flops, rows, spread, sentences)


def _compute_notes(table: Table) -> tuple[str, ...]:
    away = abs(np.log(table.flops / (6.0 * table.params * table.tokens)))
    if np.max(away) <= 0.05:
        return ()
    return (f"the flops of the table are up to {100 * np.expm1(np.max(away)):.0f} % off 6 N D, which is used here",)


def _envelope(table: Table, flops: np.ndarray, weights: np.ndarray, notes: tuple[str, ...]) -> Approach:
    """Approach 1. A curve is the runs of one size, interpolated linearly in log loss over log C."""
    name = "1 envelope"
    labels = isoflop.levels(table.params, isoflop.SAME_SIZE)
    log_c, log_l = np.log(table.params * table.tokens * 6.0), np.log(table.loss)
    grid = np.linspace(log_c.min(), log_c.max(), ENVELOPE)
    curves = [rows for rows in (np.flatnonzero(labels == label) for label in np.unique(labels)) if len(rows) > 1]
    if len(curves) < LEAST_POINTS:
        why = (
            f"no envelope: it needs {LEAST_POINTS} sizes with runs at two computes or more, and there are {len(curves)}"
        )
        return Approach(name, None, None, None, None, (*notes, why))
    log_n = np.array(
        [np.log(table.params[rows]).mean() for rows in curves]
    )  # labels, so curves, go from small to large
    loss_RxSxG = np.stack([_curve(grid, log_c[rows], log_l[rows], weights[:, rows]) for rows in curves], axis=1)
    there_RxSxG = np.isfinite(loss_RxSxG)
    best_RxG = loss_RxSxG.argmin(axis=1)
    smallest = there_RxSxG.argmax(axis=1)
    largest = len(curves) - 1 - there_RxSxG[:, ::-1].argmax(axis=1)
    # The best of those present is the optimum only where a smaller and a larger size did worse.
    inner_RxG = (smallest < best_RxG) & (best_RxG < largest)
    leaders = len(np.unique(best_RxG[0, inner_RxG[0]]))
    if leaders < LEAST_POINTS:
        why = f"no envelope: it needs {LEAST_POINTS} sizes that lead between a smaller and a larger one, not {leaders}"
        return Approach(name, None, None, None, None, (*notes, why))
    reach = np.exp(grid[inner_RxG[0]][[0, -1]])
    note = f"{leaders} of {len(curves)} sizes lead, from {reach[0]:.1e} to {reach[1]:.1e} FLOP"
    return _from_points(name, grid, log_n[best_RxG], inner_RxG, flops, (*notes, note))


def _curve(grid: np.ndarray, log_c: np.ndarray, log_l: np.ndarray, w_RxM: np.ndarray) -> np.ndarray:
    """log loss [R, G] of one size over the grid of log C, infinite where it was not run. Runs of one C are averaged."""
    at, label = np.unique(log_c, return_inverse=True)
    member = np.eye(len(at))[label]
    count, total = w_RxM @ member, (w_RxM * log_l) @ member
    out = np.full((len(w_RxM), len(grid)), np.inf)
    for r in np.flatnonzero(np.sum(count > 0, axis=1) > 1):
        some = count[r] > 0
        out[r] = np.interp(grid, at[some], total[r, some] / count[r, some], left=np.inf, right=np.inf)
    return out


def _isoflop(
    table: Table,
    flops: np.ndarray,
    weights: np.ndarray,
    budgets: np.ndarray | None,
    degree: int,
    notes: tuple[str, ...],
) -> Approach:
    """Approach 2."""
    name = f"2 isoFLOP, {'parabola' if degree == 2 else 'cubic'}"
    lines = isoflop.find_lines(table, budgets)
    if len(lines) < LEAST_POINTS:
        need = f"{LEAST_POINTS} lines of {isoflop.LEAST_SIZES} sizes within {isoflop.WIDTH:g} decades are needed"
        return Approach(
            name, None, None, None, None, (*notes, f"no isoFLOP structure: {need}, lines found: {len(lines)}")
        )
    found = [isoflop.minimum(table, line, weights, degree) for line in lines]
    log_n_RxL, inside_RxL = (np.stack(part, axis=1) for part in zip(*found, strict=True))
    missed = [f"{line.flops:.1e}" for line, inside in zip(lines, inside_RxL[0], strict=True) if not inside]
    note = f"{len(lines)} isoFLOP lines, from {lines[0].flops:.1e} to {lines[-1].flops:.1e} FLOP"
    if missed:
        note += f"; minimum not bracketed at {', '.join(missed)} FLOP: left out of the power law"
    if len(lines) - len(missed) < LEAST_POINTS:
        return Approach(name, None, None, None, None, (*notes, f"{note}; fewer than {LEAST_POINTS} are left"))
    log_c = np.log([line.flops for line in lines])
    return _from_points(name, log_c, log_n_RxL, inside_RxL, flops, (*notes, note))


def _from_points(
    name: str, log_c: np.ndarray, log_n: np.ndarray, used: np.ndarray, flops: np.ndarray, notes: tuple[str, ...]
) -> Approach:
    """The power law through (log C [L], log N [R, L]) where used [R, L], the first row being the runs themselves."""
    count = np.maximum(used.sum(axis=1), 1)
    x = np.where(used, log_c, 0.0)
    y = np.where(used, log_n, 0.0)
    mean_x, mean_y = x.sum(axis=1) / count, y.sum(axis=1) / count
    off = np.where(used, log_c - mean_x[:, None], 0.0)
    spread = np.sum(off**2, axis=1)
    found = spread > 0
    slope = np.where(found, np.sum(off * y, axis=1) / np.where(found, spread, 1.0), np.nan)
    exponent = _interval(slope[0], slope[1:], -np.inf)
    if not (np.isfinite(exponent.lo) and np.isfinite(exponent.hi)):
        why = f"not identified: {100 * np.mean(~found):.0f} % of the bootstrap replicates have no such power law"
        return Approach(name, None, None, None, None, (*notes, why))
    n = np.exp(mean_y[:, None] + slope[:, None] * (np.log(flops) - mean_x[:, None]))
    params, tokens, ratio = (_interval(v[0], v[1:], 0.0) for v in (n, flops / (6 * n), flops / (6 * n**2)))
    return Approach(name, exponent, params, tokens, ratio, notes)


def _parametric(fitted: Fit, flops: np.ndarray, notes: tuple[str, ...]) -> Approach:
    """Approach 3."""
    value = {name: np.concatenate([[fitted.params[name].value], fitted.replicates[name]]) for name in fitted.replicates}
    best = fitted.optimal(flops)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = value["beta"] / (value["alpha"] + value["beta"])
    exponent = _interval(slope[0], slope[1:], -np.inf)
    ratio = Interval(
        best.tokens.value / best.params.value, best.tokens.lo / best.params.hi, best.tokens.hi / best.params.lo
    )
    return Approach("3 parametric", exponent, best.params, best.tokens, ratio, (*notes, *fitted.warnings))


def _interval(value: np.ndarray, draws: np.ndarray, least: float) -> Interval:
    missing = np.isnan(draws)
    low = percentile_interval(value, np.where(missing, least, draws)).lo
    high = percentile_interval(value, np.where(missing, np.inf, draws)).hi
    return Interval(value, low, high)


def _spread(rows: tuple[Approach, ...], flops: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    heard = [row for row in rows if row.tokens_per_param is not None]
    if len(heard) < 2:
        return np.full(len(flops), np.nan), ("fewer than two approaches can be used on these runs",)
    ratio_KxM = np.stack([row.tokens_per_param.value for row in heard])
    spread = ratio_KxM.max(axis=0) / ratio_KxM.min(axis=0)
    own = heard[-1].tokens_per_param
    with np.errstate(divide="ignore"):
        width = own.hi / own.lo
    sentences = []
    for m, budget in enumerate(flops):
        low, high = ratio_KxM[:, m].argmin(), ratio_KxM[:, m].argmax()
        weigh = "more than" if spread[m] > width[m] else "within"
        sentences.append(
            f"at {budget:.3g} FLOP the optimal tokens per parameter are {ratio_KxM[low, m]:.3g} (approach "
            f"{heard[low].name}) to {ratio_KxM[high, m]:.3g} (approach {heard[high].name}): a factor {spread[m]:.2g} "
            f"by the choice of approach alone, {weigh} the factor {width[m]:.2g} of the interval of approach "
            f"{heard[-1].name}"
        )
    return spread, tuple(sentences)
