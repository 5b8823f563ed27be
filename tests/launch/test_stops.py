"""Signals, hangs, broken numbers and clocks that lie, each done to real processes of one unit."""

import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from deeplearn.sweep import ledger
from deeplearn.train import metrics
from tests.launch import unit_runs

STEPS = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A unit that nothing has disturbed."""
    root, run = tmp_path_factory.mktemp("whole"), unit_runs.tiny(STEPS)
    unit = unit_runs.make(root, run)
    assert unit_runs.finish(unit_runs.start(root, unit))[0] == 0
    return root, run, unit


def steps_of(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def wait_for_rows(folder, count, *processes):
    while unit_runs.rows(folder) < count and all(process.poll() is None for process in processes):
        time.sleep(0.002)


@pytest.mark.chaos
@pytest.mark.slow
def test_sigterm_saves_and_ends_with_42(whole, tmp_path, record_property):
    _, run, unit = whole
    unit_runs.make(tmp_path, run)
    folder, dice, tries = Path(ledger.directory(tmp_path, unit)), random.Random(1), 5
    for i in range(tries):
        process, done = unit_runs.start(tmp_path, unit, "--grace=60"), ledger.last_attempt(tmp_path, unit)
        while ledger.last_attempt(tmp_path, unit) == done and process.poll() is None:
            time.sleep(0.002)
        if i % 2:
            wait_for_rows(folder, 7 * i, process)
        else:
            time.sleep(dice.random())  # while it compiles
        process.send_signal(signal.SIGTERM)
        code, out, err = unit_runs.finish(process)
        assert code == 42 and "stopped at step" in err, (code, out, err)
        assert steps_of(folder)[-1] == unit_runs.rows(folder) < STEPS, "no update is done for nothing"
    assert unit_runs.finish(unit_runs.start(tmp_path, unit))[0] == 0
    unit_runs.assert_same(unit_runs.bits(whole[0], run), unit_runs.bits(tmp_path, run))
    assert ledger.results(tmp_path)[unit]["steps_spent"] == STEPS, "nothing is lost"
    record_property("fault", "SIGTERM of a unit")
    record_property("tries", tries)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_pair(root, unit, *flags):
    words = (f"--coordinator=127.0.0.1:{free_port()}", "--processes=2", *flags)
    return [unit_runs.start(root, unit, *words, f"--process={i}") for i in (0, 1)]


@pytest.mark.chaos
@pytest.mark.slow
def test_all_ranks_stop_at_the_same_step(tmp_path, record_property):
    run = unit_runs.tiny(STEPS, mesh="data:2")
    unit = unit_runs.make(tmp_path, run)
    folder, tries = Path(ledger.directory(tmp_path, unit)), 2
    for i in range(tries):
        pair = start_pair(tmp_path, unit)
        wait_for_rows(folder, 6 + 14 * i, *pair)
        pair[1 - i].send_signal(signal.SIGTERM)
        ends = [unit_runs.finish(process) for process in pair]
        assert [code for code, *_ in ends] == [42, 42], ends
        step = steps_of(folder)[-1]
        assert all(f"stopped at step {step} of {STEPS}" in err for *_, err in ends), ends
        assert unit_runs.rows(folder) == step < STEPS
    ends = [unit_runs.finish(process) for process in start_pair(tmp_path, unit)]
    assert [code for code, *_ in ends] == [0, 0], ends
    assert [row["step"] for row in metrics.read(folder)] == list(range(1, STEPS + 1))
    record_property("fault", "SIGTERM of one of two ranks")
    record_property("tries", tries)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_other(tmp_path, record_property):
    run = unit_runs.tiny(4000, mesh="data:2", checkpoint_seconds=1.0)
    unit = unit_runs.make(tmp_path, run)
    pair = start_pair(tmp_path, unit, "--patience=4")
    wait_for_rows(Path(ledger.directory(tmp_path, unit)), 20, *pair)
    pair[1].send_signal(signal.SIGSTOP)
    code, out, err = unit_runs.finish(pair[0])
    pair[1].kill()
    pair[1].communicate()
    assert code == 42 and "no step has ended for 4 s" in err and "loop.py" in err, (code, out, err)
    assert ledger.status(tmp_path, unit) == "started", "it is no failure of the unit"
    record_property("fault", "a rank that hangs")
    record_property("tries", 1)


IMPATIENT = """
import runpy
from experiments import processes
processes.PATIENCE_S = 3
runpy.run_module("launch.unit", run_name="__main__", alter_sys=True)
"""


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("present, named", [((0,), "process 1, 2"), ((1,), "process 0"), ((0, 1), "process 2")])
def test_a_peer_that_is_missing_at_the_start_is_named(present, named, tmp_path, record_property):
    run = unit_runs.tiny(STEPS, mesh="data:2")
    unit, words = unit_runs.make(tmp_path, run), [sys.executable, "-c", IMPATIENT, f"--root={tmp_path}"]
    words += [f"--unit={unit}", f"--coordinator=127.0.0.1:{free_port()}", "--processes=3"]
    ends = [unit_runs.start(tmp_path, unit, words=[*words, f"--process={i}"]) for i in present]
    ends = [unit_runs.finish(process) for process in ends]
    assert {code for code, *_ in ends} == {42} and named in ends[0][2], ends
    assert ledger.status(tmp_path, unit) == "new"
    record_property("fault", f"{named} of 3 missing at the start")
    record_property("tries", 1)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_unit_that_diverges_has_a_result_that_says_where(tmp_path, record_property):
    import dataclasses

    run = unit_runs.tiny(STEPS)
    run = dataclasses.replace(run, optim=dataclasses.replace(run.optim, name="sgd", learning_rate=1e30, clip=0.0))
    unit = unit_runs.make(tmp_path, run)
    code, out, err = unit_runs.finish(unit_runs.start(tmp_path, unit))
    result = ledger.results(tmp_path)[unit]
    assert code == 0 and result["status"] == "diverged", (code, out, err)
    assert " is not a finite number at step " in result["message"] and " is not finite " in result["message"]
    record_property("fault", "a rate at which a unit diverges")
    record_property("tries", 1)


WRONG_CLOCK = """
import runpy, sys, time
real, shift = time.time, float(sys.argv.pop(1))
time.time = lambda: real() + shift
time.time_ns = lambda: int((real() + shift) * 1e9)
runpy.run_module("launch.unit", run_name="__main__", alter_sys=True)
"""


@pytest.mark.chaos
@pytest.mark.slow
def test_no_clock_matters(whole, tmp_path, record_property):
    _, run, unit = whole
    unit_runs.make(tmp_path, run)
    folder, dice, shifts = Path(ledger.directory(tmp_path, unit)), random.Random(2), (-3e8, 3e8, -1e8)
    for i, shift in enumerate(shifts):
        words = [sys.executable, "-c", WRONG_CLOCK, str(shift), f"--root={tmp_path}", f"--unit={unit}"]
        process = unit_runs.start(tmp_path, unit, words=words)
        if i < len(shifts) - 1:
            wait_for_rows(folder, 12 * (i + 1), process)
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            before = ledger.status(tmp_path, unit), ledger.last_attempt(tmp_path, unit)
            for path in tmp_path.rglob("*"):
                moment = dice.uniform(0, 4e9)
                os.utime(path, (moment, moment))
            assert (ledger.status(tmp_path, unit), ledger.last_attempt(tmp_path, unit)) == before
        else:
            assert unit_runs.finish(process)[0] == 0
    unit_runs.assert_same(unit_runs.bits(whole[0], run), unit_runs.bits(tmp_path, run))
    record_property("fault", "clocks years apart, files of any age")
    record_property("tries", len(shifts))
