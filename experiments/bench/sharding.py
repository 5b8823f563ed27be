"""`make bench-sharding`: what spreading costs: a step on 8 emulated devices against one device and the same batch.

    python -m experiments.bench.sharding [--rounds=7]

The devices share this machine's cores, so that a step has the same work to do either way: the ratio is the overhead of
the program (collectives as copies, smaller products, more of them), not of a network. Prints a table and writes
runs/bench/sharding.json.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli

DEVICES = 8
DENSE = {"width": 128, "depth": 4, "heads": 8, "kv_heads": 8, "seq_len": 128}
STACKED = {**DENSE, "scan_layers": True}
MOE = {**DENSE, "mlp_width": 256, "experts": 8}
# Mesh, name of the model, and what the transformer is.
KINDS: tuple[tuple[str, str, dict[str, int]], ...] = (
    ("data:8", "dense", DENSE),
    ("fsdp:8", "dense", DENSE),
    ("tensor:8", "dense", DENSE),
    ("context:8", "dense", DENSE),
    ("data:2,pipeline:4", "dense, stacked", STACKED),
    ("expert:8", "moe", MOE),
    ("data:4,fsdp:2", "dense", DENSE),
    ("slice:2,fsdp:4", "dense", DENSE),
    ("data:2,fsdp:2,tensor:2", "dense", DENSE),
    ("fsdp:2,tensor:2,context:2", "dense", DENSE),
    ("data:2,expert:2,tensor:2", "moe", MOE),
)

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each side.", 1)
_OUT = flags.DEFINE_string("out", "runs/bench/sharding.json", "Where the figures go.")


def a_run(mesh: str, model: dict[str, int]) -> Any:
    """Batches of 32 of the transformer's data, one update a dispatch."""
    run = cli.load_config("transformer").get_config()
    data = dataclasses.replace(run.data, seq_len=model["seq_len"])
    model = dataclasses.replace(run.model, **model)
    return dataclasses.replace(run, model=model, data=data, batch_size=32, steps_per_dispatch=1, mesh=mesh)


def stepper(run: Any) -> Callable[[], float]:
    """A function that does one update of a run on its mesh and says how many seconds that took."""
    import jax

    from deeplearn import data, sharding
    from deeplearn.train import loop, state as states

    mesh = sharding.make_mesh(run.mesh)
    with loop.on_mesh(mesh):
        program = loop.compiled_steps(loop.program(run), mesh, 1)
        carry = [states.create(run, mesh)]
        rows = data.train_iterator(run.data, run.batch_size, 0).take(1)
        batch = loop.put(run, rows, sharding.of_batch(mesh, 1))

    def step() -> float:
        start = time.perf_counter()
        carry[0], metrics = program(carry[0], batch)
        jax.block_until_ready((carry[0], metrics))
        return time.perf_counter() - start

    return step


def main(argv: list[str]) -> int:
    del argv
    from deeplearn.preflight import topology

    topology.emulate(DEVICES)
    console, kinds, alone = Console(), [], {}
    grid = Table("mesh", "model", "one device", f"{DEVICES} devices", "ratio", box=None)
    for mesh, name, model in KINDS:
        if name not in alone:
            alone[name] = stepper(a_run("data:1", model))
        spread = stepper(a_run(mesh, model))
        alone[name](), spread()  # to warm up
        turns = [(alone[name](), spread()) for _ in range(_ROUNDS.value)]
        one_s, spread_s = (statistics.median(side) for side in zip(*turns, strict=True))
        kinds.append(
            {"mesh": mesh, "model": name, "one_device_s": one_s, "spread_s": spread_s, "ratio": spread_s / one_s}
        )
        grid.add_row(mesh, name, f"{1e3 * one_s:.0f} ms", f"{1e3 * spread_s:.0f} ms", f"{spread_s / one_s:.2f}")
        console.print(f"{mesh}: done", highlight=False)
    console.print(grid)
    path = Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"devices": DEVICES, "rounds": _ROUNDS.value, "kinds": kinds}, indent=1) + "\n")
    console.print(f"written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
