"""A unit trained where the environment holds secrets: neither its files nor what it prints have them."""

import pytest

from deeplearn.sweep import ledger
from tests.launch import unit_runs as units
from tests.test_security import CANARY, SECRETS


@pytest.mark.slow
def test_a_trained_unit_has_no_secret_of_the_environment(tmp_path, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, CANARY)
    run = units.tiny(steps=4)
    unit = units.make(tmp_path, run)
    code, out, err = units.finish(units.start(tmp_path, unit))
    assert code == 0, err
    assert ledger.status(tmp_path, unit) == "done" and CANARY not in out + err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
