"""Speed of the fitter against the usual recipe, on the same runs in the same process.

    python -m experiments.bench.law_speed

The usual recipe (Hoffmann et al. 2022, as re-done by Besiroglu et al. 2024, arXiv 2404.10102): scipy's L-BFGS-B on
(log A, log B, log E, alpha, beta) with a log-sum-exp, from a grid of 4,500 starts; then 4,000 bootstrap tables, each
from one start.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import minimize
from scipy.special import logsumexp

from deeplearn import laws
from deeplearn.laws import search
from deeplearn.laws.fitting import center
from deeplearn.laws.solve import Problem, stages
from experiments import cli

REPLICATES = 4000
DELTA = 1e-3
SIZES = (240, 1_000, 10_000, 100_000)
COUNTS = (500, 1000, 2000, 4000, 8000)
CHINCHILLA = Path(__file__).parents[2] / "tests/data/chinchilla.csv"
# The grid of Hoffmann et al., appendix D.3: log A, log B, log E, alpha, beta.
GRID = (
    np.arange(0, 30, 5),
    np.arange(0, 30, 5),
    np.arange(-1, 1.5, 0.5),
    np.arange(0, 2.5, 0.5),
    np.arange(0, 2.5, 0.5),
)


def chinchilla() -> laws.Table:
    """The 240 runs that Besiroglu et al. fit: the five highest losses are left out."""
    table = laws.read_csv(CHINCHILLA)
    return table.take(np.sort(np.argsort(table.loss)[:-5]))


def problem(table: laws.Table) -> Problem:
    """Chinchilla's form, Huber on log loss."""
    form = laws.FORMS["chinchilla"]
    x, t, at = center(table, form)
    return Problem(form, x, t, at, stages("huber", DELTA))


def bootstrap(table: laws.Table, replicates: int, seed: int = 0) -> np.ndarray:
    """Refits [R, 5] of pairs-bootstrap tables, each with its own search."""
    task = problem(table)
    best, _, _ = search.global_fit(task, 16, np.random.default_rng(0))
    draws = search.pairs(np.random.default_rng(seed), len(table), replicates, None, None)
    return search.refit(task, best, draws)


def seconds(run: Callable[[], Any], turns: int = 5) -> float:
    """Median of `turns`, after one that compiles."""
    run()
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def reference(table: laws.Table, console: Console) -> tuple[float, float]:
    """Seconds that the usual recipe takes, and its best objective."""
    log_n, log_d, log_loss = (np.log(column) for column in (table.params, table.tokens, table.loss))

    def objective(p: np.ndarray, rows: np.ndarray) -> float:
        a, b, e, alpha, beta = p
        terms = np.stack([a - alpha * log_n[rows], b - beta * log_d[rows], np.full(len(rows), e)])
        r = np.abs(logsumexp(terms, axis=0) - log_loss[rows])
        return np.sum(np.where(r <= DELTA, 0.5 * r**2, DELTA * (r - 0.5 * DELTA)))

    everything = np.arange(len(table))
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    grid = list(itertools.product(*GRID))
    fits = [
        minimize(objective, x0, (everything,), method="L-BFGS-B")
        for x0 in track(grid, "usual recipe: starts", console=console, transient=True)
    ]
    best = min(fits, key=lambda fit: fit.fun)
    for _ in track(range(REPLICATES), "usual recipe: bootstrap", console=console, transient=True):
        minimize(objective, best.x, (rng.integers(0, len(table), len(table)),), method="L-BFGS-B")
    return time.perf_counter() - start, float(best.fun)


def linearity(table: laws.Table) -> tuple[list[dict], list[dict]]:
    """Seconds for 64 replicates of growing tables, and of the 240 runs for growing numbers of replicates."""
    rng = np.random.default_rng(0)
    fit = laws.fit(table, replicates=20)
    by_runs = []
    for size in SIZES:
        rows = rng.integers(0, len(table), size)
        n, d = (column[rows] * np.exp(0.1 * rng.standard_normal(size)) for column in (table.params, table.tokens))
        large = laws.runs(n, d, fit.curve(n, d) * np.exp(0.005 * rng.standard_normal(size)))
        by_runs.append({"runs": size, "replicates": 64, "seconds": seconds(lambda t=large: bootstrap(t, 64), 1)})
    by_replicates = [
        {"runs": len(table), "replicates": count, "seconds": seconds(lambda c=count: bootstrap(table, c), 3)}
        for count in COUNTS
    ]
    return by_runs, by_replicates


def missed(table: laws.Table, replicates: int = 200, starts: int = 32) -> float:
    """Share of bootstrap tables where 32 random starts, each refined to the end, beat the search of `refit`."""
    task = problem(table)
    best, _, _ = search.global_fit(task, 16, np.random.default_rng(0))
    weights, _ = next(iter(search.pairs(np.random.default_rng(1), len(table), replicates, None, None)))
    quick = dataclasses.replace(task, deltas=task.deltas[-1:])
    ours = search.objective(quick, search.refit(task, best, [(weights, None)])[:, None], weights)[:, 0]
    found = [search.global_fit(task, starts, np.random.default_rng(i), w[None])[1] for i, w in enumerate(weights)]
    return float(np.mean(np.array(found) < ours * (1 - 1e-6)))


def measure(console: Console) -> dict[str, Any]:
    """Times, their ratio, and how cost grows."""
    table = chinchilla()
    ours = seconds(lambda: bootstrap(table, REPLICATES))
    theirs, objective = reference(table, console)
    by_runs, by_replicates = linearity(table)
    grid = Table("runs", "replicates", "seconds", "ms a replicate", "us a replicate and run", title="How cost grows")
    for row in (*by_runs, *by_replicates):
        each = row["seconds"] / row["replicates"]
        cells = (f"{row['seconds']:.2f}", f"{1e3 * each:.2f}", f"{1e6 * each / row['runs']:.2f}")
        grid.add_row(f"{row['runs']:,}", f"{row['replicates']:,}", *cells)
    console.print(grid)
    share = missed(table)
    console.print(
        f"{REPLICATES:,} bootstrap fits of {len(table)} runs, each with a search: {ours:.2f} s; the usual recipe: "
        f"{theirs:.0f} s, {theirs / ours:.0f} times as long (best objective {objective:.11f}). "
        f"32 full starts find a better optimum in {share:.1%} of 200 tables.",
        highlight=False,
    )
    return {
        "bootstrap_seconds": ours,
        "reference_seconds": theirs,
        "reference_objective": objective,
        "searches_missed": share,
        "cost": [*by_runs, *by_replicates],
    }


def main(argv: list[str]) -> int:
    del argv
    measure(Console())
    return 0


if __name__ == "__main__":
    cli.run(main)
