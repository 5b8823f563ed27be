"""What a fit does not know: its parameters, the noise of one run, and how the law itself fails beyond its runs.

The 95 % band of one new run adds two parts in quadrature, each side on its own, around the fitted log loss:

- noise: the .95 quantile of the sizes of the residuals (not a Gaussian's: residuals have heavy tails), as Student's t;
- the law: how far its bootstrap replicates scatter there, times `widening`. The scatter is small among the runs and
  grows beyond them in every direction, at the pace at which the runs stop saying anything; so should distrust of the
  law. It is read at the deciles: of a few runs some replicates cannot be fitted, and the tails are theirs.

`widening` is calibrated on the runs themselves by rolling hold-outs (rolling-origin evaluation, Tashman 2000): along
each column of the law, fits to the runs with small values predict those with large ones. The widening k is that of
greatest likelihood for what they missed, if errors have variance s^2 + k^2 h^2: s^2 of their residuals, h^2 of their
own replicates. Noise among the residuals thus widens nothing, and misses where the fit had reason to be sure widen
most. It is shrunk to 1, as though PRIOR_RUNS more runs had shown bands of the right width.
Bands are judged by coverage and by the interval score together (Gneiting and Raftery 2007, eq. 43).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

LEVEL = 0.95
Z = 1.95996  # half-width of a Gaussian's 95 % interval, in standard deviations
DECILE, Z_DECILE = 0.1, 1.28155
SPLITS = (0.5, 0.6, 0.7, 0.8, 0.9)  # rolling hold-outs: the share of the runs, smallest first, that is fitted
SPLIT_REPLICATES = 100
PRIOR_RUNS = 15
WIDENINGS = np.geomspace(1, 16, 97)
NOISE_DRAWS = 4000
EXACT = 1e-8  # standard deviation of log loss below which only rounding is left
WEIGHTS = 2**24  # numbers of weights held at once


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; floats or arrays. Open ends are 0 or infinity."""

    value: np.ndarray | float
    lo: np.ndarray | float
    hi: np.ndarray | float


@dataclasses.dataclass(frozen=True)
class Prediction(Interval):
    """Predicted loss of one new run, in the unit of the table, and the 95 % band it should fall in."""


def percentile_interval(value: np.ndarray, draws: np.ndarray) -> Interval:
    """95 % percentile interval over replicates (first axis of draws), stretched to hold the value itself."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="inverted_cdf")
    return Interval(value, np.minimum(low, value), np.maximum(high, value))


def interval_score(low: np.ndarray, high: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Width of each 95 % band plus 40 times the distance by which it is missed; small is good. In logs: of a share."""
    return high - low + 2 / (1 - LEVEL) * np.maximum(np.maximum(low - measured, measured - high), 0.0)


def noise(rng: np.random.Generator, residuals: np.ndarray, n_fitted: int) -> float:
    """Half-width of the 95 % interval of the noise of one new run, from the residuals [n] of n_fitted parameters.

    That the scale itself is estimated is carried by a chi-square draw each, which makes Gaussian residuals into
    Student's t.
    """
    kept = _informative(residuals, n_fitted)
    scale = np.sqrt(len(kept) / rng.chisquare(len(kept), NOISE_DRAWS))
    return float(np.quantile(scale * rng.choice(kept, NOISE_DRAWS), LEVEL))


def _informative(residuals: np.ndarray, n_fitted: int) -> np.ndarray:
    """Sizes of the residuals, without the smallest ones.

    A robust fit of p parameters runs (nearly) through p of the runs, so the p smallest residuals say nothing; leaving
    them out is also the usual division by n - p.
    """
    return np.sort(np.abs(residuals))[-max(len(residuals) - n_fitted, 1) :]


