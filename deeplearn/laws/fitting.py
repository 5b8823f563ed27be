"""Fitting a law to a table of runs."""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np

from deeplearn.laws import uncertainty, verdicts
from deeplearn.laws.allocation import Allocation, optimal_params
from deeplearn.laws.forms import FORMS, Form
from deeplearn.laws.solve import profile_starts, solve, stages
from deeplearn.laws.table import Table, TableError
from deeplearn.laws.uncertainty import Interval, Prediction

BUDGETS = (1.0, 10.0, 100.0)  # where `to_json` allocates compute, times the dearest fitted run


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


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law. Made by `fit`; the parameters are in the units of the table.

    Attributes:
      form: name of the law.
      unit: unit of the loss.
      n_runs: how many runs were fitted.
      params: name -> Interval of floats, 95 % percentile bootstrap.
      certificate: evidence that the optimum was found.
      warnings: what these runs cannot say, and what was left out; one sentence each.
      replicates: name -> bootstrap replicates [R] of each parameter, on the same scale as `params`.
      residuals: log measured loss - log fitted loss of each run [n].
      table: the runs that were fitted.
      widening: factor by which the rolling hold-outs stretched the prediction bands, 1 when they saw no need.
    """

    form: str
    unit: str
    n_runs: int
    params: dict[str, Interval]
    certificate: Certificate
    warnings: tuple[str, ...]
    replicates: dict[str, np.ndarray]
    residuals: np.ndarray
    table: Table
    widening: float
    _laws: _Laws = dataclasses.field(repr=False)
    _noise: np.ndarray = dataclasses.field(repr=False)  # draws of the noise of one run, in log loss

    def curve(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Predicted loss at params and tokens, which broadcast."""
        return np.exp(self._laws.log_loss(self._laws.best[None], params, tokens)[0])

    def predict(self, params: np.ndarray | float, tokens: np.ndarray | float) -> Prediction:
        """Loss of ONE NEW RUN at params and tokens (which broadcast), with its 95 % band.

        The band holds the uncertainty of the parameters (bootstrap), the noise of one run, and what the law itself
        was seen to miss when its cheaper runs predicted its dearer ones (`widening`).
        """
        params, tokens = np.broadcast_arrays(params, tokens)
        center = self._laws.log_loss(self._laws.best[None], params.ravel(), tokens.ravel())[0]
        draws = self._laws.log_loss(self._laws.replicates, params.ravel(), tokens.ravel())
        low, high = uncertainty.band(center, draws, self._noise, self.widening)
        return Prediction(*(np.exp(end).reshape(params.shape) for end in (center, low, high)))

    def optimal(self, flops: np.ndarray | float) -> Allocation:
        """Compute-optimal params and tokens for budgets of C = 6 N D training FLOPs."""
        flops = np.asarray(flops, np.float64)
        names = ("A", "B", "alpha", "beta")
        n_opt = optimal_params(*(self.params[name].value for name in names), flops)
        columns = [self.replicates[name].reshape((-1,) + (1,) * flops.ndim) for name in names]
        draws = optimal_params(*columns, flops)
        # A replicate with neither term has no optimum: it counts as everything and as nothing.
        low = uncertainty.percentile_interval(n_opt, np.where(np.isnan(draws), 0.0, draws)).lo
        high = uncertainty.percentile_interval(n_opt, np.where(np.isnan(draws), np.inf, draws)).hi
        with np.errstate(divide="ignore"):
            tokens = Interval(flops / (6 * n_opt), flops / (6 * high), flops / (6 * low))
        inside = np.isfinite(n_opt) & (n_opt > 0)
        at = self.predict(np.where(inside, n_opt, 1.0), np.where(inside, tokens.value, 1.0))
        loss = Interval(*(np.where(inside, end, np.nan) for end in dataclasses.astuple(at)))
        return Allocation(flops, Interval(n_opt, low, high), tokens, loss)

    def to_json(self) -> dict:
        """The fit in plain JSON types; open ends of intervals are None."""
        budgets = np.array(BUDGETS) * self.table.flops.max()
        best = [self.optimal(flops) for flops in budgets]
        condition = _plain(self.certificate.condition_number)  # infinite for columns that are multiples of each other
        return {
            "form": self.form,
            "unit": self.unit,
            "n_runs": self.n_runs,
            "params": {name: _plain(interval) for name, interval in self.params.items()},
            "certificate": {**dataclasses.asdict(self.certificate), "condition_number": condition},
            "widening": self.widening,
            "optimal": [
                {name: _plain(getattr(b, name)) for name in ("flops", "params", "tokens", "loss")} for b in best
            ],
            "warnings": list(self.warnings),
        }


