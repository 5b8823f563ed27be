"""Units, the order they are trained in, what a sweep refuses, and how it shows where it is."""

import csv
import dataclasses
import io
import re

import pytest
from rich.console import Console

from deeplearn import laws
from deeplearn.config import ConfigError
from deeplearn.optim import Optim
from deeplearn.sweep import ledger, local, staff, study, table
from deeplearn.sweep.grid import Sweep, grid, unit_of
from deeplearn.sweep.progress import Display, clock, short
from experiments import cli


def unit(size=16, budget=8192, split="fit", **changes):
    run = cli.load_config("transformer").get_config(size=size)
    settings = {"batch_size": 4, "microbatches": 1, "budget": budget} | changes
    return unit_of(dataclasses.replace(run, **settings), split)


@pytest.fixture(scope="module")
def fitted():
    return [unit(size, budget) for size in (16, 24, 32) for budget in (8192, 16384)]


def test_a_grid_is_every_combination_in_order():
    assert grid(size=(1, 2), budget=[3.0, 4.0]) == [
        {"size": 1, "budget": 3.0}, {"size": 1, "budget": 4.0}, {"size": 2, "budget": 3.0}, {"size": 2, "budget": 4.0}
    ]  # fmt: skip
    assert grid(**{"optim.clip": (0.5,)}) == [{"optim.clip": 0.5}] and grid() == [{}]


def test_an_id_is_of_what_defines_the_result():
    first = unit()
    for same in ({"mesh": "data:1"}, {"checkpoint_seconds": 1.0}, {"steps_per_dispatch": 2}, {"max_epochs": 9}):
        assert unit(**same).id == first.id
    assert unit(split="held_out").id == first.id
    others = [unit(**change) for change in ({"seed": 1}, {"budget": 16384}, {"size": 24}, {"eval_examples": 64})]
    assert len({first.id, *(u.id for u in others)}) == 5
    assert "mesh" not in first.identity_json() and first.identity_json()["seed"] == 0


def test_a_unit_counts_what_is_really_trained():
    a, b = unit(budget=8192), unit(budget=8193)
    assert (a.run.tokens, b.run.tokens) == (8192, 8192 + 4 * a.run.data.seq_len), (
        "a budget is rounded up to whole steps"
    )
    assert a.params - a.params_no_embed == 256 * 16
    assert b.flops / a.flops == pytest.approx(b.run.tokens / a.run.tokens, rel=1e-12)
    assert a.flops_6nd == 6 * a.params_no_embed * 8192 < a.flops


