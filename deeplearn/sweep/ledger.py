"""The ledger of a sweep: plain files under one root, from which alone all state is derived.

    root/sweep.json                     name and versions
    root/units/<id>/config.json         the unit's description
    root/units/<id>/attempts/<n>.json   who tried when; attempt n is fenced out once attempt n + 1 exists
    root/units/<id>/owner.json          the attempt that owns the unit now, for people and engines to read
    root/units/<id>/result.json         written once, atomically: the only "done"
    root/units/<id>/error.json          why an attempt failed for good, and its class
    root/units/<id>/spent.json          where the work in the folder began, and what kills threw away (train/spent.py)
    root/.lock                          held by the sweep command at work

Files appear whole: they are written under a temporary name first (one that starts with a dot, which no reader looks
at). On a bucket a file appears whole by itself, but creating one exclusively is a look and a write, not one step:
there the engine keeps two processes from starting one unit at the same instant.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from deeplearn.config import ConfigError, nearest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # of a unit: one folder's, and nothing to a shell or a page
OVER = ("done", "diverged", "hopeless")  # what a unit with a result is


class Fenced(RuntimeError):
    """Another process owns the unit, or has finished it: this one must stop and write nothing."""

    exit_code = 3


@dataclasses.dataclass(frozen=True)
class Claim:
    """The right of one process to work on a unit, until a later attempt takes it over.

    folder: root/units/<id>; metrics and checkpoints go there. attempt: counts from 1.
    """

    folder: epath.Path
    unit: str
    attempt: int

    def check(self) -> None:
        """Raises Fenced if a later attempt exists. Call it before each write that a successor must not lose."""
        if (self.folder / "attempts" / f"{self.attempt + 1}.json").exists():
            raise Fenced(f"attempt {self.attempt} of unit {self.unit} has been taken over by a later one")


def directory(root: epath.PathLike, unit: str) -> epath.Path:
    """Where everything about one unit lies. Raises ConfigError for an id that is no name of a folder under the root."""
    if not NAME.fullmatch(unit):
        raise ConfigError(f"'{unit:.80}' is no id of a unit: ids are letters, digits, _ and -")
    folder = epath.Path(root) / "units" / unit
    if not _is_bucket(folder) and os.path.islink(folder):
        raise ConfigError(f"'{folder}' is a link, and units are folders of their sweep's root")
    return folder


def reach(root: epath.PathLike) -> None:
    """Raise ConfigError, in one sentence, for a bucket that cannot be read from here; a folder may be missing."""
    if "://" not in os.fspath(root):
        return
    try:
        epath.Path(root).exists()
    except KeyError:
        raise ConfigError(f"'{root}' is no bucket that epath knows, such as gs://NAME or s3://NAME") from None
    except Exception as error:  # each kind of bucket has errors of its own
        raise ConfigError(f"'{root}' cannot be read: {str(error).strip() or type(error).__name__}") from None


def create(root: epath.PathLike, name: str, units: Mapping[str, Mapping[str, Any]], **versions: str) -> None:
    """Writes sweep.json and each unit's config.json; what is there already stays, further units are added.

    A unit's id is a hash of what defines its result, so a description that differs from the one there differs only in
    what does not (mesh, paths, counts), and takes its place.

    Args:
      root: folder or bucket.
      name: the sweep's name.
      units: id -> description, plain JSON.
      **versions: for example git="1a2b3c", jax="0.10.2"; those of the first call are kept.

    Raises:
      ConfigError: root holds a sweep of another name.
    """
    root = epath.Path(root)
    sweep = read_json(root / "sweep.json")
    if sweep is not None and sweep.get("name") != name:
        raise ConfigError(f"'{root}' holds the sweep '{sweep.get('name')}', not '{name}'; choose another root")
    for unit, description in units.items():
        path = directory(root, unit) / "config.json"
        if read_json(path) != json.loads(_dumps(description)):
            write_json(path, description)
    if sweep is None:
        write_json(root / "sweep.json", {"name": name, "versions": versions, "created": now()})


def units(root: epath.PathLike) -> dict[str, dict[str, Any]]:
    """Every unit's description by its id, sorted."""
    names = sorted(path.name for path in _listing(epath.Path(root) / "units"))
    ids = [name for name in names if NAME.fullmatch(name)]
    found = {unit: read_json(directory(root, unit) / "config.json") for unit in ids}
    return {unit: description for unit, description in found.items() if description is not None}


def config(root: epath.PathLike, unit: str) -> dict[str, Any]:
    """One unit's description. Raises ConfigError if there is no such unit, or its file is damaged."""
    path = directory(root, unit) / "config.json"
    description = read_json(path)
    if description is None and path.exists():
        raise ConfigError(f"'{path}' is damaged or cannot be read; the sweep's own command writes it anew")
    if description is None:
        raise ConfigError(f"no unit of '{root}' is called '{unit}'{nearest(unit, units(root))}")
    return description


