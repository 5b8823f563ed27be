"""Evidence that a fit is at an optimum."""

from __future__ import annotations

import dataclasses

import numpy as np

from deeplearn.laws.forms import Form
from deeplearn.laws.solve import Problem


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Evidence that the optimum was found.

    Attributes:
      share_at_optimum: share of the random starts whose objective is within 1e-6 (relative) of the best.
      gradient_norm: largest cosine between the bounded residuals and a column of the Jacobian: 0 at an optimum.
      condition_number: of the Jacobian of log loss with columns of unit length; large when parameters trade off.
      converged: the gradient is nil and at least half of the starts agree.
      objective: sum over runs of the loss function of the log-loss residuals, at the optimum.
    """

    share_at_optimum: float
    gradient_norm: float
    condition_number: float
    converged: bool
    objective: float


def jacobian(form: Form, p_P: np.ndarray, x: tuple[np.ndarray, ...], at: tuple[float, ...]) -> np.ndarray:
    """Derivatives [n, P] of log loss at centred columns x of n numbers, by central differences: nothing is optimised
    with them."""
    step = 1e-6
    ends = ([form.log_loss(p_P + sign * step * e, x, at) for e in np.eye(len(p_P))] for sign in (1, -1))
    ahead, behind = ends
    return (np.array(ahead) - np.array(behind)).T / (2 * step)


def inside(problem: Problem, p_P: np.ndarray) -> np.ndarray:
    """Which parameters [P] lie between their bounds, and so can move either way."""
    low_P, high_P = problem.bounds
    return (low_P < p_P) & (p_P < high_P)


def certify(problem: Problem, best: np.ndarray, residuals: np.ndarray, at_optimum: float, objective: float):
    """The certificate of a fit. residuals: log measured - log fitted loss [n]."""
    j_NxP = jacobian(problem.form, best, problem.x, problem.at)
    lengths_P = np.linalg.norm(j_NxP, axis=0)
    j_NxP = j_NxP / np.where(lengths_P > 0, lengths_P, 1.0)
    scale_n = np.exp(problem.t - residuals) if problem.linear else np.ones_like(residuals)
    errors_n = scale_n * np.expm1(residuals) if problem.linear else residuals
    delta = problem.deltas[-1]
    tau = np.where(errors_n > 0, problem.tau, 1 - problem.tau)
    pull_n = 2 * tau * np.clip(errors_n, -delta, delta) * scale_n * problem.weights
    cosine_P = j_NxP.T @ pull_n / max(np.linalg.norm(pull_n), 1e-300)
    low_P, high_P = problem.bounds
    free_P = ~((best <= low_P) & (cosine_P <= 0)) & ~((best >= high_P) & (cosine_P >= 0))
    gradient = float(np.max(np.abs(cosine_P[free_P]), initial=0.0))
    condition = float(np.linalg.cond(j_NxP[:, free_P])) if np.any(free_P) else 1.0
    # Residuals at the level of rounding have no direction: runs that the law fits exactly.
    exact = bool(np.max(np.abs(residuals)) < 1e-9)
    return Certificate(at_optimum, gradient, condition, (gradient < 1e-5 or exact) and at_optimum >= 0.5, objective)
