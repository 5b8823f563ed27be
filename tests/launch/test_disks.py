"""A disk that is full, or cannot or may not be written: a clear error, nothing lost, and a rerun to the same bits."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deeplearn.sweep import ledger
from tests.launch import unit_runs

STEPS = 40

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root, run = tmp_path_factory.mktemp("whole"), unit_runs.tiny(STEPS)
    unit = unit_runs.make(root, run)
    assert unit_runs.finish(unit_runs.start(root, unit))[0] == 0
    return root, run, unit


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def tree(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def wait_for_rows(folder, count, process):
    while unit_runs.rows(folder) < count and process.poll() is None:
        time.sleep(0.002)


def assert_ends_like(whole, root):
    assert unit_runs.finish(unit_runs.start(root, whole[2]))[0] == 0
    unit_runs.assert_same(unit_runs.bits(whole[0], whole[1]), unit_runs.bits(root, whole[1]))


def assert_told(ended, words):
    code, _, err = ended  # where Orbax's threads may have said more than one would like
    assert code == 1 and any(line.startswith("error: ") and words in line for line in err.splitlines()), ended


def test_a_full_disk(whole, disk, record_property):
    _, run, unit = whole
    root, filler = disk / "root", disk / "filler"
    unit_runs.make(root, run)
    folder = Path(ledger.directory(root, unit))
    for rows in (0, 8, 20):
        process = unit_runs.start(root, unit)
        wait_for_rows(folder, rows, process)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        ended = unit_runs.finish(process)
        assert_told(ended, "No space left on device")
        filler.unlink()
        assert ledger.status(root, unit) in ("new", "started", "failed")
    assert_ends_like(whole, root)
    record_property("fault", "disk full")
    record_property("tries", 3)


def test_a_root_that_is_read_only(whole, disk, record_property):
    _, run, unit = whole
    root = disk / "root"
    unit_runs.make(root, run)
    process = unit_runs.start(root, unit)
    wait_for_rows(Path(ledger.directory(root, unit)), 8, process)
    process.kill()
    process.communicate()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = tree(root)
    assert_told(unit_runs.finish(unit_runs.start(root, unit)), "Read-only file system")
    assert tree(root) == before
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert_ends_like(whole, root)
    record_property("fault", "root read-only")
    record_property("tries", 1)


# Root may do everything, unless what it starts has lost the right to pass over permissions.
OBEDIENT = """
import ctypes, os, sys
for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-m", "launch.unit", *sys.argv[1:]])
"""


def test_folders_that_may_not_be_written(whole, tmp_path, record_property):
    _, run, unit = whole
    unit_runs.make(tmp_path, run)
    folder = Path(ledger.directory(tmp_path, unit))
    process = unit_runs.start(tmp_path, unit)
    wait_for_rows(folder, 8, process)
    process.kill()
    process.communicate()
    before, places = tree(tmp_path), (folder / "attempts", folder / "checkpoints", folder)
    for place in places:
        place.chmod(0o555)
        words = [sys.executable, "-c", OBEDIENT, f"--root={tmp_path}", f"--unit={unit}"]
        ended = unit_runs.finish(unit_runs.start(tmp_path, unit, words=words))
        place.chmod(0o755)
        assert_told(ended, "Permission denied")
        kept = {path: text for path, text in tree(tmp_path).items() if "checkpoints" in path.parts}
        assert kept.items() <= before.items() or place == folder
    assert_ends_like(whole, tmp_path)
    record_property("fault", "permission denied")
    record_property("tries", len(places))
