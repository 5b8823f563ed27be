"""Compute-equivalent gains and crossovers of laws whose answers are known."""

import json

import numpy as np
import pytest

from deeplearn import laws

FAST = {"starts": 16, "replicates": 200}
PARAMS, TOKENS = (column.ravel() for column in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 4)))
BUDGETS = np.geomspace(1e17, 1e21, 5)


def table(
    E=1.7, A=0.5 * 3e7**0.34, alpha=0.34, B=0.5 * 3e9**0.36, beta=0.36, saves=1.0, noise=0.003, seed=0, **options
):
    """Noisy runs of a law that does with C what the same law with saves = 1 does with saves * C, at every budget."""
    # Parameters and tokens both count sqrt(saves) times over, so that N D counts `saves` times.
    terms = A * (PARAMS * saves**0.5) ** -alpha + B * (TOKENS * saves**0.5) ** -beta
    rng = np.random.default_rng(seed)
    return laws.runs(PARAMS, TOKENS, (E + terms) * np.exp(noise * rng.standard_normal(PARAMS.size)), **options)


def fits(**tables):
    return laws.fit_many(tables, **FAST)


@pytest.fixture(scope="module")
def pair():
    return fits(adam=table(), muon=table(saves=1.5, seed=1))


def test_gain_is_recovered(pair):
    compared = laws.compare(pair, BUDGETS)
    gain = compared.gains["muon"]
    # The middle budgets lie among the runs.
    np.testing.assert_allclose(gain.value[1:4], 1.5, rtol=0.12)
    assert np.all((gain.lo <= 1.5) & (gain.hi >= 1.5))
    assert np.all(gain.hi[1:4] / gain.lo[1:4] < 1.6)
    np.testing.assert_array_equal(compared.gains["adam"].value, 1.0)
    back = laws.compare(pair, BUDGETS, baseline="muon").gains["adam"]
    assert np.all((back.lo <= 1 / 1.5) & (back.hi >= 1 / 1.5))


def test_loss_is_reached_with_k_times_the_compute(pair):
    compared = laws.compare(pair, BUDGETS)
    more = [pair["adam"].optimal(k * c).loss.value for k, c in zip(compared.gains["muon"].value, BUDGETS, strict=True)]
    np.testing.assert_allclose(more, compared.losses["muon"].value, rtol=1e-9)


@pytest.mark.slow
def test_gain_intervals_cover():
    inside = []
    for seed in range(40):
        two = fits(a=table(seed=seed), b=table(saves=1.5, seed=1000 + seed))
        gain = laws.compare(two, 1e19).gains["b"]
        inside.append(gain.lo[0] <= 1.5 <= gain.hi[0])
    assert np.mean(inside) >= 0.85  # the binomial standard error at .95 is .035


def test_replicates_are_independent():
    same = table()
    gain = laws.compare(fits(a=same, b=same), 1e19).gains["b"]
    assert gain.value[0] == pytest.approx(1.0)
    assert gain.lo[0] < 0.98 and gain.hi[0] > 1.02  # replicates taken in step would all say exactly 1


def test_a_loss_below_the_baselines_floor_is_never_reached():
    two = fits(high=table(E=2.2), low=table(E=1.4, seed=1))
    compared = laws.compare(two, [1e23])
    assert np.isinf(compared.gains["low"].value[0]) and np.isinf(compared.gains["low"].hi[0])
    assert compared.gains["low"].lo[0] > 1
    written = json.loads(json.dumps(compared.to_json()))
    assert written["gains"]["low"]["value"] == [None] and written["baseline"] == "high"


def test_crossover_is_recovered():
    # The steeper law starts behind: on the frontier E + K C^-g, the two K C^-g are equal at the crossover.
    shallow, steep = {"alpha": 0.30, "beta": 0.30}, {"alpha": 0.40, "beta": 0.40}
    coefficients = {"A": 0.5 * 3e7**0.30, "B": 0.5 * 3e9**0.30}
    at = 3e19
    # Symmetric exponents e: loss - E = 2 sqrt(A B) (C / 6)^(-e / 2).
    scale = (at / 6) ** 0.05
    others = {name: value * scale for name, value in coefficients.items()}
    two = fits(shallow=table(**shallow, **coefficients), steep=table(**steep, **others, seed=1))
    (crossover,) = laws.compare(two, BUDGETS).crossovers
    assert (crossover.better, crossover.worse) == ("steep", "shallow")
    assert crossover.flops.lo <= at <= crossover.flops.hi
    assert crossover.flops.value == pytest.approx(at, rel=0.4)
    assert crossover.sentence.startswith("steep overtakes shallow at ")
    # Where the range ends before the two part, that they cross is not known.
    (crossover,) = laws.compare(two, [1e17, 2 * at / 3]).crossovers
    assert crossover.better == "shallow" and "overtakes" not in crossover.sentence


