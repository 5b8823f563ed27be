"""Runs chosen by `laws.next_runs` against uniform grids, on simulated sweeps.

    python -m experiments.bench.design [--sweeps=100]

Each simulation draws a Chinchilla law, noise of .2 to .5 %, and a target, by turns the loss and the optimal params at
ten times the FLOPs of the dearest candidate. Candidates are 9 x 9 params and tokens, evenly spaced in logarithm. The
designed sweep starts from a cheap 3 x 3 grid and adds 8 runs twice, each time for at most 4 times the FLOPs spent so
far, refitting in between. The uniform sweeps are 5 x 5 grids that reach up to half, three quarters and all of both
axes of the candidates. So all end at 25 runs. The width is that of the 95 % bootstrap interval of the log target, from
`laws.fit` alone. Both are compared at the smallest width that both reach: the FLOPs of each there, on straight lines
through its sweeps in log FLOPs against log width. design_flops_ratio is the median of designed over uniform FLOPs.
"""

import itertools
import statistics
import time
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from deeplearn import laws
from experiments import cli

PARAMS, TOKENS = np.geomspace(1e7, 1e9, 9), np.geomspace(1e8, 4e10, 9)
START = (0, 2, 4)
GRIDS = ((0, 1, 2, 3, 4), (0, 2, 3, 4, 6), (0, 2, 4, 6, 8))
ROUNDS, RUNS, GROWTH = 2, 8, 4.0
BEYOND = 10.0

SWEEPS = flags.DEFINE_integer("sweeps", 100, "Simulated sweeps of each kind.", 1)


