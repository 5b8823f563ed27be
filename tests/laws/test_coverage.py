"""Bands and intervals hold what they promise."""

import dataclasses

import numpy as np
import pytest
from synthetic import TRUTH, grid, true_loss

from deeplearn import laws
from deeplearn.laws import uncertainty


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "budgets", "noise"), [(3, 3, 0.004), (5, 4, 0.002)])
def test_coverage_on_a_correct_law(sizes, budgets, noise):
    simulations = 40
    params, tokens = 3e5 * np.array([2.0, 4.0, 8.0]), 1e6 * np.array([2.0, 4.0, 8.0])
    new_runs, exponents = [], []
    for seed in range(simulations):
        fit = laws.fit(grid(sizes, budgets, noise, seed), starts=16, replicates=200, seed=seed)
        rng = np.random.default_rng(10_000 + seed)
        measured = true_loss(params, tokens) * np.exp(noise * rng.standard_normal(3))
        band = fit.predict(params, tokens)
        new_runs.append((band.lo <= measured) & (measured <= band.hi))
        exponents.append([fit.params[name].lo <= TRUTH[name] <= fit.params[name].hi for name in TRUTH])
    # The binomial standard error of 40 simulations is .035.
    assert np.mean(new_runs) >= 0.88
    assert np.mean(exponents) >= 0.88


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1e20, 3e20, 1e21])
def test_larger_runs_of_chinchilla(chinchilla, cut):
    fit = laws.fit(chinchilla.take(chinchilla.flops < cut))
    new = chinchilla.take(chinchilla.flops >= cut)
    measured = np.log(new.loss)

    def bands(fit):
        band = fit.predict(new.params, new.tokens)
        low, high = np.log(band.lo), np.log(band.hi)
        score = np.mean(uncertainty.interval_score(low, high, measured))
        return np.mean((low <= measured) & (measured <= high)), np.mean(high - low), score

    coverage, width, score = bands(fit)
    plain_coverage, _, plain_score = bands(dataclasses.replace(fit, widening=1.0))
    rmse = np.sqrt(np.mean((measured - np.log(fit.curve(new.params, new.tokens))) ** 2))
    assert coverage >= 0.90
    assert width <= 3 * rmse
    # The hold-outs must buy this: without them the bands cover .61 to .79, and score half as well or worse again.
    assert plain_coverage < 0.85
    assert score < 0.75 * plain_score


@pytest.mark.parametrize("truth", [1.0, 3.0])
def test_widening_is_what_the_hold_outs_missed(truth):
    rng = np.random.default_rng(0)
    noise, scatter = np.full((5, 200), 0.004), rng.uniform(0.001, 0.01, (5, 200))
    error = rng.standard_normal((5, 200)) * np.hypot(noise, truth * scatter)
    found = uncertainty.widening(list(np.stack([error, noise, scatter], axis=1)))
    assert found == pytest.approx(truth, rel=0.15)


def test_errors_as_large_as_the_residuals_widen_nothing():
    rng = np.random.default_rng(0)
    noise, scatter = np.full(100, 0.02), np.full(100, 0.001)
    error = 0.02 * rng.choice([-1.0, 1.0], 100)
    assert uncertainty.widening([np.stack([error, noise, scatter])]) == 1.0


def test_few_held_out_runs_widen_less_than_many():
    def widening(runs):
        return uncertainty.widening([np.stack([np.full(runs, 0.05), np.full(runs, 0.005), np.full(runs, 0.01)])])

    assert 1.0 == uncertainty.widening([]) < widening(2) < widening(20) < widening(200) < 5.0


def test_a_scatter_that_is_lost_in_the_noise_is_not_widened():
    error = 0.0041 * np.random.default_rng(0).standard_normal(10_000)
    noise, scatter = np.full(10_000, 0.004), np.full(10_000, 2e-5)
    assert uncertainty.widening([np.stack([error, noise, scatter])]) == 1.0
    assert uncertainty.widening([np.stack([5 * error, noise, scatter])]) > 10.0