def _plain(value):
    if isinstance(value, Interval):
        return {name: _plain(getattr(value, name)) for name in ("value", "lo", "hi")}
    if np.ndim(value):
        return [_plain(item) for item in value]
    return float(value) if np.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class _Laws:
    """The fitted law and its replicates, over centred variables, and the centre."""

    form: Form
    center: tuple[float, float, float]  # mean log params, log tokens, log loss
    best: np.ndarray  # [P], coefficients first
    replicates: np.ndarray  # [R, P]

    def log_loss(self, p_RxP: np.ndarray, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """log loss [R, ...] of R laws at params and tokens, which broadcast to [...]."""
        params, tokens = np.broadcast_arrays(np.asarray(params, np.float64), np.asarray(tokens, np.float64))
        x, y = np.log(params).ravel() - self.center[0], np.log(tokens).ravel() - self.center[1]
        return (_log_loss(self.form, p_RxP, x, y) + self.center[2]).reshape((len(p_RxP), *params.shape))

    def original(self, p_RxP: np.ndarray) -> dict[str, np.ndarray]:
        """name -> [R], in the units of the table."""
        k = len(self.form.coefficients)
        theta = p_RxP[:, k:]
        c = self.form.original(theta, p_RxP[:, :k], *self.center[:2]) * np.exp(self.center[2])
        return dict(zip(self.form.names, np.concatenate([c, theta], axis=1).T, strict=True))


def _log_loss(form: Form, p_RxP: np.ndarray, x_n: np.ndarray, y_n: np.ndarray) -> np.ndarray:
    k = len(form.coefficients)
    return np.log([p_P[:k] @ form.basis(p_P[k:], x_n, y_n) for p_P in p_RxP])


def fit(
    table: Table,
    form: str = "chinchilla",
    loss: str = "huber",
    delta: float = 1e-3,
    starts: int = 256,
    replicates: int = 1000,
    seed: int = 0,
) -> Fit:
    """Fits a law to runs.

    Minimises the sum over runs of a loss of log predicted - log measured loss, from many random starts, and refits
    `replicates` pairs-bootstrap tables, each with its own search.

    Args:
      table: the runs.
      form: name of the law (`FORMS`).
      loss: "huber", "l1" or "squared".
      delta: where the Huber loss turns from squared to absolute, in log loss.
      starts: random starts of the fit.
      replicates: bootstrap replicates.
      seed: of the starts and the resampling; the result is a function of the table and the arguments.

    Raises:
      TableError: for a table with fewer runs than the law has parameters.
      ValueError: for an unknown form or loss.
    """
    law = FORMS[_known("form", form, FORMS)]
    deltas = stages(_known("loss", loss, ("huber", "l1", "squared")), delta)
    n, n_fitted = len(table), len(law.names)
    if n < n_fitted:
        raise TableError(f"{n} runs cannot determine the {n_fitted} parameters of the {form} law")
    rng = np.random.default_rng(seed)
    logs = np.log(table.params), np.log(table.tokens), np.log(table.loss)
    center = tuple(float(column.mean()) for column in logs)
    x, y, t = (column - mean for column, mean in zip(logs, center, strict=True))

    theta = rng.uniform(law.lower, law.upper, (starts, len(law.lower)))
    found, value = solve(law, theta, np.ones((starts, n)), t, x, y, deltas)
    best, objective = found[value.argmin()], value.min()
    at_optimum = float(np.mean(value <= objective * (1 + 1e-6) + 1e-20))

    # One batch: bootstrap replicates of all the runs, then for each rolling hold-out its fit and its replicates.
    held_in = uncertainty.splits(table.flops, n_fitted)
    weights = [uncertainty.resample(rng, np.ones(n), replicates)]
    for mask in held_in:
        weights += [mask[None].astype(float), uncertainty.resample(rng, mask, uncertainty.SPLIT_REPLICATES)]
    fits = _search(law, np.concatenate(weights), best, t, x, y, deltas)
    laws = _Laws(law, center, best, fits[:replicates])
    residuals = t - _log_loss(law, best[None], x, y)[0]

    rolling = fits[replicates:].reshape(len(held_in), 1 + uncertainty.SPLIT_REPLICATES, n_fitted)
    scores = []
    for mask, fits_RxP in zip(held_in, rolling, strict=True):
        log_Rxn = _log_loss(law, fits_RxP, x, y)
        error = t - log_Rxn[0]
        draws = uncertainty.noise(rng, error[mask], n_fitted)
        low, high = uncertainty.band(log_Rxn[0, ~mask], log_Rxn[1:, ~mask], draws, 1.0)
        scores.append(error[~mask] / ((high - low) / (2 * 1.96) + 1e-12))

    values, clouds = laws.original(best[None]), laws.original(laws.replicates)
    params = {
        name: Interval(*map(float, dataclasses.astuple(uncertainty.percentile_interval(values[name][0], clouds[name]))))
        for name in law.names
    }
    widening = uncertainty.widening(scores)
    certificate = _certify(law, best, x, y, residuals, deltas[-1], at_optimum, float(objective))
    return Fit(
        form=form,
        unit=table.unit,
        n_runs=n,
        params=params,
        certificate=certificate,
        warnings=table.notes + verdicts.verdicts(law, table, params, certificate, widening),
        replicates=clouds,
        residuals=residuals,
        table=table,
        widening=widening,
        _laws=laws,
        _noise=uncertainty.noise(rng, residuals, n_fitted),
    )


def _known(kind: str, word: str, options) -> str:
    if word in options:
        return word
    near = difflib.get_close_matches(str(word), list(options), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options)}"
    raise ValueError(f"unknown {kind} {word!r}; {hint}")


