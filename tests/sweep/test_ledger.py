"""The ledger under races, kills and damaged files, with real processes."""

import json
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from deeplearn.config import ConfigError
from deeplearn.sweep import ledger
from deeplearn.sweep.ledger import Fenced

ROOT = pathlib.Path(__file__).parents[2]
ROUNDS = 60


@pytest.fixture
def root(tmp_path):
    ledger.create(tmp_path, "tiny", {"a1": {"size": 1}, "b2": {"size": 2}}, git="123")
    return tmp_path


def tree(root):
    """Every file under root and its text."""
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_create_twice_changes_nothing_and_further_units_are_added(root):
    before = tree(root)
    assert set(before) == {"sweep.json", "units/a1/config.json", "units/b2/config.json"}
    ledger.create(root, "tiny", {"a1": {"size": 1}}, git="456")
    assert tree(root) == before
    ledger.create(root, "tiny", {"c3": {"size": 3}})
    assert ledger.units(root) == {"a1": {"size": 1}, "b2": {"size": 2}, "c3": {"size": 3}}
    ledger.create(root, "tiny", {"c3": {"size": 3, "mesh": "data:8"}})
    assert ledger.config(root, "c3")["mesh"] == "data:8"


def test_create_refuses_the_root_of_another_sweep_and_leaves_it_alone(root):
    before = tree(root)
    with pytest.raises(ConfigError, match="holds the sweep 'tiny', not 'large'; choose another root"):
        ledger.create(root, "large", {"c3": {"size": 3}})
    assert tree(root) == before


def test_the_life_of_a_unit(root):
    assert ledger.status(root, "a1") == "new"
    claim = ledger.claim(root, "a1", job="job-7", git="123")
    assert claim.attempt == 1 and ledger.status(root, "a1") == "started"
    owner = ledger.read_json(root / "units/a1/owner.json")
    assert owner["attempt"] == 1 and owner["pid"] == os.getpid() and owner["job"] == "job-7" and owner["host"]
    assert ledger.read_json(root / "units/a1/attempts/1.json")["git"] == "123"
    ledger.finish(claim, {"status": "done", "loss": 1.5})
    ledger.finish(ledger.claim(root, "b2"), {"status": "diverged", "loss": None})
    assert ledger.status(root, "a1") == "done" and ledger.status(root, "b2") == "diverged"
    assert ledger.results(root)["a1"] == {"status": "done", "loss": 1.5}
    assert not [name for name in tree(root) if "/." in name]


def test_a_failure_counts_until_the_unit_is_claimed_again(root):
    ledger.fail(ledger.claim(root, "a1"), "ValueError", "no such shape")
    assert ledger.status(root, "a1") == "failed"
    assert ledger.read_json(root / "units/a1/error.json")["class"] == "ValueError"
    again = ledger.claim(root, "a1")
    assert again.attempt == 2 and ledger.status(root, "a1") == "started"
    ledger.finish(again, {"loss": 1.0})
    assert ledger.status(root, "a1") == "done"


def test_an_orphan_is_fenced_out_of_every_write(root):
    orphan = ledger.claim(root, "a1")
    orphan.check()
    successor = ledger.claim(root, "a1")
    for write in (orphan.check, lambda: ledger.finish(orphan, {"loss": 9}), lambda: ledger.fail(orphan, "X", "")):
        with pytest.raises(Fenced, match="attempt 1 of unit a1 has been taken over"):
            write()
    assert ledger.status(root, "a1") == "started"
    successor.check()
    ledger.finish(successor, {"loss": 1})
    assert Fenced.exit_code == 3


def test_a_result_is_written_once(root):
    claim = ledger.claim(root, "a1")
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.finish(claim, {"loss": float("nan")})
    assert ledger.status(root, "a1") == "started"
    ledger.finish(claim, {"loss": 1.0})
    for again in (lambda: claim, lambda: ledger.claim(root, "a1")):
        late = again()
        with pytest.raises(Fenced, match="unit a1 has a result already"):
            ledger.finish(late, {"loss": 2.0})
    assert ledger.results(root) == {"a1": {"loss": 1.0}}


def test_an_unknown_unit_names_the_nearest(root):
    for call in (ledger.claim, ledger.config):
        with pytest.raises(ConfigError, match=r"is called 'a11'; did you mean 'a1'\?"):
            call(root, "a11")
    assert set(tree(root)) == {"sweep.json", "units/a1/config.json", "units/b2/config.json"}


