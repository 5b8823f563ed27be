"""Checkpoints: state, data iterator and a fingerprint, through Orbax. Checkpoint n means n updates done.

The only file that knows Orbax. Saves are asynchronous and become visible by one rename, so that a kill leaves either a
whole checkpoint or none; restoring is to abstract state, so that a run may move to another mesh.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax import Array, numpy as jnp
from orbax.checkpoint import v1 as ocp

from deeplearn.train.state import State
from deeplearn.train.together import everywhere

KEEP = 2
ASIDE = ".damaged"  # ends the name of a checkpoint that Orbax must not see


@jax.jit
def fingerprint(state: Any) -> Array:
    """uint32: the wrapping sum of all bits of a tree. Tells damaged bytes that still decode."""
    words = (jax.lax.bitcast_convert_type(x.reshape(-1), jnp.uint32) for x in jax.tree.leaves(state))
    return sum((jnp.sum(w, dtype=jnp.uint32) for w in words), jnp.uint32(0))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def exists(directory: Path) -> bool:
    """Whether there is a whole checkpoint. Touches nothing, so the folder may be another process's."""
    return directory.exists() and any(path.name.isdigit() for path in directory.iterdir())


def _set_aside(directory: epath.Path) -> list[str]:
    """Rename the checkpoints whose metadata Orbax cannot read, for it would then open none of the folder's.

    Every process of a job may do this. Returns the names of all that are aside, those of earlier calls among them.
    """
    for path in directory.iterdir() if directory.exists() else ():
        if path.name.isdigit():
            try:
                ocp.checkpointables_metadata(path)
            except Exception:  # whatever a damaged file makes Orbax raise
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    path.rename(directory / f"{path.name}{ASIDE}")
    return sorted(path.name for path in directory.glob(f"*{ASIDE}"))


class Checkpoints:
    """The checkpoints of one run. As a context manager, leaving waits for the last save, and raises if it failed."""

    def __init__(self, directory: Path):
        self._directory = epath.Path(directory).resolve()
        self._aside = _set_aside(self._directory)
        self._orbax = ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(KEEP),
            cleanup_tmp_directories=True,
        )
        self._last: Any = None  # the save in the background

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self._orbax.close()

    def wait(self) -> None:
        """Return once the last save is on disk. Raises if it failed."""
        if self._last is not None:
            self._last.result()

    @property
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        return [c.step for c in self._orbax.checkpoints]

    def save(self, step: int, state: State, data: dict[str, Any], wait: bool = False) -> None:
        """Save in the background (`wait`: until it is on disk). A step that is there already is left alone."""
        if step in self.steps:
            return
        items = {"state": {"state": state, "fingerprint": fingerprint(state)}}
        # Beside the checkpoint's own metadata: an item of its own would cost more than all of the state does here.
        text = json.dumps(data)
        beside = {"data": text, "sha256": _sha256(text)}
        self._last = self._orbax.save_checkpointables_async(step, items, custom_metadata=beside)
        if wait:
            self.wait()

    def restore(
        self, abstract: State, tell: Callable[[str], None], rows: int | None = None
    ) -> tuple[State, dict[str, Any]] | None:
        """Newest checkpoint that is sound, as (state, data iterator's state); None if there is none at all.

        Damaged ones are told, and deleted so that the run can save that step again. Raises RuntimeError when every
        checkpoint is damaged: starting anew would throw work away silently.

        rows: of the run's log. If it has lost some, a checkpoint from before the loss is taken where there is one.
        """
        damaged = []
        self._tell_aside(tell)
        whole = [step for step in self.steps if rows is None or step <= rows]
        for step in reversed(self.steps):
            if whole and step not in whole:
                tell(f"checkpoint {step} has lost its log after row {rows}, falling back to the one before it")
                damaged.append(step)
                continue
            restored, reason = self._sound(step, abstract)
            if restored is not None:
                for step in damaged:
                    self._orbax.delete(step)
                self._forget_aside()
                return restored
            tell(f"checkpoint {step} is damaged, falling back to the one before it: {reason}")
            damaged.append(step)
        if damaged or self._aside:
            raise RuntimeError("every checkpoint is damaged; remove the checkpoints folder to start this run anew")
        return None

    def restore_at(
        self, step: int, abstract: State, tell: Callable[[str], None]
    ) -> tuple[State, dict[str, Any]] | None:
        """One step's checkpoint as (state, data iterator's state), with later ones deleted; None if it is damaged."""
        self._tell_aside(tell)
        restored, reason = self._sound(step, abstract)
        if restored is None:
            tell(f"checkpoint {step} is damaged: {reason}")
            return None
        self._forget_aside()
        for later in self.steps:
            if later > step:
                self._orbax.delete(later)
        return restored

    def _tell_aside(self, tell: Callable[[str], None]) -> None:
        for name in self._aside:
            step = name.removesuffix(ASIDE)
            tell(f"checkpoint {step} is damaged, falling back to the one before it: its metadata cannot be read")

    def _forget_aside(self) -> None:
        for name in self._aside if jax.process_index() == 0 else ():
            (self._directory / name).rmtree()
        self._aside = []

    def _sound(self, step: int, abstract: State) -> tuple[tuple[State, dict[str, Any]] | None, str]:
        """What a checkpoint holds, or None and why it is damaged. All processes come to the same conclusion."""
        loaded, reason = None, ""
        try:
            loaded = self._load(step, abstract)
        except Exception as error:  # whatever a damaged file makes Orbax or TensorStore raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if not everywhere(loaded is not None):
            return None, reason or "another process cannot read it"
        state, expected, data = loaded
        if int(jax.device_get(fingerprint(state))) != int(jax.device_get(expected)):
            return None, "its contents do not match their fingerprint"
        return (state, data), ""

    def _load(self, step: int, abstract: State) -> tuple[State, Array, dict[str, Any]]:
        """State, its fingerprint when it was saved, and the data iterator's state."""
        mark = jax.ShapeDtypeStruct((), jnp.uint32, sharding=abstract.step.sharding)
        beside = self._orbax.checkpointables_metadata(step).custom_metadata or {}
        if _sha256(beside.get("data", "")) != beside.get("sha256"):
            raise ValueError("the state of its data iterator does not match its sha256")
        loaded = self._orbax.load_checkpointables(step, {"state": {"state": abstract, "fingerprint": mark}})
        return loaded["state"]["state"], loaded["state"]["fingerprint"], json.loads(beside["data"])
