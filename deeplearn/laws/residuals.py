"""What the residuals of a fit say about it: runs of one sign, scatter between seeds, runs far off."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

EXACT_RUNS = 200  # with more residuals than this the number of runs is taken as normal
MEDIAN_DOF = 0.37  # of a degree of freedom is what the median keeps of each, as an estimate of scale
GAP = 0.01  # in log: values closer than this are one level


def snake(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Order [n] by levels of `first` and, within a level, by `second`, up and down in turn: neighbours are close."""
    order = np.argsort(first, kind="stable")
    level = np.cumsum(np.diff(np.log(first[order]), prepend=np.log(first[order[0]])) > GAP)
    turn = np.where(level % 2, -1.0, 1.0)
    return order[np.lexsort((turn * second[order], level))]


def too_few_runs(residuals: np.ndarray) -> float:
    """P(as few runs of one sign or fewer) for residuals in order [n], whose signs fall at random if the law is right.

    Given how many are positive and negative (Wald and Wolfowitz 1940). Runs that a robust fit goes through exactly
    have no sign and are left out.
    """
    signs = np.sign(residuals[abs(residuals) > 1e-9])
    n, up = len(signs), int(np.sum(signs > 0))
    down = n - up
    if min(up, down) == 0:
        return 1.0
    seen = 1 + int(np.sum(signs[1:] != signs[:-1]))
    if n > EXACT_RUNS:
        mean = 1 + 2 * up * down / n
        variance = (mean - 1) * (mean - 2) / (n - 1)
        return 0.5 * math.erfc((mean - seen - 0.5) / math.sqrt(2 * variance))
    ways = 0
    for count in range(2, seen + 1):
        k, odd = divmod(count, 2)
        a, b = math.comb(up - 1, k - 1), math.comb(down - 1, k - 1)
        ways += math.comb(up - 1, k) * b + a * math.comb(down - 1, k) if odd else 2 * a * b
    return ways / math.comb(n, up)


def lack_of_fit(residuals: np.ndarray, jacobian: np.ndarray, same: np.ndarray) -> tuple[float, float, float] | None:
    """F test of what the law misses against the scatter between runs of equal scale (their seeds).

    The residuals are first projected off the Jacobian, one Gauss-Newton step to the least-squares fit, for which the
    test is made.

    Args:
      residuals: of log loss [n].
      jacobian: of log loss, by parameter [n, P].
      same: label of each run [n]; runs of one label differ by their seed only.

    Returns:
      p value, standard deviation between seeds, standard deviation that the means of seeds would show; None without
      degrees of freedom for both.
    """
    count = np.bincount(same)
    q, r = np.linalg.qr(jacobian)
    rank = abs(np.diag(r)) > 1e-9 * np.max(abs(r), initial=1e-300)
    e = residuals - q[:, rank] @ (q[:, rank].T @ residuals)
    between, within = len(count) - int(rank.sum()), len(e) - len(count)
    if between < 1 or within < 1:
        return None
    mean = np.bincount(same, e) / count
    pure = float(np.sum((e - mean[same]) ** 2)) / within
    missed = float(np.sum(count * mean**2)) / between
    if missed <= pure or missed < 1e-18:
        return 1.0, math.sqrt(pure), math.sqrt(missed)
    return _beta(within / 2, between / 2, within * pure / (within * pure + between * missed)), pure**0.5, missed**0.5


def outliers(residuals: np.ndarray, n_fitted: int, level: float) -> tuple[np.ndarray, float]:
    """Runs further off than the largest of as many normal residuals is at `level`, the furthest first, and the scatter.

    The scatter is the median of all residuals but the n_fitted smallest, which a robust fit may go through; outliers
    hardly move it. That it is itself uncertain is in the threshold, one of Student's t.
    """
    n = len(residuals)
    dof = max(n - n_fitted, 1)
    scatter = float(np.median(np.sort(abs(residuals))[-dof:])) / 0.6745
    if scatter < 1e-9:
        return np.zeros(0, np.int64), scatter
    limit = scatter * student(max(MEDIAN_DOF * dof, 1.0), level / n)
    far = np.flatnonzero(abs(residuals) > limit)
    return far[np.argsort(-abs(residuals[far]))], scatter


def student(dof: float, level: float) -> float:
    """t beyond which Student's distribution has `level` in both tails, by bisection of its logarithm."""
    low, high = -10.0, 40.0
    for _ in range(40):
        middle = (low + high) / 2
        tails = _beta(dof / 2, 0.5, dof / (dof + math.exp(2 * middle)))
        low, high = (middle, high) if tails > level else (low, middle)
    return math.exp(high)


def chi_square(dof: float, share: float) -> float:
    """What a sum of `dof` squares of normal numbers stays below in a share of cases, by bisection of its logarithm."""
    with jax.enable_x64(True), jax.transfer_guard("allow"):
        return float(_chi_square(np.float64(dof), np.float64(share)))


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function."""
    # Both settings belong to the thread; float64 whatever the caller's.
    with jax.enable_x64(True), jax.transfer_guard("allow"):
        return float(_betainc(*(np.float64(value) for value in (a, b, x))))


@jax.jit
def _chi_square(dof, share):
    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        below = jax.scipy.special.gammainc(dof / 2, jnp.exp(middle) / 2) < share
        return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

    return jnp.exp(jax.lax.fori_loop(0, 60, halve, (jnp.float64(-40), jnp.float64(40)))[1])


@jax.jit
def _betainc(a, b, x):
    return jax.scipy.special.betainc(a, b, jnp.clip(x, 0.0, 1.0))
