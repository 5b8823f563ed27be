"""The noise of repeated runs is found, by size where it differs, and what it is used for then works better."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
from synthetic import true_loss

from deeplearn import laws
from deeplearn.laws import residuals, solve
from deeplearn.laws.written import read

SIZES, TOKENS = np.geomspace(3e3, 3e5, 5), np.geomspace(5e4, 1e6, 4)
FAST = {"replicates": 40, "starts": 32}


def noise_of(params, power=-0.5):
    return 0.02 * (params / SIZES[0]) ** power


def repeated(seed=0, power=-0.5, seeds=4, bend=0.0):
    """A grid whose three smaller sizes are run with several seeds, each noisier the smaller it is."""
    rng = np.random.default_rng(seed)
    points = [(n, d) for n in SIZES for d in TOKENS for _ in range(seeds if n < SIZES[3] else 1)]
    params, tokens = np.array(points).T
    wave = bend * np.where(np.searchsorted(SIZES, params) % 2, 1, -1)
    noise = noise_of(params, power) * rng.standard_normal(len(params))
    return laws.runs(params, tokens, true_loss(params, tokens) * np.exp(noise + wave))


def test_the_floor_is_the_pooled_scatter_of_equal_runs():
    rng = np.random.default_rng(1)
    loss = np.exp(rng.standard_normal((5, 3)) * 0.01 + np.arange(5)[:, None])
    params = np.full(15, 1e4)
    floor = laws.noise_floor(laws.runs(params, np.arange(1.0, 16.0), loss.ravel()), np.repeat(np.arange(5), 3))
    variance = np.log(loss).var(axis=1, ddof=1).mean()
    ends = 10 * variance / scipy.stats.chi2.ppf([0.975, 0.025], 10)
    np.testing.assert_allclose([floor.value, floor.lo, floor.hi], np.sqrt([variance, *ends]), rtol=1e-6)
    assert (floor.dof, floor.groups, floor.power, len(floor.sizes)) == (10, 5, 0.0, 1)
    assert floor.of(7.0) == pytest.approx(floor.value)
    assert laws.noise_floor(laws.runs(params, np.arange(1.0, 16.0), loss.ravel())) is None, "no run is repeated"


def test_noise_that_differs_by_size_is_told_from_noise_that_does_not():
    powers = [laws.noise_floor(repeated(seed)).power for seed in range(40)]
    assert np.mean(np.array(powers) < 0) > 0.85 and np.median(powers) == pytest.approx(-0.5, abs=0.1)
    assert np.mean([laws.noise_floor(repeated(seed, power=0.0)).power != 0 for seed in range(100)]) < 0.04
    floor = laws.noise_floor(repeated())
    assert floor.of(SIZES[1]) == pytest.approx(noise_of(SIZES[1]), rel=0.3)
    np.testing.assert_allclose(floor.of(np.array([1.0, 1e12])), floor.of(SIZES[[0, 2]]), err_msg="no extrapolation")


def test_weights_are_those_of_least_variance():
    noise = np.array([1e-3, 4e-3])
    squared, absolute = (np.divide(*solve.huber_moments(noise, delta)[::-1]) for delta in (1.0, 1e-6))
    assert squared[0] / squared[1] == pytest.approx(16) and absolute[0] / absolute[1] == pytest.approx(4, rel=1e-3)


def test_without_a_difference_nothing_is_weighted():
    table = repeated(power=0.0)
    floor = laws.noise_floor(table)
    assert floor.power == 0
    one, other = laws.fit(table, **FAST), laws.fit(table, **FAST, noise=floor)
    np.testing.assert_array_equal(one.cloud, other.cloud)
    assert other.floor is None and one.to_json() == other.to_json()


def test_a_weighted_fit_is_certified_and_its_band_has_the_noise_of_its_size():
    table = repeated()
    floor = laws.noise_floor(table)
    fit = laws.fit(table, **FAST, noise=floor)
    assert fit.certificate.converged and fit.certificate.gradient_norm < 1e-5
    small, large = (fit.predict(n, 3e5) for n in (SIZES[0], SIZES[2]))
    assert np.log(small.hi / small.lo) > 1.8 * np.log(large.hi / large.lo)
    kept = read(fit.to_json())
    for n in (10.0, 1e4, 1e7):
        band, again = fit.predict(n, 3e5), kept.predict(n, 3e5)
        np.testing.assert_allclose([again.lo, again.hi], [band.lo, band.hi], rtol=1e-3)
    inner = fit.interval(1e7, 3e5)
    assert band.lo < inner.lo < inner.value < inner.hi < band.hi
    target, candidates = laws.LossAt(flops=1e13), {"params": SIZES[[0, 4]], "tokens": TOKENS[[3, 3]]}
    equal = dataclasses.replace(fit, floor=None)
    gain = [1 - d.after / d.before for d in (laws.next_runs(f, candidates, target, 1e12, 1) for f in (fit, equal))]
    assert gain[0] != pytest.approx(gain[1]), "what a run tells depends on its noise"


@pytest.mark.slow
def test_weights_make_predictions_better_where_noise_differs():
    """Of a law that is right, extrapolated ten times beyond the largest size."""
    errors, widths = [], []
    for seed in range(16):
        table = repeated(seed)
        fits = [laws.fit(table, **FAST, noise=noise) for noise in (None, laws.noise_floor(table))]
        told = [fit.interval(3e6, 5e6) for fit in fits]
        errors.append([abs(float(np.log(t.value / true_loss(3e6, 5e6)))) for t in told])
        widths.append([float(np.log(t.hi / t.lo)) for t in told])
    equal, weighted = np.sqrt(np.mean(np.square(errors), axis=0))
    assert weighted < 0.85 * equal
    assert np.median(np.divide(*np.array(widths).T[::-1])) < 0.9


def test_the_lack_of_fit_test_keeps_its_level_where_noise_differs():
    """Of residuals from a constant, without a fit in between, over the noise that was found."""
    alarms = {0.0: 0, 0.015: 0}
    for seed, bend in itertools.product(range(100), alarms):
        table = repeated(seed, bend=bend)
        _, same = np.unique(np.stack([table.params, table.tokens]), axis=1, return_inverse=True)
        sigma = laws.noise_floor(table).of(table.params)
        error = np.log(table.loss / true_loss(table.params, table.tokens))
        alarms[bend] += residuals.lack_of_fit(error / sigma, 1 / sigma[:, None], same.ravel())[0] < 0.01
    assert alarms[0.0] <= 5 and alarms[0.015] > 90
