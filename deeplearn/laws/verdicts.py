"""What a table of runs cannot say, in words."""

from __future__ import annotations

import math

import numpy as np

from deeplearn.laws import isoflop, residuals
from deeplearn.laws.certificate import jacobian
from deeplearn.laws.forms import Form, Log
from deeplearn.laws.solve import Problem
from deeplearn.laws.table import Table

LACK_OF_FIT = 1.6  # a right law is widened this much in about 1 table of 50
# Levels of the tests: a right law is accused by each in at most 1 table of 100.
RUNS_LEVEL, SEEDS_LEVEL, OUTLIER_LEVEL = 0.01, 0.01, 0.01
BITS = math.log(1 / math.log(2))  # log of (loss in bits / loss in nats)
NAMED = 5  # rows that one sentence names


def verdicts(
    problem: Problem, table: Table, params: dict, best: np.ndarray, cloud: np.ndarray, certificate, widening: float
) -> tuple[str, ...]:
    """One sentence for each reason to distrust a fit; none for a good one.

    Args:
      problem: what was minimised.
      table: the runs.
      params: name -> Interval in the units of the table.
      best: parameters [P] over centred variables.
      cloud: their bootstrap replicates [R, P].
      certificate: of the fit.
      widening: of the prediction bands.
    """
    form = problem.form
    design = _design(table) if {"params", "tokens"} <= set(form.columns) else ()
    error_n = problem.t - form.log_loss(best, problem.x, problem.at)
    return (
        *design,
        *_bounds(problem, best, cloud),
        *_terms(form, params),
        *_search(certificate),
        *_misfit(widening),
        *_signs(form, table, error_n),
        *_seeds(problem, table, best, error_n),
        *_rows(form, table, error_n, problem.relative),
    )


def _design(table: Table):
    columns = ((table.params, "model sizes", "A and alpha"), (table.tokens, "token counts", "B and beta"))
    for column, word, term in columns:
        # Sizes within 1 % are one size: their difference says nothing about an exponent.
        levels = _levels(np.sort(np.log(column)), 0.01)
        if levels < 3:
            yield f"not identified: {term}, from only {levels} different {word} (3 are the least, 5 are better)"
    x, y = np.log(table.params), np.log(table.tokens)
    if np.ptp(x) > 0.01 and np.ptp(y) > 0.01 and abs(np.corrcoef(x, y)[0, 1]) > 0.99:
        yield "not identified: alpha against beta, since params and tokens grow together in these runs (constant D/N)"
    decades = float(np.ptp(np.log10(table.flops)))
    if decades < 1:
        yield f"weak: the runs span only {decades:.1f} decades of compute; an extrapolation beyond them is a guess"
    missed = isoflop.unbracketed(table)
    if missed:
        where = _listed([f"{flops:.1e}" for flops in missed])
        yield f"not bracketed: the isoFLOP minimum at {where} FLOP, where the best size is not inside the sizes tried"


def _levels(sorted_n: np.ndarray, width: float) -> int:
    """How many intervals of this width hold all of the values, which may lie densely; at most 3, which is enough."""
    count, at = 0, 0
    while count < 3 and at < len(sorted_n):
        count, at = count + 1, int(np.searchsorted(sorted_n, sorted_n[at] + width, side="right"))
    return count


def _bounds(problem: Problem, best: np.ndarray, cloud: np.ndarray):
    k = len(problem.form.free)
    low_P, high_P = problem.bounds
    for i, (name, declared) in enumerate(problem.form.exponents.items(), k):
        low, high = low_P[i], high_P[i]
        if low == high:
            continue
        near = 1e-6 * max(1.0, high - low)
        bounds = np.exp((low, high)) if isinstance(declared, Log) else (low, high)
        ends = ("the smallest run", "the largest run") if isinstance(declared, str) else (f"{b:g}" for b in bounds)
        words = dict(zip((low, high), ends, strict=True))
        at = [bound for bound in words if abs(best[i] - bound) < near]
        reached = [bound for bound in words if np.mean(np.abs(cloud[:, i] - bound) < near) >= 0.025]
        if at:
            yield f"not identified: {name} is at its bound {words[at[0]]}"
        elif reached:
            yield f"not identified: {name}, whose 95 % interval reaches its bound {words[reached[0]]}"


