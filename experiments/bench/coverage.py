"""Do 95 % bands hold 95 % of new runs, and at what width? Of published runs, and of a law that is right by design.

    python -m experiments.bench.coverage [--simulations=200]

- chinchilla.csv (240 runs read off Hoffmann et al. 2022 by Besiroglu et al. 2024, arXiv 2404.10102): the runs cheaper
  than a cut are fitted, all the others predicted. The law is not quite right there.
- Synthetic runs of a Chinchilla law on grids of N and D with Gaussian noise; new runs at 2, 4 and 8 times the largest N
  and D, and at the compute-optimal N and D of 4, 16 and 64 times the largest N times the largest D.

Bands as they are, and "plain": the same without `widening`. Coverage and width alone are easily bought with one
another, so each is shown with the mean interval score (Gneiting and Raftery 2007, eq. 43), of which less is better.
All widths and scores are in log loss.
"""

import dataclasses
import time
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from deeplearn import laws
from deeplearn.laws.uncertainty import interval_score
from experiments import cli
from experiments.bench import law_speed

CUTS = (1e20, 3e20, 1e21)  # FLOPs
GRIDS = ((3, 3), (3, 5), (5, 4), (5, 9))  # numbers of N and of D
NOISES = (0.002, 0.005)
E, A, B, ALPHA, BETA = 1.2, 0.6 * 3e4**0.30, 0.6 * 2e5**0.35, 0.30, 0.35
LARGEST_N, LARGEST_D = 3e5, 1e6
BANDS = {"band": {}, "plain": {"widening": 1.0}}
SYNTHETIC_COLUMNS = {"coverage (.93 to .97)": "coverage", "width": "width", "interval score": "interval_score"}
CHINCHILLA_COLUMNS = {
    "coverage (at least .90)": "coverage",
    "width / RMSE (at most 3)": "width_over_rmse",
    "interval score": "interval_score",
}

SIMULATIONS = flags.DEFINE_integer("simulations", 200, "Synthetic tables for each grid and noise.", 2)


def score(fit: laws.Fit, new: laws.Table) -> dict[str, dict[str, float]]:
    """kind of band -> mean coverage, width and interval score over new runs, and what they share: RMSE."""
    figures = {}
    for kind, change in BANDS.items():
        band = dataclasses.replace(fit, **change).predict(new.params, new.tokens)
        low, high, measured = np.log(band.lo), np.log(band.hi), np.log(new.loss)
        figures[kind] = {
            "coverage": float(np.mean((low <= measured) & (measured <= high))),
            "width": float(np.mean(high - low)),
            "interval_score": float(np.mean(interval_score(low, high, measured))),
        }
    figures["rmse"] = float(np.sqrt(np.mean(np.log(new.loss / fit.curve(new.params, new.tokens)) ** 2)))
    return figures


def chinchilla(cut: float, seed: int = 0) -> dict[str, Any]:
    """The runs of chinchilla.csv from `cut` FLOPs on, predicted from the cheaper ones."""
    table = law_speed.chinchilla()
    fit = laws.fit(table.take(table.flops < cut), seed=seed)
    new = table.take(table.flops >= cut)
    figures = {"cut": cut, "fitted": fit.n_runs, "held_out": len(new), "widening": fit.widening, **score(fit, new)}
    for kind in BANDS:
        figures[kind]["width_over_rmse"] = figures[kind]["width"] / figures["rmse"]
    return figures


