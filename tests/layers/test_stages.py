"""Layers in stages are the layers in order: their numbers, their gradients and what they tell; and what is sent."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import lax, numpy as jnp

from deeplearn import sharding
from deeplearn.layers.pipeline import bubble, pieces_of, pipeline
from deeplearn.preflight.collectives import by_kind_and_axes, collectives

BATCH, LENGTH, WIDTH = 16, 3, 16


def layers(params_K, x_BxLxD):
    """As many as there are parameters. What a layer tells is a mean over the batch.

    A sequence that is zero has no direction: the output is not a number, and so is every gradient through it.
    """

    def layer(x, params):
        unit = x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True))
        y = x + jnp.tanh(unit @ params["kernel"] + params["bias"].reshape(1, 1, -1))
        return y, {"mean": jnp.mean(y, axis=(0, 1)), "square": jnp.mean(y**2)}

    return lax.scan(layer, x_BxLxD, params_K)


def in_order(params_RxN, x_BxLxD):
    y, told = layers(jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), params_RxN), x_BxLxD)
    rounds = jax.tree.leaves(params_RxN)[0].shape[0]
    return y, jax.tree.map(lambda x: x.reshape(rounds, -1, *x.shape[1:]), told)


def in_stages(stages, **options):
    return lambda params, x: pipeline(layers, params, x, stages, **options)


def arrays(rounds, depth, batch=BATCH):
    random = np.random.default_rng(0)
    kernel = random.normal(size=(rounds, depth // rounds, WIDTH, WIDTH)) / 2
    bias = random.normal(size=(rounds, depth // rounds, WIDTH)) / 2
    x_BxLxD = random.normal(size=(batch, LENGTH, WIDTH))
    return jax.tree.map(np.float32, ({"kernel": kernel, "bias": bias}, x_BxLxD))


def with_gradients(f):
    """(params, x) -> f and the gradients of a sum in which every number of its results has a weight of its own."""

    def total(params, x):
        found = f(params, x)
        weighted = [jnp.sum(jnp.cos(jnp.arange(a.size, dtype=a.dtype).reshape(a.shape)) * a) for a in leaves(found)]
        return sum(weighted), found

    leaves = jax.tree.leaves
    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


def assert_close(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *jax.device_get((got, wanted)))


@pytest.mark.parametrize(("stages", "rounds", "depth", "batch"), [(2, 1, 4, 16), (3, 2, 12, 6)])
def test_stages_compute_what_the_layers_in_order_do(stages, rounds, depth, batch):
    args = jax.device_put(arrays(rounds, depth, batch))
    assert_close(with_gradients(in_stages(stages))(*args), with_gradients(in_order)(*args))


@functools.cache
def on_mesh(flag, rounds, depth):
    """The compiled program with gradients, and its arguments, each where the rules want it."""
    mesh = sharding.make_mesh(flag)
    params, x = arrays(rounds, depth)
    layout = jax.NamedSharding(mesh, sharding.spec((None, "layers"), (rounds, depth // rounds), mesh))
    args = jax.device_put(params, layout), jax.device_put(x, sharding.of_batch(mesh))
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.rules(mesh)):
        return with_gradients(in_stages(mesh.shape["pipeline"])).lower(*args).compile(), args


def test_on_a_mesh_pieces_go_round_and_gradients_meet_once():
    """Each tick sends a piece to the next stage and one along the line, and the gradient sends them back."""
    compiled, args = on_mesh("data:2,pipeline:4", 2, 8)
    wanted = with_gradients(in_order)(*jax.device_put(jax.device_get(args)))
    assert_close(compiled(*args), wanted)
    found = by_kind_and_axes(collectives(compiled.as_text(), {"data": 2, "pipeline": 4}))
    piece = 4 * BATCH // 16 * LENGTH * WIDTH
    ticks = 8 * 2 + 4 - 1
    assert found["collective-permute", ("pipeline",)]["bytes"] == pytest.approx(2 * (2 * ticks + 1) * piece, rel=0.1)
    stage = 4 * 2 * (WIDTH * WIDTH + WIDTH)
    assert found["all-reduce", ("data",)]["bytes"] == pytest.approx(stage, rel=0.1)
    assert {kind for kind, _ in found} == {"collective-permute", "all-reduce"}


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_is_kept_for_the_gradient_grows_with_the_ticks_and_not_with_the_parameters(rounds):
    """What the layers in order keep, and more for the bubble; or with recomputation what enters each stage.

    The parameters are here half as much as that: kept in each tick, they would double it.
    """
    args = arrays(rounds, 8)

    def kept(f):
        found = jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(f, *x)[1], *args))
        return sum(a.size * a.dtype.itemsize for a in found)

    params, x = sum(w.nbytes for w in jax.tree.leaves(args[0])), args[1].nbytes
    units, ticks = 16 * rounds, 16 * rounds + 3
    assert kept(in_stages(4)) - params < 1.4 * ticks / units * (kept(in_order) - params)
    again = kept(in_stages(4, keep=jax.checkpoint_policies.nothing_saveable))
    assert again - params < 1.3 * ticks / 16 * 4 * x < 0.5 * kept(in_stages(4))


def test_the_bubble_falls_with_pieces_and_rounds():
    assert bubble(1, 1, 4) == 0
    assert bubble(4, 1, 4) == 3 / 7 and bubble(4, 1, 16) == 3 / 19 and bubble(4, 2, 16) == 3 / 35
    assert [pieces_of(rows, 4) for rows in (1, 2, 3, 4, 5, 6, 8)] == [4, 8, 12, 16, 4, 12, 16]
