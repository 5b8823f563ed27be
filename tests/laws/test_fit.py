"""A fit finds the true optimum, says how sure it is, and does not depend on units."""

import json

import jax
import numpy as np
import pytest
from synthetic import TRUTH, grid, true_loss

from deeplearn import laws


def test_chinchilla_huber_is_the_true_optimum(chinchilla):
    fit = laws.fit(chinchilla, replicates=400)
    assert fit.n_runs == 240
    assert fit.certificate.objective <= 0.00101827402
    assert fit.certificate.share_at_optimum >= 0.95
    assert fit.certificate.gradient_norm < 1e-6
    assert fit.certificate.converged
    published = {"A": 477.826, "B": 2143.417, "E": 1.817218, "alpha": 0.347310, "beta": 0.367172}
    for name, value in published.items():
        np.testing.assert_allclose(fit.params[name].value, value, rtol=2e-6)
    # 95 % intervals of Besiroglu et al. 2024, from a bootstrap like ours; B is skewed, so compared as a logarithm.
    ends = {"A": (285, 744), "B": (1042, 5810), "E": (1.769, 1.871), "alpha": (0.317, 0.373), "beta": (0.331, 0.415)}
    for name, (low, high) in ends.items():
        scale = np.log if name in "AB" else np.asarray
        ours = scale(fit.params[name].lo), scale(fit.params[name].hi)
        np.testing.assert_allclose(ours, scale([low, high]), atol=0.15 * np.ptp(scale([low, high])))
    # The objective that is reported is the one that was minimised, counted here from the law itself.
    residuals = np.log(fit.curve(chinchilla.params, chinchilla.tokens) / chinchilla.loss)
    inside = np.clip(residuals, -1e-3, 1e-3)
    np.testing.assert_allclose(np.sum(inside * (residuals - inside / 2)), fit.certificate.objective, rtol=1e-9)


def test_chinchilla_l1_is_the_published_headline(chinchilla):
    fit = laws.fit(chinchilla, loss="l1", replicates=20)
    for name, value in {"A": 482.00572, "B": 2085.43420, "E": 1.81686, "alpha": 0.34781, "beta": 0.36585}.items():
        # As many digits as are published.
        np.testing.assert_allclose(fit.params[name].value, value, rtol=1e-6, atol=5.1e-6)
    assert fit.certificate.share_at_optimum >= 0.95
    residuals = np.log(fit.curve(chinchilla.params, chinchilla.tokens) / chinchilla.loss)
    published = 1.81686 + 482.00572 * chinchilla.params**-0.34781 + 2085.43420 * chinchilla.tokens**-0.36585
    assert np.abs(residuals).sum() <= np.abs(np.log(published / chinchilla.loss)).sum()


@pytest.mark.parametrize("loss", ["huber", "l1", "squared"])
def test_a_law_without_noise_is_found_exactly(loss):
    fit = laws.fit(grid(noise=0.0), loss=loss, replicates=20)
    for name, value in TRUTH.items():
        np.testing.assert_allclose(fit.params[name].value, value, rtol=1e-6)
    assert fit.certificate.converged
    np.testing.assert_allclose(fit.predict(3e6, 1e7).value, true_loss(3e6, 1e7), rtol=1e-8)


def test_intervals_and_band_hold_the_truth(small_fit):
    for name, value in TRUTH.items():
        interval = small_fit.params[name]
        assert interval.lo <= value <= interval.hi, name
        assert interval.lo < interval.value < interval.hi, name
    params, tokens = np.array([3e5, 6e5, 1e6]), np.array([1e6, 2e6, 4e6])
    band = small_fit.predict(params, tokens)
    assert np.all((band.lo < true_loss(params, tokens)) & (true_loss(params, tokens) < band.hi))
    np.testing.assert_allclose(band.value, small_fit.curve(params, tokens))
    # One run is noisier than the law: at the heart of the data the band is that of the noise, and it grows outwards.
    width = np.log(band.hi / band.lo)
    assert 4 * 0.004 < width[0] < 0.04
    assert width[0] < width[1] < width[2]
    assert small_fit.warnings == ()


def test_band_of_a_point_does_not_depend_on_its_company(small_fit):
    alone, among = small_fit.predict(6e5, 2e6), small_fit.predict([[3e5], [6e5]], [1e6, 2e6, 4e6])
    assert np.shape(alone.value) == () and among.value.shape == (2, 3)
    for end in ("value", "lo", "hi"):
        np.testing.assert_allclose(getattr(alone, end), getattr(among, end)[1, 1], rtol=1e-12)


