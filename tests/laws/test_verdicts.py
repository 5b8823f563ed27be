"""What a table cannot say is said; a good table is not accused."""

import json

import numpy as np
import pytest
from synthetic import grid, true_loss

from deeplearn import laws


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


def test_a_law_that_bends_widens_its_bands():
    table = grid(8, 8, noise=0.0)
    rng = np.random.default_rng(0)
    bend = 0.02 * np.log(table.flops / table.flops.min()) ** 2 / np.log(1000)
    loss = table.loss * np.exp(bend + 0.002 * rng.standard_normal(len(table)))
    fit = laws.fit(laws.runs(table.params, table.tokens, loss), replicates=200)
    assert fit.widening > 1.3
    assert any(w.startswith("lack of fit") for w in fit.warnings)


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
