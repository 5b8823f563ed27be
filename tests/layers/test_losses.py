"""Cross-entropy in chunks: the same numbers as the plain form, without its memory and without more collectives."""

import contextlib
import math

import jax
import numpy as np
import pytest
from compiled_text import collectives
from flax import linen as nn
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplearn.config import ConfigError
from deeplearn.families.counting import jaxpr_flops
from deeplearn.layers.losses import chunked_cross_entropy, cross_entropy


def plain(x, kernel, targets, z_loss=0.0):
    logits = jnp.dot(x, kernel, preferred_element_type=jnp.float32)
    return jnp.sum(cross_entropy(logits, targets) + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2)


def gradients(loss):
    return jax.value_and_grad(lambda x, kernel, targets: 0.25 * loss(x, kernel, targets), (0, 1))


def arrays(batch=8, length=32, width=12, vocab=64, dtype=np.float32):
    random = np.random.default_rng(0)
    x, kernel = (random.normal(size=s).astype(dtype) for s in ((batch, length, width), (width, vocab)))
    return x, kernel, random.integers(0, vocab, (batch, length)).astype(np.int32)


def shapes(**sizes):
    return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays(**sizes)]


def assert_close(got, expected, tolerance):
    for a, b in zip(jax.tree.leaves(jax.device_get(got)), jax.tree.leaves(jax.device_get(expected)), strict=True):
        a, b = a.astype(np.float32), b.astype(np.float32)
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_value_and_gradients_are_those_of_the_plain_form(chunk, z_loss):
    args = jax.device_put(arrays())
    chunked = lambda *a: chunked_cross_entropy(*a, chunk, z_loss)  # noqa: E731
    expected = jax.jit(gradients(lambda *a: plain(*a, z_loss)))(*args)
    assert_close(jax.jit(gradients(chunked))(*args), expected, 1e-6)
    assert_close(jax.jit(lambda *a: 0.25 * chunked(*a))(*args), expected[0], 1e-6)


def test_bfloat16_loses_no_more_than_its_own_rounding():
    """Inputs and gradients are bfloat16 (8 bits: 2^-9 of error each); softmax and sums over chunks are float32."""
    args = jax.device_put(arrays(dtype=jnp.bfloat16))
    exact = jax.jit(lambda x, kernel, t: gradients(plain)(x.astype(jnp.float32), kernel.astype(jnp.float32), t))(*args)
    loss, found = jax.jit(gradients(lambda *a: chunked_cross_entropy(*a, 4)))(*args)
    assert_close(loss, exact[0], 1e-6)
    assert_close(found, exact[1], 2**-8)
    assert [g.dtype for g in found] == [jnp.bfloat16] * 2


def test_flops_are_those_of_the_plain_form():
    sizes = 8 * 32 * 12 * 64
    for loss in (plain, lambda *a: chunked_cross_entropy(*a, 4)):
        assert jaxpr_flops(jax.make_jaxpr(gradients(loss))(*shapes()).jaxpr) == 6 * sizes
        assert jaxpr_flops(jax.make_jaxpr(loss)(*shapes()).jaxpr) == 2 * sizes


def test_memory_grows_with_the_chunk_and_not_with_the_logits():
    def temporary(loss, length):
        args = shapes(batch=2, length=length, width=16, vocab=4096)
        return jax.jit(gradients(loss)).lower(*args).compile().memory_analysis().temp_size_in_bytes

    chunked = lambda chunk: lambda *a: chunked_cross_entropy(*a, chunk)  # noqa: E731
    small, logits_of_a_position, inputs = temporary(chunked(32), 1024), 2 * 4096 * 4, 2 * 1024 * 16 * 4
    assert temporary(plain, 1024) > 8 * small
    assert temporary(chunked(32), 2048) - small <= 4 * inputs  # x and its gradient, in two orders
    assert temporary(chunked(128), 1024) - small > 96 * logits_of_a_position


def compiled_on(mesh_sizes, rules, x_axes, kernel_axes):
    """The gradient program on a mesh, and its result: arrays of 8 x 32 tokens, width 12, vocabulary 64, chunks of 4."""
    devices = np.asarray(jax.devices()[: math.prod(mesh_sizes.values())]).reshape(*mesh_sizes.values())
    mesh = Mesh(devices, tuple(mesh_sizes), axis_types=(AxisType.Auto,) * len(mesh_sizes))
    x, kernel = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (x_axes, kernel_axes))
    targets = NamedSharding(mesh, PartitionSpec(*x_axes[:2]))
    program = jax.jit(
        gradients(lambda *a: chunked_cross_entropy(*a, 4)),
        in_shardings=(x, kernel, targets),
        out_shardings=(None, (x, kernel)),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(nn.logical_axis_rules(rules))
        compiled = program.lower(*arrays()).compile()
        result = compiled(*jax.device_put(arrays(), (x, kernel, targets)))
    assert_close(result, jax.jit(gradients(plain))(*jax.device_put(arrays())), 1e-6)
    return collectives(compiled.as_text())


def test_a_spread_batch_meets_once_for_the_gradient():
    found = compiled_on({"data": 8}, [("batch", ("data",))], ("data",), ())
    assert found == {("all-reduce", "f32[]"): 1, ("all-reduce", "f32[12,64]"): 1}


def test_a_spread_sequence_meets_once_for_the_gradient():
    rules = [("batch", ("data",)), ("length", ("context",))]
    found = compiled_on({"data": 2, "context": 4}, rules, ("data", "context"), ())
    assert found.pop(("all-reduce", "f32[]")) <= 2
    assert found == {("all-reduce", "f32[12,64]"): 1}


def test_a_spread_kernel_is_gathered_once():
    found = compiled_on({"fsdp": 4}, [("batch", ("fsdp",))], ("fsdp",), ("fsdp",))
    gathered = {("all-gather", "f32[12,64]"): 1}
    assert found == gathered | {("all-reduce", "f32[]"): 1, ("all-reduce", "f32[12,64]"): 1}


def test_a_spread_vocabulary_sends_one_number_a_token_and_the_gradient_of_x():
    """8 chunks of 8 x 4 tokens: the largest logit, two sums, and what each part of the vocabulary gives to x."""
    found = compiled_on({"tensor": 8}, [("vocab", ("tensor",))], (), (None, "tensor"))
    assert found == {("all-reduce", "f32[1,1,32]"): 3 * 8, ("all-reduce", "f32[1,1,32,12]"): 8}


def test_batch_sequence_and_vocabulary_together():
    rules = [("batch", ("data",)), ("length", ("context",)), ("vocab", ("tensor",))]
    sizes = {"data": 2, "context": 2, "tensor": 2}
    found = compiled_on(sizes, rules, ("data", "context"), (None, "tensor"))
    assert found.pop(("all-reduce", "f32[]")) <= 2
    tokens = {("all-reduce", "f32[1,1,16]"): 3 * 4, ("all-reduce", "f32[1,1,16,12]"): 4}
    assert found == tokens | {("all-reduce", "f32[12,32]"): 1}


def test_a_chunk_that_does_not_divide_is_named():
    with pytest.raises(ConfigError, match=r"chunk of 12 does not divide 32 positions; the nearest that does is 8"):
        jax.eval_shape(lambda *a: chunked_cross_entropy(*a, 12), *shapes())
