"""What a run has cost in its own folder: updates really done there, by all attempts.

A branch does not count what its trunk did (`branches.py`). What a kill threw away counts as far as the log shows it.
"""

import json
from pathlib import Path
from typing import Any

from deeplearn.train import metrics

NAME = "spent.json"


def begin(folder: Path, begun: int, lost: int = 0, trunk: str = "") -> None:
    """Note, whole or not at all, that the rows up to step `begun` come from a trunk, and that `lost` more were done."""
    noted = json.dumps({"begun": begun, "lost": lost, "trunk": trunk})
    metrics.write_whole(folder / NAME, noted + "\n")


def go_on(folder: Path, step: int) -> int:
    """Note that an attempt starts at `step`, before the log drops its later rows. Returns where the work here began.

    An attempt that starts at 0 found no checkpoint: whatever was noted of a trunk has come to nothing.
    """
    begun, lost = _noted(folder)
    rows = metrics.rows(folder)
    if step == 0 and begun:
        begun = rows = 0
    begin(folder, begun, lost + max(0, rows - step))
    return begun


def steps(folder: Path) -> int:
    """Updates done in the folder so far; 0 if nothing was trained there."""
    begun, lost = _noted(folder)
    return max(0, metrics.rows(folder) - begun) + lost


def trunk(folder: Path) -> str:
    """The name of the trunk that has left the start which no attempt has taken up yet; "" if there is none."""
    return _read(folder).get("trunk", "")


def _noted(folder: Path) -> tuple[int, int]:
    noted = _read(folder)
    return noted.get("begun", 0), noted.get("lost", 0)


def _read(folder: Path) -> dict[str, Any]:
    """What was noted; nothing if the file is missing or damaged: a count is no reason to train no further."""
    try:
        noted = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}
