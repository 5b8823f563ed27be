"""One attempt at one unit: what a worker of this machine and a job of an engine do alike."""

from pathlib import Path
from typing import Any

import jax

from deeplearn import sharding
from deeplearn.data.sources import cache_dir
from deeplearn.sweep import ledger
from deeplearn.train import loop, spent
from deeplearn.train.run import Run


def keep_programs() -> None:
    """Keep compiled programs on disk, for the next process that wants the same."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def train(run: Run, folder: Path, **given: Any) -> loop.Result | loop.Ended:
    """`loop.train` on all devices of the run's mesh, with an end that is a result returned, not raised."""
    sharding.check_all_used(sharding.make_mesh(run.mesh))
    try:
        return loop.train(run, folder, **given)
    except loop.Ended as ended:
        return ended


def result(how: loop.Result | loop.Ended, folder: Path, members: int = 1) -> dict[str, Any]:
    """What result.json says of a run that has ended so. members: of the cohort that it was trained in."""
    if isinstance(how, loop.Ended):
        told = {"status": how.status, "loss": None, "message": str(how)}
    else:
        told = {"status": "done", **how._asdict()}
    return {**told, "members": members, "steps_spent": spent.steps(folder)}


def is_mine(claim: ledger.Claim) -> bool:
    """Whether no later attempt has taken the unit over, and it has no result."""
    try:
        claim.check()
    except ledger.Fenced:
        return False
    return ledger.read_json(claim.folder / "result.json") is None