@pytest.mark.parametrize("damage", ["", '{"status": "do', "[]", "\x00\x00", b"\xff\xfe{}"])
def test_damaged_files_count_as_missing_and_are_made_good(root, damage):
    damage = damage if isinstance(damage, bytes) else damage.encode()
    folder = root / "units/a1"
    (folder / "attempts").mkdir()
    for name in ("result.json", "error.json", "owner.json", "config.json", "attempts/1.json", "attempts/x.json"):
        (folder / name).write_bytes(damage)
    (root / "sweep.json").write_bytes(damage)
    (folder / "attempts/.2.json.0123").write_bytes(damage)  # a process died before its file got its name
    (root / "units/.c3").mkdir()
    (root / "units/d4").mkdir()
    assert ledger.status(root, "a1") == "started" and ledger.results(root) == {}
    assert list(ledger.units(root)) == ["b2"]
    ledger.create(root, "tiny", {"a1": {"size": 1}})
    claim = ledger.claim(root, "a1")
    assert claim.attempt == 2
    ledger.finish(claim, {"loss": 1.0})
    assert ledger.results(root) == {"a1": {"loss": 1.0}} and ledger.status(root, "a1") == "done"


def race(root, me, barrier, answers):
    """In each round: claim the same unit as the other process, and see who may go on; then both write one result."""
    for i in range(ROUNDS):
        unit = f"u{i}"
        barrier.wait(60)
        try:
            claim = ledger.claim(root, unit)
        except Fenced:
            claim = None
        barrier.wait(60)
        try:
            goes_on = claim is not None
            if claim:
                claim.check()
        except Fenced:
            goes_on = False
        twin = ledger.Claim(ledger.directory(root, f"twin{i}"), f"twin{i}", 1)
        barrier.wait(60)
        try:
            ledger.finish(twin, {"writer": me, "filler": "x" * 10_000})
            wrote = True
        except Fenced:
            wrote = False
        answers.put((i, me, claim.attempt if claim else None, goes_on, wrote))


def test_of_two_processes_that_claim_one_unit_exactly_one_goes_on_and_one_result_stays(tmp_path):
    ledger.create(tmp_path, "race", {f"{kind}{i}": {} for kind in ("u", "twin") for i in range(ROUNDS)})
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    both = [spawn.Process(target=race, args=(str(tmp_path), me, barrier, answers)) for me in range(2)]
    for process in both:
        process.start()
    told = [answers.get(timeout=60) for _ in range(2 * ROUNDS)]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    for i in range(ROUNDS):
        mine = [answer[1:] for answer in told if answer[0] == i]
        attempts = [attempt for _, attempt, _, _ in mine if attempt is not None]
        assert sum(goes_on for _, _, goes_on, _ in mine) == 1, mine
        assert len(set(attempts)) == len(attempts) and ledger.last_attempt(tmp_path, f"u{i}") == max(attempts)
        [writer] = [me for me, _, _, wrote in mine if wrote]
        assert ledger.results(tmp_path)[f"twin{i}"]["writer"] == writer
    for name, text in tree(tmp_path).items():
        assert "/." not in name and json.loads(text) is not None


WORK = """
import sys
from deeplearn.sweep import ledger
with ledger.hold(sys.argv[1]):
    print("ready", flush=True)
    while True:
        claim = ledger.claim(sys.argv[1], "a1")
        ledger.fail(claim, "Error", "x" * 5000)
        ledger.create(sys.argv[1], "tiny", {"a1": {"attempt": claim.attempt}})
"""


def test_a_process_killed_at_any_moment_leaves_whole_files_and_no_lock(root):
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", WORK, str(root)], cwd=ROOT, stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"ready\n"
            message = f"process {process.pid} is already at work on '{root}'"
            with pytest.raises(ConfigError, match=message), ledger.hold(root):
                pass
            time.sleep(rng.uniform(0.02, 0.2))
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        with ledger.hold(root):
            for name, text in tree(root).items():
                if name != ".lock" and "/." not in name:
                    assert isinstance(json.loads(text), dict), name
            last = ledger.last_attempt(root, "a1")
            assert last > 0 and ledger.claim(root, "a1").attempt == last + 1
    with ledger.hold(root), pytest.raises(ConfigError, match=f"process {os.getpid()} is already"), ledger.hold(root):
        pass
