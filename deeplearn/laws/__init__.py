"""Scaling laws: a table of runs in; numbers that can be trusted, and what cannot be known, out.

    from deeplearn import laws
    fit = laws.fit(laws.read_csv("runs.csv"))
    fit.params["alpha"], fit.predict(1e9, 2e10), fit.optimal(flops=1e21), fit.warnings

Stands alone: imports NumPy and JAX and nothing else of the library.
"""

from deeplearn.laws.allocation import Allocation
from deeplearn.laws.approaches import Approach, Approaches, compare_approaches
from deeplearn.laws.catalogue import FORMS
from deeplearn.laws.certificate import Certificate
from deeplearn.laws.compare import Comparison, Crossover, compare, fit_many
from deeplearn.laws.design import Design, LossAt, OptimalParams, next_runs
from deeplearn.laws.extrapolate import Extrapolation, extrapolate
from deeplearn.laws.fitting import LOSSES, Fit, fit
from deeplearn.laws.forms import Form
from deeplearn.laws.noise import NoiseFloor, noise_floor
from deeplearn.laws.plain import plain
from deeplearn.laws.profiles import Profile, profile_interval
from deeplearn.laws.rolling import HoldOut, rolling
from deeplearn.laws.specification import Specification, specifications
from deeplearn.laws.table import Table, TableError, read_csv, runs
from deeplearn.laws.uncertainty import Interval, Prediction
from deeplearn.laws.written import Written

__all__ = [
    "FORMS",
    "LOSSES",
    "Allocation",
    "Approach",
    "Approaches",
    "Certificate",
    "Comparison",
    "Crossover",
    "Design",
    "Extrapolation",
    "Fit",
    "Form",
    "HoldOut",
    "Interval",
    "LossAt",
    "NoiseFloor",
    "OptimalParams",
    "Prediction",
    "Profile",
    "Specification",
    "Table",
    "TableError",
    "Written",
    "compare",
    "compare_approaches",
    "extrapolate",
    "fit",
    "fit_many",
    "next_runs",
    "noise_floor",
    "plain",
    "profile_interval",
    "read_csv",
    "rolling",
    "runs",
    "specifications",
]
