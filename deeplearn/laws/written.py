"""A law as its law.json tells it: predictions with their band, and the best use of compute, without the runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from deeplearn.laws import uncertainty
from deeplearn.laws.allocation import optimal_params
from deeplearn.laws.catalogue import FORMS
from deeplearn.laws.forms import Form
from deeplearn.laws.table import Table
from deeplearn.laws.uncertainty import Prediction
from deeplearn.laws.words import known

DRAWS = 200  # bootstrap replicates that are written: the band reads their deciles


@dataclasses.dataclass(frozen=True)
class Written:
    """What is needed to predict.

    Attributes:
      form: the law; unit: of the loss; n_runs: that were fitted.
      values: its parameters, in the units of the table.
      draws: bootstrap replicates of them, each [R]; {} in a file that has none, which then gives no band.
      noise, widening: as in `Fit`.
      ranges: column -> (least, most) of the fitted runs; {} in a file that does not tell.
    """

    form: Form
    unit: str
    n_runs: int
    values: Mapping[str, float]
    draws: Mapping[str, np.ndarray]
    noise: float
    widening: float
    ranges: Mapping[str, tuple[float, float]]

    def predict(self, *columns: float) -> Prediction:
        """Loss of one new run at values of the law's columns, with its 95 % band; nan where the file has no draws."""
        value = float(self.form.loss(self.values, *columns))
        if not self.draws:
            return Prediction(value, np.nan, np.nan)
        draws = np.log(self.form.loss(self.draws, *columns))
        ends = uncertainty.band(np.log([value]), draws[:, None], self.noise, self.widening)
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


def keep(law: Form, table: Table, replicates: Mapping[str, np.ndarray], noise: float) -> dict[str, Any]:
    """What `read` needs of a fit beyond its parameters, in plain JSON types. replicates, noise: as in `Fit`."""
    draws_RxP = np.stack([replicates[name] for name in law.names], axis=1)
    draws_RxP = draws_RxP[np.isfinite(draws_RxP).all(axis=1)]
    chosen_RxP = draws_RxP[:: max(1, len(draws_RxP) // DRAWS)][:DRAWS]
    columns = {name: table[name] for name in law.columns}
    if {"params", "tokens"} <= set(columns):
        columns["flops"] = 6 * columns["params"] * columns["tokens"]
    return {
        "pinned": dict(law.pinned),
        "noise": noise,
        "ranges": {name: [float(column.min()), float(column.max())] for name, column in columns.items()},
        "draws": {name: [float(f"{x:.8g}") for x in draw] for name, draw in zip(law.names, chosen_RxP.T, strict=True)},
    }


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
            noise=float(data.get("noise", np.nan)),
            widening=float(data.get("widening", 1.0)),
            ranges={name: (float(lo), float(hi)) for name, (lo, hi) in data.get("ranges", {}).items()},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"no law: {error if isinstance(error, TypeError) else f'{error} is missing'}") from None
