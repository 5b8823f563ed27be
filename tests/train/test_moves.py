"""A run moves from machine to machine through its checkpoints, and learns what it would have learnt on one device."""

import numpy as np
import pytest
from short_runs import short_run

from deeplearn import families
from deeplearn.train import loop, metrics

STEPS = 32
LEGS = ("fsdp:8", "fsdp:2,tensor:2", "data:1", "data:2,fsdp:2,tensor:2")  # of 8, 4, 1 and 8 devices


def a_run(family, mesh):
    return short_run(family, STEPS, mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_a_checkpoint_moves_from_eight_devices_to_four_to_one_and_back(family, tmp_path):
    whole = loop.train(a_run(family, "data:1"), tmp_path / "whole")
    moved = tmp_path / "moved"
    for leg, mesh in enumerate(LEGS[:-1], 1):
        asked = iter([False, True])  # two dispatches of four updates
        with pytest.raises(loop.Stopped, match=f"step {8 * leg} of {STEPS}"):
            loop.train(a_run(family, mesh), moved, should_stop=asked.__next__)
    result = loop.train(a_run(family, LEGS[-1]), moved)
    objective = families.get(family).objectives(a_run(family, "").model)[0].name
    losses = [[row[objective] for row in metrics.read(workdir)] for workdir in (moved, tmp_path / "whole")]
    np.testing.assert_allclose(*losses, rtol=2e-5)
    assert result.loss == pytest.approx(whole.loss, rel=2e-5)
