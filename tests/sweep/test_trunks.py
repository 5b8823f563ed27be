"""Trunks in a sweep: which units share, what they then cost, and that no kill changes a bit of what they end with."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from deeplearn import config
from deeplearn.sweep import findings, ledger, local, table, trunks
from deeplearn.sweep.grid import unit_of
from deeplearn.sweep.staff import Staff, cores
from deeplearn.train import checkpoint
from experiments import cli

STEPS = (40, 80, 160)
BEGINS = (24, 56)  # dispatches of 8, the last 30 % decay


def unit(steps, split="fit", size=8, warmup_steps=8, **changes):
    run = cli.load_config("transformer").get_config(size)
    run = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, seq_len=16),
        data=dataclasses.replace(run.data, seq_len=16),
        optim=dataclasses.replace(run.optim, warmup_steps=warmup_steps),
        **{"batch_size": 4, "eval_examples": 64, "steps_per_dispatch": 8, "budget": 64 * steps} | changes,
    )
    return unit_of(run, split)


def test_units_that_differ_in_budget_alone_share_a_trunk():
    units = [unit(steps) for steps in STEPS]
    assert trunks.group(units[::-1]) == {units[2].id: units[:2]}
    assert trunks.trunk_of(trunks.group(units)) == {units[0].id: units[2].id, units[1].id: units[2].id}
    others = [
        unit(160, **change) for change in ({"seed": 1}, {"size": 12}, {"steps_per_dispatch": 4}, {"batch_size": 8})
    ]
    assert trunks.group([units[0], *others]) == {}
    assert trunks.group([unit(steps, warmup_steps=0) for steps in STEPS]) == {}, "a share of the run is another warm-up"
    assert trunks.group([unit(8), unit(160)]) == {}, "no whole dispatch is shared"


def test_a_held_out_run_is_neither_trunk_nor_branch_of_a_fitted_one():
    fitted, held_out = [unit(40), unit(80)], [unit(steps, "held_out") for steps in (20, 160, 320)]
    assert trunks.group([*fitted, *held_out]) == {fitted[1].id: fitted[:1], held_out[2].id: held_out[:2]}
    assert trunks.group([fitted[0], held_out[1]]) == {}


def test_a_branch_waits_for_its_trunk_unless_it_was_begun(tmp_path):
    units = [unit(steps) for steps in STEPS]
    ledger.create(tmp_path, "s", {u.id: u.identity_json() for u in units})
    of = {u.id: units[2].id for u in units[:2]}
    assert local._held(tmp_path, units) == of
    (tmp_path / "units" / units[0].id / "checkpoints" / "24").mkdir(parents=True)
    assert local._held(tmp_path, units) == {units[1].id: units[2].id}
    ledger.claim(tmp_path, units[1].id)
    assert local._held(tmp_path, units) == {}
    assert local._held(tmp_path, units[:1]) == {}
    local._let_go(of, units[1])
    assert of
    local._let_go(of, units[2])
    assert of == {}


def test_what_was_spent_is_said_in_a_sentence():
    rows = [{"status": "done", "split": "fit", "flops": 1e9, "flops_spent": 1e9} for _ in range(2)]
    assert findings.spending(rows) == "The training of 2 runs took 2e+09 FLOPs"
    rows[0]["flops_spent"] = 2e8
    assert findings.spending(rows) == (
        "The training of 2 runs took 1.2e+09 FLOPs: one of them went on from a longer one, which saved 40% of the "
        "2e+09 of each on its own"
    )


def task(root, unit, branches=()):
    """The line that has a worker train a unit and start its branches."""
    runs = {"runs": [config.to_dict(unit.run)], "branches": [[config.to_dict(b.run) for b in branches]], "ahead": []}
    return json.dumps({"root": str(root), "margin": math.inf, **runs}) + "\n"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The three units, each trained on its own by one worker: their root, and what they ended with."""
    root, units = tmp_path_factory.mktemp("alone"), [unit(steps) for steps in STEPS]
    ledger.create(root, "s", {u.id: u.identity_json() for u in units})
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    lines = "".join(task(root, u) for u in units)
    command = [sys.executable, "-m", "deeplearn.sweep.worker", f"--core={cores()[0]}"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    worker.stdin.write(lines)
    worker.stdin.flush()
    for line in worker.stdout:
        if json.loads(line).get("id") == units[-1].id and json.loads(line)["event"] != "progress":
            break
    worker.stdin.close()
    assert worker.wait(timeout=60) == 0
    worker.stdout.close()
    return facts(root)


def facts(root):
    """id -> (held-out loss, metrics log, last checkpoint, its data iterator's state)."""
    found = {}
    for folder in (root / "units").iterdir():
        last = folder / "checkpoints" / max(os.listdir(folder / "checkpoints"), key=int)
        beside = json.loads((last / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["data"]
        result = json.loads((folder / "result.json").read_text())
        found[folder.name] = (
            result["loss"], (folder / "metrics.jsonl").read_bytes(), last.name, json.loads(beside)["iterator"]
        )  # fmt: skip
    return found


@pytest.mark.slow
def test_one_size_and_three_budgets_cost_a_trunk_and_two_cooldowns(alone, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    units, events = [unit(steps) for steps in STEPS], []
    ledger.create(tmp_path, "s", {u.id: u.identity_json() for u in units})
    with Staff(2) as staff:
        local.execute(tmp_path, units, lambda u, event: events.append((u and u.id, event["event"])), staff)
    assert facts(tmp_path) == alone
    rows = table.rows(tmp_path, units)
    expected = [STEPS[0] - BEGINS[0], STEPS[1] - BEGINS[1], STEPS[2]]
    assert [ledger.results(tmp_path)[u.id]["steps_spent"] for u in units] == expected
    assert sum(r["flops_spent"] for r in rows) == pytest.approx(units[0].flops / STEPS[0] * sum(expected), rel=1e-12)
    assert "2 of them went on from a longer one, which saved 29%" in findings.spending(rows)
    for u in units[:2]:
        assert events.index((u.id, "branch")) < events.index((u.id, "done"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["while", "after"])
def test_a_kill_9_of_the_trunk_at_its_branch_point_changes_no_bit(alone, tmp_path, monkeypatch, moment):
    monkeypatch.delenv("XLA_FLAGS")
    units = [unit(steps) for steps in STEPS]
    ledger.create(tmp_path, "s", {u.id: u.identity_json() for u in units})
    trunk, branch = (ledger.directory(tmp_path, u.id) for u in (units[2], units[1]))
    reached = {
        "while": lambda: (branch / "metrics.jsonl").exists(),
        "after": lambda: checkpoint.exists(branch / "checkpoints"),
    }[moment]
    command = [sys.executable, "-m", "deeplearn.sweep.worker"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    worker.stdin.write(task(tmp_path, units[2], units[:2]))
    worker.stdin.flush()
    deadline = time.monotonic() + 120
    while not reached():
        assert worker.poll() is None and time.monotonic() < deadline
        time.sleep(0.0005)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdin.close()
    assert not (trunk / "result.json").exists(), "the kill came too late to test anything"
    assert ledger.status(tmp_path, units[1].id) == "new"
    with Staff(1) as staff:
        local.execute(tmp_path, units, lambda u, event: None, staff)
    assert facts(tmp_path) == alone
    assert all(ledger.status(tmp_path, u.id) == "done" for u in units)


@pytest.mark.slow
def test_a_cohort_is_a_trunk_for_cohorts_of_branches(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    units = [unit(steps, seed=seed) for seed in (0, 1) for steps in (STEPS[0], STEPS[2])]
    ledger.create(tmp_path, "s", {u.id: u.identity_json() for u in units})
    with Staff(1) as staff:
        local.execute(tmp_path, units, lambda u, event: None, staff)
    results = ledger.results(tmp_path)
    assert [results[u.id]["members"] for u in units] == [2, 2, 2, 2]
    assert [results[u.id]["steps_spent"] for u in units] == [STEPS[0] - BEGINS[0], STEPS[2]] * 2
    assert len({results[u.id]["loss"] for u in units}) == 4
    logs = {u.id: (ledger.directory(tmp_path, u.id) / "metrics.jsonl").read_text().splitlines() for u in units}
    for branch, trunk in (units[:2], units[2:]):
        assert logs[branch.id][: BEGINS[0]] == logs[trunk.id][: BEGINS[0]]
        assert logs[branch.id][-1] != logs[trunk.id][STEPS[0] - 1], "it decays"
