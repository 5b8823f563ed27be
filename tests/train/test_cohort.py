"""Runs that train together end where each would alone."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from short_runs import short_run

from deeplearn import families, sharding
from deeplearn.config import ConfigError
from deeplearn.train import cohort, loop, memory, metrics, state as states
from deeplearn.train.checkpoint import Checkpoints

STEPS = 8


def varied(family, **changes):
    """Runs that differ in each number that can be traced."""
    run = short_run(family, STEPS, **changes)
    optims = ({"learning_rate": 3e-3, "weight_decay": 0.1}, {"b1": 0.8, "b2": 0.95})
    runs = [dataclasses.replace(run, optim=dataclasses.replace(run.optim, **o)) for o in optims]
    return [*runs, dataclasses.replace(run, seed=3), run]


class Cohort:
    """Members in folders 0, 1, ... and how they ended."""

    def __init__(self, runs, folder, observe=lambda i, progress: None):
        self.folders = [folder / str(i) for i in range(len(runs))]
        self.ended = {}
        self.members = []
        for i, (run, where) in enumerate(zip(runs, self.folders, strict=True)):
            where.mkdir(parents=True, exist_ok=True)
            watch = lambda progress, i=i: observe(i, progress)  # noqa: E731
            end = lambda how, i=i: self.ended.__setitem__(i, how)  # noqa: E731
            self.members.append(cohort.Member(run, where, watch, lambda: None, end))

    def train(self, should_stop=lambda: False):
        told = []
        cohort.train(self.members, should_stop, told.append)
        return told


def final(run, folder):
    mesh = sharding.one_device()
    with loop.on_mesh(mesh), Checkpoints(folder / "checkpoints") as checkpoints:
        return jax.device_get(checkpoints.restore(states.abstract(run, mesh), print)[0])


def rows(folder):
    return [json.loads(line) for line in (folder / metrics.NAME).read_text().splitlines()]


def assert_as_alone(runs, together, folder, rel=1e-5):
    for i, run in enumerate(runs):
        alone = loop.train(dataclasses.replace(run, mesh="data:1"), folder / f"alone{i}")
        result = together.ended[i]
        assert result.loss == pytest.approx(alone.loss, rel=rel)
        assert (result.unit, result.tokens) == (alone.unit, alone.tokens)
        a, b = final(run, folder / f"alone{i}"), final(run, together.folders[i])
        x, y = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.params)]) for state in (a, b))
        assert np.linalg.norm(x - y) <= 10 * rel * np.linalg.norm(x)
        for x, y in zip(rows(folder / f"alone{i}"), rows(together.folders[i]), strict=True):
            assert x == pytest.approx(y, rel=max(20 * rel, 5e-3))


def test_each_member_ends_where_it_would_alone(tmp_path):
    runs = varied("transformer")[1:3]
    together = Cohort(runs, tmp_path)
    together.train()
    assert_as_alone(runs, together, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data:1", "", "data:2,fsdp:2", "cohort:4,data:2"])
@pytest.mark.parametrize("family", families.names())
def test_each_member_of_every_family_ends_where_it_would_alone(family, mesh, tmp_path):
    runs = varied(family, mesh=mesh)
    together = Cohort(runs, tmp_path)
    together.train()
    assert_as_alone(runs, together, tmp_path, rel=1e-3)  # normalisation over a batch amplifies rounding


def test_members_on_devices_of_their_own_send_each_other_nothing():
    run = short_run("transformer")
    mesh = sharding.mesh_of_members("", 8)
    assert dict(mesh.shape) == {"cohort": 8} and dict(sharding.mesh_of_members("", 4).shape) == {"data": 8}
    with loop.on_mesh(mesh):
        text = cohort.compiled_steps(loop.program(run), mesh, 2, 8).as_text()
    assert not [word for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute") if word in text]
    with pytest.raises(ConfigError, match="'cohort:8' spreads the members of a cohort, and this run trains alone"):
        loop.check(dataclasses.replace(run, mesh="cohort:8"), mesh)


def test_a_cohort_that_is_stopped_goes_on_to_the_same_bits(tmp_path):
    runs = [dataclasses.replace(run, budget=run.budget * 12 // STEPS) for run in varied("transformer")[2:]]
    whole, parts = Cohort(runs, tmp_path / "whole"), Cohort(runs, tmp_path / "parts")
    whole.train()
    for step in (4, 8):
        with pytest.raises(loop.Stopped, match=f"stopped at step {step} of 12"):
            parts.train(lambda: True)
    assert not parts.ended
    # As if a kill had come between the two saves: both go on from where they were together.
    shutil.rmtree(parts.folders[1] / "checkpoints" / "8")
    with pytest.raises(loop.Stopped, match="stopped at step 8 of 12"):
        parts.train(lambda: True)
    parts.train()
    for i, run in enumerate(runs):
        a, b = final(run, whole.folders[i]), final(run, parts.folders[i])
        jax.tree.map(np.testing.assert_array_equal, a, b)
        assert (whole.folders[i] / metrics.NAME).read_bytes() == (parts.folders[i] / metrics.NAME).read_bytes()
        assert whole.ended[i].loss == parts.ended[i].loss


@pytest.mark.slow
def test_a_member_that_diverges_ends_alone(tmp_path, monkeypatch):
    good = short_run("transformer", 16)
    bad = dataclasses.replace(good, optim=dataclasses.replace(good.optim, learning_rate=float("inf")))
    last = dataclasses.replace(good, seed=1)
    together = Cohort([good, bad, last], tmp_path / "a")
    told = together.train()
    assert isinstance(together.ended[1], loop.Diverged) and "is not a finite number" in str(together.ended[1])
    assert told == [], "so short a run is not worth another program"
    monkeypatch.setattr(cohort, "RECOMPILE_S", 0.0)
    smaller = Cohort([good, bad, last], tmp_path / "b")
    assert smaller.train() == ["2 of 3 members go on by themselves"]
    for i in (0, 2):
        assert together.ended[i].loss == pytest.approx(smaller.ended[i].loss, rel=1e-5)
        assert len(rows(smaller.folders[i])) == 16


def test_an_observer_may_end_a_member(tmp_path):
    def observe(i, progress):
        if i == 0 and progress.step >= 4:
            raise loop.Diverged("enough")

    together = Cohort(varied("transformer")[2:], tmp_path, observe)
    together.train()
    assert str(together.ended[0]) == "enough" and together.ended[1].loss > 0


def test_what_does_not_go_together_is_refused(tmp_path, monkeypatch):
    a, b = short_run("transformer", 8), short_run("transformer", 12)
    with pytest.raises(ConfigError, match="differ in more than numbers that can be traced"):
        Cohort([a, b], tmp_path / "a").train()
    monkeypatch.setattr(memory, "free", lambda: 10**6)
    with pytest.raises(cohort.TooWide, match=r"2 members want .* GB of memory together, and 0\.001 are free"):
        Cohort([a, dataclasses.replace(a, seed=1)], tmp_path / "b").train()