def _search(law: Form, weights_RxN: np.ndarray, best: np.ndarray, t, x, y, deltas) -> np.ndarray:
    """Best parameters [R, P] for each row of weights: from the optimum of the fit, and from a global search."""
    near, far = np.tile(best[-len(law.lower) :], (len(weights_RxN), 1)), profile_starts(law, weights_RxN, t, x, y)
    deltas = np.maximum(deltas, 1e-6)  # the scatter of replicates needs no nine digits of L1
    # From nearby the smooth first stages would only lead away.
    p_near, value_near = solve(law, near, weights_RxN, t, x, y, np.minimum(deltas, max(1e-3, deltas[-1])))
    p_far, value_far = solve(law, far, weights_RxN, t, x, y, deltas)
    return np.where((value_far < value_near)[:, None], p_far, p_near)


def _certify(law, best, x, y, residuals, delta, at_optimum: float, objective: float) -> Certificate:
    k = len(law.coefficients)
    # Central differences are plenty here: nothing is optimised with them.
    step = 1e-6
    shifted = _log_loss(law, np.concatenate([best + step * np.eye(len(best)), best - step * np.eye(len(best))]), x, y)
    jacobian = (shifted[: len(best)] - shifted[len(best) :]).T / (2 * step)
    lengths = np.linalg.norm(jacobian, axis=0)
    jacobian = jacobian / np.where(lengths > 0, lengths, 1.0)
    pull = np.clip(residuals, -delta, delta)
    cosine = jacobian.T @ pull / max(np.linalg.norm(pull), 1e-300)
    low = np.concatenate([np.zeros(k), law.lower])
    high = np.concatenate([np.full(k, np.inf), law.upper])
    free = ~((best <= low) & (cosine < 0)) & ~((best >= high) & (cosine > 0))
    gradient = float(np.max(np.abs(cosine[free]), initial=0.0))
    condition = float(np.linalg.cond(jacobian[:, free]))
    # Residuals at the level of rounding have no direction: runs that the law fits exactly.
    exact = bool(np.max(np.abs(residuals)) < 1e-9)
    return Certificate(at_optimum, gradient, condition, (gradient < 1e-5 or exact) and at_optimum >= 0.5, objective)
