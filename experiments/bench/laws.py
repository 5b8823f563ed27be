"""`make bench-laws`: what the fitter of laws shows on published tables, on simulated ones, and beside the usual recipe.

    python -m experiments.bench.laws

Prints a table for each point and writes runs/bench/laws.json. Most of the time goes to the simulations: --simulations
(of bands, for each grid and noise) and --sweeps (of designs) make them fewer.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from deeplearn import laws
from experiments import cli
from experiments.bench import coverage, design, extrapolation, law_peer, law_speed, published

_OUT = flags.DEFINE_string("out", "runs/bench/laws.json", "Where the figures go.")


def exactness(console: Console) -> dict:
    """Chinchilla's table: the published headline (L1), and the true optimum of the objective that was published."""
    table = law_speed.chinchilla()
    l1, huber = laws.fit(table, loss="l1", replicates=20), laws.fit(table, replicates=1000)
    grid = Table("", *huber.params, "objective", "starts at it", title="Chinchilla's runs")
    for name, fit in (("L1", l1), ("Huber(1e-3)", huber)):
        cells = (f"{interval.value:.6g}" for interval in fit.params.values())
        certificate = fit.certificate
        grid.add_row(name, *cells, f"{certificate.objective:.11f}", f"{certificate.share_at_optimum:.0%}")
    ends = (f"{np.std(fit_cloud):.4g}" for fit_cloud in huber.replicates.values())
    grid.add_row("bootstrap SE", *ends, "", "")
    console.print(grid)
    return {
        "chinchilla_l1": {name: interval.value for name, interval in l1.params.items()},
        "chinchilla_huber_objective": huber.certificate.objective,
        "starts_at_optimum": huber.certificate.share_at_optimum,
        "chinchilla_se": {name: float(np.std(cloud)) for name, cloud in huber.replicates.items()},
    }


def peer(console: Console) -> dict:
    """The same table in the other package, beside ours, interleaved: accuracy and time."""
    table = law_speed.chinchilla()
    laws.fit(table, replicates=20)  # compiles
    seconds = law_speed.seconds(lambda: laws.fit(table, replicates=20), 3)
    theirs = law_peer.measure(table)
    ours = laws.fit(table, replicates=20).certificate.objective
    grid = Table("fitter", "seconds", "Huber objective", title="The same table, one fit")
    grid.add_row("deeplearn.laws, 256 starts", f"{seconds:.2f}", f"{ours:.11f}")
    if theirs:
        grid.add_row("chinchilla 0.2.0, 243 starts", f"{theirs['seconds']:.1f}", f"{theirs['objective']:.11f}")
    console.print(grid)
    return {"peers": {"deeplearn": {"seconds": seconds, "objective": ours}, "chinchilla": theirs}}


def main(argv: list[str]) -> int:
    del argv
    console = Console()
    figures = {**exactness(console), **law_speed.measure(console), **peer(console), **published.measure(console)}
    figures |= extrapolation.measure(console)
    figures |= design.measure(console, design.SWEEPS.value) | coverage.measure(console, coverage.SIMULATIONS.value)
    path = Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
    console.print(f"written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
