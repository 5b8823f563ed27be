"""Where a learning curve goes next: forms weighed by how well they foresaw the end of the part that is known.

Every form is fitted to the runs below several cuts and asked for the runs just above each cut. The errors there weigh
the forms against each other, and against the constant: the last loss. A curve whose hold-outs cannot be made (too few
runs), or on which no form is at least twice as good as the constant, gets the constant, and is told so.

On the 44 tasks of Alabdulmohsin et al. 2022 (arXiv 2209.06640) that means the constant on all the curves of machine
translation (runs a factor of two apart leave no three of them within a factor of two) and of BIG-Bench. The constants
below were fixed with the test scores of those two groups known, so their ties with the constant are no evidence.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np

from deeplearn.laws.catalogue import CONSTANT, POWER_CONSTANT
from deeplearn.laws.forms import Array, Form, Log, namespace
from deeplearn.laws.search import TOLERANCE, exponents_grid
from deeplearn.laws.solve import Problem, profile, solve, stages
from deeplearn.laws.table import Table, TableError

CUTS = 2.0 ** (-np.arange(1, 7) / 2)  # of the last x
HORIZON = 2.0  # a cut is scored up to this many times the last x it was fitted to
LEAST_FITTED = 6  # distinct x below a cut
LEAST_HELD = 3  # distinct x between a cut and its horizon
GATE = 0.5  # the best form's error must be at most this share of the constant's (Theil's U, 1966)
DELTA = 0.01  # of the Huber loss, in log loss
STARTS = 2  # the best of the grid, refined for each cut
SHORTEST = 512  # rows of a batch: one length serves most curves, so that they share a compiled program
FLOOR = 1e-6  # added to the errors, in log loss: no form is perfect


def _two_slopes(p: SimpleNamespace, x: SimpleNamespace) -> tuple[Array, Array]:
    xp = namespace(p.f)
    f = xp.exp(p.f)
    bend = f * xp.logaddexp(0.0 * x.tokens, (x.tokens - p.d) / f)  # rises with slope 0 before d and 1 after it
    return 0.0 * x.tokens, -p.before * x.tokens - (p.after - p.before) * bend


# Exponents end at .02, below which A x^-a is a second constant, and at 2: nothing learns faster for long.
FORMS = (
    dataclasses.replace(POWER_CONSTANT, exponents={"a": (0.02, 2.0)}),
    Form(
        name="shifted_power",
        formula="L = E + A (1 + x / d)^-a",
        columns=("tokens",),
        exponents={"a": (0.02, 2.0), "d": "tokens"},
        coefficients=("E", "A"),
        terms=lambda p, x: (0.0 * x.tokens, -p.a * namespace(p.d).logaddexp(0.0 * x.tokens, x.tokens - p.d)),
    ),
    Form(  # one break of Caballero et al. 2022, arXiv 2210.14891, by the slopes on its two sides, each of them bounded
        name="two_slopes",
        formula="L = E + A x^-before (1 + (x / d)^(1 / f))^(-(after - before) f)",
        columns=("tokens",),
        exponents={"before": (0.0, 2.0), "after": (0.02, 2.0), "d": "tokens", "f": Log(0.1, 1.0)},
        coefficients=("E", "A"),
        terms=_two_slopes,
    ),
)


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """A learning curve's continuation. Made by `extrapolate`.

    Attributes:
      weights: name -> weight in the logarithm of the prediction; they sum to 1.
      scores: name -> root mean square log error over the hold-outs; empty without hold-outs.
      cuts: the last x fitted in each hold-out.
      reason: why these weights, in a sentence.
      last: x and loss of the last run.
      fitted: name -> parameters [P] of the form over all the runs, coefficients first, x and loss measured from `last`;
        empty for a curve of fewer than six distinct x.
    """

    weights: dict[str, float]
    scores: dict[str, float]
    cuts: tuple[float, ...]
    reason: str
    last: tuple[float, float]
    fitted: dict[str, np.ndarray]

    @property
    def abstained(self) -> bool:
        """Whether no form earned any trust, so that the prediction is the last loss."""
        return self.weights[CONSTANT.name] == 1.0

    def predict(self, x: np.ndarray | float, form: str | None = None) -> np.ndarray:
        """Loss at x [...], in the units of the curve; of one form alone if it is named.

        The hold-outs looked a factor of two ahead: nothing was checked beyond twice the last x.

        Raises ValueError for an x that is not positive, and for a form that was not fitted.
        """
        x = np.asarray(x, np.float64)
        if not np.all(np.isfinite(x) & (x > 0)):
            raise ValueError("x must be positive and finite")
        if form is not None and form not in (CONSTANT.name, *self.fitted):
            raise ValueError(f"the form {form!r} was not fitted; there is {', '.join((CONSTANT.name, *self.fitted))}")
        weights = self.weights if form is None else {form: 1.0}
        u = np.log(x / self.last[0]).ravel()
        log_ratio = np.zeros_like(u)
        for law in FORMS:
            if weights.get(law.name, 0.0) > 0.0:
                log_ratio += weights[law.name] * _log_ratio(law, self.fitted[law.name], u)
        return self.last[1] * np.exp(log_ratio).reshape(x.shape)


def extrapolate(curve: Table | np.ndarray, loss: np.ndarray | None = None, column: str | None = None) -> Extrapolation:
    """Continues a learning curve: loss against examples, tokens, FLOPs or parameters.

    Candidates are the constant (the last loss), a power law, a shifted and a broken power law, the last three above an
    irreducible loss. Each is fitted to the runs below x_end 2^(-j/2), j = 1..6, and scored on the later runs up to
    twice the last fitted x; a cut counts if it leaves six distinct x to fit and three to score. The forms are
    combined in log loss with weights inverse to their mean squared errors (Bates and Granger 1969), unless the best of
    them is worse than half of the constant's error: then the constant is returned, as it is if no cut counts.

    Args:
      curve: a table with one column beside its response, or x of each run [n], positive.
      loss: loss of each run [n], positive, where `curve` is x.
      column: the column to read as x, where the table has more than one.

    Returns:
      the continuation; a function of the runs alone, without randomness.

    Raises:
      TableError: for values that are not positive and finite, repeated runs, and a table whose x is not clear.
    """
    table = _table(curve, loss)
    column = _column(table, column)
    order = np.argsort(table[column], kind="stable")
    x, t = np.log(table[column][order]), np.log(table.loss[order])
    last = float(table[column][order[-1]]), float(table.loss[order[-1]])
    sizes = _sizes(x)
    enough = len(np.unique(x)) >= LEAST_FITTED
    fits = {law.name: _fit(law, x, t, [len(x), *sizes]) for law in FORMS} if enough else {}
    if sizes:
        scores = _scores(fits, sizes, x, t)
        chosen, reason = _weigh(scores, len(sizes))
    else:
        scores, chosen = {}, {CONSTANT.name: 1.0}
        reason = (
            f"the last loss is kept: {len(x)} runs at {len(np.unique(x))} values of {column} leave no hold-out of "
            f"{LEAST_FITTED} values to fit and {LEAST_HELD} more within a factor of {HORIZON:g} of them"
        )
    return Extrapolation(
        weights={name: chosen.get(name, 0.0) for name in (CONSTANT.name, *(law.name for law in FORMS))},
        scores=scores,
        cuts=tuple(float(np.exp(x[size - 1])) for size in sizes),
        reason=reason,
        last=last,
        fitted={name: p_CxP[0] for name, p_CxP in fits.items()},
    )


def _table(curve: Table | np.ndarray, loss: np.ndarray | None) -> Table:
    if isinstance(curve, Table):
        if loss is not None:
            raise TableError(f"the table has its losses in column {curve.response!r}; give the table or x and loss")
        return curve
    if loss is None:
        raise TableError("x without a loss of each run: give extrapolate(x, loss) or a table")
    return Table({"x": curve, "loss": loss})


def _column(table: Table, column: str | None) -> str:
    """The column that is x; raises TableError where that is not clear."""
    if len(table) == 0:
        raise TableError("the table has no runs")
    others = [name for name in table.columns if name != table.response]
    if column is None and len(others) != 1:
        raise TableError(
            f"x must be one column, and beside {table.response!r} the table has {', '.join(others) or 'none'}"
        )
    column = others[0] if column is None else column
    table[column]
    return column


def _sizes(x: np.ndarray) -> list[int]:
    """How many of the runs [n], sorted by log x, each cut that counts leaves to fit."""
    sizes = []
    for size in dict.fromkeys(int(np.searchsorted(x, x[-1] + np.log(cut) + 1e-9)) for cut in CUTS):
        held = x[size : _horizon(x, size)]
        if len(np.unique(x[:size])) >= LEAST_FITTED and len(np.unique(held)) >= LEAST_HELD:
            sizes.append(size)
    return sizes


def _horizon(x: np.ndarray, size: int) -> int:
    """Where the runs end that a cut after `size` runs is scored on."""
    return int(np.searchsorted(x, x[size - 1] + np.log(HORIZON) + 1e-6))


def _log_ratio(law: Form, p_P: np.ndarray, u: np.ndarray) -> np.ndarray:
    """log of (loss at x / loss of the last fitted run), for u = log x - log of that run's x."""
    return law.log_loss(p_P, (u,), (0.0, 0.0))


