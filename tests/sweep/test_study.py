"""A tiny sweep through the real command and its workers: what it leaves, and what an interruption changes (nothing)."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from deeplearn.data.sources import locked
from deeplearn.sweep import ledger, table
from deeplearn.train import metrics

ROOT = Path(__file__).parents[2]

# Every dispatch is a checkpoint, so that an interruption always has something to go on from.
CONFIG = """
import dataclasses
from deeplearn.sweep.grid import Sweep, grid
from experiments.configs import transformer

def get_config(size=8):
    run = transformer.get_config(size)
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, seq_len=16),
        data=dataclasses.replace(run.data, seq_len=16),
        batch_size=4,
        microbatches=1,
        eval_examples=64,
        checkpoint_seconds=0.0,
        steps_per_dispatch=8,
    )

def get_sweep():
    fit = grid(size=(8, 12), budget=(2048, 4096, 8192)) + [{"size": 16, "budget": 4096}]
    return Sweep("tiny", fit, held_out=[{"size": 16, "budget": 24576}], count="params_no_embed")
"""

LAW = {"form", "unit", "n_runs", "params", "certificate", "held_out", "optimal"}
FIGURES = {
    "learning_curves", "loss_against_compute", "fitted_surface", "predicted_against_measured", "optimal_allocation"
}  # fmt: skip


class Command:
    """`python -m experiments.sweep` in a session of its own, with the devices that users have."""

    def __init__(self, folder: Path, root: Path, *flags: str):
        env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        words = [f"--config={folder / 'tiny.py'}", f"--root={root}", "--workers=2", *flags]
        command = [sys.executable, "-m", "experiments.sweep", *words]
        self.root, self.out = root, folder / f"{root.name}-{time.monotonic_ns()}.txt"
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def text(self) -> str:
        return self.out.read_text()

    def end(self) -> int:
        return self.process.wait(timeout=300)

    def wait_until(self, predicate) -> None:
        deadline = time.monotonic() + 240
        while not predicate():
            assert self.process.poll() is None, f"it ended before the interruption:\n{self.text}"
            assert time.monotonic() < deadline, self.text
            time.sleep(0.002)

    def in_the_middle(self, ended: int = 0) -> Path:
        """Wait until so many units have ended and one is at work past a checkpoint; the folder of that one."""
        found = []

        def look():
            units = list((self.root / "units").glob("*"))
            busy = [u for u in units if (u / "owner.json").exists() and not (u / "result.json").exists()]
            found[:] = [u for u in busy if any((u / "checkpoints").glob("[0-9]*"))]
            return found and sum((u / "result.json").exists() for u in units) >= ended

        self.wait_until(look)
        return found[0]


def facts(root: Path) -> dict[str, tuple[float, bytes]]:
    """id -> (held-out loss, metrics log): what no interruption may change."""
    units = {path.name: path for path in (root / "units").iterdir()}
    return {
        name: (json.loads((path / "result.json").read_text())["loss"], (path / "metrics.jsonl").read_bytes())
        for name, path in units.items()
    }


def without_times(root: Path) -> dict:
    """law.json without when things happened."""
    law = json.loads((root / "law.json").read_text())
    return {
        **law,
        "held_out": [{k: v for k, v in e.items() if k not in ("predicted_at", "started_at")} for e in law["held_out"]],
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nothing interrupted: its root and what the command printed. Test processes share one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sweep"
    with locked(folder):
        folder.mkdir(exist_ok=True)
        if not (folder / "printed").exists():
            (folder / "tiny.py").write_text(CONFIG)
            with Command(folder, folder / "whole") as command:
                assert command.end() == 0, command.text
            (folder / "printed").write_text(command.text)
    return folder / "whole", (folder / "printed").read_text()


@pytest.mark.slow
def test_runs_csv_has_one_row_a_run(whole):
    root, _ = whole
    with (root / "runs.csv").open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames) == table.COLUMNS
    assert len(rows) == len({r["id"] for r in rows}) == 8
    assert {r["id"] for r in rows} == set(ledger.units(root))
    assert [r["split"] for r in rows] == ["fit"] * 7 + ["held_out"]
    for row in rows:
        assert (row["status"], row["unit"], row["family"], row["seed"]) == ("done", "nats/token", "transformer", "0")
        assert float(row["loss"]) == ledger.results(root)[row["id"]]["loss"]
        assert int(row["params"]) == int(row["params_active"]) == int(row["params_no_embed"]) + 256 * int(row["size"])
        assert int(row["tokens"]) == 64 * len(list(metrics.read(root / "units" / row["id"])))
        assert float(row["flops_6nd"]) == 6 * int(row["params_no_embed"]) * int(row["tokens"])
        assert float(row["flops_6nd"]) < float(row["flops"]) < 2 * float(row["flops_6nd"])  # attention is on top
        assert float(row["tokens_per_s"]) == pytest.approx(int(row["tokens"]) / float(row["wall_s"]))
    assert float(rows[7]["flops"]) >= 4 * max(float(r["flops"]) for r in rows[:7])


@pytest.mark.slow
def test_law_json_has_what_it_promises(whole):
    root, _ = whole
    law = json.loads((root / "law.json").read_text())
    assert law.keys() >= LAW
    assert (law["form"], law["unit"], law["n_runs"], law["count"]) == ("chinchilla", "nats/token", 7, "params_no_embed")
    assert law["params"].keys() == {"E", "A", "B", "alpha", "beta"}
    assert all(p.keys() >= {"value", "lo", "hi"} for p in law["params"].values())
    assert law["certificate"].keys() >= {"share_at_optimum", "converged"}
    for entry in law["optimal"]:
        assert all(entry[name].keys() >= {"value", "lo", "hi"} for name in ("params", "tokens")) and entry["flops"]
    (held_out,) = law["held_out"]
    assert held_out["lo"] <= held_out["predicted"] <= held_out["hi"]
    assert held_out["measured"] == ledger.results(root)[held_out["id"]]["loss"]


@pytest.mark.slow
def test_the_prediction_is_made_and_printed_before_the_held_out_run_starts(whole):
    root, printed = whole
    (entry,) = json.loads((root / "law.json").read_text())["held_out"]
    kept = json.loads((root / "prediction.json").read_text())["held_out"][entry["id"]]
    first = json.loads((root / "units" / entry["id"] / "attempts" / "1.json").read_text())
    assert kept.items() <= entry.items() and entry["started_at"] == first["time"]
    assert kept["predicted_at"] <= first["time"]
    lines = printed.splitlines()
    predicted = [i for i, line in enumerate(lines) if line.startswith(f"predicted for {entry['id']}")]
    trained = [i for i, line in enumerate(lines) if entry["id"] in line and ": loss " in line]
    assert len(predicted) == len(trained) == 1 and predicted[0] < trained[0]
    assert f"{entry['predicted']:.4f} nats/token, 95 % band {entry['lo']:.4f}" in lines[predicted[0]]
    assert sum(": loss " in line for line in lines[: predicted[0]]) == 7


@pytest.mark.slow
def test_the_report_and_five_figures_are_there(whole):
    root, printed = whole
    page = (root / "report.html").read_text()
    assert 'src="http' not in page and page.count("data:image/png;base64") == 5
    assert {path.stem for path in (root / "figures").glob("*.png")} == FIGURES
    for path in (root / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 200
    assert f"report: {root / 'report.html'}" in printed
    assert "\x1b" not in printed, "plain lines where the output is not a terminal"


@pytest.mark.slow
def test_a_second_command_trains_nothing_and_says_the_same(whole):
    root, printed = whole
    files = [*root.glob("units/*/result.json"), *root.glob("units/*/metrics.jsonl"), *root.glob("units/*/attempts/*")]
    assert len(files) == 3 * 8

    def state():
        return [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]

    before, law = state(), json.loads((root / "law.json").read_text())
    with Command(root.parent, root) as command:
        assert command.end() == 0, command.text
    assert state() == before
    assert json.loads((root / "law.json").read_text()) == law
    assert ": loss " not in command.text
    assert [x for x in command.text.splitlines() if "predicted for" in x] == [
        x for x in printed.splitlines() if "predicted for" in x
    ]


@pytest.mark.slow
def test_budgets_leave_out_and_later_commands_go_on_to_the_same_numbers(whole, tmp_path):
    root = tmp_path / "root"
    (tmp_path / "tiny.py").write_text(CONFIG)
    with (whole[0] / "runs.csv").open() as file:
        flops = {row["id"]: float(row["flops"]) for row in csv.DictReader(file)}
    dearest, test = sorted(flops, key=flops.__getitem__)[-2:]
    with Command(tmp_path, root, "--budget_seconds=6") as command:
        # Whether the time suffices for a law depends on the machine; that nothing is lost does not.
        assert command.end() in (0, 42), command.text
    assert "Traceback" not in command.text and not list(root.glob("units/*/error.json"))
    begun = ledger.last_attempt(root, dearest)  # where the first command had the time for it
    budget = sum(flops.values()) - (0 if begun else flops[dearest] / 2)
    with Command(tmp_path, root, f"--budget_flops={budget}") as command:
        assert command.end() == 0, command.text
    done = set(ledger.results(root))
    assert sum(flops[unit] for unit in done) <= budget
    if not begun:
        assert done == set(flops) - {dearest}
        assert f"left out: {dearest}" in command.text and test in done
    with Command(tmp_path, root) as command:
        assert command.end() == 0, command.text
    assert facts(root) == facts(whole[0])


@pytest.mark.slow
def test_a_run_with_an_absurd_learning_rate_is_ended_and_named(tmp_path):
    (tmp_path / "tiny.py").write_text(
        CONFIG
        + """
