"""Launching without an engine: bad sweeps, bad words, and what submissions remember."""

import os
import socket

import pytest
from commands import SHORT, Launch, write_config
from slurm_cluster import wait_until

from deeplearn.config import ConfigError
from deeplearn.sweep import ledger
from launch import backend, local, slurm, submissions
from launch.backend import Job, Unreadable


def a_job(folder, **changes):
    names = {"name": submissions.new_name("A sweep!"), "root": str(folder), "logs": str(folder / "logs")}
    return Job(python="python", code="/code", **names | changes)


@pytest.mark.slow
def test_five_bad_units_of_a_hundred_are_told_at_once_and_nothing_is_written(tmp_path):
    good = [{"size": 8, "budget": 2048, "seed": seed} for seed in range(95)]
    bad = {
        "no setting is called 'optim.cilp'; did you mean 'optim.clip'?": {"seed": 96, "optim.cilp": 1.0},
        "batch_size must be at least 1, not 0": {"seed": 97, "batch_size": 0},
        "over max_epochs 1": {"seed": 98, "budget": 10**10},
        "batch_size / microbatches is 4, which does not divide over mesh {'data': 3}": {"seed": 99, "mesh": "data:3"},
        "transformer wants": {"seed": 100, "data.seq_len": 32},
    }
    launch = Launch(write_config(tmp_path / "sweep.py", good + list(bad.values())), tmp_path / "root")
    for verb in ("check", "submit"):
        lines = launch(verb, code=2).splitlines()
        assert len(lines) == 5, lines
        for sentence, point in bad.items():
            assert any(f"seed={point['seed']}" in line and sentence in line for line in lines), (sentence, lines)
        assert not launch.root.exists()


@pytest.mark.slow
def test_local_units_are_sent_once_and_cancelled_ones_go_on(tmp_path):
    launch = Launch(write_config(tmp_path / "sweep.py", SHORT[:2]), tmp_path / "root", "--backend=local")
    launch("submit", "--max_parallel=1", "--devices=2")
    assert "nothing to send" in launch("submit")
    assert "cancelled" in launch("cancel")
    wait_until(lambda: not submissions.live(str(launch.root)), "the end of all processes")
    launch("submit", "--max_parallel=2", "--devices=2")
    wait_until(launch.is_over, "results")
    assert "2 of 2 units have a result" in launch("collect")
    assert max(launch.attempts()) <= 2


def test_a_backend_is_known_by_its_name():
    with pytest.raises(ConfigError, match="no backend is called 'slrum'; did you mean 'slurm'"):
        backend.get("slrum")
    with pytest.raises(ConfigError, match="backend 'local' has one machine"):
        local.render([], a_job(submissions.epath.Path("/x"), nodes=2))
    with pytest.raises(ConfigError, match="an option for sbatch is one word"):
        slurm.render([], a_job(submissions.epath.Path("/x"), options=("--a\n#SBATCH --b",)))


def test_another_process_with_the_number_of_one_of_ours_is_none_of_ours(tmp_path):
    job = a_job(tmp_path)
    (tmp_path / "logs" / job.name).mkdir(parents=True)
    assert local.find(job, ["abc"]) == ""
    (tmp_path / "logs" / job.name / "plan.json").write_text('{"units": ["abc"]}')
    handle = local.find(job, ["abc"])
    assert local.live(handle) == set(), "this process is alive, and not of the job"
    with pytest.raises(Unreadable, match="was started on elsewhere"):
        local.live(handle.replace(socket.gethostname(), "elsewhere"))
    assert os.environ.get(local.MARK) is None


def test_a_damaged_record_is_never_taken_for_nothing(tmp_path):
    ledger.write_json(submissions.epath.Path(tmp_path) / "submissions" / "1.json", {"name": "x"})
    with pytest.raises(Unreadable, match="is damaged, and its units may be running"):
        submissions.live(str(tmp_path))
