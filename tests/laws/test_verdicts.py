"""What a table cannot say is said; a good table is not accused."""

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from synthetic import grid, true_loss

from deeplearn import laws
from deeplearn.laws import residuals


def fit_at(params, tokens, noise=0.003):
    params, tokens = np.broadcast_arrays(params, tokens)
    rng = np.random.default_rng(0)
    loss = true_loss(params.ravel(), tokens.ravel()) * np.exp(noise * rng.standard_normal(params.size))
    return laws.fit(laws.runs(params.ravel(), tokens.ravel(), loss), replicates=100)


def test_two_sizes_do_not_give_alpha():
    fit = fit_at(np.array([[3e4], [3e5]]), np.geomspace(5e4, 1e6, 6))
    assert any(w.startswith("not identified: A and alpha, from only 2 different model sizes") for w in fit.warnings)
    assert not any("B and beta, from only" in w for w in fit.warnings)


def test_sizes_that_differ_by_rounding_are_one_size():
    fit = fit_at(np.array([[3e4], [3.01e4], [3e5]]), np.geomspace(5e4, 1e6, 6))
    assert any("from only 2 different model sizes" in w for w in fit.warnings)


def test_constant_tokens_per_parameter():
    params = np.geomspace(1e4, 1e6, 12)
    fit = fit_at(params, 20 * params)
    assert any(w.startswith("not identified: alpha against beta") for w in fit.warnings)


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        (3e4, np.geomspace(5e4, 1e6, 8)),  # one size
        (np.geomspace(3e4, 3e5, 8), 1e6),  # one budget
        (3e4, np.full(8, 1e6)),  # one run, eight seeds
        (np.geomspace(1e4, 1e6, 5), 20 * np.geomspace(1e4, 1e6, 5)),  # as many runs as parameters, on one line
    ],
)
def test_degenerate_tables_are_fitted_and_accused(params, tokens):
    fit = fit_at(params, tokens)
    assert any(w.startswith("not identified") for w in fit.warnings)
    json.dumps(fit.to_json(), allow_nan=False)
    # Even then the law describes the runs that it saw.
    assert np.all(np.abs(fit.residuals) < 0.02)


def test_less_than_a_decade_of_compute():
    fit = fit_at(np.geomspace(1e5, 2e5, 3)[:, None], np.geomspace(1e6, 2e6, 4))
    assert any("span only 0.6 decades of compute" in w for w in fit.warnings)


def test_a_loss_that_does_not_depend_on_tokens():
    table = grid(noise=0.0)
    rng = np.random.default_rng(0)
    loss = (1.2 + 13.0 * table.params**-0.3) * np.exp(0.003 * rng.standard_normal(len(table)))
    fit = laws.fit(laws.runs(table.params, table.tokens, loss), replicates=100)
    assert any(w.startswith(("not identified: B", "not identified: beta")) for w in fit.warnings)
    # Open-ended intervals are None in JSON, never NaN or Infinity.
    json.dumps(fit.to_json(), allow_nan=False)


@pytest.mark.slow
def test_a_law_that_bends_widens_its_bands():
    table = grid(8, 8, noise=0.0)
    rng = np.random.default_rng(0)
    bend = 0.02 * np.log(table.flops / table.flops.min()) ** 2 / np.log(1000)
    loss = table.loss * np.exp(bend + 0.002 * rng.standard_normal(len(table)))
    fit = laws.fit(laws.runs(table.params, table.tokens, loss), replicates=200)
    assert fit.widening > 1.3
    assert any(w.startswith("lack of fit: fits to the smaller runs") for w in fit.warnings)
    assert any(re.match(r"lack of fit: along \w+ the residuals keep their sign", w) for w in fit.warnings)


def accused(table: laws.Table, start: str) -> list[str]:
    """The warnings that begin so, as the JSON has them."""
    warnings = laws.fit(table, replicates=40, starts=32).to_json()["warnings"]
    return [warning for warning in warnings if warning.startswith(start)]


def with_loss(table: laws.Table, factors: dict[int, float]) -> laws.Table:
    factor = np.ones(len(table))
    factor[list(factors)] = list(factors.values())
    return laws.runs(table.params, table.tokens, table.loss * factor)


@pytest.mark.parametrize("bend", [0.0, 0.01])
def test_repeated_seeds_are_the_noise_floor(bend):
    """A bend in params that 4 sizes cannot show as a long run of signs, but the scatter between seeds can."""
    tables = [grid(4, 4, noise=0.002, seed=seed) for seed in range(4)]
    params, tokens, loss = (np.concatenate([table[name] for table in tables]) for name in ("params", "tokens", "loss"))
    sign = np.where(np.round(np.log(params / 3e3) / np.log(100) * 3) % 2, 1, -1)
    found = accused(laws.runs(params, tokens, loss * np.exp(bend * sign)), "lack of fit: the law misses the means")
    assert len(found) == (bend > 0)
    assert not found or "F test against repeated seeds" in found[0]


def test_an_isolated_bad_run_is_named():
    (found,) = accused(with_loss(grid(5, 5), {13: 1.25}), "outliers")
    assert found.startswith("outliers: row 13, far from the law")
    assert "+2" in found and not accused(grid(5, 5), "outliers")


