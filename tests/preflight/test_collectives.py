"""Collectives of programs compiled here, whose bytes theory tells, and of lines in every form that HLO writes."""

import jax
import numpy as np
import pytest
from jax import lax, numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from deeplearn.preflight import hlo
from deeplearn.preflight.collectives import axes_of, by_kind_and_axes, collectives, groups

SHAPE = {"data": 2, "fsdp": 4}
TURNS, ROWS, COLUMNS = 5, 16, 24


@pytest.fixture(scope="module")
def mesh():
    devices = np.asarray(jax.devices()).reshape(tuple(SHAPE.values()))
    return Mesh(devices, tuple(SHAPE), axis_types=(AxisType.Auto,) * 2)


def compiled(mesh, body, spec, out=None):
    """The HLO of a shard_map of `body` over x_RxC float32, spread by `spec`."""
    x = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32, sharding=NamedSharding(mesh, spec))
    mapped = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=out or spec, check_vma=False)
    return jax.jit(mapped).lower(x).compile().as_text()


LOCAL = 4 * ROWS * COLUMNS // 4  # bytes of x over fsdp on one device
CASES = {  # body, kind, axes, bytes of the whole array, what one device sends of it
    "psum": (lambda x: lax.psum(x, "fsdp"), "all-reduce", ("fsdp",), LOCAL, 2 * 3 / 4),
    "psum over both": (lambda x: lax.psum(x, ("data", "fsdp")), "all-reduce", ("data", "fsdp"), LOCAL, 2 * 7 / 8),
    "psum over the outer": (lambda x: lax.psum(x, "data"), "all-reduce", ("data",), LOCAL, 2 / 2),
    "all_gather": (
        lambda x: lax.all_gather(x, "fsdp", tiled=True)[: x.shape[0]], "all-gather", ("fsdp",), 4 * LOCAL, 3 / 4,
    ),
    "psum_scatter": (
        lambda x: jnp.tile(lax.psum_scatter(x, "fsdp", tiled=True), (4, 1)), "reduce-scatter", ("fsdp",), LOCAL, 3 / 4,
    ),
    "all_to_all": (
        lambda x: lax.all_to_all(x, "fsdp", 0, 1, tiled=True).reshape(x.shape), "all-to-all", ("fsdp",), LOCAL, 3 / 4,
    ),
    "ppermute": (
        lambda x: lax.ppermute(x, "data", [(0, 1), (1, 0)]), "collective-permute", ("data",), LOCAL, 1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("turns", [1, TURNS])
def test_one_collective_alone_and_in_a_loop(mesh, case, turns):
    body, kind, axes, size, share = CASES[case]

    def looped(x):
        # The carry feeds the collective and changes, so that it cannot leave the loop.
        return lax.scan(lambda c, i: (jnp.sin(body(c)) + i, None), x, jnp.arange(turns, dtype=jnp.float32))[0]

    found = collectives(compiled(mesh, looped if turns > 1 else body, P("fsdp")), SHAPE)
    assert [(c.kind, c.axes, c.bytes, c.count) for c in found] == [(kind, axes, size, turns)]
    assert found[0].sent == pytest.approx(turns * size * share)


def test_loops_in_loops_multiply_and_totals_add_up(mesh):
    def body(x):
        def outer(c, _):
            c, _ = lax.scan(lambda d, _: (jnp.sin(lax.psum(d, "fsdp")), None), c, None, length=3)
            return jnp.cos(lax.psum(c, "fsdp")), None

        return lax.scan(outer, x, None, length=TURNS)[0]

    found = collectives(compiled(mesh, body, P("fsdp")), SHAPE)
    assert sorted(c.count for c in found) == [TURNS, 3 * TURNS]
    assert by_kind_and_axes(found) == {
        ("all-reduce", ("fsdp",)): {
            "count": 4 * TURNS,
            "bytes": 4 * TURNS * LOCAL,
            "sent": 4 * TURNS * LOCAL * 2 * 3 / 4,
        }
    }


def test_a_sharded_matrix_product_gathers_what_theory_says(mesh):
    """x_BxD of batch over fsdp, w_DxF spread over fsdp: w is gathered once, whole, in its own type."""
    spread = NamedSharding(mesh, P("fsdp"))
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=spread)
    w = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=spread)
    text = jax.jit(lambda x, w: x @ w, out_shardings=spread).lower(x, w).compile().as_text()
    assert [(c.kind, c.axes, c.bytes) for c in collectives(text, SHAPE)] == [("all-gather", ("fsdp",), 64 * 8 * 4)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("replica_groups=[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("replica_groups={}", (tuple(range(8)),)),
    ],
)
def test_groups_in_every_form(text, expected):
    assert groups(f", channel_id=1, {text}, dimensions={{0}}", 8) == expected


