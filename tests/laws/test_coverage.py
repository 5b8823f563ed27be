"""Bands and intervals hold what they promise."""

import numpy as np
import pytest
from synthetic import TRUTH, grid, true_loss

from deeplearn import laws


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
    assert np.mean(new_runs) >= 0.90
    assert np.mean(exponents) >= 0.88


def test_larger_runs_of_chinchilla(chinchilla):
    small, large = chinchilla.take(chinchilla.flops < 1e21), chinchilla.take(chinchilla.flops >= 1e21)
    fit = laws.fit(small, replicates=400)
    band = fit.predict(large.params, large.tokens)
    error = np.log(large.loss / band.value)
    # The usual bands (parameters and noise) cover .61 to .74 of these 23 runs.
    assert np.mean((band.lo <= large.loss) & (large.loss <= band.hi)) >= 0.82
    assert np.mean(np.log(band.hi / band.lo)) <= 3 * np.sqrt(np.mean(error**2))
    assert fit.widening > 1.2
