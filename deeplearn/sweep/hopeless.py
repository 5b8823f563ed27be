"""Units that are not worth the rest of their FLOPs: far behind one that differs in nothing but its optimiser.

The rule. What counts is the mean training loss over the updates just before a quarter of the steps are done. A unit is
hopeless if there it has learnt nothing (its loss is not below that of its first updates), or if it lies more than a
margin above the best of its siblings at the same step. Siblings share everything but their `optim`.

The loss at that one step is a function of the run alone, so that the rule gives the same units in whatever order and
by however many workers they are trained. Whether a unit is stopped on its way, which is when it saves FLOPs, depends on
what has been trained by then: it is looked at whenever another eighth of its steps is done.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from deeplearn import config, families
from deeplearn.config import ConfigError
from deeplearn.optim import Optim
from deeplearn.sweep import ledger
from deeplearn.sweep.grid import Unit
from deeplearn.train import loop, metrics
from deeplearn.train.run import Run

AT = 4  # the quarter
WINDOW = 32  # the mean is over this part of the steps
LOOKS = 8  # a run


def check(runs: Iterable[Run]) -> None:
    """Raise ConfigError for a family whose training loss does not say how good it is."""
    for family, model in {(run.family, run.model) for run in runs}:
        names = [objective.name for objective in families.get(family).objectives(model)]
        if len(names) > 1:
            raise ConfigError(
                f"hopeless runs are told by their training loss, but family {family!r} trains {' against '.join(names)}"
            )


def losses(root: Path, unit: str, run: Run) -> tuple[float, float] | None:
    """Mean training losses of a unit's first updates and of those before the quarter; None before it is there."""
    name = families.get(run.family).objectives(run.model)[0].name
    at, count = -(-run.steps // AT), -(-run.steps // WINDOW)
    first, last = [], []
    for row in metrics.read(ledger.directory(root, unit)):
        if row["step"] <= count:
            first.append(row[name])
        if at - count < row["step"] <= at:
            last.append(row[name])
        if row["step"] == at:
            return sum(first) / len(first), sum(last) / len(last)
    return None


def reason(run: Run, own: tuple[float, float], others: dict[str, float], margin: float) -> str | None:
    """Why a run is hopeless, or None. own: as `losses`. others: the loss of its siblings at the same step, by id."""
    first, here = own
    at = f"at step {-(-run.steps // AT)} of {run.steps} its training loss is {here:.4g}"
    if here > first:
        return f"{at}, and began at {first:.4g}: it has learnt nothing"
    best = min(others, key=others.__getitem__, default=None)
    if best is not None and here > others[best] + margin:
        return f"{at}, more than {margin:g} above the {others[best]:.4g} of {best}"
    return None


def found(root: Path, units: list[Unit], margin: float) -> dict[str, str]:
    """id -> why, for all of the units that have got as far as the rule looks."""
    kin: dict[str, dict[str, Unit]] = {}
    for unit in units:
        kin.setdefault(config.identity(dataclasses.replace(unit.run, optim=Optim())), {})[unit.id] = unit
    told = {}
    for group in kin.values():
        known = {u.id: own for u in group.values() if (own := losses(root, u.id, u.run))}
        for unit, own in known.items():
            others = {other: loss for other, (_, loss) in known.items() if other != unit}
            told[unit] = reason(group[unit].run, own, others, margin)
    return {unit: why for unit, why in told.items() if why}


def watch(root: Path, run: Run, margin: float) -> Callable[[int], None]:
    """A function of the updates that are done, which raises loop.Hopeless where the rule says so."""
    if math.isinf(margin):
        return lambda step: None
    unit, mine = config.identity(run), json.loads(config.canonical_json(run, identity_only=True))
    all_but = {name: value for name, value in mine.items() if name != "optim"}
    kin = [u for u, other in ledger.units(root).items() if u != unit and all_but.items() <= other.items()]
    looks = 0

    def look(step: int) -> None:
        nonlocal looks
        if step * LOOKS // run.steps <= looks or step * AT < run.steps:
            return
        looks = step * LOOKS // run.steps
        own = losses(root, unit, run)
        others = {u: told[1] for u in kin if (told := losses(root, u, run))}
        why = own and reason(run, own, others, margin)
        if why:
            raise loop.Hopeless(why)

    return look
