"""Global search: the fit from many starts, and the refits of its bootstrap tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from deeplearn.laws.solve import Problem, objective, profile, solve

GRID = 64  # exponents that each refit tries for each of the first two; a quarter of it for each further one
AT_OPTIMUM = 1e-6  # relative
TOLERANCE = 1e-9  # of a refit: far below the scatter between them
WEIGHTS = 2**24  # numbers of weights held at once
SCREEN = 8192  # of more runs than this, random starts see a sample, and only the best of them all
PART = 2**15  # of more runs than this, the bootstrap draws from parts of this many
FINALISTS = 4

Draws = Iterable[tuple[np.ndarray, np.ndarray | None]]  # weights [r, n], and what is added to log losses [r, n]


def global_fit(
    problem: Problem, starts: int, rng: np.random.Generator, w: np.ndarray | None = None
) -> tuple[np.ndarray, float, float]:
    """The best parameters [P] over random starts, their objective, and the share of the starts that reach it.

    w: weights of the runs [1, n]; 1 if left out.
    """
    k, n = len(problem.form.free), len(problem.t)
    low_P, high_P = problem.bounds
    theta = rng.uniform(low_P[k:], high_P[k:], (starts, len(low_P) - k))
    w = np.ones((1, n)) if w is None else w
    if n > SCREEN:
        return _screened(problem, theta, w, np.sort(rng.choice(n, SCREEN, replace=False)))
    found, value = _from_each(problem, theta, w)
    return found[value.argmin()], float(value.min()), _share_at_best(value)


def _from_each(problem: Problem, theta: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a search from each exponents [S, T] ends: parameters [S, P] and objectives [S]."""
    begin, _ = profile(problem, theta, w)
    w = np.repeat(w, len(theta), axis=0)
    found, value = solve(problem, begin[0], w)
    # The stages lead all starts into one valley, which need not be the deepest: from each start, without them as well.
    alone, depth = solve(direct(problem), begin[0], w)
    return np.where((value <= depth)[:, None], found, alone), np.minimum(value, depth)


def _share_at_best(value: np.ndarray) -> float:
    return float(np.mean(value <= value.min() * (1 + AT_OPTIMUM) + 1e-20))


def _screened(problem: Problem, theta: np.ndarray, w: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, float, float]:
    """As `global_fit`, with the starts compared on some of the runs."""
    # The ends of the range stay in: places may be anywhere between them.
    ends = [index for column in problem.x for index in (column.argmin(), column.argmax())]
    rows = np.union1d(rows, ends)
    sample = problem.take(rows)
    found, value = _from_each(sample, theta, w[:, rows])
    finalists = found[np.argsort(value, kind="stable")[:FINALISTS]]
    final, objectives = solve(direct(problem), finalists, np.repeat(w, len(finalists), axis=0))
    return final[objectives.argmin()], float(objectives.min()), _share_at_best(value)


def direct(problem: Problem) -> Problem:
    """The problem without the stages that smooth it."""
    return dataclasses.replace(problem, deltas=problem.deltas[-1:])


def screen(n: int) -> np.ndarray | slice:
    """The runs of n that a grid of starts is compared on: all, or SCREEN of them, always the same."""
    return slice(None) if n <= SCREEN else np.sort(np.random.default_rng(0).choice(n, SCREEN, replace=False))


def exponents_grid(problem: Problem) -> np.ndarray:
    """Starts [G, T] that fill the bounds evenly, denser at the low end: exponents are small more often than large.

    Additive recurrence with the generalised golden ratio (Roberts 2018, "The unreasonable effectiveness of
    quasirandom sequences").
    """
    k = len(problem.form.free)
    low_P, high_P = problem.bounds
    size = len(low_P) - k
    if size == 0:
        return np.zeros((1, 0))
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (size + 1))
    count = GRID * (1 + max(0, size - 2))
    unit = (0.5 + np.arange(1, count + 1)[:, None] * ratio ** -np.arange(1.0, size + 1)) % 1.0
    place = np.array([name in problem.form.places for name in problem.form.exponents])
    return low_P[k:] + (high_P - low_P)[k:] * np.where(place, unit, unit**2)


