"""One unit, killed with -9 at twenty moments of its life: it ends with the bits of a life without trouble."""

import random
import signal
import time
from pathlib import Path

import pytest

from deeplearn.sweep import ledger
from tests.launch import unit_runs

STEPS = 60
EACH = 4  # of five kinds of moments


def claimed(folder, attempts):
    return (folder / "attempts" / f"{attempts + 1}.json").exists()


def saving(folder):
    """Whether a checkpoint is being written: it has its name only once it is whole."""
    return any(not path.name.isdigit() for path in (folder / "checkpoints").glob("*"))


@pytest.mark.chaos
@pytest.mark.slow
def test_a_unit_killed_twenty_times_ends_with_the_same_bits(tmp_path, record_property):
    dice, run = random.Random(6), unit_runs.tiny(STEPS)
    unit = unit_runs.make(tmp_path / "whole", run)
    assert unit_runs.finish(unit_runs.start(tmp_path / "whole", unit))[0] == 0
    root = tmp_path / "killed"
    unit_runs.make(root, run)
    folder, lost = Path(ledger.directory(root, unit)), 0

    def kill_when(happens, most_s):
        """A process that is killed up to `most_s` seconds after something has happened."""
        process = unit_runs.start(root, unit)
        while process.poll() is None and not happens():
            time.sleep(0.0005)
        time.sleep(dice.random() * most_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the kill came too late to test anything"

    targets = sorted(dice.sample(range(4, STEPS - 16), EACH))
    for i in range(EACH):
        done = ledger.last_attempt(root, unit)
        kill_when(lambda: True, 3.0)  # start: Python, imports
        done = ledger.last_attempt(root, unit)
        kill_when(lambda done=done: claimed(folder, done), 1.0)  # compilation, restoring
        kill_when(lambda i=i: unit_runs.rows(folder) >= targets[i] + 2, 0.02)  # a step
        kill_when(lambda: saving(folder), 0.01)  # a checkpoint
    for _ in range(EACH):  # evaluation, the result
        kill_when(lambda: unit_runs.rows(folder) == STEPS, 0.1)
    assert ledger.read_json(folder / "result.json") is None
    assert unit_runs.finish(unit_runs.start(root, unit))[0] == 0
    unit_runs.assert_same(unit_runs.bits(tmp_path / "whole", run), unit_runs.bits(root, run))
    lost = ledger.read_json(folder / "result.json")["steps_spent"] - STEPS
    assert not list(folder.glob("*.tmp*")), "nothing half-written stays"
    record_property("fault", "kill -9 of a unit")
    record_property("tries", 5 * EACH)
    record_property("lost", f"{lost} steps in all")
    print(f"lost {lost} steps")
