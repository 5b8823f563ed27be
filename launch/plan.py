"""The units of a sweep before they are sent: what each is, what is wrong with some, and where each stands."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from deeplearn import config
from deeplearn.config import ConfigError
from deeplearn.sweep import ledger, study
from deeplearn.sweep.grid import Sweep, Unit, unit_of
from deeplearn.train import metrics
from experiments import cli


class Point(NamedTuple):
    """One run that a sweep lists. label: its overrides, as people know it. run: None if they make none."""

    label: str
    split: str
    run: Any


def points(module: Any, sweep: Sweep, overrides: Mapping[str, Any]) -> tuple[list[Point], list[str]]:
    """Every run of the sweep, and one sentence for each that its overrides do not make."""
    made, wrong = [], []
    for split, listed in (("fit", sweep.fit), ("held_out", sweep.held_out)):
        for given in listed:
            label = " ".join(f"{key}={value}" for key, value in given.items())
            try:
                made.append(Point(label, split, cli.get_run(module, {**given, **overrides})))
            except ConfigError as error:
                wrong.append(f"{label}: {error}")
    return made, wrong


def units(made: Iterable[Point]) -> tuple[list[Unit], list[str]]:
    """The points as units, counted, and one sentence for each whose shapes do not fit together."""
    good, wrong = [], []
    for point in made:
        try:
            good.append(unit_of(point.run, point.split))
        except Exception as error:  # whatever a family's code raises when it is traced
            wrong.append(f"{point.label}: {_sentence(error)}")
    return good, wrong


def emulate(made: Iterable[Point], devices: int) -> None:
    """Let this process have as many devices as the largest mesh has places. Call it before JAX looks for devices."""
    import jax

    from deeplearn import sharding

    jax.config.update("jax_platforms", "cpu")  # accelerators are for the units
    sizes = [devices, 1]
    for point in made:
        try:
            sizes.append(math.prod(sharding.parse(point.run.mesh).values()))
        except ConfigError:
            continue  # `check` says it
    jax.config.update("jax_num_cpu_devices", max(sizes))


def check(made: Iterable[Point], devices: int) -> list[str]:
    """One sentence for each point that would fail only on its machines: mesh, divisibility, shapes, data.

    devices: of a unit, which a mesh that names none spreads over; 0 if it is not known here.
    """
    import jax

    from deeplearn import sharding
    from deeplearn.train import loop, state

    wrong, labels = [], {}
    for point in made:
        try:
            here = jax.devices() if point.run.mesh else jax.devices()[: devices or 1]
            mesh = sharding.make_mesh(point.run.mesh, here)
            if devices and mesh.size != devices:
                raise ConfigError(f"mesh {point.run.mesh!r} has {mesh.size} places and a unit gets {devices} devices")
            loop.check(point.run, mesh)
            with loop.on_mesh(mesh):
                state.abstract(point.run, mesh)
            unit = unit_of(point.run, point.split).id
            if unit in labels:
                raise ConfigError(f"it is the same run as {labels[unit]}")
            labels[unit] = point.label
        except Exception as error:
            wrong.append(f"{point.label}: {_sentence(error)}")
    return wrong


def check_law(units: list[Unit]) -> list[str]:
    """What makes the prediction of the held-out units no test, as one sentence or none."""
    try:
        if any(unit.split == "held_out" for unit in units):
            study.check(units)
    except ConfigError as error:
        return [str(error)]
    return []


def last(root: str, unit: Unit) -> str:
    """The newest thing that a unit's files tell: where it is, its loss, or why it has none."""
    folder = ledger.directory(root, unit.id)
    result, state = ledger.read_json(folder / "result.json"), ledger.status(root, unit.id)
    if result:
        return str(result.get("message") or f"loss {result['loss']:.4f}")
    if state == "failed":
        return str((ledger.read_json(folder / "error.json") or {}).get("message"))
    return f"step {metrics.rows(Path(folder))}/{unit.run.steps}" if state == "started" else ""


def standing(root: str, unit: str, live: set[str]) -> str:
    """What a unit is: new, live, done, diverged, hopeless, failed, or stopped (begun, and nobody is at it)."""
    status = ledger.status(root, unit)
    if status not in ledger.OVER and unit in live:
        return "live"
    return "stopped" if status == "started" else status


def table(units: list[Unit], standings: Mapping[str, str], last: Mapping[str, str] | None = None) -> Table:
    """One row a unit: what differs between them, what each costs, how it stands; and what is told of it last."""
    differ = _differing(units)
    shown = Table(box=None, pad_edge=False)
    for name in ("unit", "split", *(name.rpartition(".")[2] for name in differ)):
        shown.add_column(name, no_wrap=True)
    for name in ("params", "tokens", "FLOPs"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in ("state", *([] if last is None else ["told last"])):
        shown.add_column(name, no_wrap=True)
    for unit in units:
        flat = config.flatten(unit.run)
        row = [unit.id, unit.split, *(str(flat.get(name, "")) for name in differ)]
        row += [f"{unit.params:,}", f"{unit.run.tokens:,}", f"{unit.flops:.3g}", standings[unit.id]]
        shown.add_row(*row, *([] if last is None else [last.get(unit.id, "")]))
    return shown


def totals(units: list[Unit], standings: Mapping[str, str]) -> str:
    """One sentence: how many, what they cost together, how they stand."""
    counts = {state: list(standings.values()).count(state) for state in dict.fromkeys(standings.values())}
    flops, tokens = sum(u.flops for u in units), sum(u.run.tokens for u in units)
    left = sum(u.flops for u in units if standings[u.id] not in ledger.OVER)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{len(units)} units ({states}): {flops:.3g} FLOPs, {tokens:,} tokens; {left:.3g} FLOPs are left"


def _differing(units: list[Unit]) -> list[str]:
    """The settings that are not the same in all units, without those that tell nothing new."""
    flats = [config.flatten(u.run) for u in units]
    names = dict.fromkeys(name for flat in flats for name in flat)
    differ = [name for name in names if len({repr(flat.get(name)) for flat in flats}) > 1]
    columns: dict[tuple, str] = {}  # a column that says the same as an earlier one is left out
    for name in differ:
        values = [repr(flat.get(name)) for flat in flats]
        columns.setdefault(tuple(values.index(value) for value in values), name)
    return list(columns.values())


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"[:300]
