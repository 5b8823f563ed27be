"""The metrics log: one JSON line for each update, the same bytes whether or not the run was interrupted."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

NAME = "metrics.jsonl"


def is_bucket(path: os.PathLike[str]) -> bool:
    """Whether a path names objects, which appear whole and take no appended lines."""
    return "://" in os.fspath(path)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, in place of the old one if there is one."""
    if is_bucket(path):
        path.write_text(text)
        return
    partial = path.parent / f"{path.name}.tmp{os.getpid()}"
    partial.write_text(text)
    partial.replace(path)


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
    if is_bucket(target):
        file = tempfile.TemporaryFile("w+")  # noqa: SIM115 (the caller's to close)
        write_whole(target / NAME, "".join(kept))
    else:
        path = target / f"{NAME}.tmp{os.getpid()}"
        file = path.open("w")
    file.writelines(kept)
    file.flush()
    if not is_bucket(target):
        path.replace(target / NAME)
    return file


class Log:
    """Appends rows to `directory/metrics.jsonl`, and mirrors them to TensorBoard if asked.

    Opening for step n keeps the rows up to n and drops later ones, in a new file that replaces the old: a process that
    was fenced out keeps writing into the file that is gone. In a bucket the rows arrive with `sync`, all of them each
    time; those after the last one are lost with the process, and are not those of any checkpoint.
    """

    def __init__(self, directory: Path, step: int, tensorboard: bool = False):
        self._file = copy(directory, directory, step)
        self._bucket = directory / NAME if is_bucket(directory) else None
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
        if self._bucket is None:
            os.fsync(self._file.fileno())
            return
        self._file.seek(0)
        write_whole(self._bucket, self._file.read())

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()
