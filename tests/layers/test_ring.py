"""Ring attention is causal attention: its numbers, its work, what it sends and what it keeps."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from compiled_text import collectives
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplearn.config import ConfigError
from deeplearn.families.counting import jaxpr_flops
from deeplearn.layers.attention import causal_attention
from deeplearn.layers.ring import (
    context_attention,
    own_pairs,
    positions,
    ring_attention,
    unzigzag,
    visiting_pairs,
    zigzag,
)


def mesh_of(**sizes):
    devices = np.asarray(jax.devices()[: math.prod(sizes.values())]).reshape(*sizes.values())
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def arrays(batch=2, length=32, heads=2, groups=2, width=4, dtype=np.float32):
    """Queries, keys, values and the gradient of the output."""
    random = np.random.default_rng(0)
    sizes = [(batch, length, n, width) for n in (heads, groups, groups, heads)]
    return [random.normal(size=s).astype(dtype) for s in sizes]


def with_gradients(attention):
    """(q, k, v, g) -> y and the gradients of q, k and v."""

    def run(*args):
        y, gradient = jax.vjp(attention, *args[:3])
        return y, *gradient(args[3])

    return run


def ring_program(mesh, spec=(None, "context"), block=512):
    """`with_gradients` of the ring, compiled for arrays whose sequence is in zig-zag order."""
    spread = NamedSharding(mesh, PartitionSpec(*spec))
    run = with_gradients(lambda *x: context_attention(*x, mesh, "context", block))
    return jax.jit(run, in_shardings=spread, out_shardings=spread), spread


def on_ring(args, mesh, **options):
    devices = mesh.shape["context"]
    program, spread = ring_program(mesh, **options)
    results = program(*jax.device_put([zigzag(x, devices) for x in args], spread))
    return [unzigzag(x, devices) for x in jax.device_get(results)]


def plainly(args):
    return jax.device_get(jax.jit(with_gradients(causal_attention))(*jax.device_put(args)))


def assert_close(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        a, b = a.astype(np.float32), b.astype(np.float32)
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("devices", "heads", "groups", "block"),
    [(1, 4, 2, 4), (2, 3, 1, 2), (4, 4, 2, 1), (8, 2, 2, 512), (8, 4, 1, 1)],
)
def test_output_and_gradients_are_those_of_causal_attention(devices, heads, groups, block):
    args = arrays(heads=heads, groups=groups)
    assert_close(on_ring(args, mesh_of(context=devices), block=block), plainly(args), 1e-6)


def test_bfloat16_loses_no_more_than_its_own_rounding():
    """Scores and sums are float32; inputs, weights and results round at 2^-9 of their size, and do so in turn."""
    args = arrays(heads=4, dtype=jnp.bfloat16)
    found = on_ring(args, mesh_of(context=4), block=2)
    assert {x.dtype for x in found} == {np.dtype(jnp.bfloat16)}
    assert_close(found, plainly([x.astype(np.float32) for x in args]), 2**-7)


def test_batch_and_heads_stay_spread():
    args = arrays(heads=4)
    mesh, spec = mesh_of(data=2, context=2, tensor=2), ("data", "context", "tensor")
    assert_close(on_ring(args, mesh, spec=spec), plainly(args), 1e-6)
    program, _ = ring_program(mesh, spec)
    assert {kind for kind, _ in collectives(program.lower(*args).compile().as_text())} == {"collective-permute"}


def test_it_works_where_every_axis_is_sharded_by_hand():
    args = arrays(heads=4)
    mesh, spec = mesh_of(data=2, context=2, tensor=2), PartitionSpec("data", "context", "tensor")
    attend = functools.partial(ring_attention, axis="context")
    spread = jax.shard_map(attend, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)
    program = jax.jit(with_gradients(lambda *x: spread(*x)), in_shardings=NamedSharding(mesh, spec))
    found = program(*jax.device_put([zigzag(x, 2) for x in args], NamedSharding(mesh, spec)))
    assert_close([unzigzag(x, 2) for x in jax.device_get(found)], plainly(args), 1e-6)


def test_no_position_depends_on_a_later_one():
    """By gradient: y[t] gives exactly nothing to keys and values after t, and something to all up to t."""
    *args, _ = arrays(batch=1, length=16, heads=1, groups=1)
    mesh, order = mesh_of(context=4), positions(16, 4)
    program, spread = ring_program(mesh, block=1)
    args = jax.device_put([zigzag(x, 4) for x in args], spread)
    for place, position in enumerate(order):
        g = np.zeros((1, 16, 1, 4), np.float32)
        g[:, place] = 1
        _, *found = jax.device_get(program(*args, jax.device_put(g, spread)))
        of_q, of_k, of_v = (np.abs(unzigzag(x, 4)).max(axis=(0, 2, 3)) for x in found)
        assert not np.delete(of_q, position).any()
        for seen in (of_k, of_v) if position else (of_v,):  # the first position has one weight, whatever the key
            assert np.all(seen[: position + 1] > 0) and not seen[position + 1 :].any()


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_zigzag_gives_each_device_a_chunk_from_either_end(devices):
    length = 6 * devices
    chunks = positions(length, devices).reshape(devices, 2, 3) // 3
    assert [(i, 2 * devices - 1 - i) for i in range(devices)] == [tuple(c[:, 0]) for c in chunks]
    x = np.arange(2 * length).reshape(2, length)
    np.testing.assert_array_equal(zigzag(x, devices)[0], positions(length, devices))
    np.testing.assert_array_equal(unzigzag(zigzag(x, devices), devices), x)
    np.testing.assert_array_equal(zigzag(x.T, devices, axis=0), zigzag(x, devices).T)


def pairs_of(device, devices, blocks):
    """(query block, key block) of all that a device computes, as numbers of blocks along the sequence."""
    block = positions(devices * blocks, devices).reshape(devices, blocks)
    queries, keys = own_pairs(blocks)
    found = [*zip(block[device][queries], block[device][keys], strict=True)]
    for step in range(1, devices):
        other = (device - step) % devices
        queries, keys = visiting_pairs(blocks, other < device)
        found += zip(block[device][queries], block[other][keys], strict=True)
    return found


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("blocks", [2, 6])
def test_devices_share_the_visible_pairs_equally_and_compute_no_other(devices, blocks):
    shares = [pairs_of(device, devices, blocks) for device in range(devices)]
    assert len({len(share) for share in shares}) == 1
    visible = zip(*np.tril_indices(devices * blocks), strict=True)
    assert sorted(pair for share in shares for pair in share) == sorted(visible)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_program_multiplies_as_many_blocks_as_the_pairs_say(devices):
    """Two products a pair forward and five back, on every device: the program has no branch."""
    args = arrays(length=64, heads=4)
    run = with_gradients(lambda *x: context_attention(*x, mesh_of(context=devices), "context", block=2))
    jaxpr = jax.make_jaxpr(run)(*args).jaxpr
    flops = sum(jaxpr_flops(e.params["jaxpr"]) for e in jaxpr.eqns if e.primitive.name == "shard_map")
    pairs = len(pairs_of(0, devices, 64 // devices // 2))
    assert flops == pairs * (2 + 5) * 2 * (2 * 4 * 2 * 2 * 4)  # batch, heads, queries, keys, channels
    assert "cond" not in {e.primitive.name for e in equations(jaxpr)}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_what_is_sent(devices):
    """Forward, keys and values n-1 times; back, n-1 times again, and their gradients n times. Nothing else, no gather.

    Each time 1/n of an array goes. The two passes are compiled apart, because together XLA on CPU keeps the first
    keys and values that came, and saves a step.
    """
    mesh = mesh_of(context=devices)
    spread = NamedSharding(mesh, PartitionSpec(None, "context"))
    attend = lambda *x: context_attention(*x, mesh, "context", block=2)  # noqa: E731
    *args, g = jax.device_put(arrays(heads=4), spread)
    forward = jax.jit(functools.partial(jax.vjp, attend)).lower(*args).compile()
    _, gradient = forward(*args)
    backward = jax.jit(lambda gradient, g: gradient(g)).lower(gradient, g).compile()
    size = 2 * (32 // devices) * 2 * 4  # batch, positions, key heads, channels
    assert sent(forward) == 2 * (devices - 1) * size
    assert sent(backward) == 2 * (devices - 1 + devices) * size if devices > 1 else sent(backward) == 0


def sent(compiled):
    """How many numbers each device sends on; anything but a collective permute is an error."""
    total = 0
    for (kind, shape), times in collectives(compiled.as_text()).items():
        assert kind == "collective-permute"
        total += times * math.prod(map(int, re.search(r"\[(.*)\]", shape)[1].split(",")))
    return total


def test_keys_and_values_are_sent_in_their_own_type_and_gradients_in_float32():
    """In the traced program: compiled for CPU, whatever is sent is float32."""
    run = with_gradients(lambda *x: context_attention(*x, mesh_of(context=2), "context"))
    jaxpr = jax.make_jaxpr(run)(*arrays(dtype=jnp.bfloat16)).jaxpr
    sent = {e.invars[0].aval.str_short() for e in equations(jaxpr) if e.primitive.name == "ppermute"}
    assert {x.split("{")[0] for x in sent} == {"bfloat16[2,2,2,8,4]", "float32[2,2,2,4,8]"}  # gradients: transposed


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_memory_of_a_device_falls_with_their_number(devices):
    """Forward and back, at most 14 arrays as large as a device's queries: copies, sums, what is on its way."""
    program, spread = ring_program(mesh_of(context=devices), block=64)
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread) for x in arrays(1, 8192, 2, 2, 16)]
    temporary = program.lower(*args).compile().memory_analysis().temp_size_in_bytes
    queries, scores = (8192 // devices * 2 * 16 * 4), (2 * (8192 // devices) ** 2 * 4)
    assert temporary < min(14 * queries, scores / 4)


def test_a_scan_over_layers_keeps_no_masks():
    """Constants as they are, their masks could be computed for all pairs before the scan, and kept."""
    attend = jax.checkpoint(lambda x: context_attention(x, x, x, mesh_of(context=4), "context", block=2))

    def layers(x):
        return jnp.sum(jax.lax.scan(lambda x, _: (attend(x), None), x, length=3)[0])

    jaxpr = jax.make_jaxpr(jax.grad(layers))(arrays()[0]).jaxpr
    scans = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    assert len(scans) > 8 and not any(x.aval.dtype == bool for e in scans for x in e.outvars)


def test_a_sequence_that_does_not_divide_is_named():
    with pytest.raises(ConfigError, match=r"8 chunks, two a device, do not divide 36 positions; 32 they would"):
        positions(36, 4)
    mesh = mesh_of(context=4)
    with pytest.raises(ConfigError, match=r"9 positions on each device"):
        jax.eval_shape(lambda *x: context_attention(*x, mesh, "context"), *arrays(length=36)[:3])
