"""Many laws at once: how much compute one saves against another, and where they cross."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from deeplearn.laws import frontier
from deeplearn.laws.fitting import Fit, fit
from deeplearn.laws.plain import plain
from deeplearn.laws.table import Table, TableError
from deeplearn.laws.uncertainty import LEVEL, Interval, percentile_interval

FURTHEST = 1e12  # times the budget: a loss that takes more compute than this counts as never reached
HALVINGS = 60
GRID = 256  # budgets at which the order of two laws is looked at


@dataclasses.dataclass(frozen=True)
class Crossover:
    """Where one law overtakes another.

    Attributes:
      better: name of the law with the lower loss at the largest budget, by the fits.
      worse: name of the other.
      flops: the budget from which `better` stays better, with its 95 % interval. 0 (or a lower end of 0) where it is
        better at every budget of the range; an upper end of infinity where it may be the worse one at the largest.
      sentence: the same in words.
    """

    better: str
    worse: str
    flops: Interval
    sentence: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Laws side by side, each on its own compute-optimal frontier.

    Attributes:
      flops: budgets [F].
      baseline: name of the law that the others are compared with.
      unit: of the losses.
      losses: name -> Interval of arrays [F]: loss of the law at each budget, and how well it is known.
      gains: name -> Interval of arrays [F]: compute-equivalent gain k, the law reaches its loss with k times less
        compute than the baseline. Infinite where the baseline never gets there.
      crossovers: one for every two laws.
    """

    flops: np.ndarray
    baseline: str
    unit: str
    losses: dict[str, Interval]
    gains: dict[str, Interval]
    crossovers: tuple[Crossover, ...]

    @property
    def table(self) -> list[dict[str, object]]:
        """One row for each law and budget, for printing: law, flops, loss, gain, gain_lo, gain_hi."""
        rows = []
        for (name, gain), i in itertools.product(self.gains.items(), range(len(self.flops))):
            row = {"law": name, "flops": float(self.flops[i]), "loss": float(self.losses[name].value[i])}
            rows.append({**row, "gain": gain.value[i], "gain_lo": gain.lo[i], "gain_hi": gain.hi[i]})
        return rows

    def to_json(self) -> dict:
        """The comparison in plain JSON types; what is infinite is None."""
        return plain(self)


def fit_many(tables: Mapping[str, Table], **options) -> dict[str, Fit]:
    """Fits one law to each of many tables: one a family, data set or optimiser. Options are those of `fit`.

    Raises:
      TableError: as `fit`, with the name of the table.
    """
    fits = {}
    for name, table in tables.items():
        try:
            fits[name] = fit(table, **options)
        except TableError as error:
            raise TableError(f"{name!r}: {error}") from None
    return fits


def compare(fits: Mapping[str, Fit], flops: np.ndarray | float, baseline: str | None = None) -> Comparison:
    """Compares laws along their compute-optimal frontiers (C = 6 N D, or a law in flops alone).

    Intervals are percentiles over bootstrap replicates, those of one law drawn independently of the other's. They hold
    the uncertainty of the parameters, not that a law may be wrong far from its runs.

    Args:
      fits: name -> fitted law; two or more.
      flops: budgets [F]; crossovers are looked for between the least and the largest.
      baseline: name of the law to compare with; the first, if left out.

    Raises:
      TableError: for laws whose losses are not in one unit, or are not the same quantity.
      ValueError: for fewer than two laws, an unknown baseline, a law without a frontier, or flops not above 0.
    """
    flops = np.atleast_1d(np.asarray(flops, np.float64))
    baseline = _checked(fits, flops, baseline)
    rng = np.random.default_rng(0)
    count = max(len(fit.cloud) for fit in fits.values())
    laws = {name: _Frontier(law, rng, count) for name, law in fits.items()}
    at = np.log(flops)[None]
    logs = {name: law.log_loss(at) for name, law in laws.items()}
    losses = {name: _interval(np.exp(log)) for name, log in logs.items()}
    gains = {name: _interval(np.exp(laws[baseline].log_flops(log, at) - at)) for name, log in logs.items()}
    gains[baseline] = Interval(*np.ones((3, len(flops))))
    crossovers = tuple(_crossover(laws, pair, flops) for pair in itertools.combinations(fits, 2))
    return Comparison(flops, baseline, fits[baseline].unit, losses, gains, crossovers)


