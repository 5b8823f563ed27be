"""However a model is spread, it learns the same; wrong spreads are named before anything is trained."""

import dataclasses

import jax
import numpy as np
import pytest
from short_runs import after, short_run

from deeplearn import sharding
from deeplearn.config import ConfigError
from deeplearn.train import loop, state as states

STEPS = 5
MESHES = (
    "fsdp:2,tensor:2,context:2",
    pytest.param("tensor:2", marks=pytest.mark.slow),
    pytest.param("data:2,context:4", marks=pytest.mark.slow),
    pytest.param("slice:2,fsdp:2,tensor:2", marks=pytest.mark.slow),
)


def transformer(mesh="data:1", **changes):
    """Heads that four devices can share, and groups that two can. A small rate: see test_meshes.py."""
    run = short_run("transformer", mesh=mesh)
    model = dataclasses.replace(run.model, heads=4, kv_heads=2, **changes)
    return dataclasses.replace(run, model=model, optim=dataclasses.replace(run.optim, learning_rate=3e-4))


@pytest.fixture(scope="module")
def on_one_device():
    return after(transformer(), STEPS)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_transformer_learns_the_same_on_every_mesh(mesh, on_one_device):
    one, one_metrics = on_one_device
    other, metrics = after(transformer(mesh), STEPS)
    np.testing.assert_allclose(metrics["next_token"], one_metrics["next_token"], rtol=2e-6)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-6)  # five steps of 3e-4 move them by 1e-3


@pytest.mark.parametrize("dispatch", ["capacity", pytest.param("dropless", marks=pytest.mark.slow)])
def test_experts_learn_the_same_on_every_mesh(dispatch):
    one, one_metrics = after(transformer(experts=4, dispatch=dispatch), STEPS)
    other, metrics = after(transformer("data:2,expert:2,tensor:2", experts=4, dispatch=dispatch), STEPS)
    for name in ("next_token", "router/balance", "router/dropped"):
        np.testing.assert_allclose(metrics[name], one_metrics[name], rtol=2e-6)
    assert (one_metrics["router/dropped"] > 0).all() == (dispatch == "capacity")
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=5e-6)


PIPELINES = (
    pytest.param("pipeline:2", {}, id="alone"),
    pytest.param("data:2,pipeline:2,tensor:2", {}, id="data-tensor", marks=pytest.mark.slow),
    pytest.param("pipeline:2", {"remat": "dots"}, id="remat", marks=pytest.mark.slow),
    pytest.param("fsdp:2,pipeline:4", {"depth": 8, "rounds": 2}, id="rounds", marks=pytest.mark.slow),
    pytest.param("pipeline:2,context:2,tensor:2", {"depth": 4, "loss_chunk": 8}, id="context", marks=pytest.mark.slow),
    pytest.param("pipeline:2,expert:2,data:2", {"experts": 4}, id="experts", marks=pytest.mark.slow),
    pytest.param("pipeline:2,expert:2", {"experts": 4, "dispatch": "dropless"}, id="dropless", marks=pytest.mark.slow),
)


@pytest.mark.parametrize(("mesh", "changes"), PIPELINES)
def test_a_pipeline_learns_the_same_as_layers_in_order(mesh, changes):
    one, one_metrics = after(transformer(scan_layers=True, **changes), STEPS)
    other, metrics = after(transformer(mesh, scan_layers=True, **changes), STEPS)
    for name in {*metrics} - {"next_token/gradient_norm"}:
        np.testing.assert_allclose(metrics[name], one_metrics[name], rtol=2e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("mesh", "changes", "words"),
    [
        ("pipeline:2", {}, r"a pipeline of 2 stages wants model.scan_layers=true"),
        (
            "pipeline:4",
            {"scan_layers": True, "depth": 6, "rounds": 2},
            r"model.depth 6 does not divide over 4 stages of a pipeline in 2 rounds; 8 would",
        ),
        ("pipeline:2", {"depth": 3, "rounds": 2}, r"model.depth 3 is not a multiple of model.rounds 2"),
        ("pipeline:2", {"rounds": 2}, r"model.rounds 2 is for a pipeline, which wants model.scan_layers=true"),
    ],
)
def test_a_wrong_pipeline_is_named(mesh, changes, words):
    with pytest.raises(ConfigError, match=words):
        loop.check(transformer(mesh, **changes), sharding.make_mesh(mesh))


@pytest.mark.parametrize("family", ["lstm", "cnn", "gan"])
def test_a_family_without_stacked_layers_has_no_pipeline(family):
    with pytest.raises(ConfigError, match="'pipeline' of size 2 divides no dimension, and no parameter has an axis la"):
        loop.check(short_run(family, mesh="pipeline:2"), sharding.make_mesh("pipeline:2"))


def test_a_batch_that_stages_cannot_share_is_named():
    run = dataclasses.replace(transformer("data:4,pipeline:2", scan_layers=True), microbatches=4)
    with pytest.raises(ConfigError, match=r"microbatches is 4, which does not divide over mesh .* 8 places"):
        loop.check(run, sharding.make_mesh(run.mesh))


@pytest.mark.parametrize("mesh", ["pipeline:2", "fsdp:2,pipeline:2", "tensor:2,pipeline:2"])
def test_a_stage_is_on_its_own_devices_alone(mesh):
    run = transformer(mesh, scan_layers=True, depth=4, rounds=2)
    mesh = sharding.make_mesh(mesh)
    with loop.on_mesh(mesh):
        state = states.abstract(run, mesh)
    for tree in (state.params["layers"], state.opt):
        leaves = [x for x in jax.tree.leaves(tree) if x.ndim > 3]  # rounds, layers, and more than the axis of a norm
        assert leaves and all(np.prod(x.sharding.shard_shape(x.shape)) * mesh.size == x.size for x in leaves)


@pytest.mark.parametrize(("mesh", "share"), [("tensor:2", 2), ("fsdp:4,tensor:2", 8), ("fsdp:8", 8)])
def test_bytes_of_parameters_and_optimiser_fall_as_one_over_n(mesh, share):
    run = transformer(mesh)
    mesh = sharding.make_mesh(run.mesh)
    with loop.on_mesh(mesh):
        state = states.abstract(run, mesh)
    for tree in (state.params, state.opt):
        leaves = [x for x in jax.tree.leaves(tree) if x.ndim > 1]  # norms and counts are copied
        whole = sum(x.size for x in leaves)
        mine = sum(np.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
        assert mine * share == whole


@pytest.mark.parametrize("family", ["lstm", "cnn"])
def test_a_sequence_that_a_family_cannot_spread_is_refused(family):
    run = short_run(family, mesh="context:2")
    with pytest.raises(ConfigError, match=f"spreads the sequence, which family '{family}' cannot do"):
        loop.check(run, sharding.make_mesh(run.mesh))


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (
            "tensor:3",
            r"'tensor' of size 3 divides no dimension, for example of \S+ \('vocab', 'embed'\) of",
        ),
        ("expert:2", "'expert' of size 2 divides no dimension, and no parameter has an axis experts"),
    ],
)
def test_an_axis_with_nothing_to_cut_is_named(mesh, words):
    with pytest.raises(ConfigError, match=words):
        loop.check(transformer(mesh), sharding.make_mesh(mesh))
