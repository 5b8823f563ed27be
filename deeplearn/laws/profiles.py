"""Profile intervals: how far a parameter can go before the fit, with all the others free, becomes too bad.

Unlike a percentile of the bootstrap such an interval may have no end: then the runs do not identify the parameter.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from deeplearn.laws.certificate import inside, jacobian
from deeplearn.laws.fitting import Fit
from deeplearn.laws.forms import Log
from deeplearn.laws.residuals import student
from deeplearn.laws.search import WEIGHTS, direct, exponents_grid, screen
from deeplearn.laws.solve import Problem, profile, solve
from deeplearn.laws.uncertainty import LEVEL

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


def rise(fit: Fit, problem: Problem, best: np.ndarray, index: int) -> float:
    """How much the objective may rise within the 95 % interval of one parameter.

    With H the Hessian of the objective and J the variance of its gradient, twice the rise is chi-square with 1 degree
    of freedom times the parameter's entry of H^-1 J H^-1 over that of H^-1 (Kent 1982, Biometrika 69, 19-27). Were all
    runs equally noisy, this would be E psi^2 / E psi', psi the derivative of the loss function (Schrader and
    Hettmansperger 1980, Biometrika 67, 93-101), and for least squares the F test; but runs that are noisier than the
    others where they bear on the parameter widen its interval. The quantile is Student's, since scales are estimated.

    Args:
      fit: the fit.
      problem: what is profiled: the fit's, with the parameter among the exponents.
      best: the optimum of `problem` [P].
      index: of the parameter.
    """
    error_n, j_NxP = fit.residuals, jacobian(problem.form, best, problem.x, problem.at)
    if problem.linear:
        error_n = np.exp(problem.t) * -np.expm1(-fit.residuals)
        j_NxP = j_NxP * np.exp(problem.t - fit.residuals)[:, None]
    low_P, high_P = problem.bounds
    free_P = inside(problem, best) | (np.arange(len(best)) == index)
    size = int(np.sum(low_P < high_P))  # parameters that are not pinned
    n, dof = len(error_n), max(len(error_n) - size, 1)
    # A fit runs through as many runs as it has parameters, whose residuals say nothing.
    size_n = np.abs(error_n)
    told_n = np.argsort(np.argsort(size_n, kind="stable")) >= n - dof
    kept = size_n[told_n]
    delta = problem.deltas[-1]
    # psi' is 1 within delta; where few runs are, their density at 0 comes from a wider window: Silverman's bandwidth
    # for a normal density.
    window = max(delta, 1.06 * min(np.std(kept), 1.4826 * np.median(kept)) * dof**-0.2)
    slope_n = told_n * (size_n <= window) * min(1.0, delta / window)
    square_n = told_n * np.minimum(size_n, delta) ** 2
    # Few runs do not show where noise is large: as many as there are parameters speak for equal noise.
    equal = size / (size + dof)
    slope_n, square_n = ((1 - equal) * v + equal * np.mean(v) for v in (slope_n, square_n))
    j_NxP = j_NxP[:, free_P]
    inverse = np.linalg.pinv(j_NxP.T @ (j_NxP * slope_n[:, None]), hermitian=True)
    sandwich = inverse @ (j_NxP.T @ (j_NxP * square_n[:, None])) @ inverse
    at = int(np.sum(free_P[:index]))
    return float(0.5 * student(dof, 1 - LEVEL) ** 2 * sandwich[at, at] / inverse[at, at])


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
    limit = fit.certificate.objective + rise(fit, problem, start_P, index)

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
    sample = problem.take(screen(len(problem.t)))
    theta_SxT = exponents_grid(problem)
    theta_GxSxT = np.tile(theta_SxT, (count, 1, 1))
    theta_GxSxT[:, :, index - k] = grid[:, None]
    begin, cost = profile(sample, theta_GxSxT.reshape(-1, theta_SxT.shape[1]), np.ones((1, len(sample.t))))
    begin, cost = begin[0].reshape(count, len(theta_SxT), -1), cost[0].reshape(count, -1)
    far = np.take_along_axis(begin, np.argsort(cost, axis=1)[:, :FAR_STARTS, None], axis=1)
    near = np.tile(start_P, (count, 1, 1))
    near[:, 0, index] = grid
    starts = np.concatenate([near, far], axis=1)
    hold = np.arange(len(start_P)) == index
    found, value = _solved(sample, starts.reshape(-1, len(start_P)), hold)
    value = value.reshape(count, -1)
    if len(sample.t) == len(problem.t):
        return value.min(axis=1)
    ahead = found.reshape(*value.shape, -1)[np.arange(count), value.argmin(axis=1)]
    return _solved(problem, ahead, hold)[1]


def _solved(problem: Problem, starts: np.ndarray, hold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`solve` without stages from each of the starts [R, P], as many at once as memory has room for."""
    n = len(problem.t)
    parts = np.split(starts, np.arange(max(1, WEIGHTS // n), len(starts), max(1, WEIGHTS // n)))
    done = [solve(direct(problem), p, np.ones((len(p), n)), tolerance=TOLERANCE, hold=hold) for p in parts]
    found, value = (np.concatenate(part) for part in zip(*done, strict=True))
    return found, value


def _ends(cost: np.ndarray, limit: float) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """(last inside, first outside) of the values below the limit, at either end; None where there is no outside."""
    inside = np.flatnonzero(cost <= limit)
    first, last = int(inside[0]), int(inside[-1])
    return (first, first - 1) if first > 0 else None, (last, last + 1) if last + 1 < len(cost) else None


def _between(values: np.ndarray, cost: np.ndarray, pair: tuple[int, int], limit: float) -> float:
    """Where the cost reaches the limit: near its minimum the root of its rise is a straight line."""
    inner, outer, reached = np.sqrt(np.append(cost[list(pair)], limit) - cost.min())
    share = (reached - inner) / (outer - inner)
    return float(values[pair[0]] + share * (values[pair[1]] - values[pair[0]]))
