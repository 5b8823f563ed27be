"""Train one run: python -m experiments.train --config=NAME --workdir=DIR [--set KEY=VALUE ...]

DIR gets config.json, metrics.jsonl (one row an update), checkpoints/ and result.json. Run the same again and it goes on
from the newest checkpoint; Ctrl-C saves first. Overrides: --set model.depth=4 or --config.model.depth=4; size=...
derives the whole model anew. For example

    python -m experiments.train --config=transformer --workdir=runs/t --set size=32 --set budget=200000
    python -m experiments.train --config=cnn --workdir=runs/cnn --set mesh=data:4,fsdp:2

Over several processes the same command runs in each, with --distributed where Slurm, MPI, GKE or a TPU started them, or
with --coordinator=HOST:PORT --processes=N --process=I. All need the same DIR. A signal to one of them stops all.
"""

import json
import signal
import threading
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deeplearn.config import ConfigError, canonical_json, identity, overlay
from deeplearn.sweep import ledger
from experiments import cli, processes

cli.define_config_flags()
processes.define_flags()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
_MESH = flags.DEFINE_string("mesh", None, "The same as --set mesh=..., for example data:4,fsdp:2.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Mirror the metrics to WORKDIR/tensorboard.")


def main(argv: list[str]) -> int:
    del argv
    if _WORKDIR.value is None:
        raise ConfigError("where to? pass --workdir=DIR")
    run = overlay(cli.config_from_flags(), {} if _MESH.value is None else {"mesh": _MESH.value})
    from deeplearn import sharding  # JAX is slow to import: a wrong flag should not wait for it
    from deeplearn.train import loop

    workdir, is_first = Path(_WORKDIR.value), processes.join()
    mesh = sharding.make_mesh(run.mesh)
    sharding.check_all_used(mesh)
    loop.check(run, mesh)  # before anything is written
    _claim(workdir, canonical_json(run, identity_only=True), is_first)

    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    console = Console(quiet=not is_first)
    columns = (TextColumn("{task.description}"), BarColumn(None), TimeElapsedColumn(), TimeRemainingColumn())
    said = 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(run.family, total=run.steps)

        def observe(progress: loop.Progress) -> None:
            nonlocal said
            where = f"step {progress.step}/{progress.steps}"
            text = f"{where}  loss {progress.loss:.4f}  {progress.tokens_per_s:,.0f} tokens/s"
            bar.update(task, completed=progress.step, description=f"{run.family} {run.size}  {text}")
            if not console.is_terminal and progress.step / progress.steps >= said:
                said += 0.1
                console.print(text, highlight=False)

        result = loop.train(
            run, workdir, observe, should_stop=stopping.is_set, tell=console.print, tensorboard=_TENSORBOARD.value
        )
    if is_first:
        ledger.write_json(workdir / "result.json", result._asdict())
    console.print(
        f"held-out loss {result.loss:.4f} {result.unit} after {result.tokens:,} tokens "
        f"({result.wall_s:.1f} s, {result.tokens_per_s:,.0f} tokens/s); run {identity(run)} is in {workdir}",
        highlight=False,
    )
    return 0


def _claim(workdir: Path, text: str, writes: bool) -> None:
    """Write config.json, in the one process that does, or refuse a folder that holds another run."""
    path = workdir / "config.json"
    here, wanted = ledger.read_json(path), json.loads(text)
    if here is None and writes:
        try:
            ledger.write_json(path, wanted)
        except OSError as error:
            raise ConfigError(f"--workdir: cannot write {path}: {error.strerror}") from None
    elif here not in (None, wanted):
        names = ", ".join(_differences(here, wanted))
        raise ConfigError(f"{workdir} holds another run: {names} differ; choose another --workdir")


def _differences(a: dict, b: dict, prefix: str = "") -> list[str]:
    names = []
    for key in sorted({*a, *b}):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            names += _differences(x, y, f"{prefix}{key}.")
        elif x != y:
            names.append(prefix + key)
    return names


if __name__ == "__main__":
    cli.run(main)
