"""The `chinchilla` package (version 0.2.0), the other fitter that installs from PyPI, on the same runs."""

import importlib.util
import tempfile
import time
from typing import Any

import numpy as np

from deeplearn import laws

# The ranges of its README, three points each rather than five: 243 starts in place of 3,125.
GRID = {
    "E": np.linspace(1, 2, 3),
    "a": np.linspace(1, 10, 3),
    "b": np.linspace(1, 10, 3),
    "alpha": np.linspace(0.1, 0.7, 3),
    "beta": np.linspace(0.1, 0.7, 3),
}
DELTA = 1e-3


def measure(table: laws.Table) -> dict[str, Any] | None:
    """Seconds, Huber(1e-3) objective (a sum over runs) and parameters; None where the package is not installed."""
    if importlib.util.find_spec("chinchilla") is None:
        return None
    from chinchilla import Chinchilla

    def huber(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        r = np.abs(np.log(predicted) - np.log(true))
        return np.where(r <= DELTA, 0.5 * r**2, DELTA * (r - 0.5 * DELTA))

    with tempfile.TemporaryDirectory() as folder:
        ranges = {"C": (1e18, 1e22), "N_to_D": (10, 100)}
        fitter = Chinchilla(folder, param_grid=GRID, seed_ranges=ranges, loss_fn=huber, log_level=50)
        for n, d, loss in zip(table.params, table.tokens, table.loss, strict=True):
            fitter.database.append(C=6 * n * d, N=n, D=d, loss=loss)
        start = time.perf_counter()
        fitter.fit()
        seconds = time.perf_counter() - start
        predicted = np.asarray(fitter.predict_loss(table.params, table.tokens), np.float64)
        objective = float(np.sum(huber(table.loss, predicted)))
        params = {name: float(value) for name, value in fitter.get_params().items()}
    return {"seconds": seconds, "objective": objective, "params": params}
