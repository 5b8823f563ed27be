"""Trunk and branches: runs that differ in budget alone share their updates up to the shortest one's cooldown.

The longest run, the trunk, leaves a checkpoint in the folder of each shorter run, its branch, where that would be the
same to the bit. The branch is an ordinary run from then on: it goes on from what it finds, and ends with the bits of a
run of its own (Hägele et al. 2024, arXiv 2405.18392, for why the cooldown is enough).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from deeplearn.config import ConfigError
from deeplearn.optim import stable_steps
from deeplearn.train import checkpoint, metrics, spent, state as states
from deeplearn.train.run import Run
from deeplearn.train.state import State
from deeplearn.train.together import everywhere


class Branch(NamedTuple):
    """A shorter run that a trunk may start.

    is_new: asked before anything is written into `folder`; False where somebody has started the run already. ready:
    called once, with the step that the run now begins at; 0 if the trunk has left it nothing.
    """

    run: Run
    folder: Path
    is_new: Callable[[], bool]
    ready: Callable[[int], None]


def kind(run: Run) -> Run:
    """What a trunk and its branches have in common. Dispatches are of it: other programs round otherwise."""
    return dataclasses.replace(run, budget=1, checkpoint_seconds=0.0, max_epochs=1)


def step_of(run: Run) -> int:
    """Updates after which `run` may branch off any longer run of its kind: the last start of a dispatch before its
    cooldown. 0 if it shares nothing with them."""
    return stable_steps(run.optim, run.steps) // run.steps_per_dispatch * run.steps_per_dispatch


def seed(branch: Branch, trunk: Path, step: int, state: State, iterator: dict[str, Any]) -> int:
    """Leave the trunk's state after `step` updates in the branch's folder, and wait until it is on disk.

    In a job of several processes each calls this alike. The checkpoint comes last and appears whole, so that a kill
    leaves a start or none. Returns the step that the branch begins at: 0 where it is at work or done already.

    Args:
      trunk: the folder of the run whose state it is; its log has the rows up to `step`.
      iterator: the state of its data iterator there.
    """
    if not everywhere(branch.is_new()):
        return 0
    checkpoints = branch.folder / "checkpoints"
    if everywhere(checkpoint.exists(checkpoints)):
        return step
    if jax.process_index() == 0:
        branch.folder.mkdir(parents=True, exist_ok=True)
        metrics.copy(trunk, branch.folder, step).close()
        spent.begin(branch.folder, step, trunk=trunk.name)
    hyper = jax.device_put(states.numbers(branch.run), jax.tree.map(lambda x: x.sharding, state.hyper))
    with checkpoint.Checkpoints(checkpoints) as saved:
        saved.save(step, state._replace(hyper=hyper), {"iterator": iterator, "wall_s": 0.0}, wait=True)
    return step


def leaving(branches: Sequence[Branch], trunk: Run, step: int) -> dict[int, list[Branch]]:
    """The branches that leave a trunk which stands at `step`, by the step that each leaves at.

    Lets go of those whose step is behind. Raises ConfigError for a run that is no branch of the trunk.
    """
    found: dict[int, list[Branch]] = {}
    for branch in branches:
        if kind(branch.run) != kind(trunk) or branch.run.steps > trunk.steps:
            raise ConfigError("a branch may differ from its trunk in nothing but a smaller budget")
        leaves = step_of(branch.run)
        if leaves and leaves >= step:
            found.setdefault(leaves, []).append(branch)
        else:
            branch.ready(0)
    return found