def test_groups_that_are_of_no_mesh_axes():
    assert axes_of(((0, 1), (2, 3), (4, 5), (6, 7)), {"a": 2, "b": 2, "c": 2}) == ("c",)
    assert axes_of(((0, 2, 4, 6), (1, 3, 5, 7)), {"a": 2, "b": 2, "c": 2}) == ("a", "b")
    assert axes_of(((0, 3), (1, 2)), {"a": 2, "b": 2}) == ()
    assert axes_of(((0, 1), (2, 3)), {"a": 2, "one": 1, "b": 2}) == ("b",)


# As the TPU compiler writes them: asynchronous pairs, memory spaces, no note of the turns, a counter that goes up by 2,
# a kernel whose attributes have lines of their own.
TPU = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[8,128]) -> f32[2,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.7 = f32[8,128]{1,0:T(8,128)} all-reduce(%p), channel_id=7, replica_groups=[1,4]<=[4], to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = f32[2,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.7, %zero, %zero), dynamic_slice_sizes={2,128}
}

%condition (c: (u32[], bf16[1,64])) -> pred[] {
  %limit = u32[]{:T(128)} constant(7)
  %c = (u32[]{:T(128)}, bf16[1,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (d: (u32[], bf16[1,64])) -> (u32[], bf16[1,64]) {
  %one = u32[]{:T(128)} constant(1)
  %d = (u32[]{:T(128)}, bf16[1,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%d), index=0
  %x = bf16[1,64]{1,0:T(8,128)(2,1)} get-tuple-element(%d), index=1
  %next = u32[]{:T(128)} add(%j, %one)
  %kernel = bf16[1,64]{1,0:T(8,128)(2,1)} custom-call(%x), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 128}"
}}, metadata={op_name="kernel"}
  %after = u32[]{:T(128)} add(%one, %next)
  %start = (bf16[1,64]{1,0:T(8,128)(2,1)S(1)}, bf16[1,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), channel_id=3, source_target_pairs={{0,3},{1,0},{2,1},{3,2}}
  %done = bf16[1,64]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
  ROOT %out = (u32[]{:T(128)}, bf16[1,64]{1,0:T(8,128)(2,1)}) tuple(%after, %done)
}

ENTRY %main (q: bf16[1,64], r: f32[8,128]) -> f32[2,128] {
  %q = bf16[1,64]{1,0:T(8,128)(2,1)} parameter(0)
  %r = f32[8,128]{1,0:T(8,128)} parameter(1)
  %first = u32[]{:T(128)} constant(1)
  %carried = (u32[]{:T(128)}, /*index=1*/bf16[1,64]{1,0:T(8,128)(2,1)}) tuple(%first, %q)
  %loop = (u32[]{:T(128)}, bf16[1,64]{1,0:T(8,128)(2,1)}) while(%carried), condition=%condition, body=%body
  %gather-start = (f32[8,128]{1,0:T(8,128)}, f32[32,128]{1,0:T(8,128)}) all-gather-start(%r), channel_id=9, \
replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}
  %gathered = f32[32,128]{1,0:T(8,128)} all-gather-done(%gather-start)
  ROOT %scattered = f32[2,128]{1,0:T(8,128)} fusion(%r), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_the_forms_of_the_tpu_compiler():
    found = {c.kind: c for c in collectives(TPU, {"fsdp": 4})}
    permute, gather, scatter = (found[k] for k in ("collective-permute", "all-gather", "reduce-scatter"))
    assert (permute.count, permute.bytes, permute.asynchronous) == (3, 128, True)  # counter 1, 3, 5
    assert (gather.count, gather.bytes, gather.asynchronous) == (1, 32 * 128 * 4, True)
    assert (scatter.count, scatter.bytes, scatter.sent) == (1, 8 * 128 * 4, 8 * 128 * 4 * 3 / 4)
    assert {c.axes for c in found.values()} == {("fsdp",)}


def test_a_loop_without_a_known_end_is_named():
    program = hlo.parse(TPU.replace("direction=LT", "direction=NE"))
    assert program.unknown == ("loop",)
    assert hlo.parse(TPU).unknown == ()


def test_arrays_of_a_shape():
    found = hlo.arrays("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[], /*index=2*/s4[7], c64[2], f8e4m3fn[5]{0}, token[])")
    assert [(a.dtype, a.bytes, a.space) for a in found] == [
        ("bf16", 12, 1), ("pred", 1, 0), ("s4", 4, 0), ("c64", 16, 0), ("f8e4m3fn", 5, 0), ("token", 0, 0),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing")
