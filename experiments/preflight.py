"""Compile a run for the machine that you would rent: python -m experiments.preflight --config=NAME --topology=CHIP:N

    python -m experiments.preflight --config=transformer --topology=v5p:2x2x2 --mesh=fsdp:8 --set batch_size=64
    python -m experiments.preflight --config=transformer --topology=h100:8 --tokens=2e10 --out=flight
    python -m experiments.preflight --measure=here.toml

Prints whether the step fits into the chips' memory, and if not the nearest change that would; FLOPs, bytes of main
memory and collectives of one step; what bounds it, its time and utilisation; and time, price, energy and CO2 of
--tokens. Nothing runs: the TPU compiler works on any machine (pip install 'deeplearn[preflight]'); without it, and for
GPUs, the program is compiled for emulated devices, and marked as a bound. --out=DIR writes DIR/preflight.json and
DIR/preflight.html. The numbers of the chips, each with its source, are in deeplearn/preflight/chips.toml; --chips=FILE
replaces them, and --measure=FILE writes a table of this machine's own CPU, for --topology=cpu:1.
"""

import json
import os
import shlex
import sys
from pathlib import Path

from absl import flags
from rich.console import Console

from deeplearn.config import ConfigError, overlay
from experiments import cli

cli.define_config_flags()
_TOPOLOGY = flags.DEFINE_string("topology", None, "A chip of the table and how many, for example v5p:4x4x4 or h100:8.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that topology, joined by the slow network.", 1)
_MESH = flags.DEFINE_string("mesh", None, "The same as --set mesh=..., for example data:4,fsdp:16.")
_TOKENS = flags.DEFINE_float("tokens", None, "Training tokens (or images) of the bill; else the run's budget.", 1)
_EFFICIENCY = flags.DEFINE_float("efficiency", 1.0, "Share of the peak FLOP/s that matrix products reach.", 0.01, 1)
_GRID = flags.DEFINE_float("grid", None, "Grams of CO2 per kWh where the machine stands; else the world's mean.", 0)
_CHIPS = flags.DEFINE_string("chips", None, "A table of chips in place of the library's own.")
_MEASURE = flags.DEFINE_string("measure", None, "Measure this machine's CPU, and write a table of chips with it.")
_OUT = flags.DEFINE_string("out", None, "Folder for preflight.json, preflight.html and figures.")


def main(argv: list[str]) -> int:
    del argv
    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported: nothing runs on an accelerator that is here
    console = Console()
    if _MEASURE.value is not None:
        from deeplearn.preflight import measure

        console.print(measure.write(Path(_MEASURE.value)), highlight=False)
        return 0
    if _TOPOLOGY.value is None:
        raise ConfigError("for which machine? pass --topology=CHIP:N, for example v5p:2x2x2")
    run = overlay(cli.config_from_flags(), {} if _MESH.value is None else {"mesh": _MESH.value})
    from deeplearn.preflight import chips, flight as flights, topology as topologies

    table = chips.load(Path(_CHIPS.value) if _CHIPS.value else chips.TABLE)
    topology = topologies.parse(_TOPOLOGY.value, _SLICES.value, table)
    topologies.emulate(topology.chips)
    grid = chips.with_intensity(table.grid, _GRID.value) if _GRID.value is not None else table.grid
    machine = topologies.machine(topology)
    with console.status(f"compiling for {topology.chips} x {topology.chip.title}"):
        flight = flights.preflight(run, machine, grid, _TOKENS.value or run.budget, _EFFICIENCY.value)
    from experiments import preflight_report

    preflight_report.show(console, flight)
    if _OUT.value:
        folder = Path(_OUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "preflight.json").write_text(json.dumps(flights.to_json(flight), indent=2, allow_nan=False) + "\n")
        command = shlex.join(["python", "-m", "experiments.preflight", *sys.argv[1:]])
        console.print(f"report: {preflight_report.publish(folder, flight, grid, command)}", highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
