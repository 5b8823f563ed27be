"""muP: the factors of every kind of parameter, and the coordinate check of Yang et al. 2022 (arXiv 2203.03466, app. D).

After a few updates every activation has changed as much in a wide model as in a narrow one, and not so without muP.
"""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from short_runs import short_run

from deeplearn import data, families, optim, sharding
from deeplearn.config import ConfigError
from deeplearn.train import loop, state as states, transfer
from deeplearn.train.run import Run
from experiments import cli

# What a parameter is, by its path, and its factors on rate and initial values in a model 4 times as wide, for Adam.
KINDS = {
    r"embedding$": (1 / 2, 1.0),
    r"(scale|bias)$": (1.0, 1.0),
    r"(stem|down_0|project)/kernel$": (1.0, 1.0),
    r"((head|logit|up_1)/kernel|router)$": (1 / 4, 1 / 2),
    r"": (1 / 4, 1.0),
}


def run_of(config: str, size: int, base: int, **settings) -> Run:
    """The smallest model of a config, at another width."""
    module = cli.load_config(config)
    family = families.get(module.get_config().family)
    run = module.get_config(size=family.SIZES[0])
    recipe = dataclasses.replace(run.optim, base_size=base, **settings)
    return dataclasses.replace(run, size=size, model=family.at_size(run.model, size), optim=recipe)


def factors(run: Run) -> dict[str, tuple[float, float]]:
    return {path: tuple(found) for path, _, _, found in transfer.table(run)}


@pytest.mark.parametrize("config", ["transformer", "moe", "lstm", "cnn", "gan"])
def test_factors_follow_from_what_each_parameter_is(config):
    wide, narrow = factors(run_of(config, 64, 16)), factors(run_of(config, 16, 64))
    for path, found in wide.items():
        assert found == pytest.approx(next(f for kind, f in KINDS.items() if re.search(kind, path))), path
        assert np.multiply(found, narrow[path]) == pytest.approx((1, 1)), path  # the base may be the wider one


def test_sgd_has_other_factors_and_wider_heads_smaller_queries():
    found = factors(run_of("lstm", 64, 16, name="sgd", clip=0.0))
    assert found["layer_0/bias"] == pytest.approx((4, 1)) and found["layer_0/input_kernel"] == pytest.approx((1, 1))
    assert found["head/kernel"] == pytest.approx((1 / 4, 1 / 2)) and found["embed/embedding"] == pytest.approx((1, 1))
    attention, run = "layer_0/attention", run_of("transformer", 64, 16)
    two_heads = dataclasses.replace(run.model, heads=2, kv_heads=2)  # of 32 channels, where the base has one of 16
    found = factors(dataclasses.replace(run, model=two_heads))
    assert found[f"{attention}/query_kernel"] == pytest.approx((0.25 * 2**-0.5, 2**-0.5))
    assert found[f"{attention}/key_kernel"] == found[f"{attention}/out/kernel"] == pytest.approx((0.25, 1))


def test_what_does_not_transfer_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.clip=0"):
        transfer.factors(run_of("lstm", 64, 16, name="sgd"))
    run = run_of("transformer", 64, 16)
    with pytest.raises(ConfigError, match=r"model\.tied"):
        transfer.factors(dataclasses.replace(run, model=dataclasses.replace(run.model, tied=True)))
    with pytest.raises(ConfigError, match=r"optim\.base_size 7 makes no model"):
        transfer.factors(run_of("transformer", 64, 7))
    with pytest.raises(ConfigError, match=r"optim\.base_size is -1"):
        optim.Optim(base_size=-1)
    assert transfer.factors(run_of("transformer", 64, 0)) is None


def test_rates_scale_what_is_learnt_and_not_what_decays():
    recipe = optim.Optim(name="sgd", b1=0.0, clip=0.0)
    with jax.transfer_guard("allow"):
        hyper = optim.hyper(dataclasses.replace(recipe, weight_decay=0.5), 1, 0)
        params, grads = {"kernel": jnp.full(3, 4.0)}, {"kernel": jnp.full(3, 8.0)}
        chain = optim.direction(recipe, hyper, {"kernel": 0.25})
        updates, _ = chain.update(grads, chain.init(params), params)
        np.testing.assert_allclose(updates["kernel"], np.full(3, 0.25 * 8 + 0.5 * 4))


def outputs(run: Run, state: states.State, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What each module gives in the last objective's loss, by its path."""
    seen = {}

    def record(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name == "__call__":
            where = "/".join((type(context.module).__name__, *context.module.path))
            seen.setdefault(where, jax.tree.leaves(y)[0])
        return y

    variables = {"params": state.params, **state.collections}
    with nn.intercept_methods(record):
        families.get(run.family).objectives(run.model)[-1].loss(variables, batch, jax.random.key(1), True)
    return seen


def changes(family: str, width: int, base: int, rate: float, steps: int = 4) -> dict[str, float]:
    """How much a few updates change what each module gives for the first batch: root mean square."""
    run, module = short_run(family, steps), families.get(family)
    recipe = dataclasses.replace(run.optim, learning_rate=rate, base_size=base, schedule="constant", warmup=0.0)
    run = dataclasses.replace(run, size=width, model=module.at_size(run.model, width), optim=recipe)
    mesh = sharding.make_mesh(run.mesh)
    with loop.on_mesh(mesh):
        batches = loop.put(
            run, data.train_iterator(run.data, run.batch_size, 0).take(steps), sharding.of_batch(mesh, 1)
        )
        look = jax.jit(lambda state, batches: outputs(run, state, jax.tree.map(lambda x: x[0], batches)))
        state = states.create(run, mesh)
        before = jax.device_get(look(state, batches))
        state, _ = loop.compiled_steps(loop.program(run), mesh, steps)(state, batches)
        after = jax.device_get(look(state, batches))
    return {name: float(np.sqrt(np.mean((after[name] - before[name]) ** 2))) for name in before}


def slopes(narrow: dict[str, float], wide: dict[str, float], growth: int) -> np.ndarray:
    """Of the logarithm of the change in that of the width, for each module."""
    return np.array([math.log(wide[name] / narrow[name]) / math.log(growth) for name in narrow])


@pytest.mark.slow
@pytest.mark.parametrize("family", families.names())
def test_coordinate_check(family):
    """Over a range of 8. The base is an eighth of the narrowest model, so that what outputs start with, which muP lets
    vanish with the width, is small beside what they learn."""
    narrow, growth, rate = max(8, families.get(family).SIZES[0]), 8, 1e-2
    base = narrow // 8
    widths = (narrow, growth * narrow)
    found = slopes(*(changes(family, width, base, rate * narrow / base) for width in widths), growth)
    assert np.abs(found).max() < 0.35 and np.sqrt(np.mean(found**2)) < 0.12, found
    found = slopes(*(changes(family, width, 0, rate) for width in widths), growth)
    assert found.max() > 0.5 and np.sqrt(np.mean(found**2)) > 0.3, found
