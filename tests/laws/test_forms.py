"""Every named law is found again in runs of known parameters, whatever their units, with intervals that cover."""

import numpy as np
import pytest
from recipes import NOISE, RECIPES

from deeplearn import laws
from deeplearn.laws import search
from deeplearn.laws.fitting import center
from deeplearn.laws.schedule import areas
from deeplearn.laws.solve import Problem, stages
from deeplearn.laws.uncertainty import percentile_interval

STARTS = 16
# The solver of these takes long to compile.
HEAVY = ("accuracy", "bnsl", "clark", "data_constrained", "moe", "precision")
every_form = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in laws.FORMS]
)


def minimise(table, form, starts=STARTS, deltas=None):
    """Problem, optimum over centred variables, and optimum in the units of the table."""
    x, t, at = center(table, form)
    problem = Problem(form, x, t, at, stages("huber", 1e-3) if deltas is None else deltas)
    best, _, _ = search.global_fit(problem, starts, np.random.default_rng(0))
    return problem, best, {name: value[0] for name, value in form.original(best[None], at).items()}


def standard_errors(recipe, noise):
    """Of least squares, from the plainly written law; a robust fit's are at most sqrt(pi / 2) times these."""

    def log_law(name, factor):
        return np.log(recipe.law({**recipe.truth, name: recipe.truth[name] * factor}, recipe.columns))

    step = 1e-5
    slopes = [(log_law(name, 1 + step) - log_law(name, 1 - step)) / (2 * step) for name in recipe.truth]
    gram = np.array(slopes) @ np.array(slopes).T
    return dict(zip(recipe.truth, noise * np.sqrt(np.diag(np.linalg.inv(gram))), strict=True))  # relative


@every_form
def test_known_parameters_are_found(name):
    form, recipe = laws.FORMS[name], RECIPES[name]
    assert set(form.names) == set(recipe.truth)
    _, _, exact = minimise(recipe.table(), form)
    noisy_table = recipe.table(NOISE, seed=1)
    problem, best, noisy = minimise(noisy_table, form)
    errors = standard_errors(recipe, NOISE)
    for parameter, value in recipe.truth.items():
        np.testing.assert_allclose(exact[parameter], value, rtol=1e-4, err_msg=parameter)
        # The runs say what the parameter is, and the fit is as near as they allow.
        assert errors[parameter] < 0.25, parameter
        assert abs(np.log(noisy[parameter] / value)) < 4 * np.sqrt(np.pi / 2) * errors[parameter], parameter
    fitted = form.log_loss(best, problem.x, problem.at) + problem.at[-1]
    clean = np.log(recipe.law(recipe.truth, recipe.columns))
    assert np.sqrt(np.mean((fitted - clean) ** 2)) < NOISE

    # A law does not depend on units: params in millions, losses in bits.
    factors = {column: 1e-6 if "params" in group else 1.7 for group in recipe.units for column in group}
    problem, best, _ = minimise(recipe.table(NOISE, seed=1, response=1.4427, **factors), form)
    there = form.log_loss(best, problem.x, problem.at) + problem.at[-1]
    np.testing.assert_allclose(there - np.log(1.4427), fitted, atol=1e-6)


@every_form
def test_a_law_with_every_parameter_pinned_is_that_law(name):
    form, recipe = laws.FORMS[name], RECIPES[name]
    pinned = form.pin(**recipe.truth)
    table = recipe.table()
    x, t, at = center(table, pinned)
    low, high = Problem(pinned, x, t, at, stages("huber", 1e-3)).bounds
    assert pinned.free == () and np.array_equal(low, high)
    np.testing.assert_allclose(pinned.log_loss(low, x, at), t, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["kaplan", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bnsl", "data_constrained"))]
)
def test_the_rest_is_fitted_when_some_are_pinned(name):
    form, recipe = laws.FORMS[name], RECIPES[name]
    held = {parameter: recipe.truth[parameter] for parameter in list(recipe.truth)[1:-1:2]}
    _, _, found = minimise(recipe.table(), form.pin(**held))
    for parameter, value in recipe.truth.items():
        if parameter in form.pin(**held).names:
            np.testing.assert_allclose(found[parameter], value, rtol=1e-4, err_msg=parameter)


@pytest.mark.slow
@every_form
def test_intervals_cover(name):
    form, recipe = laws.FORMS[name], RECIPES[name]
    covered = []
    for seed in range(20):
        table = recipe.table(NOISE, seed=100 + seed)
        problem, best, found = minimise(table, form, deltas=stages("squared", 1.0))
        rng = np.random.default_rng(seed)
        cloud = search.refit(problem, best, search.pairs(rng, len(table), 200, None, None))
        for parameter, draws in form.original(cloud, problem.at).items():
            interval = percentile_interval(found[parameter], draws)
            covered.append(interval.lo <= recipe.truth[parameter] <= interval.hi)
    # The parameters of one table share its noise: at worst 20 draws, of standard error .05.
    assert np.mean(covered) >= 0.85


def test_a_schedule_is_its_areas():
    rates = np.array([1.0, 1.0, 0.5, 0.5, 0.25])
    columns = areas(rates, decay=0.5)
    np.testing.assert_allclose(columns["area"], [1, 2, 2.5, 3, 3.25])
    # By the double sum of the paper.
    falls = [0, 0, 0.5, 0, 0.25]
    double = [sum(0.5 ** (i - k) * falls[k] for i in range(s + 1) for k in range(i + 1)) for s in range(5)]
    np.testing.assert_allclose(columns["annealed_area"] - columns["area"], double)
    with pytest.raises(ValueError, match="step 2"):
        areas(np.array([1.0, 0.5, 0.7]))


def test_columns_of_a_law_can_have_any_name(tmp_path):
    x = np.geomspace(1e3, 1e8, 12)
    path = tmp_path / "curve.csv"
    path.write_text("seen,err\n" + "\n".join(f"{a},{2 * a**-0.25}" for a in x))
    table = laws.read_csv(path, wanted=("tokens",), response="err", names={"tokens": "seen"})
    np.testing.assert_allclose(list(minimise(table, laws.FORMS["power"])[2].values()), [2.0, 0.25], rtol=1e-6)
