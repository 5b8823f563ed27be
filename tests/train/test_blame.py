"""A NaN that gets in somewhere: the run ends as diverged, with the exact step and the first tensor that was broken."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from short_runs import short_run

from deeplearn import data
from deeplearn.families import transformer
from deeplearn.train import cohort, loop
from deeplearn.train.once import once

STEP = 11  # within a dispatch of four, after checkpoints


@jax.custom_vjp
def poisoned(x, bad):
    return x


poisoned.defvjp(lambda x, bad: (x, bad), lambda bad, g: (jnp.where(bad, jnp.nan, g), np.zeros((), jax.dtypes.float0)))


@pytest.fixture
def fresh_programs(monkeypatch):
    """Programs compiled for a family that is not what it was do not stay."""
    for module, name, size in ((loop, "compiled_steps", 16), (cohort, "compiled_steps", 16)):
        monkeypatch.setattr(module, name, once(size)(getattr(module, name).__wrapped__))
    monkeypatch.setattr(loop.blame, "_looking", once(4)(loop.blame._looking.__wrapped__))


@pytest.fixture
def bad_gradient(monkeypatch, fresh_programs):
    """The transformer with a gradient that is NaN in one tensor, on one batch."""
    run = short_run("transformer", 16, checkpoint_seconds=0.0)
    marked = data.train_iterator(run.data, run.batch_size, run.seed).at(STEP - 1)["tokens"]
    real = transformer.objectives

    def objectives(config):
        [objective] = real(config)

        def loss(variables, batch, key, train):
            path, _ = jax.tree_util.tree_leaves_with_path(variables["params"])[3]
            bad = jnp.all(batch["tokens"] == marked)
            params = jax.tree_util.tree_map_with_path(
                lambda p, x: poisoned(x, bad) if p == path else x, variables["params"]
            )
            return objective.loss({**variables, "params": params}, batch, key, train)

        return [objective._replace(loss=loss)]

    monkeypatch.setattr(transformer, "objectives", objectives)
    leaves = jax.tree_util.tree_leaves_with_path(loop.states.abstract(run, loop.sharding.one_device()).params)
    return run, jax.tree_util.keystr(leaves[3][0], simple=True, separator="/")


@pytest.mark.chaos
def test_a_gradient_is_named_with_its_step(bad_gradient, tmp_path, record_property):
    run, name = bad_gradient
    with pytest.raises(loop.Diverged) as diverged:
        loop.train(run, tmp_path)
    first, second = str(diverged.value).split("; ")
    assert first == f"next_token/gradient_norm is not a finite number at step {STEP}"
    assert second == f"gradient of {name} is not finite at step {STEP}"
    record_property("fault", "NaN in one gradient of one step")
    record_property("tries", 1)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_member_of_a_cohort_alone_is_named(bad_gradient, tmp_path, record_property):
    run, name = bad_gradient
    other, ended = dataclasses.replace(run, seed=1), {}
    members = []
    for i, each in enumerate((run, other)):
        (tmp_path / str(i)).mkdir()
        end = lambda how, i=i: ended.__setitem__(i, how)  # noqa: E731
        members.append(cohort.Member(each, tmp_path / str(i), lambda progress: None, lambda: None, end))
    cohort.train(members, lambda: False, print)
    assert str(ended[0]).endswith(f"at step {STEP}; gradient of {name} is not finite at step {STEP}")
    assert ended[1].loss > 0, "the others go on"
    record_property("fault", "NaN in one gradient of one member of a cohort")
    record_property("tries", 1)


@pytest.mark.chaos
@pytest.mark.slow
def test_broken_data_is_named(tmp_path, monkeypatch, record_property):
    run, real = short_run("cnn", 16, checkpoint_seconds=0.0), data.pipeline.TrainIterator.at

    def at(self, step):
        batch = real(self, step)
        bad = np.asarray(step == STEP - 1).reshape(-1, *[1] * 4) if np.ndim(step) else step == STEP - 1
        return {**batch, "image": np.where(bad, np.float32(np.nan), batch["image"])}

    monkeypatch.setattr(data.pipeline.TrainIterator, "at", at)
    why = f"at step {STEP}; image of the training data is not finite at step {STEP}$"
    with pytest.raises(loop.Diverged, match=why):
        loop.train(run, tmp_path)
    record_property("fault", "NaN in the data of one step")
    record_property("tries", 1)
