"""Profile intervals: how far a parameter can go before the fit, with all the others free, becomes too bad.

Unlike a percentile of the bootstrap such an interval may have no end: then the runs do not identify the parameter.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from deeplearn.laws.fitting import Fit
from deeplearn.laws.forms import Log
from deeplearn.laws.search import direct, exponents_grid
from deeplearn.laws.solve import Problem, profile, solve

NORMAL_975 = 1.959964
STRETCH = 4.0  # a coefficient's grid spans this many times the range of its bootstrap replicates
FAR_STARTS = 3  # of each value, beside the optimum of the fit
REFINEMENTS = 2
REFINED = 8  # values between the last one inside and the first one outside, each time
TOLERANCE = 1e-11


@dataclasses.dataclass(frozen=True)
class Profile:
    """The best that a law can do for each value of one parameter. Made by `profile_interval`.

    Attributes:
      name: of the parameter.
      values: of the parameter, increasing [G], in the units of the table.
      objective: of the fit, minimised over all the other parameters, at each of them [G].
      threshold: the objective below which a value belongs to the 95 % interval.
      value: where the fit has it.
      lo: lower end; where the interval is open, 0 for a positive parameter and else -infinity.
      hi: upper end; infinity where it is open.
      identified: whether neither end is open, which is to say that neither reaches the bounds of the parameter.
    """

    name: str
    values: np.ndarray
    objective: np.ndarray
    threshold: float
    value: float
    lo: float
    hi: float
    identified: bool


def rise(fit: Fit) -> float:
    """How much the objective may rise within a 95 % interval of one parameter.

    By the likelihood ratio test for robust fits (Schrader and Hettmansperger 1980, Biometrika 67, 93-101), twice the
    rise times E psi' / E psi^2 is chi-square with 1 degree of freedom, psi being the derivative of the loss function.
    For least squares that is the F test. As for the noise of a run, the residuals that are nearly 0 because the fit
    runs through them are left out, and the quantile is Student's, since the scale is estimated.
    """
    problem, error_n = fit.problem, fit.residuals
    if problem.linear:
        error_n = np.exp(problem.t) * -np.expm1(-fit.residuals)
    size = int(np.sum(problem.bounds[0] < problem.bounds[1]))  # parameters that are not pinned
    dof = max(len(error_n) - size, 1)
    kept = np.sort(np.abs(error_n))[-dof:]
    delta = problem.deltas[-1]
    # E psi' is the share of the residuals within delta; where that is few of them, their density at 0 from a wider
    # window: Silverman's bandwidth for a normal density.
    window = max(delta, 1.06 * min(np.std(kept), 1.4826 * np.median(kept)) * dof**-0.2)
    slope = np.mean(kept <= window) * min(1.0, delta / window)
    psi_square = np.mean(np.minimum(kept, delta) ** 2)
    student = NORMAL_975 + (NORMAL_975**3 + NORMAL_975) / (4 * dof)
    return float(0.5 * student**2 * psi_square / max(slope, 1e-300))


def profile_interval(fit: Fit, name: str, points: int = 25) -> Profile:
    """The profile of one parameter over all its bounds, and its 95 % profile-likelihood interval.

    Args:
      fit: a fit, by any loss but quantiles other than the median.
      name: of the parameter. A coefficient has no bounds: its grid spans STRETCH times the range of its replicates.
      points: values on the first grid; the ends of the interval are found on finer ones.

    Raises:
      ValueError: for a parameter that the law does not have, that is pinned, or that is 0 in all replicates.
    """
    problem, start_P = fit.problem, fit.best
    form = problem.form
    if name not in form.names or name in dict(form.pinned):
        raise ValueError(f"the {form.name} law has no free parameter {name!r}; it has {', '.join(form.names)}")
    if problem.tau != 0.5:
        raise ValueError("a fit of a quantile has no profile interval")
    if name in form.free:
        problem, start_P = _exposed(fit, name)
        form = problem.form
    index = len(form.free) + list(form.exponents).index(name)
    low, high = (bound[index] for bound in problem.bounds)
    limit = fit.certificate.objective + rise(fit)

    grid = np.unique(np.append(np.linspace(low, high, points), start_P[index]))
    cost = _costs(problem, index, grid, start_P)
    for _ in range(REFINEMENTS):
        more = [np.linspace(*grid[list(pair)], REFINED + 2)[1:-1] for pair in _ends(cost, limit) if pair is not None]
        if not more:
            break
        more = np.concatenate(more)
        grid, cost = np.append(grid, more), np.append(cost, _costs(problem, index, more, start_P))
        order = np.argsort(grid)
        grid, cost = grid[order], cost[order]

    center = dict(zip(form.columns, problem.at, strict=False)).get(form.places.get(name), 0.0)
    values = np.exp(grid + center) if name in form.logarithmic else grid
    ends = [np.nan if pair is None else _between(values, cost, pair, limit) for pair in _ends(cost, limit)]
    lo, hi = np.where(np.isnan(ends), (0.0 if name in form.logarithmic else -np.inf, np.inf), ends)
    identified = not np.any(np.isnan(ends))
    return Profile(name, values, cost, limit, fit.params[name].value, float(lo), float(hi), identified)


def _exposed(fit: Fit, name: str) -> tuple[Problem, np.ndarray]:
    """The problem and its optimum with a coefficient among the exponents."""
    form = fit.problem.form
    positive = np.append(fit.replicates[name], fit.params[name].value)
    positive = np.log(positive[positive > 0])
    if not len(positive):
        raise ValueError(f"{name} is 0 in this fit: there is nothing to profile")
    middle = float(np.median(positive))
    low, high = (middle + STRETCH * (end - middle) for end in (positive.min() - 0.01, positive.max() + 0.01))
    exposed = form.expose(name, Log(np.exp(low), np.exp(high)))
    rest_P = np.delete(fit.best, form.free.index(name))
    value = fit.params[name].value
    return dataclasses.replace(fit.problem, form=exposed), np.append(rest_P, np.log(value) if value > 0 else low)


def _costs(problem: Problem, index: int, grid: np.ndarray, start_P: np.ndarray) -> np.ndarray:
    """The objective [G] with parameter `index` held at each value of the grid [G], minimised over the others."""
    k, count = len(problem.form.free), len(grid)
    theta_SxT = exponents_grid(problem)
    theta_GxSxT = np.tile(theta_SxT, (count, 1, 1))
    theta_GxSxT[:, :, index - k] = grid[:, None]
    ones_1xN = np.ones((1, len(problem.t)))
    begin, cost = profile(problem, theta_GxSxT.reshape(-1, theta_SxT.shape[1]), ones_1xN)
    begin, cost = begin[0].reshape(count, len(theta_SxT), -1), cost[0].reshape(count, -1)
    far = np.take_along_axis(begin, np.argsort(cost, axis=1)[:, :FAR_STARTS, None], axis=1)
    near = np.tile(start_P, (count, 1, 1))
    near[:, 0, index] = grid
    starts = np.concatenate([near, far], axis=1)
    hold = np.arange(len(start_P)) == index
    rows = starts.reshape(-1, len(start_P))
    _, value = solve(direct(problem), rows, np.repeat(ones_1xN, len(rows), axis=0), tolerance=TOLERANCE, hold=hold)
    return value.reshape(count, -1).min(axis=1)


def _ends(cost: np.ndarray, limit: float) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """(last inside, first outside) of the values below the limit, at either end; None where there is no outside."""
    inside = np.flatnonzero(cost <= limit)
    first, last = int(inside[0]), int(inside[-1])
    return (first, first - 1) if first > 0 else None, (last, last + 1) if last + 1 < len(cost) else None


def _between(values: np.ndarray, cost: np.ndarray, pair: tuple[int, int], limit: float) -> float:
    inner, outer = pair
    share = (limit - cost[inner]) / (cost[outer] - cost[inner])
    return float(values[inner] + share * (values[outer] - values[inner]))
