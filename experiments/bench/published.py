"""Two published analyses, fitted again: over-training (Gadre et al. 2024) and repeated data (Muennighoff et al. 2023).

    python -m experiments.bench.published

Held-out errors of Gadre et al. are those of the models trained on RedPajama, with the loss on C4.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deeplearn import laws
from experiments import cli

DATA = Path(__file__).parents[2] / "tests/data"
FITTED = {(model, "1.0") for model in ("d=96_l=8", "d=512_l=8", "d=576_l=24", "d=1024_l=24")} | {("d=96_l=8", "16.0")}
TRAINED_ON = {"c4_original": "C4", "rpj": "RedPajama", "rw_original": "RefinedWeb"}
# log A, log B and log E of Muennighoff et al., and their alpha = beta.
LOG_A, LOG_B, LOG_E, ALPHA = 6.255414, 7.3049974, 0.6254804, 0.3526596
HELD = {"A": np.exp(LOG_A), "ratio": np.exp((LOG_B - LOG_A) / ALPHA), "E": np.exp(LOG_E), "alpha": ALPHA}


def _gadre(training_set: str) -> tuple[laws.Table, laws.Table]:
    """The five runs that they fit, and all the others, with losses on C4."""
    with open(DATA / "gadre2024.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["training_set"] == training_set]
    fitted = [(row["model"].rsplit("_h=")[0], row["chinchilla_multiplier"]) in FITTED for row in rows]
    parts = ([row for row, f in zip(rows, fitted, strict=True) if f is want] for want in (True, False))
    names = ("params", "tokens", "loss_c4_val")
    return tuple(laws.runs(*([float(row[name]) for row in part] for name in names)) for part in parts)


def over_training(console: Console) -> dict[str, list[float]]:
    """Errors in per cent of the 1.4B model at 640 tokens per parameter and of the 6.9B model, as far as they exist."""
    names = ("trained on", "E", "exponent", "a", "b", "1.4B at 640 tokens/param", "6.9B")
    grid = Table(*names, title="Gadre et al., loss on C4")
    errors = {}
    for training_set, name in TRAINED_ON.items():
        fitted, rest = _gadre(training_set)
        fit = laws.fit(fitted, "gadre", loss="squared", linear=True, starts=32, replicates=20)
        off = 100 * np.abs(fit.curve(rest.params, rest.tokens) / rest.loss - 1)
        ratio = rest.tokens / rest.params
        wanted = ((rest.params > 1.3e9) & (rest.params < 1.5e9) & (ratio > 600), rest.params > 6e9)
        errors[name] = [float(off[mask].max()) if mask.any() else None for mask in wanted]
        E, eta, A, B = (fit.params[p].value for p in ("E", "eta", "A", "B"))  # they write a without the power of 6
        cells = (f"{E:.4f}", f"{2 * eta:.4f}", f"{A * 6**-eta:.1f}", f"{B:.1f}")
        grid.add_row(name, *cells, *("-" if e is None else f"{e:.4f} %" for e in errors[name]))
    console.print(grid)
    return errors


def repeated_data(console: Console) -> dict[str, Any]:
    """Objective, and the profile of R_D."""
    form = laws.FORMS["data_constrained"].pin(**HELD)
    table = laws.read_csv(DATA / "datablations.csv", form.columns)
    fit = laws.fit(table, form, replicates=200)
    profile = laws.profile_interval(fit, "R_D")
    grid = Table("R_D", "objective", title="Muennighoff et al.: best objective for each R_D")
    for value, objective in list(zip(profile.values, profile.objective, strict=True))[::3]:
        grid.add_row(f"{value:.4g}", f"{objective:.7f}")
    console.print(grid)
    verdict = "identified" if profile.identified else "not identified"
    console.print(
        f"objective {fit.certificate.objective:.8f} at R_D {fit.params['R_D'].value:.4g}, R_N "
        f"{fit.params['R_N'].value:.4g}; R_D is {verdict}: {profile.lo:.3g} to {profile.hi:.3g}",
        highlight=False,
    )
    return {"datablations_objective": fit.certificate.objective, "datablations_profile": laws.plain(profile)}


def measure(console: Console) -> dict[str, Any]:
    """Both, with the errors of the RedPajama-trained models as `gadre_heldout`."""
    errors = over_training(console)
    return {"gadre_heldout": errors["RedPajama"], "gadre_heldout_all": errors} | repeated_data(console)


def main(argv: list[str]) -> int:
    del argv
    measure(Console())
    return 0


if __name__ == "__main__":
    cli.run(main)
