"""Fit a scaling law to a table of runs: python -m experiments.fit RUNS.csv [--out=DIR]

    python -m experiments.fit runs/quickstart/runs.csv
    python -m experiments.fit table.csv --params=n_params --flops=training_flops --loss=val_loss --out=law

RUNS.csv has one row a run, with its parameters N, training tokens D (or training FLOPs C, then D = C / 6N) and final
held-out loss. Columns are found by their usual names (N, params; D, tokens; flops; loss, val_loss ...) unless named.
Where there is a `status` column only runs that are done count; where there is a `split` column the runs marked fit are
fitted, and those marked held_out are predicted and compared.

Prints the parameters with their 95 % intervals, the certificate of the search, the best use of a few budgets, and what
these runs cannot say. --out=DIR also writes all of it to DIR/law.json. A table that cannot be fitted ends in one
sentence that names the line and the column, and exit code 2.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table as Grid

from deeplearn import laws
from deeplearn.config import ConfigError
from experiments import cli

_PARAMS = flags.DEFINE_string("params", None, "Column of parameters N, if not one of the usual names.")
_TOKENS = flags.DEFINE_string("tokens", None, "Column of training tokens (or examples) D, if not a usual name.")
_FLOPS = flags.DEFINE_string("flops", None, "Column of training FLOPs C, for D = C / 6N in place of tokens.")
_LOSS = flags.DEFINE_string("loss", None, "Column of the final held-out loss, if not one of the usual names.")
_UNIT = flags.DEFINE_string("unit", None, "Unit of the loss; else what the `unit` column says, else nats/token.")
_FORM = flags.DEFINE_enum("form", "chinchilla", sorted(laws.FORMS), "The law.")
_OBJECTIVE = flags.DEFINE_enum("objective", "huber", ["huber", "l1", "squared"], "Loss of the log-loss residuals.")
_DROP_HIGHEST = flags.DEFINE_integer("drop_highest", 0, "Leave out this many runs of the highest loss.", 0)
_REPLICATES = flags.DEFINE_integer("replicates", 1000, "Bootstrap replicates.", 20)
_BUDGETS = flags.DEFINE_list("budgets", [], "FLOPs to allocate; else 1, 10 and 100 times the dearest fitted run.")
_OUT = flags.DEFINE_string("out", None, "Folder for law.json.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random starts and of the bootstrap.", 0)


def main(argv: list[str]) -> int:
    def read(split: str) -> laws.Table:
        given = {"params": _PARAMS.value, "tokens": _TOKENS.value, "flops": _FLOPS.value, "loss": _LOSS.value}
        names = {name: column for name, column in given.items() if column}
        return laws.read_csv(argv[1], laws.FORMS[_FORM.value].columns, names=names, unit=_UNIT.value, split=split)

    budgets = _budgets(_BUDGETS.value)
    table, held_out = read("fit"), read("held_out")
    if _DROP_HIGHEST.value:
        table = table.take(np.sort(np.argsort(table.loss)[: -_DROP_HIGHEST.value]))
    fit = laws.fit(table, _FORM.value, _OBJECTIVE.value, replicates=_REPLICATES.value, seed=_SEED.value)
    budgets = budgets or list(table.flops.max() * np.array([1.0, 10.0, 100.0]))

    console = Console()
    console.print(f"{laws.FORMS[fit.form].formula}, {fit.n_runs} runs, loss in {fit.unit}")
    console.print(_parameters(fit))
    console.print(_certificate(fit))
    console.print(_allocation(fit, budgets))
    if len(held_out):
        console.print(_comparison(fit, held_out))
    for warning in fit.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}")
    if _OUT.value:
        path = Path(_OUT.value) / "law.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fit.to_json(), indent=2, allow_nan=False) + "\n")
        console.print(f"law: {path}")
    return 0


def _budgets(texts: list[str]) -> list[float]:
    try:
        budgets = [float(text) for text in texts]
    except ValueError as error:
        raise ConfigError(f"--budgets takes numbers with commas between them: {error}") from None
    for budget in budgets:
        if not 0 < budget < np.inf:
            raise ConfigError(f"--budgets takes positive numbers of FLOPs, not {budget:g}")
    return budgets


def _grid(title: str, *columns: str) -> Grid:
    grid = Grid(title=title, title_justify="left", box=box.SIMPLE)
    for column in columns:
        grid.add_column(column, justify="right")
    return grid


def _parameters(fit: laws.Fit) -> Grid:
    grid = _grid("Parameters", "name", "value", "95 % from", "to")
    for name, interval in fit.params.items():
        grid.add_row(name, *(f"{end:.5g}" for end in (interval.value, interval.lo, interval.hi)))
    return grid


def _certificate(fit: laws.Fit) -> Grid:
    certificate = fit.certificate
    grid = _grid("Certificate", "", "")
    grid.show_header = False
    grid.add_row("converged", "yes" if certificate.converged else "NO")
    grid.add_row("random starts at the optimum", f"{100 * certificate.share_at_optimum:.0f} %")
    grid.add_row("objective", f"{certificate.objective:.9g}")
    grid.add_row("gradient", f"{certificate.gradient_norm:.1e}")
    grid.add_row("condition number", f"{certificate.condition_number:.3g}")
    grid.add_row("bands widened by hold-outs", f"{fit.widening:.2f} x")
    return grid


def _allocation(fit: laws.Fit, budgets: list[float]) -> Grid:
    grid = _grid("Best use of a budget, C = 6 N D", "FLOPs", "", "value", "95 % from", "to")
    best = fit.optimal(np.array(budgets))
    for row, budget in enumerate(budgets):
        for name, interval in (("params", best.params), ("tokens", best.tokens), ("loss of a run", best.loss)):
            ends = (f"{end[row]:.4g}" for end in (interval.value, interval.lo, interval.hi))
            grid.add_row(f"{budget:.4g}" if name == "params" else "", name, *ends)
    return grid


def _comparison(fit: laws.Fit, held_out: laws.Table) -> Grid:
    grid = _grid("Held-out runs", "params", "tokens", "predicted", "95 %", "measured", "error", "in band")
    band = fit.predict(held_out.params, held_out.tokens)
    for row in range(len(held_out)):
        measured, value, low, high = held_out.loss[row], band.value[row], band.lo[row], band.hi[row]
        grid.add_row(
            f"{held_out.params[row]:.3g}",
            f"{held_out.tokens[row]:.3g}",
            f"{value:.4g}",
            f"{low:.4g}-{high:.4g}",
            f"{measured:.4g}",
            f"{100 * (value / measured - 1):+.2f} %",
            "yes" if low <= measured <= high else "no",
        )
    return grid


if __name__ == "__main__":
    cli.run(main, ["RUNS.csv"])