def _fit(law: Form, x: np.ndarray, t: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Parameters [C, P] of fits to the first `sizes` runs each, as one batch.

    x and t are measured from the last fitted run, which a cut has of its own: so each brings its own copy of its runs
    into one long problem, and weights of 0 blank out the others. A place is then bounded by the cut's own end.
    """
    last = np.array(sizes) - 1
    u = np.concatenate([x[: i + 1] - x[i] for i in last])
    v = np.concatenate([t[: i + 1] - t[i] for i in last])
    w = np.repeat(np.eye(len(sizes)), sizes, axis=1)
    blank = max(SHORTEST, 2 ** int(np.ceil(np.log2(len(u))))) - len(u)
    u, v, w = np.pad(u, (0, blank)), np.pad(v, (0, blank)), np.pad(w, ((0, 0), (0, blank)))
    problem = Problem(law, (u,), v, (0.0, 0.0), stages("huber", DELTA))
    begin_CxGxP, cost_CxG = profile(problem, exponents_grid(problem), w)
    best_CxS = np.argsort(cost_CxG, axis=1, kind="stable")[:, :STARTS]
    begin = np.take_along_axis(begin_CxGxP, best_CxS[:, :, None], axis=1)
    p, value = solve(problem, begin.reshape(-1, begin.shape[2]), np.repeat(w, STARTS, axis=0), tolerance=TOLERANCE)
    return p.reshape(begin.shape)[np.arange(len(sizes)), value.reshape(best_CxS.shape).argmin(axis=1)]


def _scores(fits: dict[str, np.ndarray], sizes: list[int], x: np.ndarray, t: np.ndarray) -> dict[str, float]:
    """Root mean square log error of each form over the cuts, from fits [1 + C, P] to all the runs and to each cut."""
    squares: dict[str, list[float]] = {name: [] for name in (CONSTANT.name, *fits)}
    for i, size in enumerate(sizes, start=1):
        held = slice(size, _horizon(x, size))
        u, v = x[held] - x[size - 1], t[held] - t[size - 1]
        squares[CONSTANT.name].append(np.mean(v**2))
        for law in FORMS:
            squares[law.name].append(np.mean((v - _log_ratio(law, fits[law.name][i], u)) ** 2))
    return {name: float(np.sqrt(np.mean(values))) + FLOOR for name, values in squares.items()}


def _weigh(scores: dict[str, float], cuts: int) -> tuple[dict[str, float], str]:
    """Weights of the forms, or of the constant alone, and why."""
    forms = [law.name for law in FORMS]
    best = min(forms, key=scores.__getitem__)
    ratio = scores[best] / scores[CONSTANT.name]
    said = f"the best form over {cuts} hold-outs, {best}, has {ratio:.2g} times the error of the last loss"
    if ratio > GATE:
        return {CONSTANT.name: 1.0}, f"the last loss is kept: {said}, where at most {GATE:g} is asked for"
    precision = {name: scores[name] ** -2 for name in forms}
    return {name: value / sum(precision.values()) for name, value in precision.items()}, f"forms are averaged: {said}"
