"""Designs are the best there are where that can be checked, and refitting shrinks intervals as they predict."""

import dataclasses
import itertools

import numpy as np
import pytest

from deeplearn import laws
from experiments.bench import design as bench

FAST = {"starts": 16, "replicates": 200}
PARAMS, TOKENS = np.geomspace(1e7, 1e9, 6), np.geomspace(1e8, 4e10, 6)
TARGETS = [laws.LossAt(flops=2e21), laws.LossAt(params=2e9, tokens=1e11), laws.OptimalParams(2e21)]


def measured(params, tokens, rng, noise=0.003):
    loss = 1.7 + 0.5 * (params / 1e8) ** -0.34 + 0.5 * (tokens / 2e9) ** -0.36
    return loss * np.exp(noise * rng.standard_normal(len(params)))


def grid(params, tokens):
    return tuple(column.ravel() for column in np.meshgrid(params, tokens, indexing="ij"))


def first_fit(seed=0, size=4):
    rng = np.random.default_rng(seed)
    params, tokens = grid(PARAMS[:size], TOKENS[:size])
    return laws.fit(laws.runs(params, tokens, measured(params, tokens, rng)), **FAST), rng


@pytest.fixture(scope="module")
def cheap():
    return first_fit()[0]


def width_with(fit, params, tokens, target):
    """Width of the target's interval with these runs made, straight from the definition, without shared code."""
    p_P, n = fit.best, len(fit.residuals)
    values = {"params": np.append(fit.table.params, params), "tokens": np.append(fit.table.tokens, tokens)}
    form, at = fit.problem.form, fit.problem.at
    x = tuple(np.log(values[name]) - mean for name, mean in zip(form.columns, at[:-1], strict=True))
    steps = 1e-5 * np.eye(p_P.size)
    j_NxP = np.array([form.log_loss(p_P + s, x, at) - form.log_loss(p_P - s, x, at) for s in steps]).T / 2e-5
    c_P = np.array([target.log_value(form, at, (p_P + s * [[1], [-1]])) @ [1, -1] for s in steps]) / 2e-5
    noise = np.sqrt(np.sum(fit.residuals**2) / (n - p_P.size))
    covariance_PxP = np.linalg.inv(j_NxP.T @ j_NxP / noise**2 + np.eye(p_P.size))
    return np.sqrt(c_P @ covariance_PxP @ c_P)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_as_good_as_the_best_of_all_subsets(cheap, target):
    params, tokens = grid(PARAMS[[1, 3, 5]], TOKENS[[1, 3, 5]])
    cost = 6 * params * tokens
    budget = 0.3 * cost.max()
    # Replicates pull the choice about a little; with a cloud of the fit alone it is the textbook's problem.
    alone = dataclasses.replace(cheap, cloud=cheap.best[None])
    design = laws.next_runs(alone, {"params": params, "tokens": tokens}, target, budget)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(9), size) for size in range(10))
    affordable = [list(rows) for rows in subsets if cost[list(rows)].sum() <= budget]
    widths = [width_with(cheap, params[rows], tokens[rows], target) for rows in affordable]
    assert len(affordable) > 100
    found = width_with(cheap, params[design.rows], tokens[design.rows], target)
    assert found <= 1.01 * min(widths) < 0.9 * max(widths)
    robust = laws.next_runs(cheap, {"params": params, "tokens": tokens}, target, budget)
    assert width_with(cheap, params[robust.rows], tokens[robust.rows], target) <= 1.1 * min(widths)
    # Against the same formula: the ratio of widths does not depend on how noise is estimated, as long as it is small.
    assert design.after / design.before == pytest.approx(found / max(widths), rel=0.05)


def test_budget_and_order(cheap):
    params, tokens = grid(PARAMS, TOKENS)
    candidates = {"params": params, "tokens": tokens}
    cost = 6 * params * tokens
    for budget in (1e18, 1e19, 1e20):
        design = laws.next_runs(cheap, candidates, TARGETS[0], budget)
        assert design.flops == pytest.approx(cost[design.rows].sum()) and design.flops <= budget
        assert len(set(design.rows)) == len(design.rows) > 0
        np.testing.assert_array_equal(design.runs["params"], params[design.rows])
        assert design.after < design.before
    few = laws.next_runs(cheap, candidates, TARGETS[0], 1e20, most=3)
    assert len(few.rows) <= 3 and few.after >= design.after
    cheaper = laws.next_runs(cheap, {**candidates, "flops": cost / 10}, TARGETS[0], 1e19)
    assert cheaper.after < laws.next_runs(cheap, candidates, TARGETS[0], 1e19).after


def test_a_candidate_is_repeated_only_if_listed_twice(cheap):
    one = {"params": np.array([1e9]), "tokens": np.array([1e8])}
    two = {name: np.repeat(column, 2) for name, column in one.items()}
    assert laws.next_runs(cheap, one, TARGETS[1], 1e20).rows.tolist() == [0]
    assert sorted(laws.next_runs(cheap, two, TARGETS[1], 1e20).rows.tolist()) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS[::2], ids=str)
def test_refitting_shrinks_the_interval_as_predicted(target):
    agreement = []
    for seed in range(15):
        fit, rng = first_fit(seed, size=5)
        params, tokens = grid(PARAMS, TOKENS)
        design = laws.next_runs(fit, {"params": params, "tokens": tokens}, target, 2e19, most=8)
        new = design.runs
        columns = {"params": fit.table.params, "tokens": fit.table.tokens, "loss": fit.table.loss}
        new = {**new, "loss": measured(new["params"], new["tokens"], rng)}
        after = laws.fit(laws.Table({name: np.append(columns[name], new[name]) for name in columns}), **FAST)
        agreement.append(width(after, target) / width(fit, target) / (design.after / design.before))
    assert 0.7 <= np.median(agreement) <= 1.4


def width(fit, target):
    return np.ptp(np.quantile(target.log_value(fit.problem.form, fit.problem.at, fit.cloud), [0.025, 0.975]))


@pytest.mark.slow
def test_half_of_the_flops_of_a_uniform_grid():
    simulations = [bench.simulate(seed) for seed in range(10)]
    assert np.median([bench.ratio(simulation) for simulation in simulations]) <= 0.5


def test_flops_at_a_width():
    sweeps = [{"flops": 1.0, "width": 8.0}, {"flops": 100.0, "width": 2.0}, {"flops": 1e4, "width": 3.0}]
    assert bench.flops_at(4.0, sweeps) == pytest.approx(10.0)
    assert bench.flops_at(9.0, sweeps) == 1.0
    assert bench.ratio({"designed": sweeps, "uniform": [{"flops": 50.0, "width": 2.0}]}) == pytest.approx(2.0)


def test_mistakes(cheap):
    good = {"params": np.array([1e8]), "tokens": np.array([1e9])}
    with pytest.raises(laws.TableError, match="no column 'tokens'"):
        laws.next_runs(cheap, {"params": good["params"]}, TARGETS[0], 1e20)
    with pytest.raises(laws.TableError, match="candidate 0, column 'tokens': -1"):
        laws.next_runs(cheap, {**good, "tokens": np.array([-1.0])}, TARGETS[0], 1e20)
    with pytest.raises(laws.TableError, match="has shape"):
        laws.next_runs(cheap, {**good, "tokens": np.ones(2)}, TARGETS[0], 1e20)
    with pytest.raises(ValueError, match="the cheapest candidate costs 6e\\+17 FLOPs"):
        laws.next_runs(cheap, good, TARGETS[0], 1e10)
    with pytest.raises(ValueError, match="either flops, or params and tokens"):
        laws.LossAt(flops=1e20, params=1e8)
