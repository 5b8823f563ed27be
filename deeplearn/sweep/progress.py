"""How a sweep shows where it is: a live display on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from deeplearn.sweep import trunks
from deeplearn.sweep.grid import Unit
from deeplearn.sweep.ledger import OVER
from deeplearn.train.branches import step_of


def clock(seconds: float) -> str:
    """`75.2` -> "1:15"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def short(number: float) -> str:
    """`123456` -> "123 k"."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {letter}"
    return f"{number:.3g}"


class Display:
    """Told every event of a sweep's execution; shows units, losses, rates, the share of the FLOPs spent and an ETA.

    The ETA knows that small models waste a CPU: a size that has run counts with its own rate, others with the rate per
    FLOP of the nearest size that has. Of a branch it counts the part alone that its trunk does not train.
    """

    def __init__(
        self,
        units: list[Unit],
        done: set[str],
        workers: int,
        console: Console | None = None,
        rates: dict[int, float] | None = None,
        aim: str = "",
    ):
        """rates: FLOPs/s of one worker by size, where known; kept up to date. aim: what the sweep is after, to show."""
        self.console = console or Console()
        self._units = units
        self.done = set(done)
        self._workers = max(1, workers)
        self._share: dict[str, float] = {u.id: 1.0 for u in units if u.id in done}
        branches = trunks.trunk_of(trunks.group(units))
        self._begins = {u.id: step_of(u.run) / u.run.steps for u in units if u.id in branches}
        self._rates = {} if rates is None else rates
        self._aim = f", {aim}" if aim else ""
        self._now: dict[str, dict[str, Any]] = {}
        self._start = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(None), TextColumn("{task.fields[note]}"), console=console
        )
        self._task = self._bar.add_task("sweep", total=1.0, note="starting")
        self._live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def spent(self) -> float:
        """Share of the sweep's FLOPs that are done."""
        return sum(u.flops * self._share.get(u.id, 0) for u in self._units) / sum(u.flops for u in self._units)

    def eta(self) -> float | None:
        """Seconds until the last unit ends, or None before any rate is known."""
        if not self._rates:
            return None
        return sum(self.seconds(unit) or 0.0 for unit in self._units) / self._workers

    def seconds(self, unit: Unit) -> float | None:
        """What one worker still needs for a unit, or None before any rate is known."""
        if not self._rates:
            return None
        near = min(self._rates, key=lambda size: abs(size - unit.run.size))
        left = 1 - self._share.get(unit.id, self._begins.get(unit.id, 0))
        return left * unit.flops / self._rates[near]

    def tell(self, unit: Unit | None, event: dict[str, Any]) -> None:
        """Take in one event of `local.execute`."""
        kind = event["event"]
        if unit and kind == "progress":
            self._share[unit.id] = event["step"] / event["steps"]
            self._now[unit.id] = event
        if unit and kind == "branch":
            self._share[unit.id] = event["step"] / event["steps"]
        if unit and event.get("tokens_per_s"):
            self._rates[unit.run.size] = event["tokens_per_s"] * unit.flops / unit.run.tokens
        if unit and kind in (*OVER, "failed"):
            self._share[unit.id] = 1.0  # nothing more is spent on it
            self.done.add(unit.id)
        if unit and kind == "done":
            self._line(unit, f"loss {event['loss']:.4f} {event['unit']}, {short(event['tokens_per_s'])} tokens/s")
        elif unit and kind in ("failed", "diverged", "hopeless", "fenced", "stopped", "message"):
            self._line(unit, f"{kind}: {event['message']}")
        elif unit and kind == "branch" and event["step"]:
            self._line(unit, f"starts at step {event['step']} of {event['steps']}: a longer run has trained the rest")
        elif unit and kind == "exit":
            self._line(unit, f"its worker ended with code {event['code']}; going on from the last checkpoint")
        if unit and kind != "progress":
            self._now.pop(unit.id, None)
        if self._live:
            self._live.update(self._picture())

    def _note(self) -> str:
        eta = self.eta()
        left = "" if eta is None else f", about {clock(eta)} left"
        return f"{len(self.done)} of {len(self._units)} runs, {self.spent():.0%} of the FLOPs{left}{self._aim}"

    def _line(self, unit: Unit, text: str) -> None:
        where = f"{unit.run.family} {unit.run.size}, {short(unit.run.tokens)} tokens"
        self.console.print(f"[{self._note()}] {unit.id} {where}: {text}", markup=False, highlight=False, soft_wrap=True)

    def _picture(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("run", "size", "tokens", "step", "loss", "tokens/s"):
            table.add_column(name, justify="right")
        for unit in self._units:
            if event := self._now.get(unit.id):
                table.add_row(
                    unit.id, str(unit.run.size), short(unit.run.tokens), f"{event['step']}/{event['steps']}",
                    f"{event['loss']:.4f}", short(event["tokens_per_s"]),
                )  # fmt: skip
        elapsed = clock(time.monotonic() - self._start)
        self._bar.update(self._task, completed=self.spent(), note=f"{self._note()}, {elapsed} so far")
        return Group(table, self._bar)