def get_sweep():
    fit = grid(size=(8, 12, 16), budget=(2048, 4096)) + [{"size": 8, "budget": 4096, "optim.learning_rate": 30.0}]
    return Sweep("tiny", fit, [], count="params_no_embed")
"""
    )
    root = tmp_path / "root"
    with Command(tmp_path, root, "--stop_hopeless=0.3") as command:
        assert command.end() == 0, command.text
    results = ledger.results(root)
    (bad,) = (unit for unit in results if ledger.config(root, unit)["optim"]["learning_rate"] == 30.0)
    assert results[bad]["status"] == "hopeless" and results[bad]["message"] in command.text
    assert len(list(metrics.read(root / "units" / bad))) < 64, "it took fewer than all of its updates"
    law = json.loads((root / "law.json").read_text())
    assert law["n_runs"] == 6 and [told["id"] for told in law["not_fitted"]] == [bad]
    assert results[bad]["message"] in (root / "report.html").read_text().replace("&#x27;", "'")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_an_interrupted_command_goes_on(whole, tmp_path):
    root = tmp_path / "root"
    (tmp_path / "tiny.py").write_text(CONFIG)
    with Command(tmp_path, root) as command:
        command.wait_until(lambda: (root / "sweep.json").exists())
        with Command(tmp_path, root) as second:
            assert second.end() == 2
        assert second.text == f"error: process {command.process.pid} is already at work on '{root}'\n"
        busy = command.in_the_middle()
        victim = json.loads((busy / "owner.json").read_text())["pid"]
        assert victim in children(command.process.pid)
        os.kill(victim, signal.SIGKILL)
        command.wait_until(lambda: (busy / "attempts" / "2.json").exists())
        assert f"{busy.name} " in command.text and "its worker ended with code -9" in command.text
        command.in_the_middle()
        workers = children(command.process.pid)
        os.kill(command.process.pid, signal.SIGINT)
        assert command.end() == 130
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers), "workers outlived their command"
    last = command.text.splitlines()[-1]
    assert last == "interrupted; every run is saved: the same command goes on from here"
    assert "Traceback" not in command.text
    stopped = [u for u in ledger.units(root) if ledger.status(root, u) == "started"]
    assert stopped and not list(root.glob("units/*/error.json"))
    with Command(tmp_path, root) as command:
        assert command.end() == 0, command.text
    assert facts(root) == facts(whole[0])
    assert without_times(root) == without_times(whole[0])


@pytest.mark.slow
def test_a_killed_sweep_ends_with_the_same_numbers(whole, tmp_path):
    root = tmp_path / "root"
    (tmp_path / "tiny.py").write_text(CONFIG)
    with Command(tmp_path, root) as command:
        command.in_the_middle()
        workers = children(command.process.pid)
        command.process.kill()  # the parent alone: its workers are orphans, which save and end by themselves
        command.process.wait()
        with Command(tmp_path, root) as command:  # at once, while they do
            command.in_the_middle(ended=2)
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, "orphans stay at work"
            time.sleep(0.05)
    assert not list(root.glob("units/*/error.json")), "to be killed is no failure"
    with Command(tmp_path, root) as command:
        (held_out,) = (u for u, config in ledger.units(root).items() if config["budget"] == 24576)
        folder = root / "units" / held_out / "checkpoints"
        command.wait_until(lambda: folder.exists() and any(folder.glob("[0-9]*")))
        os.killpg(command.process.pid, signal.SIGKILL)  # the prediction stands, and is not made again
        command.process.wait()
    prediction = (root / "prediction.json").read_bytes()
    with Command(tmp_path, root) as command:
        assert command.end() == 0, command.text
    assert (root / "prediction.json").read_bytes() == prediction
    assert facts(root) == facts(whole[0])
    assert without_times(root) == without_times(whole[0])
