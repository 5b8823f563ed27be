"""Two processes of four devices train as one process of eight does, stop together, and share their checkpoints."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from short_runs import short_run

from deeplearn import sharding
from deeplearn.train import loop, metrics
from experiments import processes

ROOT = Path(__file__).parents[2]
STEPS = 24
MESH = "data:2,fsdp:2,tensor:2"
# Here tensor parallelism crosses the processes, so that both read every example.
CROSSED = "tensor:2,fsdp:2,data:2"


def a_run(mesh, **changes):
    return short_run("transformer", STEPS, steps_per_dispatch=2, mesh=mesh, **changes)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_pair(mesh, workdir, checkpoint_seconds=30.0):
    """The command twice, as processes 0 and 1 of one job."""
    run = a_run(mesh)
    settings = {"size": run.size, "batch_size": 16, "eval_examples": 64, "eval_batch": 32, "steps_per_dispatch": 2}
    settings |= {"budget": run.budget, "checkpoint_seconds": checkpoint_seconds}
    words = [sys.executable, "-m", "experiments.train", "--config=transformer", f"--mesh={mesh}"]
    words += [f"--workdir={workdir}", *(f"--set={name}={value}" for name, value in settings.items())]
    words += [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*words, f"--process={i}"], env=env, **pipes) for i in (0, 1)]


def finish(pair):
    """What each printed; both must end with the same code."""
    with ThreadPoolExecutor(len(pair)) as pool:  # at once: a process whose pipe is full waits, and the other for it
        said = list(pool.map(lambda process: process.communicate(timeout=300), pair))
    codes = {process.returncode for process in pair}
    assert len(codes) == 1, said
    return codes.pop(), said


def log_of(workdir):
    rows = list(metrics.read(workdir))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def assert_like(workdir, loss, whole, whole_loss):
    ours, theirs = log_of(workdir), log_of(whole)
    assert ours.keys() == theirs.keys() and len(ours["step"]) == STEPS
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-3 if name.endswith("norm") else 1e-4, err_msg=name)
    assert loss == pytest.approx(whole_loss, rel=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run in this one process, on its eight devices."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train(a_run(MESH), workdir).loss


@pytest.mark.slow
def test_two_processes_stop_together_and_end_as_one_process_does(whole, tmp_path):
    pair = start_pair(MESH, workdir := tmp_path / "pair", checkpoint_seconds=0.0)
    while len(list(metrics.read(workdir))) < 6 and pair[0].poll() is None:
        time.sleep(0.001)
    pair[1].send_signal(signal.SIGTERM)
    code, said = finish(pair)
    assert code == 42, said
    stopped_at = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 6 <= stopped_at < STEPS and not (workdir / "result.json").exists()

    alone = tmp_path / "alone"  # one process goes on from what two have saved, on one device
    shutil.copytree(workdir, alone)
    assert_like(alone, loop.train(a_run("data:1"), alone).loss, *whole)

    # And two go on, past a newest checkpoint that one file's damage takes from both.
    files = (workdir / "checkpoints" / str(stopped_at) / "state").rglob("d/*")
    largest = max((file for file in files if file.is_file()), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    code, ((printed, _), (silent, _)) = finish(start_pair(MESH, workdir))
    assert code == 0 and "step" not in silent and "loss" not in silent  # the library of collectives talks there
    assert f"checkpoint {stopped_at} is damaged" in printed and f"step {STEPS}/{STEPS}" in printed
    assert_like(workdir, json.loads((workdir / "result.json").read_text())["loss"], *whole)


@pytest.mark.slow
def test_processes_that_hold_the_same_examples_read_the_same(whole, tmp_path):
    code, said = finish(start_pair(CROSSED, tmp_path))
    assert code == 0, said
    assert_like(tmp_path, json.loads((tmp_path / "result.json").read_text())["loss"], *whole)


def test_a_process_reads_the_rows_of_its_devices():
    np.testing.assert_array_equal(sharding.rows_here(sharding.make_mesh("data:2,tensor:4"), 6), np.arange(6))
    np.testing.assert_array_equal(sharding.rows_here(sharding.make_mesh("tensor:8"), 3), np.arange(3))


def test_process_0_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE_S", 0.3)
    with pytest.raises(processes.Unreachable, match=r"process 0 does not answer at 127\.0\.0\.1:\d+"):
        processes._wait_for(f"127.0.0.1:{free_port()}", 1)