def refit(problem: Problem, best: np.ndarray, draws: Draws) -> np.ndarray:
    """Best parameters [R, P] for each row of the draws, each with a global search of its own.

    A search profiles the coefficients out at a grid over all of the exponents' range, and refines the best of these
    starts and of `best`, the optimum of all the runs. With up to two exponents only the better one is refined. Of more
    than SCREEN runs the grid sees a sample.
    """
    theta = exponents_grid(problem)
    quick = dataclasses.replace(
        problem, deltas=np.maximum(problem.deltas[-1:], 1e-6)
    )  # scatter needs no L1 to 9 digits
    seen = screen(len(problem.t))
    sample = problem.take(seen)
    cloud = []
    for w, shift in draws:
        starts, cost = profile(sample, theta, w[:, seen], None if shift is None else shift[:, seen])
        far, near = starts[np.arange(len(w)), cost.argmin(axis=1)], np.tile(best, (len(w), 1))
        if len(best) - len(problem.form.free) <= 2:
            both = np.stack([near, far], axis=1)
            better = both[np.arange(len(w)), objective(quick, both, w, shift).argmin(axis=1)]
            cloud.append(solve(quick, better, w, shift, TOLERANCE)[0])
        else:
            staged = dataclasses.replace(problem, deltas=np.maximum(problem.deltas, 1e-6))
            p_far, value_far = solve(staged, far, w, shift, TOLERANCE)
            p_near, value_near = solve(quick, near, w, shift, TOLERANCE)
            cloud.append(np.where((value_far < value_near)[:, None], p_far, p_near))
    return np.concatenate(cloud)


def pairs(rng, n: int, replicates: int, clusters: np.ndarray | None, residuals: np.ndarray | None) -> Iterator:
    """Pairs bootstrap: how often each run is drawn, by clusters if there are any."""
    del residuals
    labels, count = _labels(n, clusters)
    for rows in _batches(n, replicates):
        drawn = rng.multinomial(count, np.full(count, 1 / count), rows).astype(np.float64)
        yield drawn[:, labels], None


def wild(rng, n: int, replicates: int, clusters: np.ndarray | None, residuals: np.ndarray) -> Iterator:
    """Wild bootstrap: all runs at their fitted losses, with residuals whose signs are drawn anew, by clusters."""
    labels, count = _labels(n, clusters)
    for rows in _batches(n, replicates):
        signs = rng.choice([-1.0, 1.0], (rows, count))[:, labels]
        yield np.ones((rows, n)), (signs - 1.0) * residuals[None]


def bootstrap(
    problem: Problem,
    best: np.ndarray,
    draw: Callable[..., Draws],
    rng: np.random.Generator,
    replicates: int,
    clusters: np.ndarray | None = None,
) -> np.ndarray:
    """Bootstrap replicates [R, P] of a fit, drawn by `pairs` or `wild`.

    Of more than PART runs each batch of replicates resamples a random part of them, of whose fit they are taken as
    offsets. The scatter of a fit falls with the root of the number of runs, and so do the offsets (m out of n
    bootstrap: Bickel, Goetze and van Zwet 1997, Statistica Sinica 7, 1-31). A replicate of a million runs then costs no
    more than one of a part.
    """
    n = len(problem.t)
    if n <= PART:
        residuals = problem.t - problem.form.log_loss(best, problem.x, problem.at)
        return refit(problem, best, draw(rng, n, replicates, clusters, residuals))
    labels, count = _labels(n, clusters)
    chosen = max(2, count * PART // n)
    cloud = []
    for size in _batches(PART, replicates):
        rows = np.flatnonzero(np.isin(labels, rng.choice(count, chosen, replace=False)))
        part = problem.take(rows)
        (center,) = refit(part, best, [(np.ones((1, len(rows))), None)])
        residuals = part.t - part.form.log_loss(center, part.x, part.at)
        some = refit(part, center, draw(rng, len(rows), size, labels[rows], residuals))
        cloud.append(best + np.sqrt(chosen / count) * (some - center))
    return np.concatenate(cloud)


def _labels(n: int, clusters: np.ndarray | None) -> tuple[np.ndarray, int]:
    if clusters is None:
        return np.arange(n), n
    names, labels = np.unique(clusters, return_inverse=True)
    return labels.ravel(), len(names)


def _batches(n: int, replicates: int) -> Iterator[int]:
    size = max(1, WEIGHTS // n)
    for start in range(0, replicates, size):
        yield min(size, replicates - start)