def test_laws_that_never_cross(pair):
    (crossover,) = laws.compare(pair, BUDGETS[1:4]).crossovers
    assert crossover.sentence == "no crossover: muon is better than adam from 1e+18 to 1e+20 FLOPs"
    assert crossover.flops.value == 0 and crossover.flops.hi == 0


def test_equal_laws_have_no_order():
    (crossover,) = laws.compare(fits(a=table(), b=table(seed=1)), BUDGETS).crossovers
    assert crossover.sentence.startswith("not identified")


def test_law_in_flops_alone():
    form = laws.Form(
        name="compute",
        formula="L = E + K C^-gamma",
        columns=("flops",),
        exponents={"gamma": (0.0, 1.0)},
        coefficients=("E", "K"),
        terms=lambda p, x: (0.0 * x.flops, -p.gamma * x.flops),
    )
    flops = np.geomspace(1e17, 1e20, 16)

    def curve(saves, seed):
        noise = np.exp(0.002 * np.random.default_rng(seed).standard_normal(flops.size))
        return laws.Table({"flops": flops, "loss": (1.7 + (saves * flops / 1e18) ** -0.17) * noise})

    two = laws.fit_many({"a": curve(1.0, 0), "b": curve(2.0, 1)}, form=form, **FAST)
    gain = laws.compare(two, 1e19).gains["b"]
    assert gain.lo[0] <= 2.0 <= gain.hi[0]
    assert gain.value[0] == pytest.approx(2.0, rel=0.1)


def test_rows_for_printing(pair):
    rows = laws.compare(pair, BUDGETS).table
    assert len(rows) == 2 * len(BUDGETS)
    assert rows[-1]["law"] == "muon" and rows[-1]["flops"] == BUDGETS[-1]
    assert rows[-1]["gain_lo"] <= rows[-1]["gain"] <= rows[-1]["gain_hi"]


def test_what_cannot_be_compared(pair):
    bits = fits(bits=table(unit="bits/byte"))
    with pytest.raises(laws.TableError, match="'adam' is in 'nats/token', 'bits' in 'bits/byte'"):
        laws.compare({**pair, **bits}, 1e19)
    with pytest.raises(ValueError, match="no law 'sgd' to compare with; there are adam, muon"):
        laws.compare(pair, 1e19, baseline="sgd")
    with pytest.raises(ValueError, match="two laws or more"):
        laws.compare({"adam": pair["adam"]}, 1e19)
    with pytest.raises(ValueError, match="flops must be positive"):
        laws.compare(pair, [1e19, -1.0])
    split = laws.Form("params only", "L = E + A N^-a", ("params",), {"a": (0.0, 2.0)}, ("E", "A"), _one_term)
    with pytest.raises(ValueError, match="the params only law has no compute-optimal frontier"):
        laws.compare(laws.fit_many({"a": table(), "b": table(seed=1)}, form=split, **FAST), 1e19)


def _one_term(p, x):
    return 0.0 * x.params, -p.a * x.params


def test_a_bad_table_is_named():
    few = laws.runs(PARAMS[:3], TOKENS[:3], np.array([3.0, 2.9, 2.8]))
    with pytest.raises(laws.TableError, match="'b': 3 runs"):
        laws.fit_many({"b": few})


@pytest.mark.slow
def test_a_crossover_that_may_lie_outside_is_not_identified():
    # True crossover at 3e19 FLOPs, in a range that hardly holds it, and with more noise than it can be found in.
    steep = {"alpha": 0.40, "beta": 0.40, "A": 0.5 * 3e7**0.30 * (3e19 / 6) ** 0.05, "noise": 0.01}
    steep["B"] = steep["A"] * (3e9 / 3e7) ** 0.30
    two = fits(
        shallow=table(alpha=0.30, beta=0.30, A=0.5 * 3e7**0.30, B=0.5 * 3e9**0.30, noise=0.01), steep=table(**steep)
    )
    (crossover,) = laws.compare(two, [2e19, 4e19]).crossovers
    assert crossover.sentence.startswith("not identified")
    assert crossover.flops.lo == 0 and crossover.flops.hi == np.inf
