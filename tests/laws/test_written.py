"""A law that went through law.json predicts as the fit itself."""

import json

import numpy as np
import pytest

from deeplearn import laws
from deeplearn.laws import written


def test_a_written_law_predicts_as_the_fit_does(small_fit):
    law = written.read(json.loads(json.dumps(small_fit.to_json(), allow_nan=False)))
    for n, d in ((1e5, 1e6), (1e6, 3e8)):
        mine, its = law.predict(n, d), small_fit.predict(n, d)
        assert mine.value == pytest.approx(float(its.value), rel=1e-9)
        assert mine.hi / mine.lo - 1 == pytest.approx(float(its.hi / its.lo) - 1, rel=0.15)  # deciles of fewer draws
        assert mine.lo < mine.value < mine.hi
    best = small_fit.optimal(np.array([1e12, 1e15]))
    for i, flops in enumerate((1e12, 1e15)):
        assert law.optimal(flops) == pytest.approx((best.params.value[i], best.tokens.value[i]))
    assert law.optimal(1e15)[0] > law.optimal(1e12)[0] and law.optimal(1e15)[1] > law.optimal(1e12)[1]
    assert law.ranges["params"] == (small_fit.table.params.min(), small_fit.table.params.max())


PINNED = laws.FORMS["chinchilla"].pin(alpha=0.35, E=1.0)


@pytest.mark.parametrize(
    "form", [*laws.FORMS.values(), PINNED], ids=lambda form: form.name + "-held" * bool(form.pinned)
)
def test_the_loss_follows_from_parameters_in_the_units_of_the_table(form):
    rng, at = np.random.default_rng(0), tuple(np.log(50.0) for _ in (*form.columns, "loss"))
    low, high = form.bounds({name: np.array([-1.0, 1.0]) for name in form.columns}, at)
    theta = low + (high - low) * rng.uniform(0.3, 0.7, len(low))
    p_P = np.concatenate([rng.uniform(0.5, 1.0, len(form.free)), theta])
    x = tuple(rng.uniform(-0.5, 0.5, 4) for _ in form.columns)
    values = {name: value[0] for name, value in form.original(p_P[None], at).items()}
    columns = (np.exp(v + c) for v, c in zip(x, at, strict=False))
    expected = np.exp(form.log_loss(p_P, x, at) + at[-1])
    assert form.loss(values, *columns) == pytest.approx(expected, rel=1e-9, abs=1e-9)  # of nearly nothing, floors


def test_a_law_without_an_optimum_says_so():
    power = {"form": "power", "unit": "nats/token", "n_runs": 5, "params": {"A": {"value": 5.0}, "a": {"value": 0.1}}}
    with pytest.raises(ValueError, match="the power law does not say how params and tokens alone trade off"):
        written.read(power).optimal(1e15)