def _terms(form: Form, params: dict):
    for name in form.free:
        interval = params[name]
        if interval.value <= 0:
            yield f"not identified: {name} is at 0, so these runs do not show that term of the law"
        elif interval.lo <= 1e-9 * interval.value:
            yield f"not identified: {name}, whose 95 % interval reaches 0"


def _search(certificate):
    if certificate.share_at_optimum < 0.5:
        share = 100 * certificate.share_at_optimum
        yield f"not certified: only {share:.0f} % of the starts reach the optimum, so there may be a better one"
    elif not certificate.converged:
        yield f"not certified: the gradient is {certificate.gradient_norm:.1e} of the residuals at the optimum, not 0"


def _misfit(widening: float):
    if widening > LACK_OF_FIT:
        yield (
            f"lack of fit: fits to the smaller runs missed the larger ones, so prediction bands take the law for "
            f"{widening:.2f} times as uncertain as its parameters alone would make it"
        )


def _signs(form: Form, table: Table, error_n: np.ndarray):
    """Runs tests along each column of the law, and along compute."""
    axes = {name: table[name] for name in form.columns}
    if {"params", "tokens"} <= set(axes):
        axes["compute"] = table.params * table.tokens
    p_values = {}
    for name, column in axes.items():
        other = next((axes[second] for second in axes if second != name), column)
        p_values[name] = residuals.too_few_runs(error_n[residuals.snake(column, other)])
    name = min(p_values, key=p_values.get)
    if p_values[name] < RUNS_LEVEL / len(axes):
        yield (
            f"lack of fit: along {name} the residuals keep their sign for longer than chance allows (runs test, "
            f"p = {p_values[name]:.1g})"
        )


def _seeds(problem: Problem, table: Table, best: np.ndarray, error_n: np.ndarray):
    scales = np.stack([table[name] for name in problem.form.columns], axis=1)
    _, same = np.unique(scales, axis=0, return_inverse=True)
    if same.max() + 1 == len(same):
        return  # every run its own scale; the Jacobian of many runs is dear
    j_NxP = jacobian(problem.form, best, problem.x, problem.at) / np.reshape(problem.relative, (-1, 1))
    test = residuals.lack_of_fit(error_n / problem.relative, j_NxP, same.ravel())
    if test is not None and test[0] < SEEDS_LEVEL:
        yield (
            f"lack of fit: the law misses the means of runs of equal scale by {test[2] / test[1]:.1f} times what their "
            f"scatter of {100 * test[1]:.2g} % explains (F test against repeated seeds, p = {test[0]:.1g})"
        )


def _rows(form: Form, table: Table, error_n: np.ndarray, relative_n: np.ndarray | float):
    far, scatter = residuals.outliers(error_n / relative_n, len(form.names), OUTLIER_LEVEL)
    bits = far[abs(abs(error_n[far]) - BITS) < 0.02 + 3 * scatter]
    for rows, side in ((bits[error_n[bits] > 0], "above"), (bits[error_n[bits] < 0], "below")):
        if len(rows):
            other = "bits" if side == "above" else "nats"
            named = _listed([table.where(row) for row in rows])
            yield (
                f"mixed units: {named}, a factor 1.44 {side} the law, the ratio of bits to nats; their "
                f"{table.response} may be in {other}"
            )
    rest = np.setdiff1d(far, bits, assume_unique=True)
    if len(rest):
        worst = rest[np.argmax(abs(error_n[rest]))]
        named = _listed([table.where(row) for row in rest])
        yield (
            f"outliers: {named}, far from the law; {table.where(worst)} is off by "
            f"{100 * np.expm1(error_n[worst]):+.2g} %, {abs(error_n[worst]) / scatter:.0f} times the scatter of the "
            "others (diverged, unfinished or another setup?)"
        )


def _listed(items: list[str]) -> str:
    """The first few, and how many more there are."""
    words = list(items[:NAMED])
    if len(items) > NAMED:
        words.append(f"{len(items) - NAMED} more")
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
