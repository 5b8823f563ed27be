"""Which runs to make next: the set that tells most about a target for its FLOPs.

Local c-optimal design (Chaloner & Verdinelli 1995, "Bayesian experimental design: a review"): to first order a run at x
adds J(x) J(x)' / noise^2 to the information on the parameters, J the derivatives of log loss there, and the variance
of a target with derivatives c is c' information^-1 c. Both depend on the parameters, which a first fit knows poorly,
so that the logarithm of the variance is averaged over bootstrap replicates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from deeplearn.laws import frontier
from deeplearn.laws.fitting import Fit
from deeplearn.laws.forms import Form
from deeplearn.laws.solve import Problem, huber_moments
from deeplearn.laws.table import Table, TableError

LAWS = 32  # replicates that the criterion is averaged over
PRIOR = 1.0  # standard deviation of what nothing is known about: centred coefficients and exponents are of order 1
INSIDE = 0.01  # laws on a bound are moved inside by this much, to where they have derivatives
LEAST_GAIN = 1e-3  # a run must shrink the interval by this share to be worth the trouble
LEAST_NOISE = 1e-5  # of one run, in log loss: information is finite
PASSES = 10  # of exchanges


@dataclasses.dataclass(frozen=True)
class LossAt:
    """Loss at the optimal params and tokens for a budget of `flops`, or else at given `params` and `tokens`."""

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.flops, self.params, self.tokens)]
        if given not in ([True, False, False], [False, True, True]):
            raise ValueError("LossAt takes either flops, or params and tokens")

    def log_value(self, form: Form, at: tuple[float, ...], p_RxP: np.ndarray) -> np.ndarray:
        """log loss [R] of R laws (`Problem.at`, parameters over centred variables)."""
        if self.flops is not None:
            return frontier.log_frontier(form, at, p_RxP, np.log([[self.flops]]))[:, 0]
        if set(form.columns) != {"params", "tokens"}:
            raise ValueError(f"the {form.name} law takes {', '.join(form.columns)}, not params and tokens")
        logs = {"params": np.log([[self.params]]), "tokens": np.log([[self.tokens]])}
        return frontier.log_loss(form, at, p_RxP, logs)[:, 0]


@dataclasses.dataclass(frozen=True)
class OptimalParams:
    """Compute-optimal number of parameters for a budget of `flops`."""

    flops: float

    def log_value(self, form: Form, at: tuple[float, ...], p_RxP: np.ndarray) -> np.ndarray:
        """log N [R] of R laws (`Problem.at`, parameters over centred variables)."""
        frontier.check(form)
        if form.allocation is None:
            raise ValueError(f"the {form.name} law does not say how params and tokens trade off")
        return frontier.log_params(form, at, p_RxP, np.log([[self.flops]]))[:, 0]


@dataclasses.dataclass(frozen=True)
class Design:
    """Runs to make, in order.

    Attributes:
      rows: which candidates [k], the one that tells most per FLOP first.
      runs: column -> its value for each of them [k].
      flops: what they cost together.
      before: predicted width of the 95 % interval of the logarithm of the target with the runs made so far: .02 is 2 %.
      after: the same with these runs too.
    """

    rows: np.ndarray
    runs: dict[str, np.ndarray]
    flops: float
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class _Information:
    """What R laws say that runs tell: known_RxPxP and c_RxP from the runs made and the target, x_RxMxP of candidates.

    Derivatives x are over the noise of one run, so that information is a sum of x x'.
    """

    known_RxPxP: np.ndarray
    c_RxP: np.ndarray
    x_RxMxP: np.ndarray

    def log_width(self, chosen: list[int]) -> float:
        """Mean logarithm of the target's standard deviation once these candidates have been run."""
        u_RxP = np.linalg.solve(self._with(chosen), self.c_RxP[..., None])[..., 0]
        return float(np.mean(np.log(np.sum(self.c_RxP * u_RxP, axis=1)))) / 2

    def gains(self, chosen: list[int]) -> np.ndarray:
        """By how much each candidate [M] would lower `log_width` after these (Sherman and Morrison's update)."""
        inverse_RxPxP = np.linalg.inv(self._with(chosen))
        u_RxP = np.einsum("rpq,rq->rp", inverse_RxPxP, self.c_RxP)
        variance_Rx1 = np.sum(self.c_RxP * u_RxP, axis=1)[:, None]
        xu_RxM = (self.x_RxMxP @ u_RxP[..., None])[..., 0]
        xx_RxM = np.sum((self.x_RxMxP @ inverse_RxPxP) * self.x_RxMxP, axis=2)
        return -np.mean(np.log1p(-(xu_RxM**2) / ((1 + xx_RxM) * variance_Rx1)), axis=0) / 2

    def _with(self, chosen: list[int]) -> np.ndarray:
        x_RxSxP = self.x_RxMxP[:, chosen]
        return self.known_RxPxP + x_RxSxP.swapaxes(1, 2) @ x_RxSxP


