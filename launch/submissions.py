"""What was handed to engines, from root/submissions/<n>.json: {name, backend, handle, units, job, time}.

A record is written before its units are handed over, without the handle. Where a command died in between, the engine
is asked for the record's name, which is unique.
"""

import re
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from deeplearn.sweep import ledger
from deeplearn.sweep.grid import Unit
from launch import backend
from launch.backend import Job, Unreadable


class Submission(NamedTuple):
    """One record. path: where it lies. handle: "" if it is not known. units: index -> id, in order."""

    path: epath.Path
    backend: str
    handle: str
    units: tuple[str, ...]
    job: Job


def read(root: str) -> list[Submission]:
    """All records, oldest first. Raises Unreadable for one that is damaged: its units may be running."""
    folder = epath.Path(root) / "submissions"
    paths = [path for path in folder.iterdir() if re.fullmatch(r"\d+\.json", path.name)] if folder.exists() else []
    return [_parse(path, ledger.read_json(path)) for path in sorted(paths, key=lambda path: int(path.stem))]


def live(root: str) -> dict[str, Submission]:
    """Unit -> the submission in which it waits or runs. Raises Unreadable if an engine does not say.

    An engine is not asked about a submission of which every unit has a result.
    """
    over = set(ledger.results(root))
    found = {}
    for submission in read(root):
        if not over.issuperset(submission.units):
            found |= dict.fromkeys(_live_in(submission), submission)
    return found


def submit(root: str, name: str, units: Sequence[Unit], job: Job) -> Submission:
    """Hand units to the backend `name`, as the next submission."""
    module = backend.get(name)
    text = module.render(units, job)
    number = max((int(s.path.stem) for s in read(root)), default=0) + 1
    path = epath.Path(root) / "submissions" / f"{number}.json"
    record = {
        "name": job.name,
        "backend": name,
        "handle": None,
        "units": {str(i): unit.id for i, unit in enumerate(units)},
        "job": job._asdict() | {"options": list(job.options)},
        "time": ledger.now(),
    }
    ledger.write_json(path, record)
    record["handle"] = module.submit(text, job.name)
    ledger.write_json(path, record)
    return _parse(path, record)


def cancel(submission: Submission) -> None:
    """End what is left of a submission."""
    if handle := _handle(submission):
        backend.get(submission.backend).cancel(handle)


def new_name(sweep: str) -> str:
    """A name that no other submission has."""
    slug = re.sub(r"[^a-z0-9]+", "-", sweep.lower()).strip("-")[:20].strip("-")
    return f"dl-{slug or 'sweep'}-{uuid.uuid4().hex[:8]}"


def _live_in(submission: Submission) -> set[str]:
    handle = _handle(submission)
    return backend.get(submission.backend).live(handle) if handle else set()


def _handle(submission: Submission) -> str:
    """The handle that is written down, or else what the engine has under the name; "" if it has nothing."""
    if submission.handle:
        return submission.handle
    handle = backend.get(submission.backend).find(submission.job, submission.units)
    if handle:
        ledger.write_json(submission.path, (ledger.read_json(submission.path) or {}) | {"handle": handle})
    return handle


def _parse(path: epath.Path, record: dict[str, Any] | None) -> Submission:
    try:
        job = Job(**record["job"] | {"options": tuple(record["job"]["options"])})
        units = tuple(record["units"][str(i)] for i in range(len(record["units"])))
        return Submission(path, record["backend"], record["handle"] or "", units, job)
    except (TypeError, KeyError):
        what = f"{path} is damaged, and its units may be running: look for them, then remove it"
        raise Unreadable(what) from None
