"""From a ledger that engines have filled to the table that laws are fitted to, and to the prediction of the next."""

from etils import epath
from rich.console import Console

from deeplearn.sweep import ledger, study, table, training
from deeplearn.sweep.grid import Sweep, Unit
from deeplearn.sweep.local import SweepError
from deeplearn.sweep.staff import Staff


def predicted(root: str) -> set[str]:
    """The held-out units whose prediction is made: those that may be trained."""
    return set((ledger.read_json(epath.Path(root) / "prediction.json") or {}).get("held_out", {}))


def collect(sweep: Sweep, units: list[Unit], root: str, partial: bool, console: Console) -> None:
    """Write runs.csv, and prediction.json once every fitted unit has ended.

    Raises SweepError that names the units without a result, unless `partial`. Held-out units are expected to have one
    when their prediction has been made by an earlier call.
    """
    tested = predicted(root)
    missing = _missing(root, [u for u in units if u.split == "fit" or u.id in tested])
    if missing and not partial:
        names = ", ".join(f"{unit} ({state})" for unit, state in missing.items())
        raise SweepError(f"{len(missing)} units have no result: {names}; --partial collects without them")
    job = training.Job(epath.Path(root), console, Staff(1))
    with ledger.hold(root):
        held_out = [u for u in units if u.split == "held_out"]
        if held_out and not _missing(root, [u for u in units if u.split == "fit"]):
            study.predict(sweep, units, job)
        table.write(epath.Path(root) / "runs.csv", study.rows(job, units))
    ended = len(units) - len(_missing(root, units))
    said = [f"{ended} of {len(units)} units have a result: {epath.Path(root) / 'runs.csv'}"]
    if predicted(root) - tested:
        said.append("the prediction is made: `submit` sends the held-out units now")
    for line in said:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _missing(root: str, units: list[Unit]) -> dict[str, str]:
    states = {u.id: ledger.status(root, u.id) for u in units}
    return {unit: state for unit, state in states.items() if state not in ledger.OVER}
