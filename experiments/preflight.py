"""Compile a run for the machine that you would rent: python -m experiments.preflight --config=NAME --topology=CHIP:N

    python -m experiments.preflight --config=transformer --topology=v5p:2x2x2 --mesh=fsdp:8 --set batch_size=64
    python -m experiments.preflight --config=transformer --topology=v5p:2x2x2 --search --scaling --set batch_size=64
    python -m experiments.preflight --config=transformer --topology=h100:8 --tokens=2e10 --out=flight
    python -m experiments.preflight --config=transformer --topology=v5p:2x2x2 --law=law.json --dollars=1000
    python -m experiments.preflight --measure=here.toml

Prints whether the step fits into the chips' memory, and if not the nearest change that would; FLOPs, bytes of main
memory and collectives of one step; what bounds it, its time and utilisation; and time, price, energy and CO2 of
--tokens. Nothing runs: the TPU compiler works on any machine (pip install 'deeplearn[preflight]'); without it, and for
GPUs, the program is compiled for emulated devices, and marked as a bound. --out=DIR writes DIR/preflight.json and
DIR/preflight.html. The numbers of the chips, each with its source, are in deeplearn/preflight/chips.toml; --chips=FILE
replaces them, and --measure=FILE writes a table of this machine's own CPU, for --topology=cpu:1.

--search finds the mesh, the recomputation and the number of microbatches: all that are worth trying are ranked by
theory, the best are compiled, and the ranking is corrected by what the compiler says. --scaling predicts the step on 8
to 512 of the same chips, with the same batch and with the same batch a chip, on meshes of the same axes. --law=FILE, a
law.json of a sweep or of experiments.fit, turns a budget (--dollars or --chip_hours) into a run: the model of the
compute-optimal size, its tokens, its mesh by the search, the loss that the law predicts with its band, and the bill.
Give --set batch_size: a law does not say it.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from deeplearn.config import ConfigError, overlay
from experiments import cli

cli.define_config_flags()
_TOPOLOGY = flags.DEFINE_string("topology", None, "A chip of the table and how many, for example v5p:4x4x4 or h100:8.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that topology, joined by the slow network.", 1)
_MESH = flags.DEFINE_string("mesh", None, "The same as --set mesh=..., for example data:4,fsdp:16.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the mesh, recomputation and microbatches, in place of --mesh.")
_SCALING = flags.DEFINE_bool("scaling", False, "Weak and strong scaling from 8 to 512 chips.")
_LAW = flags.DEFINE_string("law", None, "A law.json, which then chooses size and tokens for --dollars or --chip_hours.")
_DOLLARS = flags.DEFINE_float("dollars", None, "Budget of --law, at the price in the table of chips.", 0)
_CHIP_HOURS = flags.DEFINE_float("chip_hours", None, "Budget of --law, in hours of one chip.", 0)
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
    overrides = cli.parse_overrides(flags.FLAGS.set) | ({} if _MESH.value is None else {"mesh": _MESH.value})
    _check(overrides)
    run = overlay(cli.config_from_flags(), {} if _MESH.value is None else {"mesh": _MESH.value})
    from deeplearn.preflight import chips, flight as flights, topology as topologies
    from experiments import preflight_report as report

    table = chips.load(Path(_CHIPS.value) if _CHIPS.value else chips.TABLE)
    topology = topologies.parse(_TOPOLOGY.value, _SLICES.value, table)
    hours, law = _budget(topology.chip)
    topologies.emulate(max(topology.chips, 8 if _SCALING.value else 1))
    grid = chips.with_intensity(table.grid, _GRID.value) if _GRID.value is not None else table.grid
    machine = topologies.machine(topology)
    tokens, sections, more = _TOKENS.value or run.budget, [], {}
    with console.status(f"compiling for {topology.chips} x {topology.chip.title}") as status:
        if law is not None:
            flight = _proposed(law, hours, overrides, machine, grid, status.update, sections, more)
        elif _SEARCH.value:
            flight = _searched(run, machine, grid, tokens, status.update, sections, more)
        else:
            flight = flights.preflight(run, machine, grid, tokens, _EFFICIENCY.value)
        if _SCALING.value:
            _scaled(flight, grid, tokens, status.update, sections, more)
    report.show(console, flight)
    for section in sections:
        report.show_section(console, section)
    if _OUT.value:
        folder = Path(_OUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        found = flights.to_json(flight) | more
        (folder / "preflight.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
        command = shlex.join(["python", "-m", "experiments.preflight", *sys.argv[1:]])
        console.print(f"report: {report.publish(folder, flight, grid, command, sections)}", highlight=False)
    return 0


def _check(overrides: dict[str, Any]) -> None:
    """Raise ConfigError for flags that contradict each other."""
    by = "--law" if _LAW.value else "--search" if _SEARCH.value else None
    chosen = {"mesh", "microbatches", "model.remat"} | ({"size", "budget"} if _LAW.value else set())
    for name in sorted(chosen & overrides.keys()):
        if by:
            raise ConfigError(f"{by} chooses the {name}: leave out {'--mesh' if name == 'mesh' else f'--set {name}'}")
    if _LAW.value and _TOKENS.value is not None:
        raise ConfigError("--law chooses the tokens: leave out --tokens")
    for flag in (_DOLLARS, _CHIP_HOURS):
        if flag.value is not None and not _LAW.value:
            raise ConfigError(f"--{flag.name} is the budget of a law: pass --law=law.json; --tokens has a bill made")


def _budget(chip: Any) -> tuple[float, Any]:
    """Chip-hours and the law, or (0, None) without --law."""
    if _LAW.value is None:
        return 0.0, None
    from experiments import proposal

    return proposal.chip_hours(_DOLLARS.value, _CHIP_HOURS.value, chip), proposal.read(Path(_LAW.value))


def _proposed(law: Any, hours: float, overrides: dict, machine: Any, grid: Any, tell: Any, sections: list, more: dict):
    from experiments import proposal, search_report as pages

    module = cli.load_config(flags.FLAGS.config)
    sized = lambda size: cli.get_run(module, overrides if size is None else overrides | {"size": size})  # noqa: E731
    found = proposal.propose(law, hours, sized, machine, grid, _EFFICIENCY.value, tell)
    sections += [pages.proposal_section(found, law.count), pages.search_section(found.search)]
    more |= {"proposal": proposal.to_json(found), **pages.search_json(found.search)}
    return found.search.best.flight._replace(run=found.run, bill=found.bill)


def _searched(run: Any, machine: Any, grid: Any, tokens: float, tell: Any, sections: list, more: dict):
    """The flight of the best, or of the smallest if nothing fits."""
    from deeplearn.preflight import search as searches
    from experiments import search_report as pages

    found = searches.search(run, machine, grid, tokens, _EFFICIENCY.value, tell)
    sections.append(pages.search_section(found))
    more |= pages.search_json(found)
    flight = next((c.flight for c in found.candidates if c is found.best or (not found.best and c.flight)), None)
    if flight is None:
        raise ConfigError(f"no mesh could be compiled: {found.candidates[0].refused}")
    return flight


def _scaled(flight: Any, grid: Any, tokens: float, tell: Any, sections: list, more: dict) -> None:
    from deeplearn.preflight import scaling
    from experiments import search_report as pages

    points = scaling.scaling(flight.run, flight.machine.topology, grid, tokens, _EFFICIENCY.value, (flight,), tell)
    sections.append(pages.scaling_section(points))
    more["scaling"] = scaling.to_json(points)


if __name__ == "__main__":
    cli.run(main)
