"""The transformer against its definition."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from setups import make_setup

from deeplearn import sharding
from deeplearn.config import ConfigError
from deeplearn.families import transformer
from deeplearn.layers import remat
from deeplearn.layers.attention import causal_attention, rope

SMALL = transformer.Config(seq_len=12, width=16, depth=2, heads=4, kv_heads=2)


def plain_attention(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK):
    """As the papers write it, with keys and values repeated for the heads that share them."""
    length, repeats = q_BxLxHxK.shape[1], q_BxLxHxK.shape[2] // k_BxLxGxK.shape[2]
    k, v = (jnp.repeat(x, repeats, axis=2) for x in (k_BxLxGxK, v_BxLxGxK))
    scores = jnp.einsum("blhk,bmhk->bhlm", q_BxLxHxK, k) / q_BxLxHxK.shape[-1] ** 0.5
    visible = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), scores.shape)
    return jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(jnp.where(visible, scores, -jnp.inf)), v)


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (4, 2), (4, 1)])
def test_attention_and_its_gradient_by_hand_are_those_of_the_definition(heads, groups):
    random = np.random.default_rng(0)
    shapes = [(2, 10, heads, 8), (2, 10, groups, 8), (2, 10, groups, 8), (2, 10, heads, 8)]
    q, k, v, weight = jax.device_put([random.normal(size=s).astype(np.float32) for s in shapes])
    values, gradients = [], []
    for attention in (causal_attention, plain_attention):
        total = jax.jit(lambda *x, a=attention: jnp.sum(a(*x[:3]) * x[3]))
        values.append(jax.device_get(total(q, k, v, weight)))
        gradients.append(jax.device_get(jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v, weight)))
    np.testing.assert_allclose(*values, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradients)


def test_rope_makes_scores_depend_on_distance_alone():
    random = np.random.default_rng(1)
    q, k = (np.tile(random.normal(size=(1, 1, 1, 8)).astype(np.float32), (1, 9, 1, 1)) for _ in range(2))
    q, k = jax.device_get(
        jax.jit(lambda *xs: [rope(x, 100.0, np.arange(x.shape[1])) for x in xs])(*jax.device_put((q, k)))
    )
    scores_LxM = np.einsum("blhk,bmhk->lm", q, k)
    for distance in range(9):
        diagonal = np.diagonal(scores_LxM, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert np.ptp(scores_LxM[:, 0]) > 0.1


@pytest.fixture(scope="module")
def small():
    return make_setup(transformer, SMALL)


def tokens_of(setup):
    return jax.device_get(setup.batch["tokens"])


def test_a_logit_depends_on_no_later_token(small):
    """By gradient: d logits[t] / d embedding of token s is exactly zero for s > t, and not for s <= t."""
    tokens = jax.device_put(tokens_of(small)[:1, :-1])
    table = small.variables["params"]["embed"]["embedding"]

    def logits(rows_LxD):
        whole_VxD = jnp.concatenate([rows_LxD, table[rows_LxD.shape[0] :]])  # a row of its own for each position
        params = {**small.variables["params"], "embed": {"embedding": whole_VxD}}
        own = jnp.arange(tokens.shape[1])[None]
        return jnp.sum(transformer.apply(SMALL, {"params": params}, own)[0] ** 2, axis=-1)

    jacobian_LxLxD = jax.jit(lambda t, table: jax.jacrev(logits)(table[t[0]]))(tokens, table)
    seen_LxL = np.abs(jax.device_get(jacobian_LxLxD)).max(axis=-1)
    assert np.all(seen_LxL[np.triu_indices(SMALL.seq_len, 1)] == 0)
    assert np.all(seen_LxL[np.tril_indices(SMALL.seq_len)] > 0)


@pytest.mark.parametrize(
    "change",
    [{"mlp": "swiglu"}, {"qk_norm": True}, {"tied": True}, {"scan_layers": True}, {"remat": "full"}, {"kv_heads": 1}],
    ids=str,
)
def test_every_option_trains(change):
    setup = make_setup(transformer, dataclasses.replace(SMALL, **change))
    (objective,) = transformer.objectives(setup.config)
    gradient = jax.jit(jax.grad(lambda v, b, k: objective.loss(v, b, k, True)[0]))
    found = jax.device_get(gradient(*setup[2:]))
    assert all(np.isfinite(g).all() and g.any() for g in jax.tree.leaves(found))


@pytest.mark.parametrize("tied", [False, True])
def test_a_loss_in_chunks_is_the_loss(tied):
    plain = dataclasses.replace(SMALL, tied=tied)
    setup = make_setup(transformer, plain)

    def loss_and_gradient(config):
        (objective,) = transformer.objectives(config)
        run = jax.jit(jax.value_and_grad(lambda v, b, k: objective.loss(v, b, k, True)[0]))
        return jax.device_get(run(*setup[2:]))

    whole, chunks = loss_and_gradient(plain), loss_and_gradient(dataclasses.replace(plain, loss_chunk=4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6), whole, chunks)


@pytest.mark.slow
def test_what_is_computed_again_changes_no_gradient():
    setup = make_setup(transformer, dataclasses.replace(SMALL, scan_layers=True))

    def gradient(policy):
        (objective,) = transformer.objectives(dataclasses.replace(setup.config, remat=policy))
        return jax.device_get(jax.jit(jax.grad(lambda v, b, k: objective.loss(v, b, k, True)[0]))(*setup[2:]))

    kept, *again = (gradient(policy) for policy in remat.POLICIES)
    for found in again:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-7), kept, found)


def test_scanned_layers_compute_what_unrolled_ones_do(small):
    config = dataclasses.replace(SMALL, scan_layers=True, remat="full")
    params = small.variables["params"]
    layers = [params[f"layer_{i}"] for i in range(SMALL.depth)]
    stacked = {k: v for k, v in params.items() if not k.startswith("layer_")}
    stacked["layers"] = jax.tree.map(lambda *x: np.stack(jax.device_get(x)), *layers)
    stacked = jax.device_put(stacked)
    scanned = sharding.unbox(jax.eval_shape(lambda k, b: transformer.init(config, k, b), small.key, small.batch))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, scanned["params"])
    tokens = jax.device_put(tokens_of(small)[:, :-1])
    one = jax.jit(lambda p, t: transformer.apply(SMALL, {"params": p}, t))(params, tokens)
    other = jax.jit(lambda p, t: transformer.apply(config, {"params": p}, t))(stacked, tokens)
    np.testing.assert_allclose(*jax.device_get((one, other)), rtol=1e-4, atol=1e-5)


def test_rounds_store_the_same_layers_in_order():
    one, two = (dataclasses.replace(SMALL, depth=4, scan_layers=True, rounds=n) for n in (1, 2))
    setup = make_setup(transformer, one)
    params = jax.device_get(setup.variables["params"])
    grouped = {**params, "layers": jax.tree.map(lambda w: w.reshape(2, 2, *w.shape[1:]), params["layers"])}
    boxed = jax.eval_shape(lambda k, b: transformer.init(two, k, b), setup.key, setup.batch)["params"]
    assert jax.tree.map(np.shape, grouped) == jax.tree.map(jnp.shape, sharding.unbox(boxed))
    assert boxed["layers"]["mlp"]["up"]["kernel"].names == ("rounds", "layers", "embed", "mlp")
    tokens = jax.device_put(tokens_of(setup)[:, :-1])
    found = [
        jax.jit(lambda p, t, c=c: transformer.apply(c, {"params": p}, t))(p, tokens)
        for c, p in ((one, setup.variables["params"]), (two, jax.device_put(grouped)))
    ]
    np.testing.assert_allclose(*jax.device_get(found), rtol=1e-5, atol=1e-6)


def test_sampling_keeps_the_prompt_and_goes_past_the_window(small):
    prompt = jax.device_put(tokens_of(small)[:2, :5])
    draw = jax.jit(lambda v, k, p: transformer.sample(SMALL, v, k, p, 20))
    tokens = jax.device_get(draw(small.variables, small.key, prompt))
    assert tokens.shape == (2, 25)
    np.testing.assert_array_equal(tokens[:, :5], jax.device_get(prompt))
    assert tokens.min() >= 0 and tokens.max() < 256 and len(np.unique(tokens[:, 5:])) > 5


def test_cold_sampling_takes_the_likeliest_token(small):
    prompt = jax.device_put(tokens_of(small)[:1, :6])
    draw = jax.jit(lambda v, k, p: transformer.sample(SMALL, v, k, p, 1, 1e-6))
    apply = jax.jit(lambda v, t: transformer.apply(SMALL, v, t))
    tokens, logits = jax.device_get((draw(small.variables, small.key, prompt), apply(small.variables, prompt)))
    assert tokens[0, -1] == logits[0, -1].argmax()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"heads": 3}, "not an even multiple of model.heads 3"),
        ({"kv_heads": 3}, "kv_heads 3"),
        ({"mlp": "glu"}, "gelu"),
        ({"remat": "dot"}, "did you mean 'dots'"),
    ],
)
def test_a_wrong_configuration_is_named(wrong, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SMALL, **wrong)
