"""The specification curve."""

import numpy as np
import pytest
from synthetic import DATA, TRUTH, grid, true_loss

from deeplearn import laws


@pytest.fixture(scope="module")
def published() -> laws.Table:
    return laws.read_csv(DATA / "chinchilla.csv")


@pytest.mark.parametrize(
    ("loss", "drop", "tokens_per_param"),
    [
        ("l1", 5, 18.3),
        ("huber 1e-3", 5, 17.9),
        ("squared", 5, 10.4),  # of the losses; squared log losses give 14.3
        ("squared log", 5, 14.3),
        ("huber 1e-3", 0, 6.8),
    ],
)
def test_chinchilla_tokens_per_parameter(published, loss, drop, tokens_per_param):
    (row,) = laws.specifications(published, flops=5.76e23, losses=[loss], drops=[drop], replicates=8)
    assert row.value.value == pytest.approx(tokens_per_param, abs=0.05)
    assert row.n_runs == 245 - drop


@pytest.mark.slow
def test_the_choices_outweigh_the_interval(published):
    rows = laws.specifications(published, flops=5.76e23)
    values = np.array([row.value.value for row in rows])
    assert len(rows) == 15
    assert np.all(np.diff(values) >= 0)
    headline = next(row for row in rows if row.loss == "l1" and row.n_runs == 240).value
    assert values[-1] / values[0] > headline.hi / headline.lo


def sweep(counted=False) -> laws.Table:
    """Noiseless runs of the law in params, a second parameter count twice as large, FLOPs of 6 k N^1.1 D."""
    table = grid(noise=0.0)
    columns = {**table.columns, "total_params": 2 * table.params}
    if counted:
        columns["flops"] = 6 * 3.0 * table.params**1.1 * table.tokens
    return laws.Table(columns)


def by_brute_force(flops, k, g):
    params = np.geomspace(1e2, 1e9, 700001)
    tokens = flops / (6 * k * params ** (1 + g))
    loss = true_loss(params, tokens)
    best = loss.argmin()
    return tokens[best] / params[best], loss[best]


@pytest.mark.parametrize("quantity", ["tokens_per_param", "loss"])
def test_every_choice_against_brute_force(quantity):
    rows = laws.specifications(sweep(True), quantity, 1e13, losses=["huber 1e-3"], drops=[0], replicates=8)
    found = {(row.size, row.compute): row.value.value for row in rows}
    part = quantity == "loss"
    assert found["params", "6 N D"] == pytest.approx(by_brute_force(1e13, 1.0, 0.0)[part], rel=1e-4)
    assert found["params", "counted"] == pytest.approx(by_brute_force(1e13, 3.0, 0.1)[part], rel=1e-4)
    # Counted twice, the parameters cost twice under 6 N D; the counted FLOPs do not care, only the ratio's name does.
    twice = by_brute_force(1e13, 2.0, 0.0)
    assert found["total_params", "6 N D"] == pytest.approx(twice[1] if part else twice[0] / 2, rel=1e-4)
    same = by_brute_force(1e13, 3.0, 0.1)
    assert found["total_params", "counted"] == pytest.approx(same[1] if part else same[0] / 2, rel=1e-4)


def test_a_parameter_of_the_law_needs_no_budget():
    rows = laws.specifications(sweep(), "alpha", losses=["huber 1e-3"], drops=[0], replicates=8)
    assert {row.size for row in rows} == {"params", "total_params"}
    for row in rows:
        assert row.value.value == pytest.approx(TRUTH["alpha"], rel=1e-6)


@pytest.mark.slow
def test_the_furthest_runs_are_dropped_not_the_highest():
    table = grid(6, 6, noise=0.001)
    loss = table.loss.copy()
    loss[[20, 25]] *= 1.2
    rows = laws.specifications(
        laws.runs(table.params, table.tokens, loss), "alpha", losses=["squared log"], drops=[0, 0.05], replicates=8
    )
    value = {row.drop: row.value.value for row in rows}
    assert abs(value["5 % furthest off"] - TRUTH["alpha"]) < 0.03
    assert abs(value["none"] - TRUTH["alpha"]) > 2 * abs(value["5 % furthest off"] - TRUTH["alpha"])


def test_mistakes_are_named():
    table = grid()
    with pytest.raises(ValueError, match="unknown quantity 'tokens_per_parm'; did you mean 'tokens_per_param'"):
        laws.specifications(table, "tokens_per_parm", 1e13)
    with pytest.raises(ValueError, match="unknown loss 'huber 1e-4'; did you mean"):
        laws.specifications(table, "alpha", losses=["huber 1e-4"])
    with pytest.raises(ValueError, match="needs flops"):
        laws.specifications(table)
    with pytest.raises(laws.TableError, match="dropping 18 leaves 2 runs"):
        laws.specifications(table, "alpha", drops=[18])
