"""For each form: its law written out plainly, parameters like those of its paper, and runs that can show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from deeplearn import laws
from deeplearn.laws.schedule import areas

NOISE = 0.002  # of log loss


@dataclasses.dataclass(frozen=True)
class Recipe:
    """law: (parameters, columns) -> response [n]. together: columns that can only change their unit together."""

    truth: Mapping[str, float]
    columns: Mapping[str, np.ndarray]
    law: Callable[[dict, dict], np.ndarray]
    units: tuple[tuple[str, ...], ...] = (("params",), ("tokens",))

    def table(self, noise: float = 0.0, seed: int = 0, **scales: float) -> laws.Table:
        clean = self.law(self.truth, self.columns)
        noisy = clean * np.exp(noise * np.random.default_rng(seed).standard_normal(len(clean)))
        columns = {name: column * scales.get(name, 1.0) for name, column in self.columns.items()}
        return laws.Table({**columns, "response": noisy * scales.get("response", 1.0)}, response="response")


def cross(**axes) -> dict[str, np.ndarray]:
    return dict(zip(axes, (grid.ravel() for grid in np.meshgrid(*axes.values())), strict=True))


def span(low: float, high: float, count: int) -> np.ndarray:
    return np.geomspace(low, high, count)


def repeated(p, x):
    def worth(unique, used, scale):
        return unique * (1 + scale * (1 - np.exp(-(used / unique - 1) / scale)))

    data = worth(x["unique_tokens"], x["tokens"], p["R_D"])
    size = worth(np.minimum(x["params"], x["unique_tokens"] / p["ratio"]), x["params"], p["R_N"])
    return p["E"] + p["A"] * size ** -p["alpha"] + p["A"] * p["ratio"] ** p["alpha"] * data ** -p["alpha"]


def routed(p, x):
    rest = 1 / (1 / p["E_start"] - 1 / p["E_max"])
    experts = np.log(1 / (1 / (x["experts"] - 1 + rest) + 1 / p["E_max"]))
    size = np.log(x["params"])
    return p["A"] * np.exp(-p["a"] * size - p["b"] * experts + p["c"] * size * experts)


def mixture(p, x):
    log_x = np.log(x["experts"])
    size = p["A"] * x["experts"] ** p["delta"] * x["params"] ** (p["gamma"] * log_x - p["alpha"])
    return p["E"] + size + p["B"] * x["experts"] ** -p["omega"] * x["tokens"] ** (p["zeta"] * log_x - p["beta"])


def precise(p, x):
    size = x["params"] * (1 - np.exp(-x["bits"] / p["gamma"])) ** 3
    return p["E"] + p["A"] * size ** -p["alpha"] + p["B"] * x["tokens"] ** -p["beta"]


def broken(p, x):
    bend = (1 + (x["tokens"] / p["d"]) ** (1 / p["f"])) ** (-p["c1"] * p["f"])
    return p["E"] + p["A"] * x["tokens"] ** -p["c0"] * bend


def repetition() -> dict[str, np.ndarray]:
    x = cross(params=span(1e7, 1e10, 6), unique_tokens=span(1e8, 1e10, 4), epochs=[1, 2, 4, 12, 40, 120])
    return {"params": x["params"], "tokens": x["unique_tokens"] * x["epochs"], "unique_tokens": x["unique_tokens"]}


def curves() -> dict[str, np.ndarray]:
    """Every 100th step of a constant, a cosine and two warm-up-stable-decay schedules."""
    step = np.arange(2000)
    shapes = [
        np.ones(2000),
        0.1 + 0.45 * (1 + np.cos(np.pi * step / 2000)),
        np.clip((2000 - step) / 400, 0.01, 1.0),
        np.clip((2000 - step) / 1000, 0.01, 1.0),
    ]
    peaks = (1e-3, 1.1e-3, 0.9e-3, 1.2e-3)
    each = [areas(peak * shape, decay=0.99) for peak, shape in zip(peaks, shapes, strict=True)]
    return {name: np.concatenate([columns[name][99::100] for columns in each]) for name in each[0]}


SWEEP = cross(params=span(1e6, 1e10, 6), tokens=span(1e8, 1e12, 6))
CURVE = {"tokens": span(1e5, 1e10, 40)}
ALONE = (("tokens",),)

RECIPES = {
    "chinchilla": Recipe(
        {"E": 1.8, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.37},
        SWEEP,
        lambda p, x: p["E"] + p["A"] * x["params"] ** -p["alpha"] + p["B"] * x["tokens"] ** -p["beta"],
    ),
    "kaplan": Recipe(
        {"A": 2e10, "B": 3e13, "alpha_N": 0.076, "alpha_D": 0.103},
        SWEEP,
        lambda p, x: (p["A"] * x["params"] ** (-p["alpha_N"] / p["alpha_D"]) + p["B"] / x["tokens"]) ** p["alpha_D"],
    ),
    "joint": Recipe(
        {"E": 3.0, "A": 3e4, "B": 1e5, "a": 0.6, "b": 0.5, "gamma": 0.5},
        cross(params=span(1e5, 1e10, 8), tokens=span(1e7, 1e12, 8)),
        lambda p, x: (p["E"] + p["A"] * x["params"] ** -p["a"] + p["B"] * x["tokens"] ** -p["b"]) ** p["gamma"],
    ),
    "gadre": Recipe(
        {"E": 1.5, "A": 140.0, "B": 190.0, "eta": 0.12},
        SWEEP,
        lambda p, x: (
            p["E"]
            + (p["A"] * (x["tokens"] / x["params"]) ** p["eta"] + p["B"] * (x["params"] / x["tokens"]) ** p["eta"])
            * (6 * x["params"] * x["tokens"]) ** -p["eta"]
        ),
    ),
    "constant": Recipe({"E": 2.5}, CURVE, lambda p, x: p["E"] + 0 * x["tokens"], ALONE),
    "power": Recipe({"A": 30.0, "a": 0.1}, CURVE, lambda p, x: p["A"] * x["tokens"] ** -p["a"], ALONE),
    "power_constant": Recipe(
        {"E": 1.7, "A": 80.0, "a": 0.3}, CURVE, lambda p, x: p["E"] + p["A"] * x["tokens"] ** -p["a"], ALONE
    ),
    "bnsl": Recipe({"E": 1.0, "A": 6.0, "c0": 0.05, "c1": 0.3, "d": 1e7, "f": 0.5}, CURVE, broken, ALONE),
    "data_constrained": Recipe(
        {"E": 1.9, "A": 500.0, "alpha": 0.35, "ratio": 20.0, "R_D": 15.0, "R_N": 5.0},
        repetition(),
        repeated,
        (("params",), ("tokens", "unique_tokens")),
    ),
    "clark": Recipe(
        {"A": 13.0, "a": 0.09, "b": 0.15, "c": 0.004, "E_start": 1.8, "E_max": 300.0},
        cross(params=span(1e6, 1e10, 7), experts=2.0 ** np.arange(11)),
        routed,
        (("params",),),
    ),
    "moe": Recipe(
        {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.37}
        | {"delta": 0.3, "gamma": -0.03, "omega": -0.4, "zeta": -0.03},
        cross(params=span(1e6, 1e10, 6), tokens=span(1e8, 1e12, 6), experts=[1, 2, 4, 8, 16, 32]),
        mixture,
    ),
    "precision": Recipe(
        {"E": 1.8, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.37, "gamma": 2.0},
        cross(params=span(1e6, 1e10, 5), tokens=span(1e8, 1e12, 5), bits=[3, 4, 6, 8, 16]),
        precise,
    ),
    "quantization": Recipe(
        {"C": 0.1, "gamma_D": 0.5, "gamma_N": 0.45, "gamma": 0.6},
        cross(params=span(1e7, 1e9, 4), tokens=span(1e9, 1e11, 4), bits=[3, 4, 5, 6]),
        lambda p, x: (
            p["C"] * x["tokens"] ** p["gamma_D"] * x["params"] ** -p["gamma_N"] * np.exp(-x["bits"] / p["gamma"])
        ),
    ),
    "learning_rate": Recipe(
        {"A": 1.8, "a": -0.713, "b": 0.307},
        SWEEP,
        lambda p, x: p["A"] * x["params"] ** p["a"] * x["tokens"] ** p["b"],
    ),
    "batch_size": Recipe({"A": 0.58, "b": 0.571}, CURVE, lambda p, x: p["A"] * x["tokens"] ** p["b"], ALONE),
    "accuracy": Recipe(
        {"floor": 0.25, "gain": 0.6, "k": 4.0, "middle": 2.5},
        {"loss": np.linspace(1.5, 4.0, 40)},
        lambda p, x: p["floor"] + p["gain"] / (1 + np.exp(p["k"] * (x["loss"] - p["middle"]))),
        (("loss",),),
    ),
    "annealing": Recipe(
        {"E": 2.0, "A": 0.7, "C": 2.0, "alpha": 0.4},
        curves(),
        lambda p, x: p["E"] + p["A"] * x["area"] ** -p["alpha"] - p["C"] * (x["annealed_area"] - x["area"]),
        (("area", "annealed_area"),),
    ),
}
