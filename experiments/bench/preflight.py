"""`make bench-preflight`: predicted against measured steps on this CPU, and how long the TPU compiler takes.

    python -m experiments.bench.preflight [--rounds=9] [--skip_tpu]

The CPU's rates are measured first, with the same threads. Then each size trains on one device, and the median step is
held against the roofline at those rates. Then, with the extra `preflight`, a 7B-class model is compiled for
v5p:4x4x4, a 70B-class one for v5p:8x8x8, a mixture of 64 experts for v5e:16x16, models of 8 and of 80 layers for
v5p:2x2x2, and 1.2 G parameters with 131,072 tokens of context for v5e:4x4, round rings of four devices and with each
sequence on one. Last come the best meshes that a search finds for a model of 35 M. Prints tables and writes
runs/bench/preflight.json.
"""

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli

SIZES = (32, 64, 128, 256)
LONG = {"model.scan_layers": "true", "model.remat": "full", "precision": "bfloat16"}
FAR = {"size": "2048", "length": "131072", "model.loss_chunk": "1024"}  # one sequence in each place of the batch
# Name of the case -> config, topology and overrides.
TPU = {
    "7B-class, v5p:4x4x4": (
        "transformer",
        "v5p:4x4x4",
        {"size": "4096", "batch_size": "256", "mesh": "fsdp:64", "length": "2048"},
    ),
    "70B-class, v5p:8x8x8": (
        "transformer",
        "v5p:8x8x8",
        {"size": "8192", "model.depth": "80", "model.heads": "64", "model.kv_heads": "8", "model.mlp": "swiglu",
         "model.mlp_width": "28672", "model.vocab": "128256", "model.loss_chunk": "512", "length": "4096",
         "batch_size": "512", "mesh": "fsdp:128,tensor:4"},
    ),
    "64 experts of 2048, v5e:16x16": (
        "moe",
        "v5e:16x16",
        {"size": "2048", "model.experts": "64", "model.mlp": "swiglu", "model.mlp_width": "2816",
         "model.vocab": "32768", "model.loss_chunk": "512", "length": "2048", "batch_size": "512",
         "mesh": "fsdp:16,expert:16"},
    ),
    "8 layers, v5p:2x2x2": (
        "transformer",
        "v5p:2x2x2",
        {"size": "512", "batch_size": "64", "mesh": "fsdp:8", "model.depth": "8"},
    ),
    "80 layers, v5p:2x2x2": (
        "transformer",
        "v5p:2x2x2",
        {"size": "512", "batch_size": "64", "mesh": "fsdp:8", "model.depth": "80"},
    ),
    "128k context, rings of 4, v5e:4x4": (
        "transformer",
        "v5e:4x4",
        {**FAR, "batch_size": "4", "mesh": "fsdp:4,context:4"},
    ),
    "128k context, no ring, v5e:4x4": ("transformer", "v5e:4x4", {**FAR, "batch_size": "16", "mesh": "fsdp:16"}),
}  # fmt: skip

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Steps of each size, of which the median counts.", 1)
_SKIP_TPU = flags.DEFINE_bool("skip_tpu", False, "Leave out what the TPU compiler takes minutes for.")
_OUT = flags.DEFINE_string("out", "runs/bench/preflight.json", "Where the figures go.")


def a_run(overrides: dict[str, str], config: str = "transformer") -> Any:
    length = overrides.get("length", "128")
    rest = {name: value for name, value in overrides.items() if name != "length"}
    return cli.get_run(cli.load_config(config), {"model.seq_len": length, "data.seq_len": length, **rest})


