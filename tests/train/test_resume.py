"""A run that is killed and resumed ends where the uninterrupted one does, to the bit; on another mesh, to float32."""

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from short_runs import assert_same_bits, final, short_run

from deeplearn import families
from deeplearn.config import ConfigError
from deeplearn.train import loop, metrics

STEPS = 40

# Orbax leaves the reads that fail in a damaged checkpoint to the garbage collector, which then warns of each.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_failed_reads():
    yield
    gc.collect()


def command(family, workdir):
    arguments = ["--set=batch_size=16", "--set=eval_examples=64", "--set=eval_batch=32", "--set=steps_per_dispatch=2"]
    size, run = families.get(family).SIZES[0], short_run(family, STEPS)
    arguments += [f"--set=size={size}", f"--set=budget={run.budget}", "--set=checkpoint_seconds=0", "--mesh=data:1"]
    return [sys.executable, "-m", "experiments.train", f"--config={family}", f"--workdir={workdir}", *arguments]


def rows(workdir):
    return sum(1 for _ in metrics.read(workdir))


@pytest.mark.slow
@pytest.mark.parametrize("family", families.names())
def test_kill_9_at_random_steps_then_resume_gives_the_same_bits(family, tmp_path):
    run = short_run(family, STEPS, steps_per_dispatch=2)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(family, whole), check=True, env=environment, capture_output=True)
    dice = random.Random(family)
    for target in sorted(dice.sample(range(3, STEPS - 3), 3)):
        process = subprocess.Popen(command(family, killed), env=environment, stdout=subprocess.DEVNULL)
        while rows(killed) < target and process.poll() is None:
            time.sleep(0.001)
        time.sleep(dice.random() * 0.05)
        process.kill()
        process.wait()
        assert not (killed / "result.json").exists(), "the kill came too late to test anything"
    subprocess.run(command(family, killed), check=True, env=environment, capture_output=True)
    assert_same_bits(run, whole, killed)
    losses = [json.loads((w / "result.json").read_text())["loss"] for w in (whole, killed)]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on 8 devices with checkpoints after 36 and 40 updates."""
    workdir = tmp_path_factory.mktemp("trained")
    run = short_run("transformer", STEPS, mesh="data:2,fsdp:4", checkpoint_seconds=0.0)
    return run, workdir, loop.train(run, workdir)


def test_stopping_and_going_on_gives_the_same_bits(trained, tmp_path):
    run, whole, result = trained
    asked = iter([False, False, True])
    with pytest.raises(loop.Stopped, match="step 12 of 40"):
        loop.train(run, tmp_path, should_stop=lambda: next(asked))
    assert loop.train(run, tmp_path).loss == result.loss
    assert_same_bits(run, whole, tmp_path)


def test_a_checkpoint_moves_to_another_mesh(trained, tmp_path):
    run, workdir, result = trained
    for mesh in ("data:1", "fsdp:4"):
        moved = short_run("transformer", STEPS, mesh=mesh)
        state, _ = final(moved, workdir)
        jax.tree.map(np.testing.assert_array_equal, state, final(run, workdir)[0])
        copy = tmp_path / mesh.replace(":", "")
        shutil.copytree(workdir, copy)
        assert loop.train(moved, copy).loss == pytest.approx(result.loss, rel=1e-5)


def array_files(step):
    return [f for f in (step / "state").rglob("d/*") if f.is_file()]


def damage_truncate(step):
    for file in array_files(step):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_flip(step):
    for file in array_files(step):
        content = bytearray(file.read_bytes())
        for place in range(len(content) // 4, len(content) // 4 + 64):
            content[place] ^= 0x55
        file.write_bytes(content)


def damage_metadata(step):
    for file in step.rglob("_*METADATA*"):
        file.write_text("{")


def damage_iterator(step):
    file = step / "_CHECKPOINT_METADATA"
    content = json.loads(file.read_text())
    beside = content["custom_metadata"]
    place = next(i for i, c in enumerate(beside["data"]) if c.isdigit())
    beside["data"] = beside["data"][:place] + str((int(beside["data"][place]) + 1) % 10) + beside["data"][place + 1 :]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_metadata, damage_iterator])
def test_a_damaged_newest_checkpoint_falls_back_one_and_says_so(trained, tmp_path, damage):
    run, workdir, result = trained
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    damage(copy / "checkpoints" / str(STEPS))
    said = []
    again = loop.train(run, copy, tell=said.append)
    assert len(said) == 1 and f"checkpoint {STEPS} is damaged" in said[0]
    assert again.loss == result.loss
    assert_same_bits(run, workdir, copy)


def test_when_every_checkpoint_is_damaged_nothing_is_thrown_away(trained, tmp_path):
    run, workdir, _ = trained
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for step in (copy / "checkpoints").iterdir():
        damage_truncate(step)
    before = sorted(p.name for p in (copy / "checkpoints").iterdir())
    with pytest.raises(RuntimeError, match="every checkpoint is damaged"):
        loop.train(run, copy, tell=lambda _: None)
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == before


def test_a_budget_past_the_data_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="epochs of 'shakespeare', over max_epochs 1"):
        loop.train(short_run("transformer", 10**6), tmp_path)


def test_data_that_the_family_cannot_read_is_refused(tmp_path):
    run = short_run("transformer", data=short_run("cnn").data)
    with pytest.raises(ConfigError, match=r"transformer wants tokens\[65\]; data 'mnist_digits' gives image"):
        loop.train(run, tmp_path)


def test_a_diverging_run_says_so(tmp_path):
    import dataclasses

    run = short_run("transformer")
    wild = dataclasses.replace(run.optim, name="sgd", learning_rate=1e30, clip=0.0)
    why = r"is not a finite number at step \d+; .* is not finite (at|after) step \d+"
    with pytest.raises(loop.Diverged, match=why):
        loop.train(dataclasses.replace(run, optim=wild), tmp_path)


def test_metrics_of_a_run_are_one_row_an_update(trained):
    run, workdir, _ = trained
    found = list(metrics.read(Path(workdir)))
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert [row["tokens"] for row in found] == [run.tokens_per_step * step for step in range(1, STEPS + 1)]
    assert found[-1]["next_token"] < found[0]["next_token"] - 0.5
