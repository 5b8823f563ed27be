"""The report on the learning-rate sweep, from losses that are known."""

import json
import math

import pytest
from rich.console import Console

from experiments import transfer


def test_the_vertex_is_that_of_a_parabola_and_an_end_is_said():
    exponents = range(-8, -2)
    losses = [2 + 0.1 * (e + 5.3) ** 2 for e in exponents]
    assert transfer.vertex(exponents, losses) == (pytest.approx(-5.3), True)
    assert transfer.vertex(exponents, [*losses[:4], math.inf, math.inf]) == (-5.0, False)
    assert transfer.vertex(exponents, [-x for x in losses]) == (-8.0, False)


@pytest.mark.slow
def test_the_report_says_how_far_the_best_rate_moved(tmp_path):
    best = {"none": lambda width: -5.2 - math.log2(width / 16), "muP": lambda width: -5.2}
    losses = {
        kind: {w: [2 + (e - best[kind](w)) ** 2 for e in transfer.exponents(kind, w)] for w in transfer.WIDTHS}
        for kind in transfer.BASES
    }
    losses["none"][256][-1] = math.inf
    console = Console(record=True, width=120)
    transfer.report(losses, tmp_path, console)
    text = console.export_text()
    assert "none: the best rates are 4.00 factors" in text and "muP: the best rates are 0.00 factors" in text
    written = json.loads((tmp_path / "transfer.json").read_text())
    assert written["none"]["losses"]["256"][-1] is None and written["muP"]["best_exponents"]["256"] == pytest.approx(
        -5.2
    )
    assert (tmp_path / "transfer.png").stat().st_size > 10_000
