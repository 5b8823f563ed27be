"""Every file of a ledger cut short at every byte: read as nothing or as a clear sentence, and the unit goes on."""

import shutil
from pathlib import Path

import pytest

from deeplearn.config import ConfigError
from deeplearn.sweep import ledger
from deeplearn.train import loop, metrics, spent
from tests.launch import unit_runs

STEPS = 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A unit that has ended, after a failure and with a log, and how it ended."""
    root, run = tmp_path_factory.mktemp("ledger") / "root", unit_runs.tiny(STEPS)
    unit = unit_runs.make(root, run)
    ledger.fail(ledger.claim(root, unit), "OSError", "no disk")
    claim = ledger.claim(root, unit)
    result = loop.train(run, Path(claim.folder))
    ledger.finish(claim, {"status": "done", **result._asdict(), "steps_spent": STEPS})
    return root, run, unit


def cut(path):
    """The file at every length from nothing to all but its last byte."""
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        yield length
    path.write_bytes(content)


@pytest.mark.chaos
def test_readers_take_a_file_cut_anywhere_for_missing_or_whole(whole, tmp_path, record_property):
    root, unit = tmp_path / "root", whole[2]
    shutil.copytree(whole[0], root)
    folder, tries = root / "units" / unit, 0
    description, result = ledger.config(root, unit), ledger.results(root)[unit]
    names = ("result.json", "error.json", "owner.json", "attempts/1.json", "attempts/2.json", "spent.json")
    for path in (folder / name for name in names):
        is_result = path.name == "result.json"
        for _ in cut(path):
            assert ledger.read_json(path) is None or path.read_bytes().endswith(b"}"), "all but the end of its line"
            assert ledger.status(root, unit) == ("done" if ledger.results(root) or not is_result else "started")
            assert ledger.results(root) in ({}, {unit: result}) and (is_result or ledger.results(root))
            assert ledger.last_attempt(root, unit) == 2 and ledger.begun_with(root, unit) in ((unit,), ())
            assert spent.steps(folder) == STEPS and spent.trunk(folder) == ""
            tries += 1
    (folder / "result.json").unlink()
    for _ in cut(folder / "config.json"):
        tries += 1
        try:
            assert ledger.config(root, unit) == description
        except ConfigError as error:
            assert "config.json' is damaged" in str(error) and "writes it anew" in str(error)
            assert ledger.units(root) == {} and ledger.status(root, unit) == "started"
    for _ in cut(root / "sweep.json"):
        ledger.create(root, "chaos", {unit: description})
        assert ledger.read_json(root / "sweep.json")["name"] == "chaos"
        tries += 1
    log = [row["step"] for row in metrics.read(folder)]
    for _ in cut(folder / metrics.NAME):
        assert [row["step"] for row in metrics.read(folder)] == log[: metrics.rows(folder)]
        tries += 1
    record_property("fault", "each file of the ledger cut at every byte, then read")
    record_property("tries", tries)


@pytest.mark.chaos
def test_a_unit_goes_on_to_the_same_bits_past_cut_files(whole, tmp_path, record_property):
    root, run, unit = tmp_path / "root", whole[1], whole[2]
    shutil.copytree(whole[0], root)
    folder, said, tries = root / "units" / unit, [], 0
    rows = (folder / metrics.NAME).read_bytes().splitlines(keepends=True)
    for name in ("result.json", "error.json", "owner.json", "attempts/2.json", "spent.json"):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for kept in (len(rows) - 1, len(rows) - 2):  # of the log, with half a line after them
        (folder / metrics.NAME).write_bytes(b"".join(rows[:kept]) + rows[kept][:9])
        claim = ledger.claim(root, unit)
        result = loop.train(run, folder, may_write=claim.check, tell=said.append)
        if tries == 0:
            ledger.finish(claim, {"status": "done", **result._asdict(), "steps_spent": STEPS})
        unit_runs.assert_same(unit_runs.bits(whole[0], run), unit_runs.bits(root, run))
        tries += 1
    assert any("checkpoint 8 has lost its log after row 7" in line for line in said)
    (folder / metrics.NAME).write_bytes(rows[0][:9])
    with pytest.raises(ValueError, match=r"has 0 of the 8 rows before the checkpoint: put the whole file back, or"):
        loop.train(run, folder, tell=said.append)
    record_property("fault", "a unit's files cut, and the unit run again")
    record_property("tries", tries)
