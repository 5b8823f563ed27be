"""The noise floor: how much runs scatter that differ in nothing but their seed.

Within a group of such runs the law has no part in the scatter, so that it is noise alone whatever law is fitted. Small
models may scatter more than large ones. The standard deviation of log loss is taken as a power of the number of
parameters, of greatest likelihood under normal noise, and as the same for all unless a likelihood ratio test says
otherwise (Wilks 1938). Beyond the sizes that were repeated it stays what it is at the nearest of them.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from deeplearn.laws.residuals import chi_square
from deeplearn.laws.table import Table

LEVEL = 0.95
DIFFERS = 6.63  # twice the log likelihood ratio that equal noise exceeds in 1 table of 100, of many runs
POWERS = np.linspace(-1.5, 1.5, 601)
LEAST = 1e-9  # of a variance of log loss: runs may be equal to all digits


@dataclasses.dataclass(frozen=True)
class Level:
    """Standard deviation of log loss at one model size, pooled, and its 95 % interval, of `dof` degrees of freedom."""

    params: float
    value: float
    lo: float
    hi: float
    dof: int


@dataclasses.dataclass(frozen=True)
class NoiseFloor:
    """What repeated runs say of the noise of one.

    Attributes:
      value, lo, hi: standard deviation of log loss, pooled over all groups, and its 95 % interval.
      dof: repeated runs that are more than their groups. groups: sets of runs that differ by their seed only.
      sizes: the same by model size, the smallest first.
      power: of params, by which the noise of a run goes; 0 where the runs do not show that it differs.
    """

    value: float
    lo: float
    hi: float
    dof: int
    groups: int
    sizes: tuple[Level, ...]
    power: float

    def of(self, params: np.ndarray | float) -> np.ndarray:
        """Standard deviation of log loss of a run of so many parameters."""
        params_S, value_S, dof_S = (
            np.array([getattr(s, name) for s in self.sizes]) for name in ("params", "value", "dof")
        )
        at_one = math.sqrt(np.sum(dof_S * (value_S / params_S**self.power) ** 2) / dof_S.sum())
        return at_one * np.clip(params, params_S.min(), params_S.max()) ** self.power


def noise_floor(table: Table, groups: np.ndarray | None = None) -> NoiseFloor | None:
    """The noise of runs from those that are repeated, or None if there are none.

    Args:
      table: the runs; each repetition is a row of its own.
      groups: label of each run [n]; runs of one label differ by their seed only. Left out: runs of equal params and
        tokens.
    """
    if groups is None:
        _, groups = np.unique(np.stack([table.params, table.tokens], axis=1), axis=0, return_inverse=True)
    _, label = np.unique(groups, return_inverse=True)
    label = label.ravel()
    count, log_loss = np.bincount(label), np.log(table.loss)
    squares = np.bincount(label, (log_loss - (np.bincount(label, log_loss) / count)[label]) ** 2)
    params = np.bincount(label, np.log(table.params)) / count
    repeated = count > 1
    squares, dof, params = squares[repeated], count[repeated] - 1, params[repeated]
    if not len(dof):
        return None
    sizes = []
    for size in np.unique(np.round(params, 2)):
        at = np.round(params, 2) == size
        sizes.append(Level(float(np.exp(params[at].mean())), *_pooled(squares[at].sum(), int(dof[at].sum()))))
    value, lo, hi, total = _pooled(squares.sum(), int(dof.sum()))
    return NoiseFloor(value, lo, hi, total, len(dof), tuple(sizes), _power(params, squares, dof))


def _pooled(squares: float, dof: int) -> tuple[float, float, float, int]:
    """Standard deviation from a sum of squares, its 95 % interval, and the degrees of freedom."""
    tails = (1 + LEVEL) / 2, (1 - LEVEL) / 2
    lo, hi = (math.sqrt(squares / chi_square(dof, share)) for share in tails)
    return math.sqrt(squares / dof), lo, hi, dof


def _power(log_params: np.ndarray, squares: np.ndarray, dof: np.ndarray) -> float:
    """The power of params by which noise goes, of greatest likelihood; 0 if that is not much likelier than 0."""
    if np.ptp(log_params) < 0.01:
        return 0.0
    x = log_params - np.average(log_params, weights=dof)
    variance = np.maximum([np.sum(squares * np.exp(-2 * k * x)) / dof.sum() for k in POWERS], LEAST**2)
    cost = dof.sum() * np.log(variance) + 2 * POWERS * np.sum(dof * x)  # minus twice the log likelihood
    best = int(np.argmin(cost))
    return float(POWERS[best]) if cost[len(POWERS) // 2] - cost[best] > DIFFERS else 0.0
