"""A ledger of one tiny unit, `launch.unit` on it, and what must be the same however often it was disturbed."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from deeplearn import config, sharding
from deeplearn.sweep import ledger
from deeplearn.train import loop, metrics, state as states
from deeplearn.train.checkpoint import Checkpoints
from tests.train.short_runs import short_run

ROOT = Path(__file__).parents[2]
OF_THE_CLOCK = ("wall_s", "tokens_per_s", "steps_spent")  # and of what kills have thrown away


def tiny(steps=40, **changes):
    return short_run("transformer", steps, **{"steps_per_dispatch": 2, "checkpoint_seconds": 0.0} | changes)


def make(root, run):
    """A ledger with this unit. Returns its id."""
    unit = config.identity(run)
    ledger.create(root, "chaos", {unit: config.to_dict(run)})
    return unit


def start(root, unit, *flags, words=(), **more):
    words = words or [sys.executable, "-m", "launch.unit", f"--root={root}", f"--unit={unit}", *flags]
    environment = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(words, env=os.environ | environment, text=True, cwd=ROOT, **pipes)


def finish(process):
    """(exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def rows(folder):
    return metrics.rows(folder)


def bits(root, run):
    """(the state of the newest checkpoint, its iterator, the log's bytes, the result without what clocks say)."""
    folder, mesh = Path(ledger.directory(root, config.identity(run))), sharding.one_device()
    with loop.on_mesh(mesh), Checkpoints(folder / "checkpoints") as checkpoints:
        state, saved = checkpoints.restore(states.abstract(run, mesh), print)
    result = ledger.read_json(folder / "result.json")
    told = {name: value for name, value in result.items() if name not in OF_THE_CLOCK}
    return jax.device_get(state), saved["iterator"], (folder / metrics.NAME).read_bytes(), told


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    assert a[1:] == b[1:]
