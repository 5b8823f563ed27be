import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from setups import make_batch, make_setup

from deeplearn.families import cnn
from deeplearn.layers.convolution import Conv


@pytest.fixture(scope="module")
def small():
    return make_setup(cnn, cnn.config(2))


@pytest.fixture(scope="module")
def train_loss(small):
    (objective,) = cnn.objectives(small.config)
    return jax.jit(lambda v, b, k: objective.loss(v, b, k, True))


@pytest.fixture(scope="module")
def evaluate(small):
    return jax.jit(lambda v, b, k: cnn.evaluate(small.config, v, b, k))


def test_training_moves_the_running_statistics_a_tenth_of_the_way(small, train_loss):
    _, aux = train_loss(*small[2:])
    stem = {"params": small.variables["params"]["stem"]}
    x = jax.device_get(jax.jit(Conv(2, 3).apply)(stem, small.batch["image"]))
    moved = jax.device_get(aux.state["batch_stats"]["stage_0_block_0"]["norm_0"])
    np.testing.assert_allclose(moved["mean"], 0.1 * x.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * x.var(axis=(0, 1, 2)), rtol=1e-4)


def test_evaluation_uses_the_running_statistics_and_no_other_example(small, train_loss, evaluate):
    _, aux = train_loss(*small[2:])
    trained = {**small.variables, **aux.state}
    before, after = (jax.device_get(evaluate(v, small.batch, small.key)[0]) for v in (small.variables, trained))
    assert abs(before - after) > 1e-3
    examples = jax.device_get(small.batch)
    halves = [jax.device_put({k: x[at] for k, x in examples.items()}) for at in (slice(0, 2), slice(2, 4))]
    parts = [jax.device_get(evaluate(trained, half, small.key)[0]) for half in halves]
    np.testing.assert_allclose(after, sum(parts), rtol=1e-5)


def test_statistics_are_those_of_the_whole_sharded_batch(small, train_loss):
    batch = make_batch(cnn, small.config, size=16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put((small.variables, small.key), NamedSharding(mesh, PartitionSpec()))
    one, many = jax.device_get((train_loss(small.variables, batch, small.key), train_loss(whole[0], spread, whole[1])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, many)


def test_label_smoothing_mixes_in_the_mean_over_classes(small):
    """(1 - s) * cross-entropy of the label + s * mean over classes of the cross-entropy: linear in s."""

    def loss(smoothing, label):
        config = dataclasses.replace(small.config, label_smoothing=smoothing)
        batch = {**small.batch, "label": label}
        return cnn.objectives(config)[0].loss(small.variables, batch, small.key, True)[0]

    def losses():
        label = small.batch["label"]
        by_class = jax.lax.map(lambda i: loss(0.0, jnp.full_like(label, i)), jnp.arange(10))
        return loss(0.2, label), loss(0.0, label), by_class

    smooth, plain, by_class = jax.device_get(jax.jit(losses)())
    np.testing.assert_allclose(smooth, 0.8 * plain + 0.2 * np.mean(by_class), rtol=1e-5)