def scatter(center: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations (below, above) [m] of draws [R, m] on either side of center [m], from their deciles."""
    low, high = np.quantile(draws, [DECILE, 1 - DECILE], axis=0)
    return np.maximum(center - low, 0.0) / Z_DECILE, np.maximum(high - center, 0.0) / Z_DECILE


def band(center: np.ndarray, draws: np.ndarray, noise: float, widening: float) -> tuple[np.ndarray, np.ndarray]:
    """Band (lo, hi) of log loss [m] of one new run, from draws of the law [R, m] and the half-width of the noise."""
    below, above = scatter(center, draws)
    return center - np.hypot(noise, Z * widening * below), center + np.hypot(noise, Z * widening * above)


def splits(columns: Sequence[np.ndarray], n_fitted: int) -> np.ndarray:
    """Masks [S, n] of the runs to fit in each rolling hold-out, along each column [n] of the law.

    A hold-out counts if it leaves twice as many runs as parameters, three values of every column that has as many,
    and two runs to predict.
    """
    levels = [np.round(np.log(column), 2) for column in columns]  # within 1 % is one value
    masks = []
    for level in levels:
        order = np.sort(level)
        masks += [level <= order[int(np.ceil(share * len(level))) - 1] for share in SPLITS]

    def counts(mask):
        varied = all(len(np.unique(level[mask])) >= min(3, len(np.unique(level))) for level in levels)
        return varied and mask.sum() >= 2 * n_fitted and (~mask).sum() >= 2

    kept = [mask for mask in masks if counts(mask)]
    return np.unique(np.array(kept, bool).reshape(len(kept), len(levels[0])), axis=0)


def split_draws(rng: np.random.Generator, masks: np.ndarray) -> Iterator[tuple[np.ndarray, None]]:
    """Weights [rows, n] of the fits that the hold-outs [S, n] need, to be refitted in few large batches.

    For each hold-out its runs, and then SPLIT_REPLICATES pairs bootstraps of them.
    """
    count, n = masks.shape
    which = np.repeat(np.arange(count), 1 + SPLIT_REPLICATES)
    whole = np.arange(len(which)) % (1 + SPLIT_REPLICATES) == 0
    size = max(1, WEIGHTS // n)
    for rows in (slice(start, start + size) for start in range(0, len(which), size)):
        mask = masks[which[rows]]
        runs = mask.sum(axis=1)
        drawn = rng.multinomial(runs, mask / runs[:, None])
        yield np.where(whole[rows, None], mask, drawn).astype(np.float64), None


def misses(measured: np.ndarray, fitted: np.ndarray, mask: np.ndarray, n_fitted: int) -> np.ndarray:
    """What a hold-out shows: error, noise s and scatter h of the law, for each run that was held out [3, held].

    Args:
      measured: log losses [n].
      fitted: log losses [1 + SPLIT_REPLICATES, n] of the fit to the runs in the mask [n] and of its replicates.
      mask: the runs that were fitted.
      n_fitted: parameters of the law.
    """
    error = measured - fitted[0]
    s = np.sqrt(np.mean(_informative(error[mask], n_fitted) ** 2))
    below, above = scatter(fitted[0, ~mask], fitted[1:, ~mask])
    held = error[~mask]
    return np.stack([held, np.full(len(held), s), np.where(held < 0, below, above)])


def widening(held_out: list[np.ndarray]) -> float:
    """The factor of the law's scatter that is most likely after the `misses` [3, held] of each hold-out, at least 1.

    Hold-outs count alike, and together as much as the largest of them: they share most of their runs.
    """
    if not held_out:
        return 1.0
    runs = max(errors.shape[1] for errors in held_out)
    cost = np.zeros(len(WIDENINGS))
    for error, s, h in held_out:
        expected = s**2 + h**2 + EXACT**2
        evidence = (runs * error**2 + PRIOR_RUNS * expected) / (runs + PRIOR_RUNS)
        variances = (s**2 + (k * h) ** 2 + EXACT**2 for k in WIDENINGS)
        cost += [np.mean(evidence / variance + np.log(variance)) for variance in variances]
    return float(WIDENINGS[np.argmin(cost)])
