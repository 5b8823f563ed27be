"""Compute-optimal model size and data under C = 6 N D."""

from __future__ import annotations

import dataclasses

import numpy as np

from deeplearn.laws.uncertainty import Interval


@dataclasses.dataclass(frozen=True)
class Allocation:
    """How to spend a budget: each an Interval of arrays shaped as the FLOPs asked for.

    Attributes:
      flops: the budget C, training FLOPs.
      params: compute-optimal N, and its bootstrap interval.
      tokens: compute-optimal D = C / (6 N), and its bootstrap interval.
      loss: predicted loss of one run with the N and D of `value`, and its band.
    """

    flops: np.ndarray
    params: Interval
    tokens: Interval
    loss: Interval


def optimal_params(A: np.ndarray, B: np.ndarray, alpha: np.ndarray, beta: np.ndarray, flops: np.ndarray) -> np.ndarray:
    """N that minimises E + A N^-alpha + B D^-beta under C = 6 N D; equation 4 of Hoffmann et al. 2022.

    The parameters broadcast against flops. Where a term is missing (A or alpha 0) all compute goes to the other: the
    answer is 0 or infinity, and nan where both are missing.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_gain = np.log(alpha * A) - np.log(beta * B)
        return np.exp((log_gain + beta * np.log(flops / 6.0)) / (alpha + beta))
