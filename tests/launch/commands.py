"""Sweeps of seconds, and `python -m launch` run on them as users run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    return Sweep("tiny", {fit}, held_out={held_out}, count="params_no_embed")
"""

SHORT = [{"size": size, "budget": budget} for size in (8, 12) for budget in (2048, 4096)]
LONG = [{"size": 8, "budget": 64 * 600}]


def write_config(path: Path, fit: list, held_out: list = ()) -> Path:
    path.write_text(CONFIG.format(fit=fit, held_out=list(held_out)))
    return path


class Launch:
    """The command on one sweep and root. environment: what its units get besides."""

    def __init__(self, config: Path, root: Path, *flags: str, **environment: str):
        self.config, self.root, self.flags = config, root, flags
        plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        self.environment = plain | {"PYTHONPATH": str(ROOT)} | environment

    def __call__(self, verb: str, *flags: str, code: int = 0) -> str:
        """What it says, on both streams; it must end with `code`."""
        words = [sys.executable, "-m", "launch", verb, f"--sweep={self.config}", f"--root={self.root}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run([*words, *self.flags, *flags], env=self.environment, text=True, timeout=300, **pipes)
        assert done.returncode == code, done.stdout
        return done.stdout

    @property
    def units(self) -> list[Path]:
        return sorted((self.root / "units").iterdir())

    def is_over(self) -> bool:
        return all((unit / "result.json").exists() for unit in self.units)

    def attempts(self) -> list[int]:
        return [len(list((unit / "attempts").glob("*.json"))) for unit in self.units]

    def facts(self) -> dict[str, tuple[float, bytes]]:
        """id -> (held-out loss, metrics log): what no engine and no interruption may change."""
        return {
            unit.name: (json.loads((unit / "result.json").read_text())["loss"], (unit / "metrics.jsonl").read_bytes())
            for unit in self.units
        }

    def logs(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()}" for log in sorted((self.root / "logs").glob("*.log")))
