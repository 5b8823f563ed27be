"""A law as its law.json tells it: predictions with their band, and the best use of compute, without the runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from deeplearn.laws import uncertainty
from deeplearn.laws.allocation import optimal_params
from deeplearn.laws.catalogue import FORMS
from deeplearn.laws.certificate import jacobian
from deeplearn.laws.forms import Form
from deeplearn.laws.noise import NoiseFloor
from deeplearn.laws.plain import plain
from deeplearn.laws.solve import Problem
from deeplearn.laws.table import Table
from deeplearn.laws.uncertainty import Linear, Prediction
from deeplearn.laws.words import known

DRAWS = 200  # bootstrap replicates that are written: the band reads their deciles


class Local(NamedTuple):
    """The law near its optimum. best: its parameters [P] in columns centred at `at`. linear: what runs say there."""

    best: np.ndarray
    at: tuple[float, ...]
    linear: Linear


@dataclasses.dataclass(frozen=True)
class Written:
    """What is needed to predict.

    Attributes:
      form: the law; unit: of the loss; n_runs: that were fitted.
      values: its parameters, in the units of the table.
      draws: bootstrap replicates of them, each [R]; {} in a file that has none, which then gives no band.
      local: of the fit; None in a file that has none, which then gives no band.
      noise, widening: as in `Fit`.
      noise_by_size: (factor, power, least, most): `noise` times factor N^power is that of a run of N parameters, N
        between least and most; None where it is the same for all.
      ranges: column -> (least, most) of the fitted runs; {} in a file that does not tell.
    """

    form: Form
    unit: str
    n_runs: int
    values: Mapping[str, float]
    draws: Mapping[str, np.ndarray]
    local: Local | None
    noise: float
    widening: float
    ranges: Mapping[str, tuple[float, float]]
    noise_by_size: tuple[float, float, float, float] | None = None

    def predict(self, *columns: float) -> Prediction:
        """Loss of one new run at values of the law's columns, with its 95 % band; nan where the file has none."""
        value = float(self.form.loss(self.values, *columns))
        if not self.draws or self.local is None:
            return Prediction(value, np.nan, np.nan)
        best, at, linear = self.local
        center, draws = np.log([value]), np.log(self.form.loss(self.draws, *columns))[:, None]
        x = tuple(np.log([column]) - mean for column, mean in zip(columns, at, strict=False))
        sides = uncertainty.law(center, draws, linear, jacobian(self.form, best, x, at))
        noise = self.noise
        if self.noise_by_size:
            factor, power, least, most = self.noise_by_size
            noise *= factor * min(max(columns[self.form.columns.index("params")], least), most) ** power
        ends = uncertainty.band(center, sides, linear.runs[1], noise, self.widening)
        return Prediction(value, *(float(np.exp(end[0])) for end in ends))

    def optimal(self, flops: float) -> tuple[float, float]:
        """Compute-optimal params and tokens for C = 6 N D. Raises ValueError for a law that does not say."""
        if self.form.allocation is None or set(self.form.columns) != {"params", "tokens"}:
            raise ValueError(f"the {self.form.name} law does not say how params and tokens alone trade off")
        values = {**dict(self.form.pinned), **self.values}
        a, b = self.form.allocation(SimpleNamespace(**values))
        best = float(optimal_params(*(np.float64(v) for v in (values["A"], values["B"], a, b)), np.float64(flops)))
        if not 0 < best < np.inf:
            raise ValueError("by this law all compute should go to params or all to tokens: there is no optimum")
        return best, flops / (6 * best)


def keep(
    problem: Problem,
    best: np.ndarray,
    table: Table,
    replicates: Mapping[str, np.ndarray],
    noise: float,
    linear: Linear,
    floor: NoiseFloor | None,
) -> dict[str, Any]:
    """What `read` needs of a fit beyond its parameters, in plain JSON types. The arguments are as in `Fit`."""
    law = problem.form
    draws_RxP = np.stack([replicates[name] for name in law.names], axis=1)
    draws_RxP = draws_RxP[np.isfinite(draws_RxP).all(axis=1)]
    chosen_RxP = draws_RxP[:: max(1, len(draws_RxP) // DRAWS)][:DRAWS]
    columns = {name: table[name] for name in law.columns}
    if {"params", "tokens"} <= set(columns):
        columns["flops"] = 6 * columns["params"] * columns["tokens"]
    return {
        "pinned": dict(law.pinned),
        "noise": noise,
        **({"noise_by_size": _by_size(problem, floor)} if floor else {}),
        "ranges": {name: [float(column.min()), float(column.max())] for name, column in columns.items()},
        "local": {"best": best.tolist(), "at": list(problem.at), "linear": plain(linear._asdict())},
        "draws": {name: [float(f"{x:.8g}") for x in draw] for name, draw in zip(law.names, chosen_RxP.T, strict=True)},
    }


def _by_size(problem: Problem, floor: NoiseFloor) -> list[float]:
    """`Written.noise_by_size`."""
    sizes = [level.params for level in floor.sizes]
    mean = float(np.mean(problem.noise**-2.0)) ** -0.5
    return [float(floor.of(sizes[0])) / sizes[0] ** floor.power / mean, floor.power, sizes[0], sizes[-1]]


def read(data: Mapping[str, Any]) -> Written:
    """The law that `Fit.to_json` wrote. Raises ValueError: one sentence about what is unknown or missing."""
    try:
        form = FORMS[known("form", data["form"], FORMS)].pin(**data.get("pinned", {}))
        values = {name: float(data["params"][name]["value"]) for name in form.names}
        draws = {name: np.array(column, np.float64) for name, column in data.get("draws", {}).items()}
        return Written(
            form=form,
            unit=str(data["unit"]),
            n_runs=int(data["n_runs"]),
            values=values,
            draws=draws if set(draws) == set(form.names) else {},
            local=_local(data["local"]) if "local" in data else None,
            noise=float(data.get("noise", np.nan)),
            widening=float(data.get("widening", 1.0)),
            ranges={name: (float(lo), float(hi)) for name, (lo, hi) in data.get("ranges", {}).items()},
            noise_by_size=tuple(map(float, data["noise_by_size"])) if "noise_by_size" in data else None,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"no law: {error if isinstance(error, TypeError) else f'{error} is missing'}") from None


def _local(data: Mapping[str, Any]) -> Local:
    told = data["linear"]
    inverse_PxP, fourth_QxQ = (np.array(told[name], np.float64) for name in ("inverse_PxP", "fourth_QxQ"))
    n, dof = map(int, told["runs"])
    linear = Linear(float(told["variance"]), inverse_PxP, fourth_QxQ, (n, dof))
    return Local(np.array(data["best"], np.float64), tuple(map(float, data["at"])), linear)
