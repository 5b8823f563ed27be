"""Scaling laws: a table of runs in; numbers that can be trusted, and what cannot be known, out.

    from deeplearn import laws
    fit = laws.fit(laws.read_csv("runs.csv"))
    fit.params["alpha"], fit.predict(params=1e9, tokens=2e10), fit.optimal(flops=1e21), fit.warnings

Stands alone: imports NumPy and JAX and nothing else of the library.
"""

from deeplearn.laws.allocation import Allocation
from deeplearn.laws.fitting import Certificate, Fit, fit
from deeplearn.laws.forms import FORMS, Form
from deeplearn.laws.table import Table, TableError, read_csv
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
]
