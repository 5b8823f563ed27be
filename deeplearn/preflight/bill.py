"""What a training run costs: time, money, energy and carbon dioxide."""

from typing import NamedTuple

from deeplearn.preflight.chips import Grid
from deeplearn.preflight.topology import Topology


class Bill(NamedTuple):
    """chip_hours: hours times chips. dollars: US. kwh: with the building's share. kg_co2: kilograms.

    What the table of chips has no number for is None, and `missing` says so.
    """

    tokens: float
    steps: float
    hours: float
    chip_hours: float
    dollars: float | None
    kwh: float | None
    kg_co2: float | None
    missing: tuple[str, ...]


def bill(tokens: float, tokens_per_step: float, step_s: float, topology: Topology, grid: Grid) -> Bill:
    """The bill of `tokens` training tokens at `step_s` seconds a step, without stops, evaluation or failures."""
    chip = topology.chip
    steps = -(-tokens // tokens_per_step)
    hours = steps * step_s / 3600
    chip_hours = hours * topology.chips
    dollars = None if chip.dollars is None else chip_hours * chip.dollars
    kwh = None if chip.watts is None else chip_hours * chip.watts * grid.pue / 1000
    missing = tuple(
        f"the table has no {what} of {chip.title}: {lost} not given"
        for value, what, lost in ((dollars, "price", "cost is"), (kwh, "power", "energy and CO2 are"))
        if value is None
    )
    kg_co2 = None if kwh is None else kwh * grid.grams_co2_per_kwh / 1000
    return Bill(tokens, steps, hours, chip_hours, dollars, kwh, kg_co2, missing)
