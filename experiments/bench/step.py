"""`make bench`: this project's transformer step against PyTorch's on the same CPU, interleaved in one run.

    python -m experiments.bench.step [--rounds=7] [--seconds=1.5]

Byte vocabulary, 128 tokens, batch 32, AdamW, float32. "ours" is one run with two threads (data parallel over two
emulated devices), "machine" is what a sweep does (one single-threaded run a core, both at once), "PyTorch" is eager
with two threads. Needs the extra `bench`. Prints a table and writes runs/bench/step.json.
"""

import json
import os
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.bench.overhead import loop_overhead
from experiments.bench.sides import Side, ratio, take_turns
from experiments.bench.worker import BATCH, LENGTH, jax_run

SHAPES = ((32, 2, 1), (64, 4, 2), (128, 4, 4), (256, 6, 8))
PIECES = {32: 16, 64: 16, 128: 8, 256: 4}  # microbatches of 2 to 8 sequences: what fits a core's cache runs fastest
MATMUL = 1024

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each side.", 1)
_SECONDS = flags.DEFINE_float("seconds", 1.5, "Length of a turn.", 0.1)
_OUT = flags.DEFINE_string("out", "runs/bench/step.json", "Where the figures go.")


def measure(d: int, layers: int, heads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """One row: medians of tokens/s, medians of ratios, time to the first step, and shares of the matmul rate."""
    shape = {"d": d, "layers": layers, "heads": heads}
    one_run = {"kind": "jax", **shape, "mesh": "data:2", "devices": 2, "microbatches": PIECES[d] // 2}
    one_core = {"kind": "jax", **shape, "microbatches": PIECES[d]}
    ours = Side("ours", one_run)
    machine = Side("machine", *({**one_core, "core": core} for core in (0, 1)))
    torch = Side("PyTorch", {"kind": "torch", **shape})
    matmul = Side("matmul", {"kind": "matmul", "n": MATMUL})
    sides = [ours, machine, torch, matmul]
    take_turns(sides, 1, seconds)  # to warm up
    for side in sides:
        side.rates.clear()
    take_turns(sides, rounds, seconds)
    for side in sides:
        side.close()
    tokens = BATCH * LENGTH
    return {
        **shape,
        "ours_tokens_per_s": ours.median() * tokens,
        "ours_machine_tokens_per_s": machine.median() * tokens,
        "torch_tokens_per_s": torch.median() * tokens,
        "ratio": ratio(ours, torch),
        "machine_ratio": ratio(machine, torch),
        "matmul_share": ratio(ours, matmul) * _flops_per_step(one_run) / (2 * MATMUL**3),
        "machine_matmul_share": ratio(machine, matmul) * _flops_per_step(one_core) / (2 * MATMUL**3),
        "matmul_flops_per_s": matmul.median() * 2 * MATMUL**3,
        "first_step_s": {side.name: side.first_step_s for side in sides[:3]},
    }


def _flops_per_step(side: dict[str, Any]) -> float:
    from deeplearn.families import counting, transformer

    return BATCH * counting.flops_per_example(transformer, jax_run(side).model)


def main(argv: list[str]) -> int:
    del argv
    console = Console()
    if os.getloadavg()[0] > 1:
        console.print("this machine is busy with something else: the PyTorch side suffers most, ratios mean little")
    rows = []
    table = Table(title=f"Training step, tokens/s: medians of {_ROUNDS.value} interleaved turns")
    names = ("d, layers, heads", "ours", "machine", "PyTorch", "ours / PyTorch", "machine / PyTorch", "matmul share")
    for name in (*names, "first step (s)"):
        table.add_column(name, justify="right")
    for shape in SHAPES:
        row = measure(*shape, _ROUNDS.value, _SECONDS.value)
        rows.append(row)
        rates = (row["ours_tokens_per_s"], row["ours_machine_tokens_per_s"], row["torch_tokens_per_s"])
        first = row["first_step_s"]
        table.add_row(
            str(shape),
            *(f"{rate:,.0f}" for rate in rates),
            f"{row['ratio']:.2f}",
            f"{row['machine_ratio']:.2f}",
            f"{row['matmul_share']:.0%} / {row['machine_matmul_share']:.0%}",
            f"{first['ours']:.1f} / {first['PyTorch']:.1f}",
        )
        console.print(f"{shape}: done", highlight=False)
    overhead = loop_overhead(2 * _ROUNDS.value)  # a few per cent show only over many turns
    console.print(table)
    console.print(f"the loop takes {overhead:+.1%} beside its bare step", highlight=False)
    path = Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"sizes": rows, "loop_overhead": overhead}, indent=1) + "\n")
    console.print(f"written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
