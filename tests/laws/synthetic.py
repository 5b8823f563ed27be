"""Runs of a known law, and where the published ones are."""

import pathlib

import numpy as np

from deeplearn import laws

DATA = pathlib.Path(__file__).parents[1] / "data"
TRUTH = {"E": 1.2, "A": 0.6 * 3e4**0.30, "B": 0.6 * 2e5**0.35, "alpha": 0.30, "beta": 0.35}


def true_loss(params, tokens):
    return TRUTH["E"] + TRUTH["A"] * params ** -TRUTH["alpha"] + TRUTH["B"] * tokens ** -TRUTH["beta"]


def grid(sizes=5, budgets=4, noise=0.004, seed=0) -> laws.Table:
    """Synthetic runs of the law TRUTH, on a grid like that of a small sweep."""
    columns = np.meshgrid(np.geomspace(3e3, 3e5, sizes), np.geomspace(5e4, 1e6, budgets))
    params, tokens = (column.ravel() for column in columns)
    rng = np.random.default_rng(seed)
    return laws.runs(params, tokens, true_loss(params, tokens) * np.exp(noise * rng.standard_normal(len(params))))


def drop_highest(table: laws.Table, count: int) -> laws.Table:
    return table.take(np.sort(np.argsort(table.loss)[:-count]))
