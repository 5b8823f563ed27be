"""Forms of scaling laws.

Every form is L = sum_k c_k phi_k(x, y; theta) with coefficients c_k >= 0 that enter linearly and a few bounded
exponents theta that do not, over the centred logarithms x = log(N / N0) and y = log(D / D0), N0 and D0 being the
geometric means of the table. Centring makes the coefficients comparable in size and nearly free of the exponents,
which is what makes the fit well conditioned; `original` turns them back into the units of the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any


@dataclasses.dataclass(frozen=True)
class Form:
    """One law. Adding one means writing `basis` and `original` and naming it in `FORMS`.

    Attributes:
      name: what `fit(form=...)` takes.
      formula: the law as people write it.
      exponents: name -> (lower bound, upper bound) of each non-linear parameter, in order.
      coefficients: names of the linear, non-negative parameters, in order.
      basis: (theta [T], x [n], y [n]) -> phi [K, n], written against the arrays' own namespace, so that it
        runs in NumPy and, traced and differentiated, in JAX.
      original: (theta [..., T], c [..., K], log N0, log D0) -> c [..., K] for N and D as the user gave them.
    """

    name: str
    formula: str
    exponents: dict[str, tuple[float, float]]
    coefficients: tuple[str, ...]
    basis: Callable[[Array, Array, Array], Array]
    original: Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]

    # Two forms of one name are one form: lets `Form` be a static argument of a jitted function.
    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, coefficients first."""
        return (*self.coefficients, *self.exponents)

    @property
    def lower(self) -> np.ndarray:
        """Lower bounds [T] of the exponents."""
        return np.array([low for low, _ in self.exponents.values()])

    @property
    def upper(self) -> np.ndarray:
        """Upper bounds [T] of the exponents."""
        return np.array([high for _, high in self.exponents.values()])


def _chinchilla_basis(theta_T: Array, x_n: Array, y_n: Array) -> Array:
    xp = theta_T.__array_namespace__()
    return xp.stack([xp.ones_like(x_n), xp.exp(-theta_T[0] * x_n), xp.exp(-theta_T[1] * y_n)])


def _chinchilla_original(theta: np.ndarray, c: np.ndarray, log_n0: float, log_d0: float) -> np.ndarray:
    scale = np.stack([np.zeros_like(theta[..., 0]), theta[..., 0] * log_n0, theta[..., 1] * log_d0], axis=-1)
    return c * np.exp(scale)


CHINCHILLA = Form(  # approach 3 of Hoffmann et al. 2022, arXiv 2203.15556
    name="chinchilla",
    formula="L = E + A N^-alpha + B D^-beta",
    exponents={"alpha": (0.0, 2.5), "beta": (0.0, 2.5)},
    coefficients=("E", "A", "B"),
    basis=_chinchilla_basis,
    original=_chinchilla_original,
)

FORMS = {form.name: form for form in (CHINCHILLA,)}
