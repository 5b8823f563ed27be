"""The mixture of experts against its definition, written as a loop over tokens."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplearn.families.counting import jaxpr_flops
from deeplearn.layers import mlp, moe
from deeplearn.layers.moe import MoE, Routing, active_parameters, route
from deeplearn.preflight.collectives import collectives

B, L, D, F, E = 8, 24, 16, 32, 4
ROOMY = E / 2  # the capacity factor at which every expert has a slot for every token, with top_k = 2
DROPLESS, CAPACITY = {"dispatch": "dropless"}, {"dispatch": "capacity", "capacity_factor": ROOMY}
BOTH = pytest.mark.parametrize("dispatch", [DROPLESS, CAPACITY], ids=moe.DISPATCHES[::-1])
KINDS = pytest.mark.parametrize("kind", mlp.KINDS)
# Each dispatch with another kind of MLP, and the other number of choices.
PAIRS = pytest.mark.parametrize(
    ("dispatch", "kind", "top_k"), [(DROPLESS, "swiglu", 2), (CAPACITY, "gelu", 2), (DROPLESS, "gelu", 3)]
)


def normal(seed, *shape, deviation=1.0):
    return jax.device_put(np.random.default_rng(seed).normal(0.0, deviation, shape).astype(np.float32))


def tokens():
    return normal(1, B, L, D)


def boxed_params(layer):
    return jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((B, L, D))))["params"]


def made_params(layer, seed=0):
    """Normal values of the layer's shapes, with about the spread that its own initialiser gives them."""
    shapes = nn.meta.unbox(boxed_params(layer))
    return {k: normal(seed + i, *x.shape, deviation=x.shape[-2] ** -0.5) for i, (k, x) in enumerate(shapes.items())}


@functools.cache
def compiled(layer):
    return jax.jit(lambda params, x: layer.apply({"params": params}, x))


def apply(layer, params, x):
    return jax.device_get(compiled(layer)(params, x))


def forced(params, router_DxE):
    """The same parameters with this router."""
    return {**params, "router": jax.device_put(np.asarray(router_DxE, np.float32))}


def expert_of(params, e, kind):
    """The parameters of one expert, as the plain MLP has them."""
    names = ("up", "gate", "down") if kind == "swiglu" else ("up", "down")
    return jax.device_put({name: {"kernel": np.asarray(jax.device_get(params[name]))[e]} for name in names})


def numpy_mlp(x_D, params, e, kind):
    up_F = x_D @ params["up"][e]
    if kind == "swiglu":
        gate_F = x_D @ params["gate"][e]
        hidden_F = gate_F / (1 + np.exp(-gate_F)) * up_F
    else:
        hidden_F = up_F / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (up_F + 0.044715 * up_F**3)))
    return hidden_F @ params["down"][e]


def loop_over_tokens(params, x_BxLxD, top_k, kind):
    """Each token alone: softmax over the logits of its top_k experts, and their MLPs' outputs in that mixture."""
    x_BxLxD, params = jax.tree.map(np.float64, jax.device_get((x_BxLxD, params)))
    y_BxLxD = np.zeros(x_BxLxD.shape)
    for b, t in np.ndindex(B, L):
        logits_E = x_BxLxD[b, t] @ params["router"]
        best = sorted(range(E), key=lambda e: -logits_E[e])[:top_k]
        weights = np.exp(logits_E[best]) / np.sum(np.exp(logits_E[best]))
        parts = [w * numpy_mlp(x_BxLxD[b, t], params, e, kind) for w, e in zip(weights, best, strict=True)]
        y_BxLxD[b, t] = sum(parts)
    return y_BxLxD


@BOTH
def test_one_expert_is_the_plain_mlp(dispatch, kind="swiglu"):
    """To the last bit where the products have the plain one's shape; blocks of rows are summed in another order."""
    layer = MoE(F, 1, 1, kind, **{**dispatch, "capacity_factor": 1.0})
    params = made_params(layer)
    y, routing = apply(layer, params, tokens())
    plain = apply(mlp.MLP(F, kind), expert_of(params, 0, kind), tokens())
    np.testing.assert_allclose(y, plain, rtol=0, atol=0 if dispatch == CAPACITY else 2e-6)
    assert routing.dropped == 0 and abs(routing.balance - 1) < 1e-6


