"""Counts against figures derived by hand, and convolutions against XLA's own count."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import lax, numpy as jnp

from deeplearn.families import cnn, gan, lstm, transformer
from deeplearn.families.counting import Parameters, flops_per_example, jaxpr_flops, parameters


def flops_of(f, *shapes):
    return jaxpr_flops(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr)


@pytest.mark.parametrize("width", [16, 48])
def test_lstm(width):
    """A token meets, in each layer, W and U of width * 4 width each, and the head: 2 FLOPs forward and 4 backward."""
    config = lstm.Config(vocab=256, seq_len=32, width=width, depth=3)
    matrices = 3 * 2 * width * 4 * width + width * 256
    weights = matrices + 3 * 4 * width
    assert parameters(lstm, config) == Parameters(weights + 256 * width, weights, weights + 256 * width)
    assert flops_per_example(lstm, config) == 32 * 6 * matrices


@pytest.mark.parametrize("change", [{}, {"scan_layers": True}, {"kv_heads": 1, "mlp": "swiglu", "mlp_width": 40}])
def test_transformer(change):
    """6 FLOPs per token and matrix entry; scores and mixing are 2 * 2 L d forward, thrice that in all, unmasked."""
    config = dataclasses.replace(transformer.Config(seq_len=32, width=32, depth=3, heads=2, kv_heads=2), **change)
    d, kv_width = 32, 16 * config.kv_heads
    mlp = 3 * d * 40 if config.mlp == "swiglu" else 8 * d * d
    matrices = 3 * (2 * d * d + 2 * d * kv_width + mlp) + d * 256
    norms = 3 * 2 * d + d
    total = matrices + norms + 256 * d
    assert parameters(transformer, config) == Parameters(total, matrices + norms, total)
    assert flops_per_example(transformer, config) == 32 * (6 * matrices + 3 * 12 * 32 * d)


def test_what_is_computed_again_counts_again():
    """Of a layer's forward products of 24 d^2 + 4 L d a token: under "full" all but the last, whose result no gradient
    needs (a third of forward and backward, less 8 d^2); else what the policy does not keep."""
    d, length, depth = 32, 16, 3
    config = transformer.Config(seq_len=length, width=d, depth=depth, heads=2, kv_heads=2, scan_layers=True)
    once = flops_per_example(transformer, config)
    projections, scores, mixing = 2 * (3 + 1 + 4) * d * d, 2 * length * d, 2 * length * d
    again = {"dots": scores + mixing, "attention": projections + scores, "full": projections + scores + mixing}
    for policy, flops in again.items():
        more = flops_per_example(transformer, dataclasses.replace(config, remat=policy)) - once
        assert more == length * depth * flops, policy


def test_a_token_passes_through_its_own_experts_alone():
    config = transformer.Config(seq_len=32, width=32, depth=3, experts=4, top_k=2, mlp_width=40)
    plain = parameters(transformer, dataclasses.replace(config, experts=0))
    routers, one_mlp = 3 * 32 * 4, 3 * 2 * 32 * 40
    assert parameters(transformer, config).total == plain.total + routers + 3 * one_mlp
    assert parameters(transformer, config).active == plain.total + routers + one_mlp


def test_cnn():
    """A 3x3 convolution to n x n positions takes 9 n^2 products per pair of channels.

    The stem needs no gradient of the image: twice its cost and not three times.
    """
    w = 4
    stem = w * 9 * 28**2
    stage_0 = 2 * w * w * 9 * 28**2
    stage_1 = (w * 2 * w * (9 + 1) + (2 * w) ** 2 * 9) * 14**2
    stage_2 = (2 * w * 4 * w * (9 + 1) + (4 * w) ** 2 * 9) * 7**2
    head = 4 * w * 10
    assert flops_per_example(cnn, cnn.config(w)) == 2 * (2 * stem + 3 * (stage_0 + stage_1 + stage_2 + head))

    kernels = 9 * w + 18 * w**2 + (18 + 36 + 2) * w**2 + (72 + 144 + 8) * w**2 + 4 * w * 10 + 10
    norms = 2 * (2 * w + (w + 2 * w) + (2 * w + 4 * w) + 4 * w)
    assert parameters(cnn, cnn.config(w)).total == kernels + norms


def test_gan():
    """Costs F of each network by layer; a 4x4 convolution between 2n and n positions takes 16 n^2.

    Discriminator's step: G forward; generated images 3 F less the gradient of the image; real images F forward, F for
    the image's gradient, 2 F to differentiate that (less the gradient of the constant it starts from), 2 F for the
    loss, less the gradient of the image. Generator's step: D forward and back to the image, G 3 F less the latents'.
    """
    w = 6
    g = [64 * 49 * 2 * w, 2 * w * w * 16 * 7**2, w * 16 * 14**2]
    d = [w * 16 * 14**2, w * 2 * w * 16 * 7**2, 49 * 2 * w]
    G, D = sum(g), sum(d)
    discriminator = G + (3 * D - d[0]) + (D + D + (2 * D - d[-1]) + (2 * D - d[0]))
    generator = 2 * D + 3 * G - g[0]
    assert flops_per_example(gan, gan.config(w)) == 2 * (discriminator + generator)

    generators = 64 * 98 * w + 16 * 2 * w * w + 16 * w + 1
    discriminators = 16 * w + w + 16 * w * 2 * w + 2 * w + 98 * w
    assert parameters(gan, gan.config(w)).total == generators + discriminators


def test_a_scan_counts_its_length_and_a_cond_its_dearest_branch():
    product = lambda x: x @ x  # noqa: E731
    assert flops_of(product, (4, 4)) == 2 * 4**3
    assert flops_of(jax.jit(lambda x: lax.scan(lambda c, _: (c @ c, None), x, length=7)[0]), (4, 4)) == 7 * 2 * 4**3
    branches = lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, product, x)  # noqa: E731
    assert flops_of(branches, (4, 4)) == 2 * 2 * 4**3


def test_what_nothing_needs_is_not_counted():
    def f(x):
        x @ x
        return x @ x

    assert flops_of(f, (4, 4)) == 2 * 4**3


def test_a_loop_without_a_known_length_is_an_error_only_if_it_multiplies():
    loop = lambda body: lambda x: lax.while_loop(lambda x: x[0, 0] > 0, body, x)  # noqa: E731
    assert flops_of(loop(lambda x: x - 1), (4, 4)) == 0
    with pytest.raises(NotImplementedError, match="while"):
        flops_of(loop(lambda x: x @ x), (4, 4))


CONVOLUTIONS = {
    "same": {"padding": "SAME"},
    "strided": {"padding": "SAME", "window_strides": (2, 3)},
    "dilated": {"padding": "VALID", "rhs_dilation": (2, 1)},
    "transposed": {"padding": ((2, 2), (2, 1)), "lhs_dilation": (2, 2)},
    "grouped": {"padding": "SAME", "feature_group_count": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_agree_with_xla_and_each_gradient_costs_as_much(name):
    options = {"window_strides": (1, 1), **CONVOLUTIONS[name]}
    shapes = (5, 9, 8, 4), (3, 3, 4 // options.get("feature_group_count", 1), 6)

    def conv(x, kernel):
        return lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    x, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    forward = flops_of(conv, *shapes)
    assert forward == jax.jit(conv).lower(x, kernel).compile().cost_analysis()["flops"]

    y = jax.eval_shape(conv, x, kernel)
    back = lambda x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy)  # noqa: E731
    assert flops_of(back, *shapes, y.shape) == 2 * forward