def test_squared_loss_agrees_with_scipy():
    from scipy.optimize import least_squares

    table = grid(noise=0.01, seed=3)

    def residuals(p):
        law = np.exp(p[0]) + np.exp(p[1]) * table.params ** -p[3] + np.exp(p[2]) * table.tokens ** -p[4]
        return np.log(law / table.loss)

    start = [np.log(TRUTH["E"]), np.log(TRUTH["A"]), np.log(TRUTH["B"]), TRUTH["alpha"], TRUTH["beta"]]
    reference = least_squares(residuals, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    fit = laws.fit(table, loss="squared", replicates=20)
    np.testing.assert_allclose(fit.certificate.objective, reference.cost, rtol=1e-9)
    np.testing.assert_allclose(fit.params["alpha"].value, reference.x[3], rtol=1e-4)


def test_one_bad_run_hardly_moves_a_robust_fit():
    table = grid()
    spoiled = laws.runs(table.params, table.tokens, np.where(np.arange(20) == 7, 1.3, 1.0) * table.loss)
    error = {
        loss: abs(float(laws.fit(spoiled, loss=loss, replicates=20).curve(1e6, 4e6)) / true_loss(1e6, 4e6) - 1)
        for loss in ("huber", "squared")
    }
    assert error["huber"] < 0.02 < error["squared"]


def test_the_same_table_and_seed_give_the_same_fit(small_fit):
    again = laws.fit(grid())
    assert again.to_json() == small_fit.to_json()
    for name in TRUTH:
        np.testing.assert_array_equal(again.replicates[name], small_fit.replicates[name])
    other = laws.fit(grid(), seed=1)
    assert not np.array_equal(other.replicates["E"], small_fit.replicates["E"])
    np.testing.assert_allclose(other.params["E"].value, small_fit.params["E"].value, rtol=1e-6)


def test_units_of_params_tokens_and_loss_do_not_matter(small_fit):
    table = grid()
    scaled = laws.fit(laws.runs(table.params / 1e6, table.tokens * 1e3, table.loss / np.log(2), unit="bits/token"))
    factor = {"E": 1.0, "A": 1e-6 ** TRUTH["alpha"], "B": 1e3 ** TRUTH["beta"], "alpha": 1.0, "beta": 1.0}
    for name in ("alpha", "beta"):
        np.testing.assert_allclose(scaled.replicates[name], small_fit.replicates[name], rtol=1e-3, atol=1e-5)
    alpha, beta = small_fit.params["alpha"].value, small_fit.params["beta"].value
    factor = {"E": 1.0, "A": 1e-6**alpha, "B": 1e3**beta}
    for name, by in factor.items():
        np.testing.assert_allclose(scaled.params[name].value, small_fit.params[name].value * by / np.log(2), rtol=1e-5)
    ours, theirs = small_fit.predict(1e6, 4e6), scaled.predict(1.0, 4e9)
    np.testing.assert_allclose(np.array([theirs.lo, theirs.hi]) * np.log(2), [ours.lo, ours.hi], rtol=1e-5)
    assert scaled.unit == "bits/token"


def test_fitting_leaves_the_precision_of_jax_alone(small_fit):
    assert not jax.config.jax_enable_x64
    assert jax.numpy.arange(3.0).dtype == np.float32


def test_best_allocation_is_a_minimum_along_the_budget(small_fit):
    best = small_fit.optimal(1e13)
    np.testing.assert_allclose(6 * best.params.value * best.tokens.value, 1e13)
    np.testing.assert_allclose(6 * best.params.lo * best.tokens.hi, 1e13)
    params = best.params.value * np.geomspace(0.1, 10, 2001)
    losses = small_fit.curve(params, 1e13 / (6 * params))
    assert abs(int(losses.argmin()) - 1000) <= 1
    np.testing.assert_allclose(best.loss.value, losses.min(), rtol=1e-9)
    assert best.params.lo < best.params.value < best.params.hi
    assert best.loss.lo < best.loss.value < best.loss.hi
    alpha, beta = TRUTH["alpha"], TRUTH["beta"]
    gain = (alpha * TRUTH["A"] / (beta * TRUTH["B"])) ** (1 / (alpha + beta))
    true_params = gain * (1e13 / 6) ** (beta / (alpha + beta))
    assert best.params.lo < true_params < best.params.hi
    assert small_fit.optimal(np.geomspace(1e12, 1e15, 6).reshape(2, 3)).tokens.hi.shape == (2, 3)


def test_json_is_plain_and_complete(small_fit):
    text = json.dumps(small_fit.to_json(), allow_nan=False)
    law = json.loads(text)
    assert set(law) == {
        *("form", "unit", "n_runs", "params", "pinned", "noise", "ranges", "draws", "local"),
        *("certificate", "widening", "optimal", "warnings"),
    }
    assert law["params"]["alpha"]["value"] == small_fit.params["alpha"].value
    assert law["certificate"]["converged"] is True
    assert [set(entry) for entry in law["optimal"]] == [{"flops", "params", "tokens", "loss"}] * 3
    assert all(entry["params"]["lo"] <= entry["params"]["value"] <= entry["params"]["hi"] for entry in law["optimal"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"form": "chinchila"}, "unknown form 'chinchila'; did you mean 'chinchilla'?"),
        ({"loss": "cauchy"}, "unknown loss 'cauchy'; known: huber, l1, squared"),
    ],
)
def test_unknown_words(options, sentence):
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        laws.fit(grid(), **options)
