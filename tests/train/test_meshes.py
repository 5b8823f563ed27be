"""Where a run is trained does not change what it learns."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn
from short_runs import after, short_run

from deeplearn import families, sharding
from deeplearn.config import ConfigError
from deeplearn.train import loop, state as states

STEPS = 20


def moved(run, state):
    """How far each parameter went from its start, as one vector."""
    mesh = sharding.one_device()
    with loop.on_mesh(mesh):
        start = jax.device_get(states.create(run, mesh).params)
    moves = jax.tree.map(lambda x, y: (x - y).ravel(), state.params, start)
    return np.concatenate(jax.tree.leaves(moves))


@pytest.mark.parametrize("family", families.names())
@pytest.mark.parametrize(
    "meshes", [("data:2,fsdp:4",), pytest.param(("data:8", "data:2,fsdp:2,tensor:2"), marks=pytest.mark.slow)]
)
def test_one_device_equals_many(family, meshes):
    # A small rate: Adam's first steps are signs, which turn float32's last bit into whole steps, and a large rate
    # then drives the runs of a network with batch norm apart.
    run = short_run(family)
    run = dataclasses.replace(run, optim=dataclasses.replace(run.optim, learning_rate=3e-4))
    one, one_metrics = after(run, STEPS)
    way = moved(run, one)
    for mesh in meshes:
        other, metrics = after(dataclasses.replace(run, mesh=mesh), STEPS)
        for name, values in one_metrics.items():
            rtol = 1e-2 if name.endswith("gradient_norm") else 1e-4
            np.testing.assert_allclose(metrics[name], values, rtol=rtol, err_msg=f"{mesh} {name}")
        assert np.linalg.norm(moved(run, other) - way) < 5e-3 * np.linalg.norm(way), mesh


@pytest.mark.parametrize("family", families.names())
def test_fsdp_spreads_most_of_the_parameters_and_of_the_optimiser(family):
    run = short_run(family)
    mesh = sharding.make_mesh("fsdp:8")
    with loop.on_mesh(mesh):
        state = states.abstract(run, mesh)
    for tree in (state.params, state.opt):
        whole = sum(x.size for x in jax.tree.leaves(tree))
        mine = sum(np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))
        assert mine < 0.5 * whole


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("dat:8", "did you mean 'data'"),
        ("data:2,data:4", "twice"),
        ("data:x", "size 'x'"),
        ("data", "size ''"),
        ("data:16", "needs 16 devices and 8 are here"),
        ("data:2,slice:4", "'data:2,slice:4' must name axis 'slice' first"),
    ],
)
def test_a_wrong_mesh_is_named(flag, words):
    with pytest.raises(ConfigError, match=words):
        sharding.make_mesh(flag)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("data:2,tensor:2", r"{'data': 2, 'tensor': 2} has 4 places and 8 devices .* for example data:4,tensor:2"),
        ("fsdp:3", r"{'fsdp': 3} has 3 places and 8 devices are here; write for example data:8"),
    ],
)
def test_a_mesh_that_leaves_devices_over_is_named(flag, words):
    with pytest.raises(ConfigError, match=words):
        sharding.check_all_used(sharding.make_mesh(flag))
    for right in ("", "data:1", "data:4,tensor:2"):
        sharding.check_all_used(sharding.make_mesh(right))


def test_a_parameter_that_one_mesh_axis_would_cut_twice_is_named():
    square = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((16, 16), np.float32), ("embed", "embed"))
    words = r"'fsdp': 8}: layer/kernel \('embed', 'embed'\) of \(16, 16\) has two axes 'embed', and axis 'fsdp' can cut"
    with pytest.raises(ConfigError, match=words):
        sharding.check({"layer": {"kernel": square}}, sharding.make_mesh("fsdp:8"))


def test_a_batch_that_does_not_divide_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size / microbatches is 12.* 8 places"):
        loop.train(short_run("cnn", batch_size=12, mesh="data:8"), tmp_path)


def test_microbatches_give_the_gradient_of_the_whole_batch():
    whole, _ = after(short_run("transformer"), 3)
    pieces, _ = after(short_run("transformer", microbatches=4), 3)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(pieces.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)
