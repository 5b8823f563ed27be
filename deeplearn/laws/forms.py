"""Forms of scaling laws: small pure functions with named, bounded parameters.

Every form is

    L = (sum_k s_k c_k exp(f_k(theta, x)))^q(theta)

with coefficients c_k >= 0 that enter linearly, fixed signs s_k, a few bounded parameters theta that do not, and the
logarithms x of some columns of the table. Most have q = 1. The fit divides each term by its value at the geometric
means of the table's columns, exp(f_k(theta, x) - f_k(theta, at)): that makes the coefficients comparable in size and
nearly free of the exponents, which is what makes it well conditioned. `Form.original` turns what it finds back into the
units of the table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

Array = Any
Bounds = tuple[float, float]
TINY = 1e-12  # of a centred loss: no law goes below it


class Log(NamedTuple):
    """Bounds of a positive parameter that is fitted as its logarithm: one whose order of magnitude is in question."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Form:
    """One law. Adding one means writing `terms` and naming it in `laws.FORMS`.

    Attributes:
      name: what `fit(form=...)` takes.
      formula: the law as people write it.
      columns: the columns of the table that it reads.
      exponents: name -> (lower, upper) bound of each non-linear parameter, in order; `Log` bounds fit its logarithm. In
        place of bounds, the name of a column says that the parameter is a place on that column's axis (a break, say),
        inside the range of the runs.
      coefficients: names of the linear, non-negative parameters, in order.
      terms: (p, x) -> logarithms f_k of the terms, where p.NAME are the exponents (places and those with `Log` bounds
        as logarithms) and x.NAME the logarithms of the columns, in the units of the table. All broadcast. Written
        against the arrays' own namespace (`namespace`), so that it runs in NumPy and, traced, in JAX.
      signs: s_k; all +1 if left out.
      power: (p) -> q.
      allocation: (p) -> exponents (a, b) of a law that falls with A N^-a + B D^-b, whatever the rest of it.
      pinned: (parameter, value) of those that are not fitted; see `pin`.
    """

    name: str
    formula: str
    columns: tuple[str, ...]
    exponents: Mapping[str, Bounds | Log | str]
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
        """The coefficients that are fitted, and linear."""
        held = {**dict(self.pinned), **self.exponents}
        return tuple(name for name in self.coefficients if name not in held)

    @property
    def names(self) -> tuple[str, ...]:
        """All fitted parameters, coefficients first."""
        return (*self.free, *self.exponents)

    @property
    def places(self) -> dict[str, str]:
        """name -> column, of the parameters that are places on a column's axis."""
        return {name: bound for name, bound in self.exponents.items() if isinstance(bound, str)}

    @property
    def logarithmic(self) -> tuple[str, ...]:
        """The exponents that are fitted as logarithms."""
        return tuple(name for name, bounds in self.exponents.items() if isinstance(bounds, Log | str))

    def pin(self, **values: float) -> Form:
        """The same law with some parameters held, in the units of the table. Raises ValueError for a bad name."""
        unknown = [name for name in values if name not in (*self.coefficients, *self.exponents)]
        if unknown:
            known = ", ".join((*self.coefficients, *self.exponents))
            raise ValueError(f"the {self.name} law has no parameter {unknown[0]!r}; it has {known}")
        held = {**dict(self.pinned), **{name: float(value) for name, value in values.items()}}
        return dataclasses.replace(self, pinned=tuple(held.items()))

    def expose(self, name: str, bounds: Log) -> Form:
        """The same law with a coefficient among its exponents, where it can be held while the others are fitted."""
        return dataclasses.replace(self, name=f"{self.name} of {name}", exponents={**self.exponents, name: bounds})

    def bounds(self, x: Mapping[str, np.ndarray], at: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds [T] of the exponents, for centred logarithms x: column -> [n], and their centres."""
        center, held = dict(zip(self.columns, at, strict=False)), dict(self.pinned)
        pairs = []
        for name, bounds in self.exponents.items():
            place = isinstance(bounds, str)
            if name in held:
                bounds = (held[name], held[name])
            elif place:
                bounds = np.exp(center[bounds] + x[bounds].min()), np.exp(center[bounds] + x[bounds].max())
            if name in self.logarithmic:
                bounds = np.log(bounds) - (center[self.places[name]] if place else 0.0)
            pairs.append(bounds)
        low, high = np.array(pairs, np.float64).reshape(-1, 2).T
        return low, high

    def basis(self, theta: Array, x: tuple[Array, ...], at: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        """Signed terms of the free coefficients, the sum of the pinned ones, and the power.

        Args:
          theta: exponents [T]; places relative to the centre.
          x: centred logarithms of `columns`, each [n].
          at: the centre of each of them, and of log loss: scalars.

        Returns:
          phi [K, n], offset [n], q (a scalar).
        """
        xp = namespace(theta)
        p = self._parameters(theta, at)
        q = xp.asarray(1.0, dtype=theta.dtype) if self.power is None else self.power(p)
        columns = SimpleNamespace(**{name: v + c for name, v, c in zip(self.columns, x, at, strict=False)})
        scale = self._scales(p, at)
        logs = zip(self.coefficients, self.terms(p, columns), strict=True)
        # One array, whose exponentials one product takes as they are: XLA then computes them once, not in each use.
        all_CxN = xp.exp(xp.stack([f - scale[name] + 0.0 * x[0] for name, f in logs]))
        if self.signs:
            all_CxN = all_CxN * xp.asarray(self.signs)[:, None]
        signed = dict(zip(self.coefficients, all_CxN, strict=True))
        offset = 0.0 * x[0]
        for name, value in self.pinned:
            if name in signed and value > 0:
                offset = offset + signed[name] * xp.exp(math.log(value) + scale[name] - at[-1] / q)
        for name in signed:
            if name in self.exponents:
                offset = offset + signed[name] * xp.exp(getattr(p, name) + scale[name] - at[-1] / q)
        if len(self.free) == len(self.coefficients):
            return all_CxN, offset, q
        free = [signed[name] for name in self.free]
        return xp.stack(free) if free else all_CxN[:0], offset, q

    def log_loss(self, p_P: Array, x: tuple[Array, ...], at: tuple[Array, ...]) -> Array:
        """Centred log loss [n] of the law with parameters p [P], coefficients first, over centred variables."""
        xp, k = namespace(p_P), len(self.free)
        phi_KxN, offset_n, q = self.basis(p_P[k:], x, at)
        return q * xp.log(xp.maximum(offset_n + p_P[:k] @ phi_KxN, TINY))

    def loss(self, values: Mapping[str, np.ndarray | float], *columns: np.ndarray | float) -> np.ndarray:
        """Loss at values of the law's columns, from parameters in the units of the table; all broadcast."""
        held = {**dict(self.pinned), **values}
        exponents = {n: np.log(held[n]) if n in self.logarithmic else held[n] for n in self.exponents}
        p = SimpleNamespace(**{name: np.asarray(value, np.float64) for name, value in exponents.items()})
        x = SimpleNamespace(**{name: np.log(v) for name, v in zip(self.columns, columns, strict=True)})
        signs = self.signs or (1,) * len(self.coefficients)
        logs = zip(self.coefficients, signs, self.terms(p, x), strict=True)
        total = sum(sign * held[name] * np.exp(f) for name, sign, f in logs)
        return np.maximum(total, TINY) ** (1.0 if self.power is None else self.power(p))

    def _parameters(self, theta: Array, at: tuple[Array, ...]) -> SimpleNamespace:
        """What `terms` sees of exponents [T, ...]: places on the axis of the table."""
        center = dict(zip(self.columns, at, strict=False))
        pairs = zip(self.exponents, theta, strict=True)
        return SimpleNamespace(
            **{name: v + center[self.places[name]] if name in self.places else v for name, v in pairs}
        )

    def _scales(self, p: SimpleNamespace, at: tuple[Array, ...]) -> dict[str, Array]:
        """log of each term at the centre of the table: what the fit divides it by."""
        center = SimpleNamespace(**dict(zip(self.columns, at, strict=False)))
        return dict(zip(self.coefficients, self.terms(p, center), strict=True))

    def original(self, fitted_RxP: np.ndarray, at: tuple[float, ...]) -> dict[str, np.ndarray]:
        """name -> [R] in the units of the table, from parameters over centred variables."""
        k = len(self.free)
        at_R = tuple(np.full(len(fitted_RxP), value) for value in at)
        p = self._parameters(fitted_RxP[:, k:].T, at_R)
        q = np.ones(len(fitted_RxP)) if self.power is None else self.power(p)
        scale = self._scales(p, at_R)
        values = {name: fitted_RxP[:, i] * np.exp(at[-1] / q - scale[name]) for i, name in enumerate(self.free)}
        for name in self.exponents:
            values[name] = np.exp(getattr(p, name)) if name in self.logarithmic else getattr(p, name)
        return values


def namespace(array: Array) -> Any:
    """NumPy or jax.numpy, whichever the array belongs to."""
    return array.__array_namespace__()