def test_a_bad_run_of_a_file_is_named_by_its_line(tmp_path):
    table = with_loss(grid(5, 5), {13: 1.25})
    rows = [f"{n},{d},{loss},done" for n, d, loss in zip(table.params, table.tokens, table.loss, strict=True)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["params,tokens,loss,status", "1e3,1e5,9.9,diverged", *rows]))
    (found,) = accused(laws.read_csv(path), "outliers")
    assert found.startswith("outliers: line 16, far from the law")  # row 0 is line 3


@pytest.mark.parametrize(("factor", "unit"), [(1 / np.log(2), "bits"), (np.log(2), "nats")])
def test_losses_in_another_unit_are_named(factor, unit):
    table = with_loss(grid(6, 6), dict.fromkeys((4, 17, 30), factor))
    (found,) = accused(table, "mixed units")
    assert all(f"row {row}" in found for row in (4, 17, 30))
    assert found.endswith(f"may be in {unit}")
    assert not accused(table, "outliers")


@pytest.mark.parametrize("off", [0.0, 0.8])
def test_an_unbracketed_isoflop_minimum_is_named(off):
    """Five budgets, sizes over a decade around the best; at the dearest budget, all of them above it."""
    flops = np.repeat(np.geomspace(1e9, 1e13, 5), 7)
    size = np.tile(np.linspace(-0.5, 0.5, 7), 5) + np.where(flops > 9e12, off, 0.0)
    a, b = 0.30 * 0.6 * 3e4**0.30, 0.35 * 0.6 * 2e5**0.35
    params = (a / b) ** (1 / 0.65) * (flops / 6) ** (0.35 / 0.65) * 10**size
    tokens = flops / (6 * params)
    noise = np.exp(0.0005 * np.random.default_rng(0).standard_normal(len(flops)))
    found = accused(laws.runs(params, tokens, true_loss(params, tokens) * noise), "not bracketed")
    assert len(found) == (off > 0)
    assert not found or "the isoFLOP minimum at 1.0e+13 FLOP" in found[0]


@pytest.mark.parametrize(("n", "up"), [(6, 3), (9, 4), (10, 2)])
def test_runs_test_counts_every_arrangement(n, up):
    signs = np.array([np.isin(np.arange(n), chosen) for chosen in itertools.combinations(range(n), up)])
    count = 1 + np.sum(signs[:, 1:] != signs[:, :-1], axis=1)
    for row, seen in zip(np.where(signs, 1.0, -1.0), count, strict=True):
        assert residuals.too_few_runs(row) == pytest.approx(np.mean(count <= seen))


def test_long_runs_test_is_uniform_and_skips_exact_residuals():
    rng = np.random.default_rng(0)
    p_values = [residuals.too_few_runs(rng.standard_normal(400)) for _ in range(500)]
    assert 0.005 < np.mean(np.array(p_values) < 0.02) < 0.04
    assert residuals.too_few_runs(np.array([1.0, 0.0, -1.0, 1.0])) == residuals.too_few_runs(np.array([1.0, -1.0, 1.0]))


def test_seeds_test_against_scipy():
    """Of a mean that all levels should share, the test is the one-way analysis of variance."""
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((5, 3)) + 0.5 * np.arange(5)[:, None]
    same = np.repeat(np.arange(5), 3)
    p_value, pure, _ = residuals.lack_of_fit(groups.ravel(), np.ones((15, 1)), same)
    assert p_value == pytest.approx(scipy.stats.f_oneway(*groups).pvalue, rel=1e-6)
    assert pure == pytest.approx(np.sqrt(groups.var(axis=1, ddof=1).mean()))


def test_outliers_of_normal_residuals_are_rare():
    rng = np.random.default_rng(0)
    found = [len(residuals.outliers(rng.standard_normal(30), 0, 0.01)[0]) > 0 for _ in range(300)]
    assert np.mean(found) < 0.02
    far, scatter = residuals.outliers(np.append(rng.standard_normal(30), [-40.0, 60.0]), 0, 0.01)
    np.testing.assert_array_equal(far, [31, 30])
    assert 0.5 < scatter < 2.0


def test_what_the_reader_left_out_is_said_by_the_fit(tmp_path):
    table = grid()
    rows = [f"{n},{d},{loss},done" for n, d, loss in zip(table.params, table.tokens, table.loss, strict=True)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["N,D,loss,status", *rows, "1e6,1e6,,diverged"]))
    fit = laws.fit(laws.read_csv(path), replicates=100)
    assert fit.n_runs == 20
    assert fit.warnings[0] == "1 of 21 runs left out: status is not 'done'"


@pytest.mark.parametrize("sizes", [(3, 3), (5, 9)])
def test_a_good_table_is_not_accused(sizes):
    fit = laws.fit(grid(*sizes, noise=0.0005), replicates=200)
    assert fit.certificate.converged
    assert fit.warnings == ()


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "noise"), [((5, 4), 0.004), ((5, 9), 0.002)])
def test_right_laws_are_seldom_accused(sizes, noise):
    """100 tables: each named warning in at most 5."""
    seen = Counter()
    for seed in range(100):
        fit = laws.fit(grid(*sizes, noise=noise, seed=seed), replicates=40, starts=32)
        seen.update({warning.split(":")[0] for warning in fit.warnings})
    assert all(count <= 5 for count in seen.values()), seen
