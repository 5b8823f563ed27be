"""The specification curve: one quantity under every defensible choice (Simonsohn et al. 2020, Nature Human Behaviour).

A bootstrap interval holds the choices fixed. Which runs were dropped, the loss, the parameter count and the FLOP
formula often move the answer by more than the interval is wide, so all of them are shown.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from deeplearn.laws import search
from deeplearn.laws.catalogue import FORMS
from deeplearn.laws.fitting import center
from deeplearn.laws.forms import Form
from deeplearn.laws.solve import Problem, profile, solve, stages
from deeplearn.laws.table import Table, TableError
from deeplearn.laws.uncertainty import Interval, percentile_interval
from deeplearn.laws.words import known

QUANTITIES = ("tokens_per_param", "params", "tokens", "loss")  # at the optimum under a budget
LOSSES = {  # name -> (loss, delta, whether losses are compared rather than their logarithms)
    "l1": ("l1", 1e-3, False),
    "huber 1e-3": ("huber", 1e-3, False),
    "huber 1e-2": ("huber", 1e-2, False),
    "squared log": ("squared", 1e-3, False),
    "squared": ("squared", 1e-3, True),
}
DROPS = (0, 0.05, 5)
FURTHEST = "huber 1e-3"  # the loss whose fit to all runs says which of them are the furthest off


@dataclasses.dataclass(frozen=True)
class Specification:
    """One way to come to a number.

    Attributes:
      drop: which runs were left out.
      loss: what was minimised, a key of `LOSSES`.
      size: the column that counts the parameters.
      compute: the FLOP formula: "6 N D", or "counted".
      n_runs: how many runs were fitted.
      value: the quantity, and its 95 % bootstrap interval given these choices.
    """

    drop: str
    loss: str
    size: str
    compute: str
    n_runs: int
    value: Interval


def specifications(
    table: Table,
    quantity: str = "tokens_per_param",
    flops: float | None = None,
    form: str | Form = "chinchilla",
    drops: Sequence[int | float] = DROPS,
    losses: Sequence[str] = tuple(LOSSES),
    sizes: Sequence[str] | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> list[Specification]:
    """A quantity by every combination of choices, the smallest value first.

    With another parameter count, the quantity is in parameters so counted. With counted FLOPs, the budget binds them: a
    power law of (FLOPs of the table / 6 N D) in N says what a run of another size costs.

    Args:
      table: runs with params, tokens and loss; "flops" and further parameter counts are used where it has them.
      quantity: "tokens_per_param", "params", "tokens" or "loss" at the optimum of a budget, or a parameter of the law.
      flops: the budget.
      form: a law with params and tokens that says how they trade off.
      drops: whole numbers drop as many of the highest losses, fractions that share of the runs, the furthest from the
        law fitted to all. Intervals do not know of the choosing.
      losses: keys of `LOSSES`.
      sizes: columns that count parameters; every column with "params" in its name if left out.
      replicates: bootstrap replicates of each.
      seed: of the resampling.

    Raises:
      ValueError: for an unknown quantity or loss, and for a quantity that needs a budget without one.
      TableError: where too few runs are left.
    """
    law = form if isinstance(form, Form) else FORMS[form]
    known("quantity", quantity, (*QUANTITIES, *law.names))
    for loss in losses:
        known("loss", loss, tuple(LOSSES))
    optimal = quantity in QUANTITIES
    if optimal and (flops is None or law.allocation is None):
        raise ValueError(
            f"{quantity} is at a budget: it needs flops and a law that says how params and tokens trade off"
        )
    sizes = [name for name in table.columns if "params" in name.lower()] if sizes is None else sizes
    computes = ("6 N D", "counted") if optimal and "flops" in table.columns else ("6 N D",)

    rows = []
    for size, drop in itertools.product(sizes, drops):
        part = dataclasses.replace(table, columns={**table.columns, "params": table[size]})
        kept = _kept(part, law, drop)
        if kept.sum() < len(law.names):
            raise TableError(f"dropping {drop} leaves {kept.sum()} runs for the {len(law.names)} parameters of the law")
        word = f"{drop} highest losses" if isinstance(drop, int) else f"{100 * drop:g} % furthest off"
        costs = {name: _cost(part, kept, name) for name in computes}
        for loss in losses:
            problem = _problem(part, law, loss)
            fits_RxP = _fits(problem, kept, table.clusters, replicates, seed)
            for compute, cost in costs.items():
                draws = _quantity(quantity, problem, fits_RxP, flops, cost)
                value = _interval(draws)
                rows.append(Specification(word if drop else "none", loss, size, compute, int(kept.sum()), value))
    return sorted(rows, key=lambda row: row.value.value)


def _problem(table: Table, law: Form, loss: str) -> Problem:
    kind, delta, linear = LOSSES[loss]
    x, t, at = center(table, law)
    return Problem(law, x, t, at, stages(kind, delta), linear=linear)


def _kept(table: Table, law: Form, drop: int | float) -> np.ndarray:
    """Which runs stay [n]."""
    kept = np.ones(len(table), bool)
    if isinstance(drop, int):
        kept[np.argsort(table.loss)[len(table) - drop :]] = False
        return kept
    problem = _problem(table, law, FURTHEST)
    off = abs(problem.t - law.log_loss(_best(problem, kept), problem.x, problem.at))
    kept[np.argsort(off)[len(table) - int(np.ceil(drop * len(table))) :]] = False
    return kept


def _best(problem: Problem, kept: np.ndarray) -> np.ndarray:
    """The parameters [P] of the runs that stay, from starts over all of the exponents' range."""
    w = kept[None].astype(np.float64)
    starts_GxP = profile(problem, search.exponents_grid(problem), w)[0][0]
    found, value = solve(problem, starts_GxP, np.repeat(w, len(starts_GxP), axis=0))
    return found[value.argmin()]


