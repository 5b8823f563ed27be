"""An active sweep: what to train next is chosen from what was learnt, until one prediction is sure enough.

A round fits the law to all runs so far, reads how wide its 95 % interval is at the compute-optimal point of the target,
and lets `laws.next_runs` choose among the candidates. The interval is that of the law itself (`Fit.interval`): what one
run there would add by its noise is not among the things that more runs make less.

Rounds are written to root/rounds.json before their runs are trained, so that a command that goes on makes them, and
decides nothing twice.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplearn import laws
from deeplearn.config import ConfigError
from deeplearn.sweep import ledger
from deeplearn.sweep.grid import Unit
from deeplearn.sweep.progress import short

MOST = 4  # runs of a round: few, as each fit makes the next choice better
GROWTH = 2.0  # times the FLOPs so far that a round may take: an early fit should not bet all on one dear run

Round = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Aim:
    """flops: C = 6 N D, N as the law counts it, of the compute-optimal run whose loss is asked for. width: the relative
    width of its 95 % interval that suffices."""

    flops: float
    width: float


def check(aim: Aim, candidates: Sequence[Unit]) -> None:
    """Raise ConfigError for an aim that no sweep can have."""
    if not (0 < aim.flops < math.inf and 0 < aim.width < math.inf):
        raise ConfigError("an active sweep takes both target_flops and target_width, positive numbers")
    if not candidates:
        raise ConfigError("an active sweep chooses among Sweep.candidates, of which this config's get_sweep() has none")


def read(root: Path) -> list[Round]:
    """The rounds that were decided in this root."""
    return (ledger.read_json(root / "rounds.json") or {}).get("rounds", [])


def write(root: Path, rounds: list[Round]) -> None:
    """Keep them."""
    ledger.write_json(root / "rounds.json", {"rounds": rounds})


def chosen(rounds: list[Round], candidates: Sequence[Unit]) -> list[Unit]:
    """The candidates that earlier rounds chose, in their order."""
    known = {u.id: u for u in candidates}
    return [known[id] for told in rounds for id in told["chosen"] if id in known]


def decide(fit: laws.Fit, flops: float, aim: Aim, left: Sequence[Unit], count: str, room: float) -> Round:
    """What the runs say of the target, and what is to be trained next: nothing, if "chosen" is empty.

    Args:
      fit: of all runs so far.
      flops: what they took.
      aim: what is asked for.
      left: the candidates that were not chosen yet.
      count: the column that is N.
      room: FLOPs that the budget has left for the next round.
    """
    told = {"runs": fit.n_runs, "flops": flops, "target_flops": aim.flops, "target_width": aim.width}
    told |= _interval(fit, aim.flops)
    stop = {**told, "chosen": [], "cost": 0.0, "expected_width": told["width"]}
    if told["width"] is not None and told["width"] <= aim.width:
        return {**stop, "why": "the interval is as narrow as asked"}
    if not left:
        return {**stop, "why": "no candidate is left"}
    if room <= 0:
        return {**stop, "why": "the limits leave no room for more"}
    cost = np.array([u.flops for u in left])
    if cost.min() > room:
        return {**stop, "why": f"the cheapest candidate left takes {cost.min():.3g} FLOPs, more than the budget has"}
    columns = {
        "params": np.array([getattr(u, count) for u in left], np.float64),
        "tokens": np.array([u.run.tokens for u in left], np.float64),
        "flops": cost,
    }
    most = min(room, max(GROWTH * flops, cost.min()))
    design = laws.next_runs(fit, columns, laws.LossAt(flops=aim.flops), most, MOST)
    if not len(design.rows):
        return {**stop, "why": "no candidate that the round may take would narrow it"}
    expected = None if told["width"] is None else told["width"] * design.after / design.before
    ids = [left[row].id for row in design.rows]
    why = f"of {len(left)} candidates they narrow it most for their FLOPs"
    return {**told, "chosen": ids, "cost": design.flops, "expected_width": expected, "why": why}


def _interval(fit: laws.Fit, flops: float) -> dict[str, float | None]:
    """The loss at the optimum for these FLOPs; nothing where the law has none, for the lack of one of its terms."""
    params = float(fit.optimal(flops).params.value)
    if not (1 <= params <= flops / 6):
        return {"predicted": None, "lo": None, "hi": None, "width": None}
    value, lo, hi = (float(end) for end in dataclasses.astuple(fit.interval(params, flops / (6 * params))))
    if not math.isfinite(hi):
        return {"predicted": value, "lo": None, "hi": None, "width": None}
    return {"predicted": value, "lo": lo, "hi": hi, "width": (hi - lo) / value}


def percent(width: float | None) -> str:
    """`0.0213` -> "2.13 %"."""
    return "unknown" if width is None else f"{100 * width:.3g} %"


def note(rounds: list[Round], aim: Aim | None) -> str:
    """What a display shows of the aim: how the interval has been shrinking."""
    widths = [percent(told["width"]) for told in rounds]
    return f"interval {' → '.join([*widths[-3:], ''])}asked {percent(aim.width)}" if aim else ""


def sentences(rounds: list[Round], units: Sequence[Unit], unit: str) -> list[str]:
    """The last of the rounds in words: what is known, then what is done about it. unit: of the loss."""
    told = rounds[-1]
    at = (
        f"round {len(rounds)}: {told['runs']} runs, {told['flops']:.3g} FLOPs: at {told['target_flops']:.3g} FLOPs the "
    )
    if told["width"] is None:
        known = f"{at}loss is not known yet, its 95 % interval is open (asked: {percent(told['target_width'])})"
    else:
        span = f"95 % interval {told['lo']:.4f} to {told['hi']:.4f}, width {percent(told['width'])}"
        known = f"{at}loss is {told['predicted']:.4f} {unit}, {span} (asked: {percent(told['target_width'])})"
    if not told["chosen"]:
        return [known, f"round {len(rounds)}: nothing more is trained for it: {told['why']}"]
    by_id = {u.id: u for u in units}
    runs = ", ".join(f"{id} ({_described(by_id[id])})" for id in told["chosen"])
    expected = f"expected width {percent(told['expected_width'])}"
    return [known, f"round {len(rounds)}: next, for {told['cost']:.3g} FLOPs, {runs}: {told['why']}; {expected}"]


def _described(unit: Unit) -> str:
    return f"size {unit.run.size}, {short(unit.run.tokens)} tokens"
