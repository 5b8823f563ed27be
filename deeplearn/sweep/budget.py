"""What a sweep may spend, and which of its units that pays for.

FLOPs are exact: they are counted from the traced computation, and whatever the root's files show to have been spent,
by this command or an earlier one, counts. Cheapest first, with one exception: room is kept for the cheapest held-out
run, without which the law is put to no test.
"""

import contextlib
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from deeplearn.config import ConfigError
from deeplearn.sweep import ledger
from deeplearn.sweep.grid import Unit, unit_of
from deeplearn.train import spent as steps
from deeplearn.train.run import from_json

MIN_RUNS = 6  # the law has 5 parameters


class Limits(NamedTuple):
    """flops: of all units in the root together. seconds: of this command's training. hopeless: margin in training loss
    beyond which a unit is not worth going on with (`hopeless`)."""

    flops: float = math.inf
    seconds: float = math.inf
    hopeless: float = math.inf


def spent(root: Path, units: list[Unit]) -> dict[str, float]:
    """id -> FLOPs that each unit of the root has taken, by all attempts, without those that its trunk did for it.

    Units of earlier commands count, too.
    """
    known, results, taken = {u.id: u for u in units}, ledger.results(root), {}
    for id, description in ledger.units(root).items():
        noted = results.get(id, {}).get("steps_spent")
        if updates := steps.steps(ledger.directory(root, id)) if noted is None else noted:
            with contextlib.suppress(ConfigError):  # of a version that wrote other configurations
                unit = known.get(id) or unit_of(from_json(description), "fit")
                taken[id] = unit.flops * updates / unit.run.steps
    return taken


def test_of(units: list[Unit]) -> Unit | None:
    """The cheapest held-out run, for which room is kept."""
    return min((u for u in units if u.split == "held_out"), key=lambda u: u.flops, default=None)


def affordable(units: list[Unit], taken: Mapping[str, float], over: Collection[str], flops: float) -> list[Unit]:
    """The units that a budget pays for, cheapest first; room is kept for `test_of` them.

    Args:
      units: of the sweep.
      taken: FLOPs that each unit of the root has taken.
      over: ids of units on which nothing more is spent.
      flops: the budget, of all units of the root together.
    """
    test, left, paid = test_of(units), flops - sum(taken.values()), []
    for unit in sorted(units, key=lambda u: (u is not test, u.flops)):
        cost = 0.0 if unit.id in over else unit.flops - taken.get(unit.id, 0.0)
        if cost <= max(left, 0.0):
            paid.append(unit)
            left -= cost
    return sorted(paid, key=lambda u: u.flops)


def check(units: list[Unit], taken: Mapping[str, float], over: Collection[str], flops: float) -> None:
    """Raise ConfigError for a budget that does not pay for the least runs of a law, and for one to test it.

    A run that has ended serves the law at no further cost, however dear it was.
    """
    fits = sorted((u for u in units if u.split == "fit"), key=lambda u: (u.id not in over, u.flops))[:MIN_RUNS]
    needed = fits + [test for test in [test_of(units)] if test]
    paid = affordable(units, taken, over, flops)
    if any(unit not in paid for unit in needed):
        others = sum(taken.values()) - sum(taken.get(u.id, 0.0) for u in needed)
        test = " and the cheapest held-out run" if len(needed) > len(fits) else ""
        raise ConfigError(
            f"a budget of {flops:.3g} FLOPs holds no sweep: the {len(fits)} cheapest fitted runs{test} take "
            f"{sum(u.flops for u in needed):.3g}" + (f", and others here have taken {others:.3g}" if others else "")
        )