class _Frontier:
    """A law and its replicates along their own frontiers, rows [1 + R]: the fit first, then replicates."""

    def __init__(self, fitted: Fit, rng: np.random.Generator, count: int):
        self.form, self.at = fitted.problem.form, fitted.problem.at
        # Fits of one seed to tables of one length resample the same rows: shuffled, replicates are independent.
        rows = rng.permutation(np.resize(np.arange(len(fitted.cloud)), count))
        self.p_RxP = np.concatenate([fitted.best[None], fitted.cloud[rows]])

    def log_loss(self, log_flops_RxF: np.ndarray) -> np.ndarray:
        return frontier.log_frontier(self.form, self.at, self.p_RxP, log_flops_RxF)

    def log_flops(self, log_loss_RxF: np.ndarray, near_1xF: np.ndarray) -> np.ndarray:
        """log FLOPs [R, F] that reach log losses [R, F], by bisection; -inf or inf beyond FURTHEST from `near`."""
        low_RxF, high_RxF = (near_1xF + sign * np.log(FURTHEST) + 0 * log_loss_RxF for sign in (-1, 1))
        low_RxF = np.maximum(low_RxF, np.minimum(np.log(6.0), near_1xF))  # one parameter, one token
        never, always = self.log_loss(high_RxF) > log_loss_RxF, self.log_loss(low_RxF) <= log_loss_RxF
        for _ in range(HALVINGS):
            middle_RxF = (low_RxF + high_RxF) / 2
            reached = self.log_loss(middle_RxF) <= log_loss_RxF
            low_RxF, high_RxF = np.where(reached, low_RxF, middle_RxF), np.where(reached, middle_RxF, high_RxF)
        return np.where(never, np.inf, np.where(always, -np.inf, high_RxF))


def _checked(fits: Mapping[str, Fit], flops: np.ndarray, baseline: str | None) -> str:
    if len(fits) < 2:
        raise ValueError(f"a comparison takes two laws or more, not {len(fits)}")
    if not np.all(np.isfinite(flops) & (flops > 0)):
        raise ValueError(f"flops must be positive and finite, not {flops}")
    first = next(iter(fits))
    for name, law in fits.items():
        frontier.check(law.problem.form)
        for what, one, other in (
            ("unit", fits[first].unit, law.unit),
            ("response", fits[first].table.response, law.table.response),
        ):
            if one != other:
                raise TableError(f"laws of different {what}: {first!r} is in {one!r}, {name!r} in {other!r}")
    baseline = first if baseline is None else baseline
    if baseline not in fits:
        raise ValueError(f"no law {baseline!r} to compare with; there are {', '.join(fits)}")
    return baseline


def _crossover(laws: dict[str, _Frontier], names: tuple[str, str], flops: np.ndarray) -> Crossover:
    grid = np.linspace(np.log(flops.min()), np.log(flops.max()), GRID)[None]
    ahead_RxG = laws[names[0]].log_loss(grid) - laws[names[1]].log_loss(grid)
    better, worse = names if ahead_RxG[0, -1] < 0 else names[::-1]
    ahead_RxG = ahead_RxG if better == names[0] else -ahead_RxG  # log loss of the better less that of the worse
    found_R = _stays_below(ahead_RxG, grid[0])
    where = _interval(np.exp(found_R))
    share = np.mean(found_R[1:] == -np.inf)
    least, largest = flops.min(), flops.max()
    low, high = (f"{end:.3g}" for end in (where.lo, where.hi))
    crosses = 0 < where.value < np.inf  # not where the fits are exactly equal
    if crosses and where.lo > 0 and where.hi < np.inf:
        words = f"{better} overtakes {worse} at {where.value:.3g} FLOPs (95 % interval {low} to {high})"
    elif crosses:
        ends = [f"below {least:.3g}"] if where.lo <= 0 else []
        ends += [f"beyond {largest:.3g}"] if where.hi == np.inf else []
        words = (
            f"not identified: {better} overtakes {worse} at {where.value:.3g} FLOPs by the fits, but the 95 % interval "
            f"reaches {' and '.join(ends)} FLOPs"
        )
    elif share >= LEVEL:
        words = f"no crossover: {better} is better than {worse} from {least:.3g} to {largest:.3g} FLOPs"
    else:
        words = (
            f"not identified: {better} is better than {worse} from {least:.3g} to {largest:.3g} FLOPs by the fits, but "
            f"throughout in only {100 * share:.0f} % of the replicates"
        )
    return Crossover(better, worse, where, words)


def _stays_below(ahead_RxG: np.ndarray, grid_G: np.ndarray) -> np.ndarray:
    """Where each row falls below 0 for good [R]: -inf if it always was, inf if it ends above."""
    above = ahead_RxG >= 0
    last = above.shape[1] - 1 - np.argmax(above[:, ::-1], axis=1)  # the last point that is not below
    i, rows = np.minimum(last, above.shape[1] - 2), np.arange(len(above))
    y0, y1 = ahead_RxG[rows, i], ahead_RxG[rows, i + 1]
    share = np.divide(y0, y0 - y1, out=np.zeros(len(above)), where=y0 != y1)
    place = grid_G[i] + share * (grid_G[i + 1] - grid_G[i])
    return np.where(above[:, -1], np.inf, np.where(above.any(axis=1), place, -np.inf))


def _interval(rows: np.ndarray) -> Interval:
    return percentile_interval(rows[0], rows[1:])
