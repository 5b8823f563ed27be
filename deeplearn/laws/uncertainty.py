"""What a fit does not know: pairs bootstrap, noise of one run, and a check against dearer runs."""

from __future__ import annotations

import dataclasses

import numpy as np

LEVEL = 0.95
SPLITS = (0.5, 0.6, 0.7, 0.8, 0.9)  # rolling hold-outs: the share of the runs, cheapest first, that is fitted
SPLIT_REPLICATES = 100
# The calibration counts as much as the belief that the law is right once it rests on this many held-out runs.
PRIOR_RUNS = 20
NOISE_DRAWS = 2000


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


def resample(rng: np.random.Generator, weights: np.ndarray, replicates: int) -> np.ndarray:
    """Pairs bootstrap: how often each run [n] of weight 1 is drawn, in each replicate [replicates, n]."""
    return rng.multinomial(int(weights.sum()), weights / weights.sum(), replicates).astype(np.float64)


def noise(rng: np.random.Generator, residuals: np.ndarray, n_fitted: int) -> np.ndarray:
    """Draws [NOISE_DRAWS] of the noise of one new run, from the residuals [n] of a fit of n_fitted parameters.

    A robust fit of p parameters runs (nearly) through p of the runs, so the p smallest residuals say nothing; leaving
    them out is also the usual division by n - p. That the scale itself is estimated is carried by a chi-square draw
    each, which makes Gaussian residuals into Student's t.
    """
    dof = max(len(residuals) - n_fitted, 1)
    kept = np.sort(np.abs(residuals))[-dof:]
    scale = np.sqrt(dof / rng.chisquare(dof, NOISE_DRAWS))
    return scale * rng.choice([-1.0, 1.0], NOISE_DRAWS) * rng.choice(kept, NOISE_DRAWS)


def band(center: np.ndarray, draws: np.ndarray, noise_draws: np.ndarray, widening: float) -> tuple:
    """Band (lo, hi) of log loss [m] around center [m], from draws of the law [R, m] and of the noise [Q].

    Every point sees the same noise, so that a band does not depend on what else is asked for.
    """
    spread = np.resize(draws, (len(noise_draws), draws.shape[-1])) + noise_draws[:, None] - center
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return center + widening * np.minimum(low, 0.0), center + widening * np.maximum(high, 0.0)


def splits(flops: np.ndarray, n_fitted: int) -> np.ndarray:
    """Masks [S, n] of the cheaper runs to fit, for each rolling hold-out that leaves enough on both sides."""
    order = np.sort(flops)
    masks = [flops <= order[int(np.ceil(share * len(flops))) - 1] for share in SPLITS]
    kept = [mask for mask in masks if mask.sum() >= 2 * n_fitted and (~mask).sum() >= 2]
    return np.array(kept).reshape(len(kept), len(flops))


def widening(scores: list[np.ndarray]) -> float:
    """How much wider than nominal the bands must be, at least 1.

    Args:
      scores: for each rolling hold-out, error of each held-out run divided by the nominal standard deviation there.

    The mean square of the scores is 1 when the law and its nominal bands are right. It is averaged over the hold-outs
    and shrunk to 1 as if PRIOR_RUNS runs had shown exactly that, so that a few runs cannot stretch a right band.
    """
    if not scores:
        return 1.0
    runs = max(len(score) for score in scores)
    observed = np.mean([np.mean(score**2) for score in scores])
    return float(np.sqrt(max(1.0, (runs * observed + PRIOR_RUNS) / (runs + PRIOR_RUNS))))