def test_experts_start_as_the_plain_mlp_does():
    """Each kernel has the plain one's shape and spread: a fan-in over one expert's inputs, not over all experts'."""
    key = jax.random.key(jax.device_put(np.uint32(0)))
    make = lambda layer: jax.jit(lambda key, x: nn.meta.unbox(layer.init(key, x)))(key, tokens())["params"]  # noqa: E731
    plain, params = (make(layer) for layer in (mlp.MLP(64, out_scale=0.5), MoE(64, 16, out_scale=0.5)))
    for name, leaf in plain.items():
        assert params[name].shape == (16, *leaf["kernel"].shape)
        spread, wanted = np.std(jax.device_get(params[name])), np.std(jax.device_get(leaf["kernel"]))
        np.testing.assert_allclose(spread, wanted, rtol=0.1)


@PAIRS
def test_equal_experts_are_the_plain_mlp_whatever_the_router_says(dispatch, kind, top_k):
    layer = MoE(F, E, top_k, kind, **dispatch)
    params = jax.device_get(made_params(layer))
    params = {k: v if k == "router" else np.broadcast_to(v[:1], v.shape) for k, v in params.items()}
    params = jax.device_put(params)
    plain = apply(mlp.MLP(F, kind), expert_of(params, 0, kind), tokens())
    np.testing.assert_allclose(apply(layer, params, tokens())[0], plain, rtol=1e-4, atol=1e-5)


@PAIRS
def test_it_is_the_loop_over_tokens(dispatch, kind, top_k):
    layer = MoE(F, E, top_k, kind, **dispatch)
    params = made_params(layer)
    y, routing = apply(layer, params, tokens())
    np.testing.assert_allclose(y, loop_over_tokens(params, tokens(), top_k, kind), rtol=1e-4, atol=1e-5)
    assert routing.dropped == 0