def true_loss(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return E + A * params**-ALPHA + B * tokens**-BETA


def simulated(grid: tuple[int, int], noise: float, seed: int) -> tuple[laws.Table, laws.Table]:
    """A table of runs on a grid of N and D, and new runs beyond it, all of the same law and noise."""
    columns = np.meshgrid(np.geomspace(LARGEST_N / 100, LARGEST_N, grid[0]), np.geomspace(5e4, LARGEST_D, grid[1]))
    flops = LARGEST_N * LARGEST_D * np.array([4.0, 16.0, 64.0])  # over 6
    ratio = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    best = ratio * flops ** (BETA / (ALPHA + BETA))
    factors = np.array([2.0, 4.0, 8.0])
    new = np.concatenate([LARGEST_N * factors, best]), np.concatenate([LARGEST_D * factors, flops / best])
    rng = np.random.default_rng(seed)

    def measured(params, tokens):
        return laws.runs(params, tokens, true_loss(params, tokens) * np.exp(noise * rng.standard_normal(len(params))))

    return measured(*(column.ravel() for column in columns)), measured(*new)


def synthetic(grid: tuple[int, int], noise: float, simulations: int, console: Console) -> dict[str, Any]:
    """Coverage of the bands of a law that is right, averaged over the simulations and their new runs."""
    found, widenings, seconds = [], [], []
    for seed in track(range(simulations), f"{grid[0]} x {grid[1]}, {noise:.1%}", console=console, transient=True):
        fitted, new = simulated(grid, noise, seed)
        start = time.perf_counter()
        fit = laws.fit(fitted, starts=16, replicates=200, seed=seed)
        seconds.append(time.perf_counter() - start)
        found.append(score(fit, new))
        widenings.append(fit.widening)
    figures: dict[str, Any] = {"grid": list(grid), "noise": noise, "simulations": simulations}
    figures["rmse"] = float(np.sqrt(np.mean([one["rmse"] ** 2 for one in found])))
    for kind in BANDS:
        figures[kind] = {name: float(np.mean([one[kind][name] for one in found])) for name in found[0][kind]}
    # New runs of one simulation share its fit, so that the simulation is what counts as a draw.
    spread = np.std([one["band"]["coverage"] for one in found], ddof=1)
    figures["coverage_se"] = float(spread / np.sqrt(simulations))
    figures["widened_share"] = float(np.mean(np.array(widenings) > 1.01))
    figures["widening_98"] = float(np.quantile(widenings, 0.98))
    figures["fit_s"] = float(np.median(seconds))
    return figures


def measure(console: Console, simulations: int = 200) -> dict[str, Any]:
    """Figures of all the cells, printed as they come."""
    real = [chinchilla(cut) for cut in CUTS]
    title = "chinchilla.csv: runs dearer than those fitted"
    grid = Table("C below", "fitted", "held out", "bands", *CHINCHILLA_COLUMNS, "widening", title=title)
    for row in real:
        for kind in BANDS:
            figures = (f"{row[kind][name]:.4f}" for name in CHINCHILLA_COLUMNS.values())
            cells = f"{row['cut']:.0e}", f"{row['fitted']}", f"{row['held_out']}", kind, *figures
            grid.add_row(*cells, f"{row['widening'] if kind == 'band' else 1:.2f}")
    console.print(grid)

    right = [synthetic(grid, noise, simulations, console) for grid in GRIDS for noise in NOISES]
    title = f"a law that is right: runs beyond the grid, {simulations} simulations"
    grid = Table("grid", "noise", "bands", *SYNTHETIC_COLUMNS, "+-", "widened", "s a fit", title=title)
    for row in right:
        for kind in BANDS:
            figures = (f"{row[kind][name]:.4f}" for name in SYNTHETIC_COLUMNS.values())
            rest = (f"{row['coverage_se']:.3f}", f"{row['widened_share']:.0%}", f"{row['fit_s']:.2f}")
            rest = rest if kind == "band" else ("", "", "")
            grid.add_row("{} x {}".format(*row["grid"]), f"{row['noise']:.1%}", kind, *figures, *rest)
    console.print(grid)
    return {"coverage": {"chinchilla": real, "synthetic": right}}


def main(argv: list[str]) -> int:
    del argv
    measure(Console(), SIMULATIONS.value)
    return 0


if __name__ == "__main__":
    cli.run(main)
