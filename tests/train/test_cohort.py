"""Runs that train together end where each would alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from short_runs import short_run

from deeplearn import sharding
from deeplearn.config import ConfigError
from deeplearn.optim import Optim
from deeplearn.train import cohort, loop, metrics, state as states
from deeplearn.train.checkpoint import Checkpoints

STEPS = 12


def varied(family, **changes):
    """Runs that differ in each number that can be traced."""
    run = short_run(family, STEPS, **changes)
    optims = [{}, {"learning_rate": 3e-3}, {"weight_decay": 0.1}, {"b1": 0.8, "b2": 0.95}]
    runs = [dataclasses.replace(run, optim=dataclasses.replace(run.optim, **o)) for o in optims]
    return [*runs[1:], dataclasses.replace(run, seed=3)]


def members(runs, folder, observe=lambda progress: None):
    ended = {}
    made = [
        cohort.Member(r, folder / str(i), observe, lambda: None, lambda how, i=i: ended.__setitem__(i, how))
        for i, r in enumerate(runs)
    ]
    for member in made:
        member.folder.mkdir(parents=True, exist_ok=True)
    return made, ended


def train(runs, folder, **settings):
    made, ended = members(runs, folder, **settings)
    cohort.train(made, lambda: False, print)
    return [ended[i] for i in range(len(runs))]


def final(run, folder):
    mesh = sharding.one_device()
    with loop.on_mesh(mesh), Checkpoints(folder / "checkpoints") as checkpoints:
        return jax.device_get(checkpoints.restore(states.abstract(run, mesh), print)[0])


def rows(folder):
    return [json.loads(line) for line in (folder / metrics.NAME).read_text().splitlines()]


@pytest.mark.parametrize("family", ["transformer"])
def test_each_member_ends_where_it_would_alone(family, tmp_path):
    runs = varied(family)
    together = train(runs, tmp_path / "together")
    for i, run in enumerate(runs):
        alone = loop.train(run, tmp_path / f"alone{i}")
        assert together[i].loss == pytest.approx(alone.loss, rel=1e-5)
        a, b = final(run, tmp_path / f"alone{i}"), final(run, tmp_path / "together" / str(i))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), a, b)
        for x, y in zip(rows(tmp_path / f"alone{i}"), rows(tmp_path / "together" / str(i)), strict=True):
            assert x == pytest.approx(y, rel=1e-3)
