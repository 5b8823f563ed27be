"""Which units of a sweep share their updates: the longest of a group is the trunk that the others branch off.

Units belong together when they differ in budget alone (`train/branches.py` says what that takes) and are of one split:
a held-out run is trained after its prediction, and so not by the way, nor does it lend a fitted run its start. As every
unit ends with the bits of a run of its own, there is nothing to choose: what can be shared is.
"""

from collections.abc import Iterable

from deeplearn.sweep.grid import Unit
from deeplearn.train import branches


def group(units: Iterable[Unit]) -> dict[str, list[Unit]]:
    """The branches of each trunk by its id, the shortest first. Units that share nothing are in no group."""
    kinds: dict[object, list[Unit]] = {}
    for unit in units:
        kinds.setdefault((unit.split, branches.kind(unit.run)), []).append(unit)
    found = {}
    for alike in kinds.values():
        *shorter, trunk = sorted(alike, key=lambda unit: unit.run.steps)
        sharing = [unit for unit in shorter if branches.step_of(unit.run)]
        if sharing:
            found[trunk.id] = sharing
    return found


def trunk_of(groups: dict[str, list[Unit]]) -> dict[str, str]:
    """The trunk's id of each branch by its id."""
    return {branch.id: trunk for trunk, sharing in groups.items() for branch in sharing}
