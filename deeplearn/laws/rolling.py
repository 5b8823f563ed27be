"""Rolling hold-outs: fits to the cheaper runs, put to the test on the dearer ones."""

from __future__ import annotations

import dataclasses

import numpy as np

from deeplearn.laws.fitting import Fit, fit
from deeplearn.laws.forms import Form
from deeplearn.laws.table import Table
from deeplearn.laws.uncertainty import SPLITS, Prediction


@dataclasses.dataclass(frozen=True)
class HoldOut:
    """One fit to the cheapest runs, and how it predicted the others.

    Attributes:
      fitted: how many runs were fitted.
      cost: what ordered the held-out runs [m], training FLOPs where they are known.
      measured: their losses [m].
      predicted: their predictions and bands, each [m].
    """

    fitted: int
    cost: np.ndarray
    measured: np.ndarray
    predicted: Prediction

    @property
    def inside(self) -> np.ndarray:
        """Whether each measured loss lies in its band [m]."""
        return (self.predicted.lo <= self.measured) & (self.measured <= self.predicted.hi)


def rolling(whole: Fit, **options) -> list[HoldOut]:
    """Fits the law of `whole` to growing shares of its runs, cheapest first, and predicts the rest.

    Args:
      whole: the fit of all the runs.
      **options: those of `fit`, apart from the form.
    """
    law, table = whole.problem.form, whole.table
    dear = cost(table, law)
    order = np.argsort(dear, kind="stable")
    parts = []
    for share in SPLITS:
        count = int(np.ceil(share * len(table)))
        if count < 2 * len(law.names) or count > len(table) - 2:
            continue
        cheap, left = table.take(np.sort(order[:count])), table.take(np.sort(order[count:]))
        predicted = fit(cheap, law, **options).predict(*(left[name] for name in law.columns))
        parts.append(HoldOut(count, cost(left, law), left.loss, predicted))
    return parts


def cost(table: Table, law: Form) -> np.ndarray:
    """What orders runs from cheap to dear [n]: FLOPs where they are known, else the last column of the law."""
    has_flops = "flops" in table.columns or {"params", "tokens"} <= set(table.columns)
    return table.flops if has_flops else table[law.columns[-1]]
