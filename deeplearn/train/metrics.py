"""The metrics log: one JSON line for each update, the same bytes whether or not the run was interrupted."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

NAME = "metrics.jsonl"


def read(directory: Path) -> Iterator[dict[str, Any]]:
    """Rows of a log, oldest first; nothing if there is none. A last line that a kill cut short is left out."""
    path = directory / NAME
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def rows(directory: Path) -> int:
    """Number of rows of a log, without reading what they say."""
    path = directory / NAME
    return path.read_bytes().count(b"\n") if path.exists() else 0


def copy(source: Path, target: Path, step: int) -> IO[str]:
    """Put the first `step` rows of the log in `source` into `target` as its log, whole or not at all.

    Returns the new file, open to write on. Raises ValueError if there are fewer.
    """
    lines = (source / NAME).read_text().splitlines(keepends=True) if (source / NAME).exists() else []
    kept = [line for line in lines[:step] if line.endswith("\n")]
    if len(kept) != step or (kept and json.loads(kept[-1])["step"] != step):
        raise ValueError(
            f"{source / NAME} has {len(kept)} of the {step} rows before the checkpoint: put the whole file back, or "
            f"remove {source / 'checkpoints'} to train this run anew"
        )
    path = target / f"{NAME}.tmp{os.getpid()}"
    file = path.open("w")
    file.writelines(kept)
    file.flush()
    path.replace(target / NAME)
    return file


class Log:
    """Appends rows to `directory/metrics.jsonl`, and mirrors them to TensorBoard if asked.

    Opening for step n keeps the rows up to n and drops later ones, in a new file that replaces the old: a process that
    was fenced out keeps writing into the file that is gone.
    """

    def __init__(self, directory: Path, step: int, tensorboard: bool = False):
        self._file = copy(directory, directory, step)
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # slow to import

            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, first_step: int, tokens_per_step: int, metrics_K: Mapping[str, np.ndarray]) -> None:
        """Rows for K updates, of which the first ends at `first_step`. metrics_K: name -> [K]."""
        names = sorted(metrics_K)
        columns = [metrics_K[name].tolist() for name in names]
        for step, values in enumerate(zip(*columns, strict=True), first_step):
            row = {"step": step, "tokens": step * tokens_per_step, **dict(zip(names, values, strict=True))}
            self._file.write(json.dumps(row) + "\n")
            if self._board:
                for name, value in zip(names, values, strict=True):
                    self._board.add_scalar(name, value, step)
        self._file.flush()

    def sync(self) -> None:
        """Return once the rows are on disk: a checkpoint is of no use without those before it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()