def on_this_cpu(size: int, table: Any, rounds: int) -> dict[str, Any]:
    """Predicted and measured seconds of one step of batch 32 on one device."""
    import jax

    from deeplearn import families, sharding
    from deeplearn.preflight import flight as flights, topology as topologies
    from deeplearn.train import loop, state as states

    run = a_run({"size": str(size), "batch_size": "32", "mesh": "data:1"})
    flight = flights.preflight(run, topologies.machine(topologies.parse("cpu:1", 1, table)), table.grid, run.budget)
    mesh = sharding.one_device()
    with loop.on_mesh(mesh):
        step = loop.compiled_steps(loop.program(run), mesh, 1)
        batch = states.example_batch(families.get(run.family), run.model, 32)
        batches = jax.device_put({k: x[None] for k, x in batch.items()}, sharding.of_batch(mesh, 1))
        state, times = states.create(run, mesh), []
        for _ in range(rounds + 2):
            start = time.perf_counter()
            state, metrics = step(state, batches)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - start)
    measured, line = statistics.median(times[2:]), flight.roofline
    return {
        "width": size, "measured_s": measured, "arithmetic_s": line.compute, "memory_s": line.memory,
        "predicted_s": line.step, "sum_s": line.compute + line.memory, "bound": line.bound,
    }  # fmt: skip


def by_the_tpu_compiler(name: str, table: Any) -> dict[str, Any]:
    """Compile time, bytes and roofline of one of `TPU`."""
    from deeplearn.preflight import flight as flights, topology as topologies

    config, flag, overrides = TPU[name]
    run, machine = a_run({**LONG, **overrides}, config), topologies.machine(topologies.parse(flag, 1, table))
    flight = flights.preflight(run, machine, table.grid, run.budget, mend=False)
    return {"case": name, **{k: v for k, v in flights.to_json(flight).items() if k not in ("config", "chip")}}


def searched(table: Any) -> dict[str, Any]:
    """The best of a search, and how far theory was off where the compiler was asked."""
    from deeplearn.preflight import search as searches, topology as topologies

    run = a_run({**LONG, "size": "512", "batch_size": "512"})
    machine = topologies.machine(topologies.parse("v5p:2x2x2", 1, table))
    found = searches.search(run, machine, table.grid, run.budget)
    return {
        "meshes": len(found.candidates), "compiled_over_estimated": found.off_of()._asdict(),
        "best": found.best.overrides, "candidates": searches.to_json(found),
    }  # fmt: skip


def main(argv: list[str]) -> int:
    del argv
    os.environ["JAX_PLATFORMS"] = "cpu"
    import importlib.util

    from deeplearn.preflight import chips, measure, topology as topologies

    topologies.emulate(1)
    console, out = Console(), Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    console.print(measure.write(out.with_name("cpu.toml")), highlight=False)
    here = chips.load(out.with_name("cpu.toml"))
    rows = [on_this_cpu(size, here, _ROUNDS.value) for size in SIZES]
    # The roofline lets memory and arithmetic overlap; a CPU spends the same cores on both, nearer to their sum.
    grid = Table("width", "measured", "arithmetic", "memory", "predicted / measured", "sum / measured", box=None)
    for row in rows:
        seconds = (f"{1e3 * row[f'{name}_s']:.2f} ms" for name in ("measured", "arithmetic", "memory"))
        shares = (f"{row[f'{name}_s'] / row['measured_s']:.2f}" for name in ("predicted", "sum"))
        grid.add_row(str(row["width"]), *seconds, *shares)
    console.print(grid)
    there, search = [], None
    if not _SKIP_TPU.value and importlib.util.find_spec("libtpu") is not None:
        for name in TPU:
            there.append(by_the_tpu_compiler(name, chips.load()))
            last = there[-1]
            line, needed = last["roofline"], f"{last['memory']['total'] / 1e9:.2f} GB a device"
            told = f"fits, {100 * line['mfu']:.1f} % utilisation" if last["fits"] else "does not fit"
            seconds = f"lowered in {last['lowering_s']:.0f} s, compiled in {last['compiling_s']:.0f} s"
            console.print(f"{name}: {seconds}, {needed}, {told}", highlight=False)
        search = searched(chips.load())
        off = search["compiled_over_estimated"]
        console.print(
            f"search of {search['meshes']} meshes: the best is {search['best']}; compiled programs take "
            f"{off['bytes']:.2f} times the bytes and {off['step']:.2f} times the time of theory",
            highlight=False,
        )
    out.write_text(json.dumps({"cpu": rows, "tpu": there, "search": search}, indent=2) + "\n")
    console.print(f"figures: {out}", highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