def test_places_are_cores_and_no_more_than_asked(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert staff.places() == staff.cores() != []
    assert staff.places(1) == staff.cores()[:1]
    assert staff.places(10_000) == staff.cores()


def test_a_sweep_that_tests_nothing_is_refused(fitted):
    study.check([*fitted, unit(48, 65536, "held_out")])
    study.check(fitted)
    largest = fitted[-1]
    small = unit(32, 49152, "held_out")
    assert small.flops == pytest.approx(3 * largest.flops)
    with pytest.raises(ConfigError, match=r"size 32 takes 3\.0 times the FLOPs of the largest fitted run; at least 4"):
        study.check([*fitted, small])
    study.check([*fitted, unit(32, 65536, "held_out")])
    with pytest.raises(ConfigError, match="two units are the same run: transformer 16, 8192 tokens"):
        study.check([*fitted, unit(mesh="data:1")])
    with pytest.raises(ConfigError, match="fits 5 runs, and a law with 5 parameters needs 6 at least"):
        study.check([*fitted[:5], unit(48, 65536, "held_out")])


def test_a_refused_sweep_leaves_nothing(fitted, tmp_path):
    with pytest.raises(ConfigError):
        study.run(Sweep("s", [], []), fitted[:2], tmp_path / "root", Console(file=io.StringIO()), staff.Staff())
    assert not (tmp_path / "root").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot make the folder '.*file': File exists"):
        study.run(Sweep("s", [], []), fitted, tmp_path / "file", Console(file=io.StringIO()), staff.Staff())


def test_versions_do_without_git(monkeypatch, tmp_path):
    assert study.versions()["jax"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert study.versions()["git"] == "unknown"


def test_a_worker_that_cannot_start_ends_the_sweep(fitted, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # no interpreter starts with this
    refused = pytest.raises(
        local.SweepError, match=r"a worker ended with code 1 while it started; see .*worker-\d+\.log"
    )
    with refused, staff.Staff(1) as one:
        local.execute(tmp_path, fitted, lambda unit, event: None, one)
    assert "PYTHONHOME" in next(tmp_path.glob("worker-*.log")).read_text()


def test_a_prediction_is_made_once_for_each_held_out_run(tmp_path, fitted):
    """Real losses are not needed to see when a prediction is made: these follow a known law."""
    sizes, budgets = (16, 24, 32, 48), (8192, 16384, 32768)
    fitted = [unit(size, budget) for size in sizes for budget in budgets]
    first, second = unit(48, 262144, "held_out"), unit(64, 262144, "held_out")
    for u in fitted:
        loss = 1.1 + 35 * u.params**-0.35 + 300 * u.run.tokens**-0.42
        ledger.write_json(
            ledger.directory(tmp_path, u.id) / "result.json", {"status": "done", "loss": loss, "unit": "nats/token"}
        )
    columns = [[u.params for u in fitted], [u.run.tokens for u in fitted]]
    ledger.create(tmp_path, "s", {u.id: u.identity_json() for u in (*fitted, first, second)})

    def predict(*held_out, without=0):
        rows = table.rows(tmp_path, [*fitted[without:], *held_out])
        out = io.StringIO()
        made = study._predict(Sweep("s", [], []), rows, fit, tmp_path, Console(file=out))
        assert out.getvalue().count("predicted for") == len(held_out)
        return made

    losses = [row["loss"] for row in table.rows(tmp_path, fitted)]
    fit = laws.fit(laws.runs(*columns, losses), starts=8, replicates=20)
    one = predict(first)
    both = predict(first, second)
    assert both[first.id] == one[first.id], "what was predicted stays"
    assert both[second.id]["predicted_at"] >= one[first.id]["predicted_at"]
    truth = 1.1 + 35 * second.params**-0.35 + 300 * second.run.tokens**-0.42
    assert both[second.id]["predicted"] == pytest.approx(truth, rel=0.01)
    assert predict(second)[second.id] == both[second.id], "a run that the sweep no longer has is not asked for"
    assert ledger.read_json(tmp_path / "prediction.json")["basis"]["count"] == "params"
    again = predict(first, without=1)
    assert again[first.id]["predicted_at"] > one[first.id]["predicted_at"], "other fitted runs, another prediction"


def test_the_runs_table_says_what_is_known(tmp_path, fitted):
    done, failed, diverged, started, new = fitted[:5]
    ledger.create(tmp_path, "s", {u.id: u.identity_json() for u in fitted[:5]})
    result = {
        "status": "done",
        "loss": 2.5,
        "unit": "nats/token",
        "tokens": 8192,
        "wall_s": 2.0,
        "tokens_per_s": 4096.0,
    }
    ledger.finish(ledger.claim(tmp_path, done.id), result)
    ledger.fail(ledger.claim(tmp_path, failed.id), "OSError", "disk full")
    ledger.finish(ledger.claim(tmp_path, diverged.id), {"status": "diverged", "loss": None, "message": "m"})
    ledger.claim(tmp_path, started.id)
    table.write(tmp_path / "runs.csv", table.rows(tmp_path, [done, failed, diverged, started, new]))
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["status"] for r in rows] == ["done", "failed", "diverged", "pending", "pending"]
    assert [r["loss"] for r in rows] == ["2.5", "", "", "", ""]
    assert (rows[0]["id"], rows[0]["size"], float(rows[0]["flops"])) == (done.id, "16", done.flops)
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.json", "units", "runs.csv"}


def test_numbers_for_people():
    assert [short(x) for x in (0.5, 999, 1000, 123456, 2.5e6, 3e9, 4e13)] == [
        "0.5", "999", "1 k", "123 k", "2.5 M", "3 G", "40 T"
    ]  # fmt: skip
    assert [clock(s) for s in (0, 59.9, 75.2, 3600)] == ["0:00", "0:59", "1:15", "60:00"]


def events(units, rate=1000.0):
    """What workers tell of units that are trained one after another, a quarter at a time."""
    for u in units:
        for step in range(0, u.run.steps, max(1, u.run.steps // 4)):
            fields = {"step": step, "steps": u.run.steps, "loss": 3.0, "tokens_per_s": rate if step else 0.0}
            yield u, {"event": "progress", "id": u.id, **fields}
        yield u, {"event": "done", "id": u.id, "loss": 2.5, "unit": "nats/token", "tokens_per_s": rate}


def console(**settings):
    return Console(file=io.StringIO(), width=160, **settings)


def test_the_share_spent_grows_to_one_and_the_eta_falls_to_zero(fitted):
    with Display(fitted, set(), 2, console()) as display:
        assert display.spent() == 0 and display.eta() is None
        spent, eta = [], []
        for u, event in events(fitted):
            display.tell(u, event)
            spent.append(display.spent())
            eta.append(display.eta())
        assert spent == sorted(spent) and spent[-1] == 1
        known = [x for x in eta if x is not None]
        assert len(known) == len(eta) - 1, "there is an ETA from the first rate on"
        assert known[-1] == 0


def test_the_eta_is_right_where_rates_are_known(fitted):
    with Display(fitted[:2], set(), 2, console()) as display:
        for u, event in events(fitted[:1]):
            display.tell(u, event)
        assert display.eta() == pytest.approx(16384 / 1000 / 2)
    with Display([fitted[0], fitted[4]], set(), 1, console()) as display:
        for u, event in events(fitted[:1]):
            display.tell(u, event)
        assert display.eta() == pytest.approx(fitted[4].flops / fitted[0].flops * 8192 / 1000), "the rate per FLOP"


def test_a_branch_counts_without_what_its_trunk_trains():
    recipe = Optim(warmup_steps=8)  # dispatches of 32 updates, the last 30 % decay
    short, long = (unit(budget=n * 16384, optim=recipe) for n in (1, 2))
    with Display([short, long], set(), 1, plain := console()) as display:
        for u, event in events([long]):
            display.tell(u, event)
        assert display.spent() == pytest.approx(2 / 3) and display.eta() == pytest.approx(0.5 * 16384 / 1000)
        display.tell(short, {"event": "branch", "step": 32, "steps": 64})
        assert display.spent() == pytest.approx(5 / 6) and display.eta() == pytest.approx(0.5 * 16384 / 1000)
        display.tell(short, {"event": "branch", "step": 0, "steps": 64})  # which the trunk had passed when it went on
        assert display.eta() == pytest.approx(16384 / 1000)
    assert plain.file.getvalue().count("starts at step 32 of 64: a longer run has trained the rest") == 1


def test_units_that_diverge_or_fail_are_over(fitted):
    with Display(fitted[:3], {fitted[0].id}, 1, console()) as display:
        assert display.spent() == pytest.approx(fitted[0].flops / sum(u.flops for u in fitted[:3]))
        display.tell(fitted[1], {"event": "diverged", "loss": None, "message": "not finite"})
        display.tell(fitted[2], {"event": "failed", "message": "no disk"})
        assert display.spent() == 1


def test_plain_lines_where_the_output_is_not_a_terminal(fitted):
    plain = console()
    with Display(fitted[:2], set(), 1, plain) as display:
        for u, event in events(fitted[:2]):
            display.tell(u, event)
        display.tell(fitted[0], {"event": "exit", "code": -9})
        display.tell(fitted[1], {"event": "failed", "message": "[bold]no disk"})
    lines = plain.file.getvalue().splitlines()
    share = fitted[0].flops / (fitted[0].flops + fitted[1].flops)
    assert lines[0] == (
        f"[1 of 2 runs, {share:.0%} of the FLOPs, about 0:16 left] {fitted[0].id} transformer 16, 8.19 k tokens: "
        "loss 2.5000 nats/token, 1 k tokens/s"
    )
    assert lines[1].startswith("[2 of 2 runs, 100% of the FLOPs, about 0:00 left]")
    assert "ended with code -9; going on from the last checkpoint" in lines[2]
    assert lines[3].endswith("failed: [bold]no disk") and len(lines) == 4
    assert "\x1b" not in plain.file.getvalue()


def test_a_live_display_on_a_terminal(fitted):
    live = console(force_terminal=True)
    with Display(fitted, set(), 2, live) as display:
        for u, event in list(events(fitted))[:3]:
            display.tell(u, event)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", live.file.getvalue())
    steps = fitted[0].run.steps
    assert "\x1b[" in live.file.getvalue()
    for words in (fitted[0].id, "8.19 k", f"{steps // 2}/{steps}", "3.0000", "tokens/s", "0 of 6 runs", "left"):
        assert words in text
    assert fitted[5].id not in text, "only what is at work is shown"
