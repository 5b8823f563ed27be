"""Scaling laws: a table of runs in; numbers that can be trusted, and what cannot be known, out.

    from deeplearn import laws
    fit = laws.fit(laws.read_csv("runs.csv"))
    fit.params["alpha"], fit.predict(1e9, 2e10), fit.optimal(flops=1e21), fit.warnings

Stands alone: imports NumPy and JAX and nothing else of the library.
"""

from deeplearn.laws.allocation import Allocation
from deeplearn.laws.catalogue import FORMS
from deeplearn.laws.certificate import Certificate
from deeplearn.laws.fitting import Fit, fit
from deeplearn.laws.forms import Form
from deeplearn.laws.table import Table, TableError, read_csv, runs
from deeplearn.laws.uncertainty import Interval, Prediction

__all__ = [
    "FORMS",
    "Allocation",
    "Certificate",
    "Fit",
    "Form",
    "Interval",
    "Prediction",
    "Table",
    "TableError",
    "fit",
    "read_csv",
    "runs",
]