def _fits(problem: Problem, kept: np.ndarray, clusters: np.ndarray | None, replicates: int, seed: int) -> np.ndarray:
    """The fit and its bootstrap replicates [1 + replicates, P]. Dropped runs weigh 0: one shape serves all."""
    best = _best(problem, kept)
    rng = np.random.default_rng(seed)
    labels = None if clusters is None else clusters[kept]
    draws = []
    for some, _ in search.pairs(rng, int(kept.sum()), replicates, labels, None):
        w = np.zeros((len(some), len(kept)))
        w[:, kept] = some
        draws.append((w, None))
    return np.concatenate([best[None], search.refit(problem, best, draws)])


def _cost(table: Table, kept: np.ndarray, compute: str) -> tuple[float, float]:
    """(k, g) of FLOPs = 6 k N^(1 + g) D."""
    if compute == "6 N D":
        return 1.0, 0.0
    n = np.log(table.params[kept])
    over = np.log(table.flops[kept] / (6.0 * table.params[kept] * table.tokens[kept]))
    g, log_k = np.polynomial.polynomial.polyfit(n, over, 1)[::-1] if np.ptp(n) > 0 else (0.0, over.mean())
    return float(np.exp(log_k)), float(g)


def _quantity(
    quantity: str, problem: Problem, fits_RxP: np.ndarray, flops: float | None, cost: tuple[float, float]
) -> np.ndarray:
    """The quantity [R] by each fit; nan where it has no optimum."""
    law, at, (k, g) = problem.form, problem.at, cost
    values = {**dict(law.pinned), **law.original(fits_RxP, at)}
    if quantity not in QUANTITIES:
        return values[quantity]
    a, b = law.allocation(SimpleNamespace(**values))
    with np.errstate(all="ignore"):
        # Where a A N^-a = (1 + g) b B D^-b: no exchange of N for D at equal FLOPs gains anything.
        gain = np.log(a * values["A"]) - np.log((1 + g) * b * values["B"])
        log_n = (gain + b * np.log(flops / (6.0 * k))) / (a + (1 + g) * b)
        log_d = np.log(flops / (6.0 * k)) - (1 + g) * log_n
        found = np.isfinite(log_n) & np.isfinite(log_d)
        if quantity == "loss":
            place = {"params": log_n, "tokens": log_d}
            log_l = [
                law.log_loss(p_P, tuple(place[name][r : r + 1] - at[i] for i, name in enumerate(law.columns)), at)[0]
                for r, p_P in enumerate(fits_RxP)
            ]
            return np.where(found, np.exp(np.array(log_l) + at[-1]), np.nan)
        log_value = {"params": log_n, "tokens": log_d, "tokens_per_param": log_d - log_n}[quantity]
        return np.where(found, np.exp(log_value), np.nan)


def _interval(draws: np.ndarray) -> Interval:
    """From the value and its replicates [1 + R]; one that is missing counts as anything."""
    value, missing = draws[0], np.isnan(draws[1:])
    low = percentile_interval(value, np.where(missing, 0.0, draws[1:])).lo
    high = percentile_interval(value, np.where(missing, np.inf, draws[1:])).hi
    return Interval(float(value), float(low), float(high))
