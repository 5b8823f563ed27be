"""Benchmark sides that take turns: processes of experiments/bench/worker.py, asked one after another."""

import json
import statistics
import subprocess
import sys
import time
from typing import Any


class Side:
    """Processes that work at the same time and count as one side. sides: what each worker is told."""

    def __init__(self, name: str, *sides: dict[str, Any]):
        self.name = name
        command = [sys.executable, "-m", "experiments.bench.worker"]
        start = time.perf_counter()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._processes = [subprocess.Popen([*command, json.dumps(side)], **pipes) for side in sides]
        for process in self._processes:
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError(f"benchmark side {name!r} did not start; run the worker by hand to see why")
        self.first_step_s = time.perf_counter() - start
        self.rates: list[float] = []

    def turn(self, seconds: float) -> None:
        """Work for about that long, and keep the rate in steps a second, summed over the processes."""
        for process in self._processes:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        found = [json.loads(process.stdout.readline()) for process in self._processes]
        self.rates.append(sum(f["steps"] / f["seconds"] for f in found))

    def median(self) -> float:
        return statistics.median(self.rates)

    def close(self) -> None:
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            process.wait()


def take_turns(sides: list[Side], rounds: int, seconds: float) -> None:
    """Each side in turn, `rounds` times over, so that a drift of the machine meets all of them."""
    for _ in range(rounds):
        for side in sides:
            side.turn(seconds)


def ratio(a: Side, b: Side) -> float:
    """Median over the rounds of a's rate over b's."""
    return statistics.median(x / y for x, y in zip(a.rates, b.rates, strict=True))
