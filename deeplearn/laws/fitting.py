"""Fitting a law to a table of runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from deeplearn.laws import search, uncertainty, verdicts, written
from deeplearn.laws.allocation import Allocation, optimal_params
from deeplearn.laws.catalogue import FORMS
from deeplearn.laws.certificate import Certificate, certify, inside, jacobian
from deeplearn.laws.forms import Form
from deeplearn.laws.noise import NoiseFloor
from deeplearn.laws.plain import plain
from deeplearn.laws.solve import Problem, stages
from deeplearn.laws.table import Table, TableError
from deeplearn.laws.uncertainty import Interval, Prediction
from deeplearn.laws.words import known

BUDGETS = (1.0, 10.0, 100.0)  # where `to_json` allocates compute, times the dearest fitted run
LOSSES = ("huber", "l1", "squared", "quantile")


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
      widening: by how much the rolling hold-outs multiplied the law's own uncertainty in the prediction bands; 1 when
        they saw no need, or when there are too few runs to hold any out.
      problem: what was minimised, over centred variables.
      best: the parameters at the optimum [P], coefficients first, over centred variables.
      cloud: bootstrap replicates of `best` [R, P].
      floor: by which the runs were weighted; None where their noise is taken as equal.
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
    problem: Problem = dataclasses.field(repr=False)
    best: np.ndarray = dataclasses.field(repr=False)
    cloud: np.ndarray = dataclasses.field(repr=False)
    floor: NoiseFloor | None = dataclasses.field(repr=False)
    _noise: float = dataclasses.field(repr=False)  # half-width of the 95 % interval of one run's noise, in log loss
    _linear: uncertainty.Linear = dataclasses.field(repr=False)

    def curve(self, *values: np.ndarray | float) -> np.ndarray:
        """Predicted loss at values of the law's columns, in their order (params, tokens ...), which broadcast."""
        return np.exp(self._log_loss(self.best[None], values)[0])

    def draws(self, *values: np.ndarray | float) -> np.ndarray:
        """Loss [R, ...] of each bootstrap replicate at values of the law's columns, which broadcast to [...]."""
        return np.exp(self._log_loss(self.cloud, values))

    def predict(self, *values: np.ndarray | float) -> Prediction:
        """Loss of ONE NEW RUN at values of the law's columns (which broadcast), with its 95 % band.

        The band holds the noise of one run and the uncertainty of the parameters (bootstrap), the latter as many times
        (`widening`) as the law was seen to need when its smaller runs predicted its larger ones: see `uncertainty`.
        """
        noise = self._noise
        if self.floor:
            params = np.broadcast_arrays(*values)[self.problem.form.columns.index("params")]
            noise = noise * self.relative_noise(params.ravel())
        return Prediction(*self._band(values, noise))

    def relative_noise(self, params: np.ndarray) -> np.ndarray:
        """Noise of runs of these params, over that of a run of the mean weight."""
        return self.floor.of(params) * math.sqrt(np.mean(self.problem.noise**-2.0))

    def interval(self, *values: np.ndarray | float) -> Interval:
        """The law itself at values of its columns, with its 95 % interval: `predict` without the noise of one run."""
        return Interval(*self._band(values, 0.0))

    def _band(
        self, values: Sequence[np.ndarray | float], noise: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = np.broadcast_arrays(*values)
        center = self._log_loss(self.best[None], values)[0]
        draws = self._log_loss(self.cloud, values).reshape(len(self.cloud), -1)
        g_MxP = jacobian(self.problem.form, self.best, self._centred(values), self.problem.at)
        sides = uncertainty.law(center.ravel(), draws, self._linear, g_MxP)
        low, high = uncertainty.band(center.ravel(), sides, self._linear.runs[1], noise, self.widening)
        with np.errstate(over="ignore"):  # of runs that say nothing
            return tuple(np.exp(end).reshape(center.shape) for end in (center, low, high))

    def optimal(self, flops: np.ndarray | float) -> Allocation:
        """Compute-optimal params and tokens for budgets of C = 6 N D training FLOPs.

        Raises ValueError for a law that does not say how params and tokens trade off.
        """
        law = self.problem.form
        if law.allocation is None:
            raise ValueError(f"the {self.form} law does not say how params and tokens trade off")
        flops = np.asarray(flops, np.float64)

        def best_params(values: dict[str, np.ndarray | float], shape: tuple[int, ...]) -> np.ndarray:
            values = {**dict(law.pinned), **values}
            a, b = law.allocation(SimpleNamespace(**values))
            columns = (np.reshape(value, shape) for value in np.broadcast_arrays(values["A"], values["B"], a, b))
            return optimal_params(*columns, flops)

        n_opt = best_params({name: interval.value for name, interval in self.params.items()}, ())
        draws = best_params(self.replicates, (-1,) + (1,) * flops.ndim)
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
        law = {
            "form": self.form,
            "unit": self.unit,
            "n_runs": self.n_runs,
            "params": plain(self.params),
            "certificate": plain(self.certificate),
            "widening": self.widening,
            "warnings": list(self.warnings),
            **written.keep(self.problem, self.best, self.table, self.replicates, self._noise, self._linear, self.floor),
        }
        if self.problem.form.allocation is not None:
            best = [self.optimal(flops) for flops in np.array(BUDGETS) * self.table.flops.max()]
            law["optimal"] = plain(best)
        return law

    def _log_loss(self, p_RxP: np.ndarray, values: tuple[np.ndarray | float, ...]) -> np.ndarray:
        """log loss [R, ...] of R laws at values that broadcast to [...]."""
        law, at = self.problem.form, self.problem.at
        if len(values) != len(law.columns):
            raise ValueError(f"the {self.form} law takes {', '.join(law.columns)}; {len(values)} values were given")
        values = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values))
        log_loss = _laws(law, p_RxP, self._centred(values), at) + at[-1]
        return log_loss.reshape((len(p_RxP), *values[0].shape))

    def _centred(self, values: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """What the problem takes for values of the law's columns, each of the same shape of m numbers: [m]."""
        return tuple(np.log(value).ravel() - mean for value, mean in zip(values, self.problem.at, strict=False))


def _held_out(problem: Problem, best: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """`misses` of rolling hold-outs: fits to the runs in each mask [S, n], with replicates, against the others."""
    if len(problem.t) <= search.PART:
        fits_RxP = search.refit(problem, best, uncertainty.split_draws(rng, masks))
        parts, rows = np.split(fits_RxP, len(masks)), np.arange(len(problem.t))
    else:
        parts, rows = [], np.sort(rng.choice(len(problem.t), search.PART, replace=False))
        for mask in masks:
            part = problem.take(mask)
            (fit_P,) = search.refit(part, best, [(np.ones((1, len(part.t))), None)])
            cloud_RxP = search.bootstrap(part, fit_P, search.pairs, rng, uncertainty.SPLIT_REPLICATES)
            parts.append(np.concatenate([fit_P[None], cloud_RxP]))
    held_out = []
    left_noise = np.broadcast_to(problem.relative, problem.t.shape)[rows]
    for mask, fits_RxP in zip(masks, parts, strict=True):
        told = _linear(problem, fits_RxP[0], mask)
        left = problem.take(rows[~mask[rows]])
        predicted = _laws(left.form, fits_RxP, left.x, left.at)
        sides = uncertainty.law(predicted[0], predicted[1:], told, jacobian(left.form, fits_RxP[0], left.x, left.at))
        held_out.append(uncertainty.misses(left.t - predicted[0], sides, told, left_noise[~mask[rows]]))
    return held_out


def _linear(problem: Problem, best: np.ndarray, mask: np.ndarray | slice = slice(None)) -> uncertainty.Linear:
    """What a linear fit with these derivatives to the runs of a mask would know; parameters at a bound are held.

    Of runs of unequal noise, each over its relative noise.
    """
    relative_n = np.broadcast_to(problem.relative, problem.t.shape)[mask]
    part = problem.take(mask)
    residuals = part.t - part.form.log_loss(best, part.x, part.at)
    j_NxP = jacobian(part.form, best, part.x, part.at) * inside(part, best)
    return uncertainty.linear(j_NxP / relative_n[:, None], residuals / relative_n)


def _laws(form: Form, p_RxP: np.ndarray, x: tuple[np.ndarray, ...], at: tuple[float, ...]) -> np.ndarray:
    """Centred log loss [R, n] of R laws at centred x."""
    return np.stack([form.log_loss(p_P, x, at) for p_P in p_RxP])


def center(table: Table, form: Form) -> tuple[tuple[np.ndarray, ...], np.ndarray, tuple[float, ...]]:
    """Centred logarithms of the form's columns and of the loss, each [n], and where their centres are."""
    logs = [np.log(table[name]) for name in (*form.columns, table.response)]
    at = tuple(float(column.mean()) for column in logs)
    *x, t = (column - mean for column, mean in zip(logs, at, strict=True))
    return tuple(x), t, at


def fit(
    table: Table,
    form: str | Form = "chinchilla",
    loss: str = "huber",
    delta: float = 1e-3,
    quantile: float = 0.5,
    linear: bool = False,
    starts: int = 256,
    replicates: int = 1000,
    bootstrap: str = "pairs",
    seed: int = 0,
    noise: NoiseFloor | None = None,
) -> Fit:
    """Fits a law to runs.

    Minimises the sum over runs of a loss of log predicted - log measured loss, from many random starts, and refits
    `replicates` bootstrap tables, each with its own search.

    Args:
      table: the runs.
      form: a law, or the name of one (`FORMS`).
      loss: "huber", "l1", "squared" or "quantile".
      delta: where the Huber loss turns from squared to absolute, in log loss.
      quantile: share of the runs that are to lie below the law, for loss "quantile": .1 follows the frontier of runs
        with mixed hyperparameters.
      linear: compare losses rather than their logarithms.
      starts: random starts of the fit.
      replicates: bootstrap replicates.
      bootstrap: "pairs" draws runs (or clusters of runs, if the table has them) anew; "wild" keeps them and turns the
        signs of their residuals, of a cluster together (Wu 1986).
      noise: of the runs, where it was seen to differ by size (`noise_floor`): they are weighted by it, and bands have
        that of the size they are asked for.
      seed: of the starts and the resampling; the result is a function of the table and the arguments.

    Raises:
      TableError: for a table with fewer runs than the law has parameters, or without one of its columns.
      ValueError: for an unknown form, loss or bootstrap.
    """
    law = form if isinstance(form, Form) else FORMS[known("form", form, FORMS)]
    deltas = stages(known("loss", loss, LOSSES), delta)
    known("bootstrap", bootstrap, ("pairs", "wild"))
    n, size = len(table), len(law.names)
    if n < size:
        raise TableError(f"{n} runs cannot determine the {size} parameters of the {law.name} law")
    rng = np.random.default_rng(seed)
    x, t, at = center(table, law)
    floor = noise if noise and noise.power and "params" in law.columns else None
    noise_n = floor.of(table["params"]) if floor else None
    problem = Problem(law, x, t, at, deltas, quantile if loss == "quantile" else 0.5, linear, noise_n)
    best, objective, at_optimum = search.global_fit(problem, starts, rng)
    residuals = t - law.log_loss(best, x, at)

    draw = search.pairs if bootstrap == "pairs" else search.wild
    cloud = search.bootstrap(problem, best, draw, rng, replicates, table.clusters)
    masks = uncertainty.splits([table[name] for name in law.columns], size)
    widening = uncertainty.widening(_held_out(problem, best, masks, rng)) if len(masks) else 1.0

    values, clouds = law.original(best[None], at), law.original(cloud, at)
    params = {
        name: Interval(*map(float, dataclasses.astuple(uncertainty.percentile_interval(values[name][0], clouds[name]))))
        for name in law.names
    }
    certificate = certify(problem, best, residuals, at_optimum, objective)
    return Fit(
        form=law.name,
        unit=table.unit,
        n_runs=n,
        params=params,
        certificate=certificate,
        warnings=table.notes + verdicts.verdicts(problem, table, params, best, cloud, certificate, widening),
        replicates=clouds,
        residuals=residuals,
        table=table,
        widening=widening,
        problem=problem,
        best=best,
        cloud=cloud,
        floor=floor,
        _noise=uncertainty.noise(rng, residuals / problem.relative, size),
        _linear=_linear(problem, best),
    )
