"""A branch ends with the bits of a run of its own, whatever became of its trunk, and costs its cooldown alone."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from short_runs import assert_same_bits, short_run

from deeplearn import optim
from deeplearn.config import ConfigError
from deeplearn.optim import Optim
from deeplearn.train import branches, loop, metrics, spent
from deeplearn.train.branches import Branch

BEGINS = {16: 8, 28: 20}  # updates of a branch -> those that it shares: dispatches of 4, the last 30 % decay


def wsd(steps, **changes):
    run = short_run("transformer", steps)
    recipe = dataclasses.replace(run.optim, schedule="wsd", decay=0.3, warmup_steps=4)
    return dataclasses.replace(run, optim=recipe, **changes)


@pytest.mark.parametrize(("steps", "decay"), [(10, 0.2), (20, 0.25), (97, 0.3), (160, 0.3), (4096, 0.2), (99_991, 0.1)])
def test_rates_are_those_of_a_longer_run_exactly_until_the_cooldown(steps, decay):
    recipe = Optim(schedule="wsd", warmup_steps=7, decay=decay)

    @jax.jit
    def rates(hyper):
        return jax.vmap(lambda step: optim.learning_rate(recipe, hyper, step))(jnp.arange(steps))

    short, long = (np.asarray(rates(jax.device_put(optim.hyper(recipe, n, 0)))) for n in (steps, 10 * steps))
    same = int(np.argmax(short != long))  # the first update that differs
    stable = optim.stable_steps(recipe, steps)
    assert same - 1 <= stable <= same
    assert stable == pytest.approx((1 - decay) * steps, abs=1)
    assert long[7] == np.float32(recipe.learning_rate) > long[6] == pytest.approx(recipe.learning_rate * 6.5 / 7)


def test_runs_that_share_nothing_have_no_branch_point():
    for recipe in (Optim(), Optim(schedule="cosine", warmup_steps=4), Optim(warmup_steps=4, decay=1.0)):
        assert optim.stable_steps(recipe, 40) == 0
    assert {steps: branches.step_of(wsd(steps)) for steps in BEGINS} == BEGINS


def test_a_warm_up_is_a_share_or_a_number_of_updates_and_fits_its_run(tmp_path):
    with pytest.raises(ConfigError, match=r"optim.warmup 0.1 and optim.warmup_steps 4 both say"):
        Optim(warmup=0.1, warmup_steps=4)
    with pytest.raises(ConfigError, match="warmup_steps must be at least 0, not -1"):
        Optim(warmup_steps=-1)
    run = wsd(12)
    with pytest.raises(ConfigError, match="warmup_steps 13 outlasts the run of 12 updates"):
        loop.check_data(dataclasses.replace(run, optim=dataclasses.replace(run.optim, warmup_steps=13)))


def branch(steps, folder, told, is_new=True, **changes):
    return Branch(wsd(steps, **changes), folder, lambda: is_new, lambda step: told.append((steps, step)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of 16, 28 and 40 updates on their own; and the last again, as the trunk of the others and of one taken."""
    root, told = tmp_path_factory.mktemp("trunk"), []
    results = {steps: loop.train(wsd(steps), root / f"own{steps}") for steps in (16, 28, 40)}
    shorter = [branch(steps, root / f"seed{steps}", told) for steps in BEGINS]
    taken = branch(28, root / "taken", told, is_new=False)
    results["trunk"] = loop.train(wsd(40), root / "trunk", branches=[*shorter, taken])
    return root, told, results


def test_a_branch_ends_with_the_bits_of_a_run_of_its_own(trained, tmp_path):
    root, told, results = trained
    assert told == [(16, 8), (28, 20), (28, 0)] and not (root / "taken").exists()
    assert_same_bits(wsd(40), root / "own40", root / "trunk")
    assert results["trunk"].loss == results[40].loss
    for steps, begins in BEGINS.items():
        run, folder = wsd(steps), tmp_path / str(steps)
        shutil.copytree(root / f"seed{steps}", folder)
        assert metrics.rows(folder) == begins and spent.steps(folder) == 0
        result = loop.train(run, folder)
        assert_same_bits(run, root / f"own{steps}", folder)
        assert result.loss == results[steps].loss
        assert (spent.steps(folder), spent.steps(root / f"own{steps}")) == (steps - begins, steps)
        assert result.tokens_per_s * result.wall_s == pytest.approx(run.tokens_per_step * (steps - begins))


def test_a_seed_without_its_checkpoint_is_none(trained, tmp_path):
    root, _, results = trained
    folder = tmp_path / "half"
    shutil.copytree(root / "seed28", folder)
    shutil.rmtree(folder / "checkpoints" / "20")
    (folder / "checkpoints" / "20.orbax-checkpoint-tmp-1").mkdir()
    assert loop.train(wsd(28), folder).loss == results[28].loss
    assert_same_bits(wsd(28), root / "own28", folder)
    assert spent.steps(folder) == 28


def test_a_trunk_that_goes_on_seeds_what_lies_ahead_and_leaves_a_seed_alone(trained, tmp_path):
    root, _, _ = trained
    told, asked = [], iter([False] * 4)
    shorter = [branch(steps, tmp_path / str(steps), told) for steps in BEGINS]
    with pytest.raises(
        loop.Stopped, match="step 20 of 40"
    ):  # after the first branch, at the second but before its seed
        loop.train(wsd(40), tmp_path / "trunk", should_stop=lambda: next(asked, True), branches=shorter)
    assert told == [(16, 8)]
    shutil.copytree(root / "seed28", tmp_path / "28")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "28").rglob("*")}
    loop.train(wsd(40), tmp_path / "trunk", branches=shorter)
    assert told == [(16, 8), (16, 0), (28, 20)]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "28").rglob("*")} == before
    assert_same_bits(wsd(40), root / "own40", tmp_path / "trunk")
    assert spent.steps(tmp_path / "trunk") == 40


def test_work_that_a_kill_threw_away_is_counted(trained, tmp_path):
    root, _, _ = trained
    folder = tmp_path / "run"
    shutil.copytree(root / "seed16", folder)
    for step in range(9, 13):  # a dispatch that no checkpoint holds
        with (folder / metrics.NAME).open("a") as log:
            log.write(f'{{"step": {step}}}\n')
    loop.train(wsd(16), folder)
    assert spent.steps(folder) == 8 + 4
    assert_same_bits(wsd(16), root / "own16", folder)


def test_a_run_of_another_kind_is_no_branch(tmp_path):
    for other in (branch(16, tmp_path / "b", [], seed=1), branch(44, tmp_path / "b", [])):
        with pytest.raises(ConfigError, match="nothing but a smaller budget"):
            branches.leaving([other], wsd(40), 0)