class Truth:
    """A law drawn at random, and noisy runs of it."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.E, self.alpha, self.beta = rng.uniform(1.5, 2.0), rng.uniform(0.28, 0.42), rng.uniform(0.28, 0.42)
        # Either term is .3 to .8 in the middle of the candidates.
        self.A = rng.uniform(0.3, 0.8) * 1e8**self.alpha
        self.B = rng.uniform(0.3, 0.8) * 2e9**self.beta
        self.noise = rng.uniform(0.002, 0.005)

    def loss(self, params, tokens):
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def runs(self, params: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
        noise = np.exp(self.noise * self.rng.standard_normal(len(params)))
        return {"params": params, "tokens": tokens, "loss": self.loss(params, tokens) * noise}

    def log_target(self, target) -> float:
        log_gain = np.log(self.alpha * self.A) - np.log(self.beta * self.B)
        params = np.exp((log_gain + self.beta * np.log(target.flops / 6)) / (self.alpha + self.beta))
        optimal = isinstance(target, laws.OptimalParams)
        return float(np.log(params if optimal else self.loss(params, target.flops / 6 / params)))


def lattice(places: tuple[int, ...]) -> np.ndarray:
    """Rows of the candidates that a full-factorial grid over these places of both axes takes."""
    return np.array([len(TOKENS) * i + j for i in places for j in places])


def sweep(runs: dict[str, np.ndarray], target, truth: float) -> tuple[laws.Fit, dict[str, float]]:
    """The fit, and what its sweep cost, the width of its interval of the log target, and how far off it is."""
    fit = laws.fit(laws.Table(runs), starts=16, replicates=200)
    form, at = fit.problem.form, fit.problem.at
    value = float(target.log_value(form, at, fit.best[None])[0])
    low, high = np.quantile(target.log_value(form, at, fit.cloud), [0.025, 0.975], method="inverted_cdf")
    covered = min(low, value) <= truth <= max(high, value)
    flops = float(fit.table.flops.sum())
    return fit, {"flops": flops, "width": float(high - low), "error": abs(value - truth), "covered": bool(covered)}


def simulate(seed: int) -> dict[str, list[dict[str, float]]]:
    """The designed and the uniform sweeps of one law, in order of FLOPs."""
    law = Truth(np.random.default_rng(seed))
    params, tokens = (column.ravel() for column in np.meshgrid(PARAMS, TOKENS, indexing="ij"))
    goal = BEYOND * 6 * params[-1] * tokens[-1]
    target = laws.LossAt(flops=goal) if seed % 2 == 0 else laws.OptimalParams(goal)
    truth = law.log_target(target)

    made = lattice(START)
    runs = law.runs(params[made], tokens[made])
    fit, figures = sweep(runs, target, truth)
    designed = [figures]
    for _ in range(ROUNDS):
        left = np.setdiff1d(np.arange(len(params)), made)
        candidates = {"params": params[left], "tokens": tokens[left]}
        design = laws.next_runs(fit, candidates, target, GROWTH * designed[-1]["flops"], most=RUNS)
        made = np.concatenate([made, left[design.rows]])
        new = law.runs(design.runs["params"], design.runs["tokens"])
        runs = {name: np.concatenate([runs[name], new[name]]) for name in runs}
        fit, figures = sweep(runs, target, truth)
        designed.append({**figures, "predicted": design.after / design.before})
    grids = (lattice(places) for places in GRIDS)
    uniform = [sweep(law.runs(params[rows], tokens[rows]), target, truth)[1] for rows in grids]
    return {"designed": designed, "uniform": uniform}


def flops_at(width: float, sweeps: list[dict[str, float]]) -> float:
    """FLOPs at which sweeps of growing FLOPs first reach a width; those of the first if it is narrower already."""
    first = next(i for i, s in enumerate(sweeps) if s["width"] <= width)
    if first == 0:
        return sweeps[0]["flops"]
    before, after = sweeps[first - 1], sweeps[first]
    share = np.log(before["width"] / width) / np.log(before["width"] / after["width"])
    return float(before["flops"] * (after["flops"] / before["flops"]) ** share)


def ratio(simulation: dict[str, list[dict[str, float]]]) -> float:
    """Designed over uniform FLOPs at the smallest width that both reach."""
    width = max(min(s["width"] for s in sweeps) for sweeps in simulation.values())
    return flops_at(width, simulation["designed"]) / flops_at(width, simulation["uniform"])


def measure(console: Console, simulations: int = 100) -> dict[str, Any]:
    """Prints and returns medians over simulations; errors, widths and coverage are those of the last sweeps."""
    start = time.perf_counter()
    done = [simulate(seed) for seed in track(range(simulations), "designs", console=console, transient=True)]
    ratios = [ratio(simulation) for simulation in done]
    last = {kind: [simulation[kind][-1] for simulation in done] for kind in ("designed", "uniform")}
    rounds = [pair for simulation in done for pair in itertools.pairwise(simulation["designed"][1:])]
    figures: dict[str, Any] = {
        "design_flops_ratio": statistics.median(ratios),
        "quartiles": [float(quartile) for quartile in np.quantile(ratios, [0.25, 0.75])],
        "loss_flops_ratio": statistics.median(ratios[::2]),
        "params_flops_ratio": statistics.median(ratios[1::2] or ratios),
        "at_most_half": float(np.mean(np.array(ratios) <= 0.5)),
        # 1 where refitting shrinks the interval as much as was predicted.
        "shrinkage_over_predicted": statistics.median(b["width"] / a["width"] / b["predicted"] for a, b in rounds),
        "simulations": simulations,
        "seconds": time.perf_counter() - start,
    }
    table = Table("25 runs", "FLOPs", "width", "error", "coverage", title=f"Designs: medians of {simulations} sweeps")
    for kind, sweeps in last.items():
        medians = {name: statistics.median(s[name] for s in sweeps) for name in ("flops", "width", "error")}
        figures[kind] = {**medians, "coverage": float(np.mean([s["covered"] for s in sweeps]))}
        table.add_row(kind, *(f"{value:.3g}" for value in figures[kind].values()))
    console.print(table)
    low, high = figures["quartiles"]
    console.print(
        f"FLOPs at equal width, designed over uniform: {figures['design_flops_ratio']:.3f} (quartiles {low:.3f} to "
        f"{high:.3f}; for the loss {figures['loss_flops_ratio']:.3f}, for the optimal params "
        f"{figures['params_flops_ratio']:.3f}); at most half in {figures['at_most_half']:.0%}. Intervals shrank "
        f"{figures['shrinkage_over_predicted']:.2f} times as much as predicted; {figures['seconds']:.0f} s.",
        highlight=False,
    )
    return {"design": figures, "design_flops_ratio": figures.pop("design_flops_ratio")}


def main(argv: list[str]) -> int:
    del argv
    measure(Console(), SWEEPS.value)
    return 0


if __name__ == "__main__":
    cli.run(main)
