"""What every family must keep. Families are discovered: a new module in deeplearn/families needs no line here."""

import itertools

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from setups import compiled_init, make_key

from deeplearn import families
from deeplearn.config import ConfigError, to_dict
from deeplearn.families.counting import flops_per_example, parameters

AXIS_NAMES = {
    *("embed", "mlp", "heads", "kv_heads", "head_dim", "vocab", "layers", "norm", "latent", "classes"),
    *("conv_height", "conv_width", "conv_in", "conv_out"),
}


def path_name(path) -> str:
    return "/".join(str(p.key) for p in path)


def trained(objective, params):
    return {name: params[name] for name in objective.trains or params}


@pytest.fixture(scope="module")
def gradients(setup):
    """objective name -> (loss, aux, gradient) on one batch, in training."""
    _, _, variables, batch, key = setup
    collections = {name: value for name, value in variables.items() if name != "params"}

    def all_gradients(params, collections, batch, key):
        results = {}
        for objective in setup.family.objectives(setup.config):

            def loss(part, objective=objective):
                return objective.loss({"params": {**params, **part}, **collections}, batch, key, True)

            (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(trained(objective, params))
            results[objective.name] = value, aux, gradient
        return results

    return jax.jit(all_gradients)(variables["params"], collections, batch, key)


def test_init_is_a_pure_function_of_the_key(setup):
    init = compiled_init(setup.family, setup.config)
    same, other = init(setup.key, setup.batch), init(make_key(1), setup.batch)
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((same, setup.variables)))
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), *jax.device_get((same, other)))
    assert any(jax.tree.leaves(differs))


def test_losses_and_metrics_are_finite_float32_scalars(gradients):
    for name, (value, aux, _) in jax.device_get(gradients).items():
        assert value.shape == () and value.dtype == np.float32 and np.isfinite(value), name
        assert all(np.shape(metric) == () and np.isfinite(metric) for metric in aux.metrics.values()), aux.metrics


def test_state_keeps_its_shape_so_that_steps_can_carry_it(setup, gradients):
    collections = {name: value for name, value in setup.variables.items() if name != "params"}
    for _, aux, _ in gradients.values():
        before = {name: collections[name] for name in aux.state}
        shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
        assert shapes(aux.state) == shapes(before)


def test_gradients_are_finite_and_reach_every_parameter(setup, gradients):
    reached = {}
    for objective in setup.family.objectives(setup.config):
        _, _, gradient = gradients[objective.name]
        assert gradient.keys() == trained(objective, setup.variables["params"]).keys()
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(gradient)):
            assert np.isfinite(leaf).all(), path_name(path)
            reached[path_name(path)] = reached.get(path_name(path), False) or bool(leaf.any())
    names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(setup.variables["params"])}
    assert reached.keys() == names
    assert not [name for name, nonzero in reached.items() if not nonzero]


def test_objectives_without_training_leave_no_state(setup):
    for objective in setup.family.objectives(setup.config):
        _, aux = jax.eval_shape(lambda v, b, k, o=objective: o.loss(v, b, k, False), *setup[2:])
        assert aux.state == {}


def test_losses_and_state_stay_float32_in_bfloat16(setup):
    def half(tree):
        floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16 if floating(x) else x.dtype), tree)

    variables = {**setup.variables, "params": half(setup.variables["params"])}
    for objective in setup.family.objectives(setup.config):
        loss = lambda v, b, k, o=objective: o.loss(v, b, k, True)  # noqa: E731
        value, aux = jax.eval_shape(loss, variables, half(setup.batch), setup.key)
        assert value.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(aux.state)} <= {jnp.dtype("float32")}
    evaluate = lambda v, b, k: setup.family.evaluate(setup.config, v, b, k)  # noqa: E731
    sums = jax.eval_shape(evaluate, variables, half(setup.batch), setup.key)
    assert [x.dtype for x in sums] == [jnp.float32, jnp.float32]


def test_evaluate_gives_a_finite_total_and_a_weight(setup):
    evaluate = jax.jit(lambda v, b, k: setup.family.evaluate(setup.config, v, b, k))
    total, weight = jax.device_get(evaluate(*setup[2:]))
    assert np.shape(total) == np.shape(weight) == ()
    assert np.isfinite(total) and weight > 0
    assert isinstance(setup.family.UNIT, str) and setup.family.UNIT


def test_every_parameter_axis_has_a_logical_name(setup):
    boxed = jax.eval_shape(lambda k, b: setup.family.init(setup.config, k, b), setup.key, setup.batch)
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
    for path, box in jax.tree_util.tree_leaves_with_path(boxed["params"], is_leaf=is_box):
        assert is_box(box), path_name(path)
        assert len(box.names) == box.value.ndim, path_name(path)
        assert set(box.names) <= AXIS_NAMES, path_name(path)


def test_the_dial_turns_up_parameters_and_flops(setup):
    family = setup.family
    assert list(family.SIZES) == sorted(set(family.SIZES))
    counts = [parameters(family, family.config(size)).total for size in family.SIZES]
    flops = [flops_per_example(family, family.config(size)) for size in family.SIZES[:3]]
    for series in (counts, flops):
        assert series[0] > 0 and all(a < b for a, b in itertools.pairwise(series)), series


def test_at_size_turns_the_width_and_nothing_else(setup):
    family, narrow = setup.family, setup.config
    assert all(family.at_size(family.config(size), size) == family.config(size) for size in family.SIZES)
    wide = family.at_size(narrow, family.SIZES[-1])
    assert family.at_size(wide, family.SIZES[0]) == narrow
    assert family.example(wide) == family.example(narrow)
    shapes = lambda config: jax.eval_shape(lambda k, b: family.init(config, k, b), setup.key, setup.batch)  # noqa: E731
    growth = jax.tree.map(lambda a, b: b.size / a.size, shapes(narrow)["params"], shapes(wide)["params"])
    assert max(jax.tree.leaves(growth)) == (family.SIZES[-1] / family.SIZES[0]) ** 2


def test_config_is_plain_and_examples_count(setup):
    assert to_dict(setup.config)
    assert setup.family.config(setup.family.SIZES[0]) == setup.config
    assert setup.family.tokens_per_example(setup.config) >= 1


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(ConfigError, match="'transformer'"):
        families.get("transfomer")
