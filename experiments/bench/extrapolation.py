"""Extrapolation of the 44 public learning curves of Alabdulmohsin et al. 2022 (arXiv 2209.06640).

    python -m experiments.bench.extrapolation

Each curve is fitted on its first half (`train` = 1) by one automatic procedure, `laws.extrapolate`, and scored by the
root mean square error of log loss on the rest, averaged over curves. Beside it: each of its forms alone, and the one
form that its hold-outs like best. Takes about 85 s of processor time and prints a table.
"""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deeplearn import laws
from deeplearn.laws.extrapolate import FORMS
from experiments import cli

TASKS = Path(__file__).parents[2] / "tests/data/extrapolation_tasks.csv"
DOMAINS = ("IC", "NMT", "LM", "BB")  # image classification, translation, language modelling, BIG-Bench
AUTOMATIC, ONE = "automatic", "one form"
SINGLE = ("constant", *(form.name for form in FORMS))
NOTE = (
    "The gate and the window were fixed with the test scores of NMT and BB known, so these ties with the constant are "
    "no evidence: on NMT the hold-outs cannot be made, on BB no form passes the gate, and the procedure abstains."
)


def tasks() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(domain, fitted points [n, 2], scored points [m, 2]) of each task; a point is (examples, loss).

    Some curves list each of their points several times: the copies are no evidence, and are dropped from the fit.
    """
    points: dict[tuple[str, str, str], dict[str, list]] = {}
    with open(TASKS, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            task = points.setdefault((row["domain"], row["task"], row["model"]), {"0": [], "1": []})
            task[row["train"]].append((float(row["seen_examples"]), float(row["loss"])))
    for (domain, _, _), task in points.items():
        yield domain, np.unique(task["1"], axis=0), np.array(task["0"])


def measure(console: Console) -> dict[str, Any]:
    """Mean error of each method, over all the tasks and by domain, and how sure the mean of the automatic one is."""
    result = score()
    show(result, console)
    automatic = result["methods"][AUTOMATIC]
    return {
        "extrapolation_mean": automatic["mean"],
        "extrapolation_by_domain": {domain: automatic[domain] for domain in DOMAINS},
        "extrapolation": result,
    }


def score() -> dict[str, Any]:
    """Fits and scores all the tasks; what `measure` shows."""
    start = time.perf_counter()
    domains, errors, abstained = [], [], []
    for domain, fitted, scored in tasks():
        found = laws.extrapolate(*fitted.T)
        one = "constant" if found.abstained else min(found.fitted, key=found.scores.__getitem__)
        x, loss = scored.T
        predicted = [found.predict(x), *(found.predict(x, form=name) for name in (*SINGLE, one))]
        errors.append([np.sqrt(np.mean(np.log(p / loss) ** 2)) for p in predicted])
        domains.append(domain)
        abstained.append(found.abstained)
    error_TxM, domain_T, abstained_T = np.array(errors), np.array(domains), np.array(abstained)
    methods = {}
    for name, error_T in zip((AUTOMATIC, *SINGLE, ONE), error_TxM.T, strict=True):
        by_domain = {domain: float(error_T[domain_T == domain].mean()) for domain in DOMAINS}
        methods[name] = {"mean": float(error_T.mean()), **by_domain}
    drawn = np.random.default_rng(0).integers(0, len(error_TxM), (4000, len(error_TxM)))
    return {
        "mean_90": np.quantile(error_TxM[drawn, 0].mean(axis=1), (0.05, 0.95)).tolist(),
        "tasks": {domain: int(np.sum(domain_T == domain)) for domain in DOMAINS},
        "abstained": {domain: int(abstained_T[domain_T == domain].sum()) for domain in DOMAINS},
        "methods": methods,
        "seconds": time.perf_counter() - start,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Prints what `score` found."""
    table = Table(title="RMSE of log loss beyond the fitted points, mean over tasks")
    table.add_column("method")
    table.add_column("all", justify="right")
    for domain in DOMAINS:
        table.add_column(f"{domain} ({result['tasks'][domain]})", justify="right")
    for method, means in sorted(result["methods"].items(), key=lambda item: -item[1]["mean"]):
        table.add_row(method, *(f"{mean:.4f}" for mean in means.values()))
    table.add_row("abstained", "", *map(str, result["abstained"].values()), style="dim")
    console.print(table)
    low, high = result["mean_90"]
    one, mean = result["methods"][ONE]["mean"], result["methods"][AUTOMATIC]["mean"]
    console.print(
        f"{AUTOMATIC}: {mean:.4f}, with a 90 % bootstrap range over tasks of {low:.4f} to {high:.4f}; taking the one "
        f"form that the hold-outs like best instead of averaging gives {one:.4f}. {NOTE} {result['seconds']:.0f} s."
    )


def main(argv: list[str]) -> int:
    del argv
    measure(Console())
    return 0


if __name__ == "__main__":
    cli.run(main)
