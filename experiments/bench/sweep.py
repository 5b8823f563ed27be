"""`make bench-sweep`: a sweep against a process for each run, against one run after another, and against the machine.

    python -m experiments.bench.sweep [--rounds=3]

Two sweeps of 24 small transformers (`sweep_grid.py`, `sweep_seeds.py`), from the start of the command to the last
result. Each round trains a sweep by `experiments.sweep`, then one by one in one process whose programs are compiled
before it is timed, then a share of the units by `experiments.train`, one process after another: over all rounds each
unit once. A sweep keeps its compiled programs in a folder that is empty at first; `experiments.train` keeps none.
Prints a table and writes runs/bench/sweep.json. About 35 minutes.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.bench.sides import Side, take_turns

HERE = Path(__file__).parent
SWEEPS = {"grid": HERE / "sweep_grid.py", "seeds": HERE / "sweep_seeds.py"}
WIDTHS = (1, 4)  # members of the cohorts whose step rates are the machine's

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.", 1)
_OUT = flags.DEFINE_string("out", "runs/bench/sweep.json", "Where the figures go.")


def _cold_cache(folder: Path) -> dict[str, str]:
    """The environment of a command with the usual data and without any compiled program."""
    from deeplearn import data
    from deeplearn.data.sources import cache_dir

    data.train_examples(data.Data("shakespeare", seq_len=64))  # fetches it
    shutil.copytree(cache_dir(), folder, ignore=shutil.ignore_patterns("xla"))
    return {**os.environ, "DEEPLEARN_CACHE": str(folder)}


def _run(words: list[str], env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-m", *words], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def packed(config: Path, env: dict[str, str]) -> float:
    """Seconds from the start of `experiments.sweep` to its last result."""
    with tempfile.TemporaryDirectory() as root:
        start = time.time()
        _run(["experiments.sweep", f"--config={config}", f"--root={root}"], env)
        return max(path.stat().st_mtime for path in Path(root).glob("units/*/result.json")) - start


def process_per_run(config: Path, points: list[dict[str, Any]], env: dict[str, str]) -> float:
    """Seconds that `experiments.train` takes for these units, one process after another."""
    start = time.time()
    for point in points:
        with tempfile.TemporaryDirectory() as folder:
            sets = [f"--set={key}={value}" for key, value in point.items()]
            _run(["experiments.train", f"--config={config}", f"--workdir={folder}", *sets], env)
    return time.time() - start


def arithmetic(points: list[dict[str, Any]], config: Path, rounds: int) -> float:
    """Seconds that the steps of these units take at the best rate of this machine: bare steps on both cores at once."""
    module = cli.load_config(str(config))
    seconds = 0.0
    for size in sorted({point["size"] for point in points}):
        sides = [
            Side(
                f"{members} members", *({"kind": "cohort", "size": size, "members": members, "core": c} for c in (0, 1))
            )
            for members in WIDTHS
        ]
        take_turns(sides, rounds + 1, 1.0)
        for side in sides:
            side.rates.pop(0)  # to warm up
            side.close()
        steps = sum(cli.get_run(module, point).steps for point in points if point["size"] == size)
        seconds += steps / max(side.median() for side in sides)
    return seconds


def measure(name: str, rounds: int, env: dict[str, str]) -> dict[str, float]:
    """Medians of one sweep."""
    config = SWEEPS[name]
    points = cli.load_config(str(config)).get_sweep().fit
    times: dict[str, list[float]] = {"packed": [], "one_by_one": [], "process_per_run": []}
    for i in range(rounds):
        times["packed"].append(packed(config, env))
        times["one_by_one"].append(json.loads(_run(["experiments.bench.one_by_one", str(config)], env))["seconds"])
        times["process_per_run"].append(process_per_run(config, points[i::rounds], env))
    seconds = statistics.median(times["packed"])
    return {
        "first_seconds": times["packed"][0],
        "seconds": seconds,
        "process_per_run_ratio": sum(times["process_per_run"]) / seconds,
        "one_by_one_ratio": statistics.median(a / b for a, b in zip(times["one_by_one"], times["packed"], strict=True)),
        "efficiency": arithmetic(points, config, 5) / seconds,
    }


def quickstart(env: dict[str, str]) -> float:
    """Seconds of the whole quickstart, but for its installation."""
    with tempfile.TemporaryDirectory() as root:
        start = time.time()
        _run(["experiments.sweep", "--config=quickstart", f"--root={root}"], env)
        return time.time() - start


def main(argv: list[str]) -> int:
    del argv
    console = Console()
    table = Table(title=f"24 units, medians of {_ROUNDS.value} interleaved turns")
    names = ("sweep", "seconds (first)", "process a run", "one by one", "efficiency")
    for column in names:
        table.add_column(column, justify="right")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        env = _cold_cache(Path(folder) / "cache")
        for name in SWEEPS:
            row = found[name] = measure(name, _ROUNDS.value, env)
            times = f"{row['seconds']:.1f} ({row['first_seconds']:.1f})"
            ratios = (row["process_per_run_ratio"], row["one_by_one_ratio"])
            table.add_row(name, times, *(f"{ratio:.2f} times" for ratio in ratios), f"{row['efficiency']:.0%}")
            console.print(f"{name}: done", highlight=False)
        overhead = json.loads(_run(["experiments.bench.overhead"], env).splitlines()[-1])["overhead"]
        quick = quickstart(env)
    console.print(table)
    console.print(f"ledger, checkpoints, metrics and data: {overhead:+.1%} of the steps", highlight=False)
    console.print(f"the quickstart takes {quick:.0f} s, its installation left out", highlight=False)
    figures = {key: found["grid"][key] for key in ("process_per_run_ratio", "one_by_one_ratio", "efficiency")}
    path = Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures |= {"overhead": overhead, "quickstart_seconds": quick, "sweeps": found}
    path.write_text(json.dumps(figures, indent=1) + "\n")
    console.print(f"written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