def claim(root: epath.PathLike, unit: str, job: str = "", **facts: str) -> Claim:
    """Takes a unit over as its next attempt. Earlier attempts, should they still run, are fenced out.

    Args:
      root: the sweep's root.
      unit: the unit's id.
      job: the engine's name for this job.
      **facts: what else to record of this attempt, for example git="1a2b3c".

    Raises:
      Fenced: another process claimed the unit at this moment.
      ConfigError: there is no such unit.
    """
    config(root, unit)
    folder = directory(root, unit)
    mine = Claim(folder, unit, last_attempt(root, unit) + 1)
    owner = {"attempt": mine.attempt, "host": socket.gethostname(), "pid": os.getpid(), "job": job, "time": now()}
    if not _create(folder / "attempts" / f"{mine.attempt}.json", owner | facts):
        raise Fenced(f"another process took attempt {mine.attempt} of unit {unit} at this moment")
    write_json(folder / "owner.json", owner)
    return mine


def finish(claim: Claim, result: Mapping[str, Any]) -> None:
    """Writes result.json, once. A run that ended without a loss ends so too, with {"status": "diverged", ...}.

    Raises Fenced if a later attempt or a result exists, ValueError for a number that is not finite.
    """
    claim.check()
    path = claim.folder / "result.json"
    if not _create(path, result):
        if read_json(path) is not None:
            raise Fenced(f"unit {claim.unit} has a result already")
        write_json(path, result)  # what was there is damaged, and so is no result


def fail(claim: Claim, error_class: str, message: str) -> None:
    """Records that this attempt failed for good. Raises Fenced if a later attempt exists."""
    claim.check()
    error = {"class": error_class, "message": message, "attempt": claim.attempt, "time": now()}
    write_json(claim.folder / "error.json", error)


def status(root: epath.PathLike, unit: str) -> str:
    """new, started, failed, or what its result says: done, diverged or hopeless (`OVER`).

    A failure counts until the unit is claimed again.
    """
    folder = directory(root, unit)
    result = read_json(folder / "result.json")
    if result is not None:
        return result["status"] if result.get("status") in OVER else "done"
    attempt = last_attempt(root, unit)
    error = read_json(folder / "error.json")
    if error is not None and error.get("attempt") == attempt:
        return "failed"
    return "started" if attempt else "new"


def results(root: epath.PathLike) -> dict[str, dict[str, Any]]:
    """The results of all units that have ended, with a loss or without, by id."""
    found = {unit: read_json(directory(root, unit) / "result.json") for unit in units(root)}
    return {unit: result for unit, result in found.items() if result is not None}


def last_attempt(root: epath.PathLike, unit: str) -> int:
    """Number of the unit's latest attempt; 0 if there was none."""
    names = (re.fullmatch(r"(\d+)\.json", path.name) for path in _listing(directory(root, unit) / "attempts"))
    return max((int(match[1]) for match in names if match), default=0)


def begun_with(root: epath.PathLike, unit: str) -> tuple[str, ...]:
    """The ids of the cohort that a unit's latest attempt trained it in, its own among them; () if there was none."""
    attempt = read_json(directory(root, unit) / "attempts" / f"{last_attempt(root, unit)}.json")
    return tuple(str(attempt.get("cohort", unit)).split()) if attempt else ()


def read_json(path: epath.PathLike) -> dict[str, Any] | None:
    """The object in a JSON file, or None if the file is missing, empty, torn or holds something else."""
    try:
        value = json.loads(epath.Path(path).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@contextlib.contextmanager
def hold(root: epath.PathLike) -> Iterator[None]:
    """Keeps a second sweep command on this machine away from `root`; the kernel lets go when the process dies.

    Does nothing on a bucket. Raises ConfigError that names the process which holds the root.
    """
    root = epath.Path(root)
    if _is_bucket(root):
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(f"process {file.read().strip() or '?'} is already at work on '{root}'") from None
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        yield


def _create(path: epath.Path, value: Mapping[str, Any]) -> bool:
    """Writes a whole file unless it exists; of several processes exactly one gets True (see above for buckets)."""
    if _is_bucket(path):
        if path.exists():
            return False
        path.write_text(_dumps(value))
        return True
    whole = _temporary(path, value)
    try:
        os.link(whole, path)  # fails if the name exists, and never shows half a file
    except FileExistsError:
        return False
    finally:
        whole.unlink()
    return True


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Writes a whole file, in place of the old one if there is one."""
    if _is_bucket(path):
        path.write_text(_dumps(value))
    else:
        _temporary(path, value).replace(path)


def _temporary(path: epath.Path, value: Mapping[str, Any]) -> epath.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    whole.write_text(_dumps(value))
    return whole


def _is_bucket(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _listing(folder: epath.Path) -> list[epath.Path]:
    return list(folder.iterdir()) if folder.exists() else []


def _dumps(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
