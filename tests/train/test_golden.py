"""The metrics of the first update of every family, on its real data, to the digits that float32 gives."""

import json
import os
from pathlib import Path

import pytest
from short_runs import after, short_run

from deeplearn import families

GOLDEN = Path(__file__).parent / "golden.json"
MESSAGE = (
    "the first update of {} gives other numbers than before. If that is meant (another initialisation, loss or "
    "optimiser), write the new ones with UPDATE_GOLDEN=1 make test, and say why in the commit."
)


@pytest.mark.parametrize("family", families.names())
def test_first_update_gives_the_golden_metrics(family):
    _, metrics = after(short_run(family), 1)
    found = {name: float(values[0]) for name, values in metrics.items()}
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**golden, family: found}, indent=2, sort_keys=True) + "\n")
        golden[family] = found
    assert found == pytest.approx(golden.get(family), rel=2e-4), MESSAGE.format(family)
