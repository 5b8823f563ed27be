"""Fused attention: the kernel's numbers, where it is chosen, and how it is spread over a mesh."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from deeplearn.layers import fused
from deeplearn.layers.attention import Attention, causal_attention

RULES = [("batch", ("data",)), ("attention_heads", "tensor")]


def shapes(batch=2, length=256, heads=2, groups=1, width=128, dtype=jnp.bfloat16):
    """Of queries, keys, values."""
    return [jax.ShapeDtypeStruct((batch, length, n, width), dtype) for n in (heads, groups, groups)]


def mesh_of(platform, data=1, tensor=1):
    """Of devices that are not here."""
    device = AbstractDevice(device_kind=f"a {platform}", num_cores=None, platform=platform)
    return AbstractMesh((data, tensor), ("data", "tensor"), (AxisType.Auto,) * 2, abstract_device=device)


@pytest.mark.slow
def test_splash_is_causal_attention():
    """With its gradient, over three blocks, by the interpreter."""
    random = np.random.default_rng(0)
    args = [random.normal(size=s.shape).astype(np.float32) for s in shapes(1, 384)]
    args.append(random.normal(size=args[0].shape).astype(np.float32))

    def with_gradients(attention):
        def run(*args):
            y, gradient = jax.vjp(attention, *args[:3])
            return y, *gradient(args[3])

        return jax.device_get(jax.jit(run)(*jax.device_put(args)))

    found = with_gradients(functools.partial(fused.splash, interpret=True))
    for a, b in zip(found, with_gradients(causal_attention), strict=True):
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_the_blocks_that_splash_visits_are_those_of_the_whole_mask():
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import CausalMask, MultiHeadMask

    mask = MultiHeadMask([CausalMask((640, 640))] * 3)
    for (found, _), process in zip(
        fused._blocks_to_visit(640, 3, 128), (info.process_mask, info.process_mask_dkv), strict=True
    ):
        expected, _ = process(mask, (128, 128))
        for name, a, b in zip(expected._fields, found, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    [
        ("tpu", {}, fused.splash),
        ("tpu", {"length": 200}, None),
        ("tpu", {"width": 96}, None),
        ("gpu", {}, fused.cudnn),
        ("gpu", {"length": 200, "width": 40}, fused.cudnn),
        ("gpu", {"width": 136}, None),
        ("gpu", {"dtype": jnp.float32}, None),
        ("cpu", {}, None),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_the_platform_of_the_mesh_chooses(platform, changes, expected):
    query, *_ = shapes(**changes)
    assert fused.kernel(query) is None
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        assert fused.kernel(query) is expected


@pytest.mark.parametrize(("heads", "groups", "copies"), [(4, 4, 1), (8, 2, 2), (12, 6, 2), (3, 1, 1)])
def test_each_device_attends_for_its_own_sequences_and_heads(heads, groups, copies):
    """Over 2 x 4 devices, on which heads divide or not, and key heads or not; each runs the plain form."""
    random = np.random.default_rng(0)
    args = [random.normal(size=s.shape).astype(np.float32) for s in shapes(2, 16, heads, groups, 8)]
    seen = []

    def attend(*parts):
        seen.append([x.shape for x in parts])
        return causal_attention(*parts)

    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    expected = jax.device_get(jax.jit(causal_attention)(*jax.device_put(args)))
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        everywhere = jax.device_put(args, NamedSharding(mesh, PartitionSpec()))
        found = jax.jit(functools.partial(fused.on_each_device, attend))(*everywhere)
    np.testing.assert_allclose(jax.device_get(found), expected, rtol=1e-4, atol=1e-6)
    parts = 4 if heads % 4 == 0 else 1
    here = [(1, 16, n // parts, 8) for n in (heads, groups * copies, groups * copies)]
    assert seen == [here]


def layer_and_gradient(heads=4, groups=2, head_dim=128):
    """(params, x_BxLxD) -> gradients of an attention layer."""
    layer = Attention(heads, groups, head_dim)
    return layer, jax.grad(lambda params, x: jnp.sum(layer.apply(params, x).astype(jnp.float32)), (0, 1))


def test_a_gpu_runs_cudnn(monkeypatch):
    """In the program lowered for CUDA. While it traces, JAX asks for the version of cuDNN, which may not be here."""
    from jax._src.cudnn import fused_attention_stablehlo

    version = SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)
    layer, gradient = layer_and_gradient(head_dim=64)
    x = jax.ShapeDtypeStruct((4, 256, 64), jnp.bfloat16)
    params = jax.eval_shape(lambda: nn.meta.unbox(layer.init(jax.random.key(0), jnp.zeros(x.shape, x.dtype))))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, x.dtype), params)
    with jax.sharding.use_abstract_mesh(mesh_of("gpu", 2, 2)), nn.logical_axis_rules(RULES):
        text = jax.jit(gradient).trace(params, x).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
