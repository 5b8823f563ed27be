"""The published rules give what their authors themselves trained with."""

import pytest

from deeplearn.train import rules


@pytest.mark.parametrize(("params", "batch", "rate"), [(7e9, 2304 * 4096, 4.2e-4), (67e9, 4608 * 4096, 3.2e-4)])
def test_deepseek_took_what_its_rule_says(params, batch, rate):
    """Table 2 of arXiv 2401.02954: both models on 2 T tokens."""
    flops = 6 * params * 2e12
    assert rules.deepseek_batch(flops) == pytest.approx(batch, rel=0.05)
    assert rules.deepseek_rate(flops) == pytest.approx(rate, rel=0.05)


def test_the_step_law_of_a_billion_parameters_and_a_hundred_billion_tokens():
    assert rules.step_law_batch(1e11) == pytest.approx(1.11e6, rel=0.01)
    assert rules.step_law_rate(1e9, 1e11) == pytest.approx(1.63e-3, rel=0.01)
    assert rules.step_law_rate(2e9, 1e11) < rules.step_law_rate(1e9, 1e11) < rules.step_law_rate(1e9, 2e11)
