"""Forms of scaling laws: small pure functions with named, bounded parameters.

Every form is

    L = (sum_k s_k c_k exp(f_k(theta, x)))^q(theta)

with coefficients c_k >= 0 that enter linearly, fixed signs s_k, a few bounded parameters theta that do not, and the
logarithms x of some columns of the table. Most have q = 1. The fit centres x on the geometric means of the table: that
makes the coefficients comparable in size and nearly free of the exponents, which is what makes it well conditioned.
`Form.original` turns what it finds back into the units of the table, for any form that keeps its shape when units
change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

Array = Any
Bounds = tuple[float, float]
TINY = 1e-12  # of a centred loss: no law goes below it


@dataclasses.dataclass(frozen=True)
class Form:
    """One law. Adding one means writing `terms` and naming it in `laws.FORMS`.

    Attributes:
      name: what `fit(form=...)` takes.
      formula: the law as people write it.
      columns: the columns of the table that it reads.
      exponents: name -> (lower, upper) bound of each non-linear parameter, in order. In place of bounds, the name of
        a column says that the parameter is a place on that column's axis (a break, say), inside the range of the runs.
      coefficients: names of the linear, non-negative parameters, in order.
      terms: (p, x) -> logarithms f_k of the terms, where p.NAME are the exponents (places as logarithms) and x.NAME
        the logarithms of the columns. All broadcast. Written against the arrays' own namespace (`namespace`), so that
        it runs in NumPy and, traced and differentiated, in JAX.
      signs: s_k; all +1 if left out.
      power: (p) -> q.
      allocation: (p) -> exponents (a, b) of a law that falls with A N^-a + B D^-b, whatever the rest of it.
      pinned: (coefficient, value) of those that are not fitted; see `pin`.
    """

    name: str
    formula: str
    columns: tuple[str, ...]
    exponents: Mapping[str, Bounds | str]
    coefficients: tuple[str, ...]
    terms: Callable[[SimpleNamespace, SimpleNamespace], tuple[Array, ...]]
    signs: tuple[int, ...] = ()
    power: Callable[[SimpleNamespace], Array] | None = None
    allocation: Callable[[SimpleNamespace], tuple[Array, Array]] | None = None
    pinned: tuple[tuple[str, float], ...] = ()

    # A form is known by its name and what is pinned: lets it be a static argument of a jitted function.
    def __hash__(self) -> int:
        return hash((self.name, self.pinned))

    @property
    def free(self) -> tuple[str, ...]:
        """The coefficients that are fitted."""
        held = dict(self.pinned)
        return tuple(name for name in self.coefficients if name not in held)

    @property
    def names(self) -> tuple[str, ...]:
        """All fitted parameters, coefficients first."""
        return (*self.free, *self.exponents)

    @property
    def places(self) -> dict[str, str]:
        """name -> column, of the parameters that are places on a column's axis."""
        return {name: bound for name, bound in self.exponents.items() if isinstance(bound, str)}

    def pin(self, **values: float) -> Form:
        """The same law with some parameters held, in the units of the table. Raises ValueError for a bad name."""
        unknown = [name for name in values if name not in (*self.coefficients, *self.exponents)]
        if unknown:
            known = ", ".join((*self.coefficients, *self.exponents))
            raise ValueError(f"the {self.name} law has no parameter {unknown[0]!r}; it has {known}")
        coefficients = tuple((name, float(v)) for name, v in values.items() if name in self.coefficients)
        exponents = {name: (values[name], values[name]) if name in values else b for name, b in self.exponents.items()}
        return dataclasses.replace(self, exponents=exponents, pinned=self.pinned + coefficients)

    def bounds(self, x: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds [T] of the exponents, for logarithms x: column -> [n]."""
        pairs = [(x[b].min(), x[b].max()) if isinstance(b, str) else b for b in self.exponents.values()]
        low, high = np.array(pairs, np.float64).reshape(-1, 2).T
        return low, high

    def basis(self, theta: Array, x: tuple[Array, ...], at: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        """Signed terms of the free coefficients, the sum of the pinned ones, and the power.

        Args:
          theta: exponents [T]; places relative to the centre.
          x: centred logarithms of `columns`, each [n].
          at: the centre of each of them, and of log loss: scalars. Only pinned coefficients need it.

        Returns:
          phi [K, n], offset [n], q (a scalar).
        """
        xp = namespace(theta)
        p = SimpleNamespace(**dict(zip(self.exponents, theta, strict=True)))
        q = xp.asarray(1.0, dtype=theta.dtype) if self.power is None else self.power(p)
        columns = SimpleNamespace(**dict(zip(self.columns, x, strict=True)))
        signs = self.signs or (1,) * len(self.coefficients)
        logs = dict(zip(self.coefficients, self.terms(p, columns), strict=True))
        signed = {name: s * xp.exp(logs[name] + 0.0 * x[0]) for name, s in zip(self.coefficients, signs, strict=True)}
        offset = 0.0 * x[0]
        if self.pinned:
            shift = self._shifts(p, at, q)
            for name, value in self.pinned:
                log_value = math.log(value) if value > 0 else -math.inf
                offset = offset + signed[name] * xp.exp(log_value - shift[name])
        return xp.stack([signed[name] for name in self.free]), offset, q

    def log_loss(self, p_P: Array, x: tuple[Array, ...], at: tuple[Array, ...]) -> Array:
        """Centred log loss [n] of the law with parameters p [P], coefficients first, over centred variables."""
        xp, k = namespace(p_P), len(self.free)
        phi_KxN, offset_n, q = self.basis(p_P[k:], x, at)
        return q * xp.log(xp.maximum(offset_n + p_P[:k] @ phi_KxN, TINY))

    def _shifts(self, p: SimpleNamespace, at: tuple[Array, ...], q: Array) -> dict[str, Array]:
        """log of (coefficient in the units of the table / coefficient over centred variables)."""
        center = SimpleNamespace(**dict(zip(self.columns, at, strict=False)))
        moved = SimpleNamespace(**vars(p))
        for name, column in self.places.items():
            setattr(moved, name, getattr(p, name) + getattr(center, column))
        origin = SimpleNamespace(**dict.fromkeys(self.columns, at[0] * 0.0))
        pairs = zip(self.coefficients, self.terms(p, origin), self.terms(moved, center), strict=True)
        return {name: here - there + at[-1] / q for name, here, there in pairs}

    def original(self, fitted_RxP: np.ndarray, at: tuple[float, ...]) -> dict[str, np.ndarray]:
        """name -> [R] in the units of the table, from parameters over centred variables."""
        k = len(self.free)
        theta = fitted_RxP[:, k:].T
        p = SimpleNamespace(**dict(zip(self.exponents, theta, strict=True)))
        q = np.ones(len(fitted_RxP)) if self.power is None else self.power(p)
        at_R = tuple(np.full(len(fitted_RxP), value) for value in at)
        shift = self._shifts(p, at_R, q)
        values = {name: fitted_RxP[:, i] * np.exp(shift[name]) for i, name in enumerate(self.free)}
        center = dict(zip(self.columns, at, strict=False))
        for name, value in zip(self.exponents, theta, strict=True):
            values[name] = np.exp(value + center[self.places[name]]) if name in self.places else value
        return values


def namespace(array: Array) -> Any:
    """NumPy or jax.numpy, whichever the array belongs to."""
    return array.__array_namespace__()