def test_hold_outs_are_the_largest_runs_of_each_column():
    table = grid(5, 4)
    masks = uncertainty.splits([table.params, table.tokens], 5)
    assert len(masks) >= 3
    for mask in masks:
        along = [np.log(column[mask]).max() < np.log(column[~mask]).min() for column in (table.params, table.tokens)]
        assert sum(along) == 1
        assert mask.sum() >= 10
    assert {len(np.unique(table.params[~mask])) for mask in masks} >= {1, 2, 5}
    # Nine runs, of which five parameters take as many, leave none to hold out.
    small = grid(3, 3)
    assert len(uncertainty.splits([small.params, small.tokens], 5)) == 0


def test_refits_of_a_hold_out_never_see_the_runs_held_out(monkeypatch):
    monkeypatch.setattr(uncertainty, "WEIGHTS", 20 * 37)  # batches that do not end with a hold-out
    table = grid(5, 4)
    masks = uncertainty.splits([table.params, table.tokens], 5)
    weights = np.concatenate([w for w, _ in uncertainty.split_draws(np.random.default_rng(0), masks)])
    weights = weights.reshape(len(masks), 1 + uncertainty.SPLIT_REPLICATES, len(table))
    np.testing.assert_array_equal(weights[:, 0], masks)
    assert np.all(weights.sum(axis=2) == masks.sum(axis=1)[:, None])
    assert np.all(weights[np.broadcast_to(~masks[:, None], weights.shape)] == 0)
    assert weights[:, 1:].std(axis=1)[masks].min() > 0.5  # Poisson-like counts, of each run


def test_bands_grow_beyond_the_runs_in_every_direction(small_fit):
    params, tokens = 3e5, 1e6

    def width(*at):
        band = small_fit.predict(*at)
        return np.log(band.hi / band.lo)

    inside = width(params / 10, tokens / 4)
    assert inside < width(8 * params, tokens) < width(64 * params, tokens)
    assert inside < width(params, 8 * tokens) < width(params, 64 * tokens)
    assert inside < width(params / 1000, tokens / 4)
    assert inside >= 2 * small_fit._noise


def test_a_few_wild_replicates_do_not_stretch_a_band():
    rng = np.random.default_rng(0)
    draws = 0.01 * rng.standard_normal((1000, 1))
    calm = uncertainty.scatter(np.zeros(1), draws)
    draws[:50] *= 1000
    wild = uncertainty.scatter(np.zeros(1), draws)
    np.testing.assert_allclose(calm, [[0.01], [0.01]], rtol=0.1)
    np.testing.assert_allclose(wild, calm, rtol=0.15)


def test_the_law_of_few_runs_is_as_uncertain_as_that_of_a_linear_fit():
    # With a bootstrap that is as far off as theory says, the band is the textbook's.
    rng = np.random.default_rng(0)
    n, p = 9, 5
    j_NxP, residuals, g = rng.standard_normal((n, p)), 0.01 * rng.standard_normal(n), rng.standard_normal(p)
    j_NxP[:, 0] *= 1e6  # a parameter in other units
    g[0] *= 1e6
    told = uncertainty.linear(j_NxP, residuals)
    pull = np.linalg.pinv(j_NxP).T @ g
    expected = np.sqrt(np.sum(residuals**2) / (n - p) * np.sum(pull**2))
    draws = expected * np.sqrt(n / (n - p)) * rng.standard_normal((100_000, 1))
    sides = uncertainty.law(np.zeros(1), draws, told, g[None])
    low, high = uncertainty.band(np.zeros(1), sides, n - p, 0.0, 1.0)
    np.testing.assert_allclose([low[0], high[0]], [-2.776 * expected, 2.776 * expected], rtol=0.02)  # t of 4 degrees
    # The less runs bear on the place, the less their bootstrap is believed.
    weight = np.sum(pull**2) ** 2 / np.sum(pull**4) * (n - p) / n
    none, _ = uncertainty.law(np.zeros(1), 0 * draws, told, g[None])
    np.testing.assert_allclose(none[0], expected * np.sqrt(p / (p + weight)), rtol=1e-6)


def test_interval_score():
    # Gneiting and Raftery 2007: a band of width 2 that is missed by .1 costs 2 + 40 x .1.
    low, high, measured = np.full(3, -1.0), np.full(3, 1.0), np.array([0.0, 1.1, -1.1])
    np.testing.assert_allclose(uncertainty.interval_score(low, high, measured), [2.0, 6.0, 6.0])