@pytest.mark.parametrize("favourite", [0, 3])
def test_no_imbalance_makes_dropless_drop(favourite):
    """All tokens at one expert, the others empty: the blocks suffice and are the right expert's."""
    layer = MoE(F, E, 1, dispatch="dropless")
    router_DxE = np.zeros((D, E))
    router_DxE[0, favourite] = 100.0
    params, x = forced(made_params(layer), router_DxE), jax.device_put(np.abs(jax.device_get(tokens())) + 1)
    plain = apply(mlp.MLP(F), expert_of(params, favourite, "gelu"), x)
    np.testing.assert_allclose(apply(layer, params, x)[0], plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_over_capacity_the_later_tokens_are_dropped_and_the_share_is_told(factor):
    """Channel e of a token is its logit at expert e. Expert 1 gets 18 of 24 tokens as first choice, expert 2 six."""
    layer = MoE(F, E, 1, capacity_factor=factor)
    first_L = np.where(np.arange(L) % 4 == 2, 2, 1)
    x = np.tile(10 * np.eye(D, dtype=np.float32)[first_L], (B, 1, 1))
    params = forced(made_params(layer), np.eye(D, E))
    y, routing = apply(layer, params, jax.device_put(x))
    capacity = {1.0: 6, 1.3: 8}[factor]
    place_L = np.array([np.sum(first_L[:t] == first_L[t]) for t in range(L)])
    alive_L = np.abs(y).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(alive_L, place_L < capacity)
    np.testing.assert_allclose(routing.dropped, 1 - (6 + capacity) / L, rtol=1e-6)


def test_a_dropped_choice_leaves_the_others_gate_as_it_was():
    """Second choices of the first tokens take places before first choices of later ones: nothing later counts."""
    layer = MoE(F, E, 2, capacity_factor=1.0)  # 12 places for 48 choices among 4 experts
    x = np.tile(np.r_[3.0, 1.0, np.zeros(D - 2)].astype(np.float32), (B, L, 1))
    x[:, 6:, :2] = x[:, 6:, 1::-1]  # from token 6 on, expert 1 first and expert 0 second
    params = forced(made_params(layer), np.eye(D, E))
    y, routing = apply(layer, params, jax.device_put(x))
    whole = loop_over_tokens(params, jax.device_put(x), 2, "gelu")
    np.testing.assert_allclose(y[:, :12], whole[:, :12], rtol=1e-4, atol=1e-5)
    assert np.all(y[:, 12:] == 0)
    np.testing.assert_allclose(routing.dropped, 0.5)


@pytest.mark.parametrize("dispatch", moe.DISPATCHES)
def test_a_token_is_moved_by_no_later_one(dispatch):
    layer = MoE(F, E, 2, dispatch=dispatch, capacity_factor=0.5)
    params, x = made_params(layer), jax.device_get(tokens())
    changed = np.concatenate([x[:, :12], np.random.default_rng(5).normal(size=(B, L - 12, D))], 1).astype(np.float32)
    before, routing = apply(layer, params, jax.device_put(x))
    after, _ = apply(layer, params, jax.device_put(changed))
    np.testing.assert_allclose(after[:, :12], before[:, :12], rtol=1e-5, atol=1e-6)
    assert np.abs(after[:, 12:] - before[:, 12:]).max() > 0.1
    assert (routing.dropped > 0.3) == (dispatch == "capacity")


def plain_mixture(params, x_BxLxD, kind, top_k):
    """Every expert for every token, times a gate that is zero but for the best."""
    logits_BxLxE = x_BxLxD @ params["router"]
    last = jnp.sort(logits_BxLxE, axis=-1)[..., -top_k, None]
    gates_BxLxE = jax.nn.softmax(jnp.where(logits_BxLxE >= last, logits_BxLxE, -jnp.inf), axis=-1)
    up, down = (params[name] for name in ("up", "down"))
    hidden = jnp.einsum("bld,edf->blef", x_BxLxD, up)
    if kind == "swiglu":
        hidden = nn.silu(jnp.einsum("bld,edf->blef", x_BxLxD, params["gate"])) * hidden
    else:
        hidden = nn.gelu(hidden)
    return jnp.einsum("ble,blef,efd->bld", gates_BxLxE, hidden, down)


@PAIRS
def test_gradients_are_those_of_the_definition(dispatch, kind, top_k):
    layer = MoE(F, E, top_k, kind, **dispatch)
    params, x, weight = made_params(layer), tokens(), normal(2, B, L, D)
    mine = lambda p, x, w: jnp.sum(w * layer.apply({"params": p}, x)[0])  # noqa: E731
    plain = lambda p, x, w: jnp.sum(w * plain_mixture(p, x, kind, top_k))  # noqa: E731
    got, wanted = (jax.device_get(jax.jit(jax.grad(f, (0, 1)))(params, x, weight)) for f in (mine, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, wanted)
    assert all(np.abs(leaf).max(axis=(1, 2)).min() > 0.1 for name, leaf in got[0].items() if name != "router")
    assert np.abs(got[0]["router"]).max(axis=0).min() > 0.1


@pytest.mark.parametrize("dispatch", moe.DISPATCHES)
def test_the_losses_alone_reach_the_router(dispatch):
    layer = MoE(F, E, 1, dispatch=dispatch)
    for name in ("balance", "z"):
        loss = lambda p, x, name=name: getattr(layer.apply({"params": p}, x)[1], name)  # noqa: E731
        gradient = jax.device_get(jax.jit(jax.grad(loss))(made_params(layer), tokens()))
        assert np.abs(gradient["router"]).max() > 1e-3
        assert not np.any(gradient["up"]) and not np.any(gradient["down"])


def test_the_gates_of_the_chosen_sum_to_one_and_a_lone_one_is_its_probability():
    logits = normal(3, B, L, E)
    probabilities = jax.device_get(jax.jit(jax.nn.softmax)(logits))
    for top_k in (1, 2, 3):
        gates, expert, *_ = jax.device_get(jax.jit(route, static_argnums=1)(logits, top_k))
        np.testing.assert_array_equal(expert, np.argsort(-probabilities, axis=-1)[..., :top_k])
        best = np.take_along_axis(probabilities, expert, axis=-1)
        wanted = best if top_k == 1 else best / best.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(gates, wanted, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_balance_loss_is_one_when_even_and_grows_with_collapse(top_k):
    """Tokens cycle over the experts, or all take the first; with logits so large that probabilities are 0 or equal."""
    cycle_BxLxE = np.tile(50 * np.eye(E, dtype=np.float32)[np.arange(L) % E], (B, 1, 1))
    even = cycle_BxLxE if top_k == 1 else cycle_BxLxE + np.roll(cycle_BxLxE, 1, axis=-1)
    one_place = np.tile(even[:, :1], (1, L, 1))
    for logits, wanted in ((even, 1.0), (one_place, E / top_k)):
        balance = jax.jit(lambda x: Routing(*route(x, top_k)[2:], None, None).balance)(jax.device_put(logits))
        np.testing.assert_allclose(jax.device_get(balance), wanted, rtol=1e-5)


def test_the_z_loss_is_the_mean_square_of_the_logarithm_of_the_partition_function():
    layer = MoE(F, E)
    params = made_params(layer)
    logits = np.asarray(jax.device_get(tokens()), np.float64) @ jax.device_get(params["router"])
    wanted = np.mean(np.log(np.sum(np.exp(logits), axis=-1)) ** 2)
    np.testing.assert_allclose(apply(layer, params, tokens())[1].z, wanted, rtol=1e-5)


def test_permuted_tokens_give_permuted_outputs():
    layer = MoE(F, E, 2, dispatch="dropless")
    params, x = made_params(layer), jax.device_get(tokens())
    order = np.random.default_rng(4).permutation(B * L)
    shuffled = jax.device_put(x.reshape(-1, D)[order].reshape(x.shape))
    y, _ = apply(layer, params, jax.device_put(x))
    z, _ = apply(layer, params, shuffled)
    np.testing.assert_allclose(z.reshape(-1, D), y.reshape(-1, D)[order], rtol=1e-4, atol=1e-5)


def test_in_bfloat16_the_router_and_the_losses_stay_float32():
    layer = MoE(F, E, 2)
    params, x = jax.jit(lambda tree: jax.tree.map(lambda v: v.astype(jnp.bfloat16), tree))(
        (made_params(layer), tokens())
    )
    y, routing = apply(layer, params, x)
    assert y.dtype == jnp.bfloat16 and all(value.dtype == np.float32 for value in routing)
    _, wanted = apply(layer, *jax.jit(lambda tree: jax.tree.map(lambda v: v.astype(jnp.float32), tree))((params, x)))
    np.testing.assert_allclose(routing.z, wanted.z, rtol=1e-6)


def test_in_bfloat16_gradients_of_many_blocks_are_added_up_in_float32():
    """A token in each of 1000 blocks, all ones: bfloat16 cannot count past 256."""
    x, kernel, owner = jax.device_put((np.ones((1000, 1, 1)), np.ones((1, 1, 1)), np.zeros(1000, np.int32)))

    def total(kernel, x, owner):
        return jnp.sum(moe._block_matmul(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), owner))

    assert jax.device_get(jax.jit(jax.grad(total))(kernel, x, owner)) == 1000


# On a mesh. The rules are those of an expert axis: the batch goes over all axes, the experts over theirs.
RULES = (("batch", ("data", "expert")), ("expert_batch", ("data",)), ("experts", ("expert",)))


def loss_and_gradients(layer):
    def loss(params, x):
        y_BxLxD, routing = layer.apply({"params": params}, x)
        return jnp.sum(y_BxLxD**2) + 10 * routing.balance + routing.z, routing

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


@functools.cache
def on_eight_devices(layer):
    """`loss_and_gradients` on a 4 x 2 mesh, gradients where the parameters are: the compiled text, and the values."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("data", "expert"), axis_types=(AxisType.Auto,) * 2)
    names = jax.tree.map(lambda leaf: leaf.names, boxed_params(layer), is_leaf=lambda x: hasattr(x, "names"))
    inputs = jax.device_get((made_params(layer), tokens()))
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        place = lambda names: NamedSharding(mesh, nn.logical_to_mesh_axes(names))  # noqa: E731
        where = {k: place(v) for k, v in names.items()}, place(("batch", None, None))
        inputs = jax.device_put(inputs, where)
        step = jax.jit(loss_and_gradients(layer), out_shardings=(NamedSharding(mesh, PartitionSpec()), where))
        program = step.lower(*inputs).compile()
        return program.as_text(), jax.device_get(program(*inputs))


def sent(layer):
    """(kind, floats) of each collective operation on the 4 x 2 mesh."""
    found = collectives(on_eight_devices(layer)[0], {"data": 4, "expert": 2})
    return [(c.kind, c.bytes // 4) for c in found for _ in range(c.count)]


TIGHT = MoE(F, E, 2, capacity_factor=0.75)
UNLIMITED = MoE(F, E, 2, dispatch="dropless")


@pytest.mark.parametrize("layer", [TIGHT, UNLIMITED], ids=moe.DISPATCHES)
def test_eight_devices_give_what_one_does(layer):
    wanted = jax.device_get(jax.jit(loss_and_gradients(layer))(made_params(layer), tokens()))
    _, got = on_eight_devices(layer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, wanted)
    assert (wanted[0][1].dropped > 0.1) == (layer == TIGHT)


def test_spread_experts_exchange_tokens_and_nothing_else():
    """Two all-to-alls forward and two back, of each device's slots: B / 8 sequences x E experts x 9 places x D.

    All else is reduced: the gradients of the experts here (2 of 4, both kernels), the router's, sums for the losses.
    """
    found = sent(TIGHT)
    assert [n for kind, n in found if kind == "all-to-all"] == [B // 8 * E * 9 * D] * 4
    assert {kind for kind, _ in found} == {"all-to-all", "all-reduce"}
    reduced = sum(n for kind, n in found if kind == "all-reduce")
    gradients = E // 2 * 2 * D * F + D * E
    assert gradients <= reduced <= gradients + 2 * E + 4


def test_without_capacity_spread_experts_come_to_the_tokens():
    """The kernels are gathered, and no token leaves its device."""
    found = sent(UNLIMITED)
    assert {kind for kind, _ in found} == {"all-gather", "all-reduce"}
    assert [n for kind, n in found if kind == "all-gather"] == [E * D * F] * 2


# Counts.


@KINDS
def test_a_token_meets_its_experts_and_the_router(kind):
    layer = MoE(F, E, 2, kind)
    each = (3 if kind == "swiglu" else 2) * D * F
    params = boxed_params(layer)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == E * each + D * E
    assert active_parameters(params, 2) == 2 * each + D * E
    assert active_parameters({"layer": params, "norm": jax.ShapeDtypeStruct((7,), np.float32)}, 1) == each + D * E + 7


def test_stacked_layers_count_like_separate_ones():
    names = {nn.PARTITION_NAME: "layers"}
    stack = nn.scan(MoE, variable_axes={"params": 0}, split_rngs={"params": True}, length=3, metadata_params=names)
    params = boxed_params(stack(F, E, 2))
    assert active_parameters(params, 2) == 3 * (2 * 2 * D * F + D * E)


@pytest.mark.parametrize("length", [512, 4096])
def test_flops_are_counted_and_little_is_spent_on_padding(length):
    """Training takes 6 FLOPs per row and matrix entry: rows of slots for the experts, tokens for the router."""
    x = jax.ShapeDtypeStruct((2, length, D), np.float32)
    flops = {}
    for dispatch in moe.DISPATCHES:
        layer = MoE(F, E, 2, dispatch=dispatch)
        loss = lambda p, x, layer=layer: jnp.sum(layer.apply({"params": p}, x)[0])  # noqa: E731
        params = nn.meta.unbox(boxed_params(layer))
        flops[dispatch] = jaxpr_flops(jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, x).jaxpr)
    experts, router = 6 * 2 * 2 * length * 2 * D * F, 6 * 2 * length * D * E
    assert flops["capacity"] == 1.25 * experts + router
    assert experts < flops["dropless"] - router <= 1.13 * experts


def test_routing_of_parts_has_the_mean_that_the_whole_has():
    """Also for the balance loss, which is no mean over tokens."""
    layer = MoE(F, E, dispatch="capacity")
    params, x = made_params(layer), tokens()
    whole = apply(layer, params, x)[1]
    parts = [apply(layer, params, jax.device_put(part))[1] for part in np.split(jax.device_get(x), 2)]
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *parts)
    assert [x.shape for x in whole] == [(E,), (E,), (), ()]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mean, whole)
    assert abs(mean.balance - whole.balance) < 1e-6 < abs(np.mean([part.balance for part in parts]) - whole.balance)
