"""What a fit does not know: its parameters, the noise of one run, and how the law itself fails beyond its runs.

The 95 % band of one new run adds two parts in quadrature, each side on its own, around the fitted log loss:

- noise: the .95 quantile of the sizes of the residuals (not a Gaussian's: residuals have heavy tails), as Student's t;
- the law: how far its bootstrap replicates scatter there, times `widening`. The scatter is small among the runs and
  grows beyond them in every direction, at the pace at which the runs stop saying anything; so should distrust of the
  law. It is read at the deciles: of a few runs some replicates cannot be fitted, and the tails are theirs.

Few runs need what theory says of a linear fit of p parameters to n of them. The bootstrap of pairs is close to the
jackknife, whose variance is too large by the leverage, n / (n - p) on average (MacKinnon and White 1985, Journal of
Econometrics 29, 305-325), and as uncertain as one of few degrees of freedom: those of the runs that bear on the place
(Bell and McCaffrey 2002, Survey Methodology 28, 169-181). So it is taken (n - p) / n times, and has the weight of these
degrees of freedom beside p which say that all runs are equally noisy; the variance is then s^2 g' (J' J)^-1 g, of
derivatives J at the runs and g there. As s^2 has n - p degrees of freedom, the quantile is Student's.

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
from typing import NamedTuple

import numpy as np

from deeplearn.laws.residuals import student

LEVEL = 0.95
DECILE, Z_DECILE = 0.1, 1.28155
SPLITS = (0.5, 0.6, 0.7, 0.8, 0.9)  # rolling hold-outs: the share of the runs, smallest first, that is fitted
SPLIT_REPLICATES = 100
PRIOR_RUNS = 15
WIDENINGS = np.geomspace(1, 16**3, 289)  # of very many runs the scatter is tiny beside what a wrong law misses
LOST = 0.3  # of the noise: a scatter below this share adds less than a twentieth to it
NOISE_DRAWS = 4000
EXACT = 1e-8  # standard deviation of log loss below which only rounding is left
WEIGHTS = 2**24  # numbers of weights held at once
BLOCK = 2**15  # runs whose derivatives are multiplied at once


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


class Linear(NamedTuple):
    """What a linear least-squares fit to equally noisy runs would know.

    Attributes:
      variance: of one run's noise.
      inverse_PxP: of the sum over runs of j j', j their derivatives: times the variance, the parameters' covariance.
      fourth_QxQ: sum over runs of (j j')(j j')', Q = P^2.
      runs: n, and n - P.
    """

    variance: float
    inverse_PxP: np.ndarray
    fourth_QxQ: np.ndarray
    runs: tuple[int, int]


def linear(j_NxP: np.ndarray, residuals: np.ndarray) -> Linear:
    """From the derivatives of log loss at the runs, 0 for a parameter that is held, and the residuals [n]."""
    n, size = j_NxP.shape
    dof = max(n - size, 1)
    length_P = np.linalg.norm(j_NxP, axis=0)
    length_P = np.where(length_P > 0, length_P, 1.0)
    unit_NxP = j_NxP / length_P
    inverse_PxP = np.linalg.pinv(unit_NxP.T @ unit_NxP, hermitian=True) / np.outer(length_P, length_P)
    fourth_QxQ = np.zeros((size**2, size**2))
    for some_MxP in np.split(j_NxP, np.arange(BLOCK, n, BLOCK)):
        square_MxQ = (some_MxP[:, :, None] * some_MxP[:, None]).reshape(len(some_MxP), -1)
        fourth_QxQ += square_MxQ.T @ square_MxQ
    return Linear(float(np.sum(residuals**2) / dof), inverse_PxP, fourth_QxQ, (n, dof))


def law(center: np.ndarray, draws: np.ndarray, told: Linear, g_MxP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations (below, above) [m] of the fitted log loss, for as few runs as there are.

    Args:
      center: fitted log loss [m].
      draws: of its bootstrap replicates [R, m].
      told: what a linear fit would know.
      g_MxP: derivatives of log loss there.
    """
    n, dof = told.runs
    u_MxP = g_MxP @ told.inverse_PxP
    square_M = np.maximum(np.sum(u_MxP * g_MxP, axis=1), 0.0)  # sum over runs of q^2, q the pull of a run there
    uu_MxQ = (u_MxP[:, :, None] * u_MxP[:, None]).reshape(len(u_MxP), -1)
    fourth_M = np.sum(uu_MxQ @ told.fourth_QxQ * uu_MxQ, axis=1)
    bearing_M = square_M**2 / np.maximum(fourth_M, 1e-300) * dof / n
    weight_M = bearing_M / (bearing_M + g_MxP.shape[1])
    equal_M = (1 - weight_M) * told.variance * square_M
    below, above = (np.sqrt(weight_M * (dof / n) * side**2 + equal_M) for side in scatter(center, draws))
    return below, above


def band(
    center: np.ndarray, sides: tuple[np.ndarray, np.ndarray], dof: int, noise: float, widening: float
) -> tuple[np.ndarray, np.ndarray]:
    """Band (lo, hi) of log loss [m] of one new run.

    Args:
      center: fitted log loss [m].
      sides: its standard deviations (`law`).
      dof: runs that are more than the parameters.
      noise: half-width of the interval of one run's noise.
      widening: by how much the hold-outs multiply the uncertainty of the law.
    """
    below, above = (student(dof, 1 - LEVEL) * widening * side for side in sides)
    return center - np.hypot(noise, below), center + np.hypot(noise, above)


def splits(columns: Sequence[np.ndarray], n_fitted: int) -> np.ndarray:
    """Masks [S, n] of the runs to fit in each rolling hold-out, along each column [n] of the law.

    A hold-out counts if it leaves twice as many runs as parameters, three values of every column that has as many,
    and two runs to predict.
    """
    # Within 1 % is one value; as ranks, which are counted without being sorted each time.
    levels = [np.unique(np.round(np.log(column), 2), return_inverse=True)[1].ravel() for column in columns]
    masks = []
    for level in levels:
        order = np.sort(level)
        masks += [level <= order[int(np.ceil(share * len(level))) - 1] for share in SPLITS]

    def counts(mask):
        varied = all(np.count_nonzero(np.bincount(level[mask])) >= min(3, level.max() + 1) for level in levels)
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


def misses(
    error: np.ndarray, sides: tuple[np.ndarray, np.ndarray], told: Linear, relative: np.ndarray | float = 1.0
) -> np.ndarray:
    """What a hold-out shows: error, noise s and scatter h of the law, for each run that was held out [3, held].

    An error over its estimated deviation is Student's, whose variance is dof / (dof - 2).

    Args:
      error: measured - predicted log loss [held].
      sides: standard deviations of the prediction (`law`).
      told: by the runs that were fitted.
      relative: noise of each run, over that of `told`.
    """
    dof = told.runs[1]
    s, h = np.full(len(error), np.sqrt(told.variance)) * relative, np.where(error < 0, *sides)
    return np.stack([error, *(np.sqrt(dof / max(dof - 2, 1)) * part for part in (s, h))])


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
    best = float(WIDENINGS[np.argmin(cost)])
    # Of very many runs the scatter is lost in the noise, widened or not: then the misses say nothing of it.
    lost = all(np.median(best * h / s) < LOST for _, s, h in held_out)
    return 1.0 if lost else best