def next_runs(
    fit: Fit,
    candidates: Table | Mapping[str, np.ndarray],
    target: LossAt | OptimalParams,
    budget: float,
    most: int | None = None,
) -> Design:
    """The candidates that together shrink the interval of a target most within a budget.

    Greedy, by gain per FLOP and by gain, then exchanges of one run for others until none helps. The interval is that
    of the law, as if it were right: runs that would show it to be wrong are not looked for.

    Args:
      fit: the runs made so far, and what they say.
      candidates: the law's columns, [m] each; what a run costs is its `flops`, or 6 N D without that column. A run is
        made twice only if it is listed twice.
      target: `LossAt` or `OptimalParams`.
      budget: training FLOPs for all of the runs together.
      most: how many runs at most.

    Raises:
      TableError: for candidates that lack a column, or hold a value that is not a positive number.
      ValueError: for a budget that pays for none of them, or a target that the law does not have.
    """
    columns = candidates.columns if isinstance(candidates, Table) else candidates
    columns = _checked(columns, fit.problem.form)
    cost = columns["flops"] if "flops" in columns else 6.0 * columns["params"] * columns["tokens"]
    if not np.any(cost <= budget):
        raise ValueError(f"the cheapest candidate costs {cost.min():.3g} FLOPs, more than the budget of {budget:.3g}")
    information = _information(fit, columns, target)
    rows = _ordered(information, _choose(information, cost, budget, most or len(cost)), cost)
    width = [2 * 1.96 * math.exp(information.log_width(chosen)) for chosen in ([], rows)]
    chosen = {name: column[rows] for name, column in columns.items()}
    return Design(np.array(rows, np.int64), chosen, float(cost[rows].sum()), *width)


def _checked(columns: Mapping[str, np.ndarray], form: Form) -> dict[str, np.ndarray]:
    columns = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    needed = {*form.columns} | (set() if "flops" in columns else {"params", "tokens"})
    missing = sorted(needed - set(columns))
    if missing:
        raise TableError(f"the candidates have no column {missing[0]!r}; they have {', '.join(columns)}")
    first = columns[form.columns[0]]
    for name, column in columns.items():
        if column.shape != (first.size,):
            raise TableError(f"column {name!r} of the candidates has shape {column.shape}, not ({first.size},)")
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise TableError(f"candidate {bad[0]}, column {name!r}: {column[bad[0]]:g} is not a positive finite number")
    return columns


def _information(fit: Fit, columns: dict[str, np.ndarray], target: LossAt | OptimalParams) -> _Information:
    problem, form = fit.problem, fit.problem.form
    low_P, high_P = problem.bounds
    # Coefficients have no upper bound.
    margin_P = INSIDE * np.where(np.isfinite(high_P), high_P - low_P, 1.0)
    p_RxP = np.clip(fit.cloud[:LAWS], low_P + margin_P, high_P - margin_P)
    fitted = high_P > low_P

    def derivatives(function) -> np.ndarray:
        steps = 1e-6 * np.eye(len(low_P))[fitted]
        return np.stack([(function(p_RxP + step) - function(p_RxP - step)) / 2e-6 for step in steps], axis=-1)

    def log_losses(logs):
        return lambda p: frontier.log_loss(form, problem.at, p, logs)

    made = {name: (x + at)[None] for name, x, at in zip(form.columns, problem.x, problem.at, strict=False)}
    new = {name: np.log(columns[name])[None] for name in form.columns}
    noise = _noise(problem, fit.residuals)
    relative = fit.relative_noise(np.asarray(columns["params"])) if fit.floor else 1.0
    made_RxNxP = derivatives(log_losses(made)) / np.reshape(noise * problem.relative, (-1, 1))
    new_RxMxP = derivatives(log_losses(new)) / np.reshape(noise * relative, (-1, 1))
    known_RxPxP = made_RxNxP.swapaxes(1, 2) @ made_RxNxP + np.eye(fitted.sum()) / PRIOR**2
    c_RxP = derivatives(lambda p: target.log_value(form, problem.at, p))
    return _Information(known_RxPxP, c_RxP, new_RxMxP)


def _noise(problem: Problem, residuals: np.ndarray) -> float:
    """Relative noise 1 in log loss, as large as least squares would need to be as uncertain as this fit.

    A fit of P parameters runs through P runs, whose residuals say nothing. The Huber loss loses efficiency on noise
    that is taken as Gaussian: variance E psi^2 / (E psi')^2 (Huber 1964), pi / 2 at worst.
    """
    residuals = residuals / problem.relative
    free = max(len(residuals) - len(problem.form.names), 1)
    noise = max(math.sqrt(np.sum(np.sort(residuals**2)[-free:]) / free), LEAST_NOISE)
    psi2, slope = huber_moments(noise, problem.deltas[-1])
    return float(np.sqrt(psi2) / slope)


def _choose(information: _Information, cost: np.ndarray, budget: float, most: int) -> list[int]:
    def filled(chosen: list[int], barred: int | None = None) -> list[list[int]]:
        return [_fill(information, cost, budget, most, chosen, barred, per_flop) for per_flop in (True, False)]

    best = min(filled([]), key=information.log_width)
    for _ in range(PASSES):
        before = information.log_width(best)
        for row in best:
            tried = filled([other for other in best if other != row], row) if row in best else []
            best = min((best, *tried), key=information.log_width)
        if information.log_width(best) > before - LEAST_GAIN:
            break
    return best


def _fill(information, cost, budget: float, most: int, chosen: list[int], barred: int | None, per_flop: bool):
    """Adds the best affordable candidate, by gain or by gain per FLOP, until none is worth its trouble."""
    chosen = list(chosen)
    while len(chosen) < most:
        gains = information.gains(chosen)
        gains[chosen if barred is None else [*chosen, barred]] = 0.0
        gains[cost > budget - cost[chosen].sum()] = 0.0
        gains[gains < LEAST_GAIN] = 0.0
        if not np.any(gains):
            break
        chosen.append(int(np.argmax(gains / cost if per_flop else gains)))
    return chosen


def _ordered(information: _Information, chosen: list[int], cost: np.ndarray) -> list[int]:
    """The same rows, the one that tells most per FLOP first."""
    order: list[int] = []
    while len(order) < len(chosen):
        left = [row for row in chosen if row not in order]
        rate = information.gains(order)[left] / cost[left]
        order.append(left[int(np.argmax(rate))])
    return order
