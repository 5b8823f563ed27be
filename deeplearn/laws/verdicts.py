"""What a table of runs cannot say, in words."""

from __future__ import annotations

import numpy as np

from deeplearn.laws.forms import Form
from deeplearn.laws.solve import Problem
from deeplearn.laws.table import Table

LACK_OF_FIT = 1.25  # a right law is widened this much in at most 1 table of 50


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
    return (*design, *_bounds(problem, best, cloud), *_terms(form, params), *_search(certificate), *_misfit(widening))


def _design(table: Table):
    columns = ((table.params, "model sizes", "A and alpha"), (table.tokens, "token counts", "B and beta"))
    for column, word, term in columns:
        # Sizes within 1 % are one size: their difference says nothing about an exponent.
        levels = 1 + int(np.sum(np.diff(np.sort(np.log(column))) > 0.01))
        if levels < 3:
            yield f"not identified: {term}, from only {levels} different {word} (3 are the least, 5 are better)"
    x, y = np.log(table.params), np.log(table.tokens)
    if np.ptp(x) > 0.01 and np.ptp(y) > 0.01 and abs(np.corrcoef(x, y)[0, 1]) > 0.99:
        yield "not identified: alpha against beta, since params and tokens grow together in these runs (constant D/N)"
    decades = float(np.ptp(np.log10(table.flops)))
    if decades < 1:
        yield f"weak: the runs span only {decades:.1f} decades of compute; an extrapolation beyond them is a guess"


def _bounds(problem: Problem, best: np.ndarray, cloud: np.ndarray):
    k = len(problem.form.free)
    low_P, high_P = problem.bounds
    for i, (name, declared) in enumerate(problem.form.exponents.items(), k):
        low, high = low_P[i], high_P[i]
        if low == high:
            continue
        near = 1e-6 * max(1.0, high - low)
        ends = ("the smallest run", "the largest run") if isinstance(declared, str) else (f"{low:g}", f"{high:g}")
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
            f"lack of fit: fits to the cheaper runs missed the dearer ones, so prediction bands are {widening:.2f} "
            "times as wide as noise and parameters alone would make them"
        )
