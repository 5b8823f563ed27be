"""What a preflight found: tables on the terminal, and one page that opens without a network, with figures."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from rich import box, markup
from rich.console import Console
from rich.table import Table as Grid

from deeplearn.preflight import chips
from deeplearn.preflight.flight import Flight
from deeplearn.sweep import figures as files, page
from deeplearn.sweep.style import WIDTH, styled
from experiments.units import bytes_of, seconds_of

Rows = list[list[str]]

PAGE = Template("""<h1>$title</h1>
<p>$headline</p>
$facts
$notes
<h2>Memory of one chip</h2>
$memory
$memory_figure
<h2>One step</h2>
$step
$step_figure
<h2>Collectives of one step</h2>
<p class="soft">Read from the compiled program, with the turns of its loops. Bytes are of whole arrays; what one device
sends of them follows from ring algorithms.</p>
$collectives
<h2>The bill</h2>
$bill
$more
<h2>Make it again</h2>
<pre>$command</pre>
<h2>Sources</h2>
$sources
""")


def headline(flight: Flight) -> str:
    """One sentence: whether it fits, and what bounds it, or what would make it fit."""
    total, room = flight.compiled.memory.total, flight.room
    where = f"{flight.machine.topology.chips} x {flight.machine.topology.chip.title}"
    if not flight.fits:
        by = f"It does not fit {where}: {bytes_of(total)} of {bytes_of(room)} a device."
        if flight.fix is None:
            return f"{by} No change of mesh, microbatches or recomputation was found that fits."
        setting = " ".join(f"--set {name}={value}" for name, value in flight.fix.overrides.items())
        return f"{by} Nearest that fits: {setting}, with {bytes_of(flight.fix.bytes)}."
    line = flight.roofline
    return (
        f"It fits {where}: {bytes_of(total)} of {bytes_of(room)} a device. A step takes {seconds_of(line.step)}, "
        f"bound by {line.bound}, at {100 * line.mfu:.1f} % of the peak FLOP/s."
    )


def memory(flight: Flight) -> Rows:
    """Rows of what, bytes and share."""
    parts = flight.compiled.memory._asdict() | {"in all": flight.compiled.memory.total}
    return [[name, bytes_of(value), f"{100 * value / flight.room:.1f} %"] for name, value in parts.items()]


def step(flight: Flight) -> Rows:
    """Rows of what, how much, and the seconds at the rates of the table; empty if the program was refused."""
    line = flight.roofline
    if line is None:
        return []
    rows = [
        ["arithmetic", f"{flight.flops.done:.4g} FLOPs on all chips", seconds_of(line.compute)],
        ["main memory", f"{bytes_of(flight.moved)} a device", seconds_of(line.memory)],
    ]
    for link in line.links:
        over = f"{' x '.join(link.axes) or 'no mesh axis'}: {bytes_of(link.sent)} sent a device over {link.over}"
        waits = f", of which {seconds_of(link.waits)} beside nothing" if link.waits else ""
        rows.append(["links", over, "not known" if link.bandwidth is None else seconds_of(link.seconds) + waits])
    rows.append(["a step", f"bound by {line.bound}", seconds_of(line.step)])
    rows.append(["if all overlapped", "", seconds_of(line.best)])
    rows.append(["utilisation", f"{flight.flops.model:.4g} FLOPs of the model", f"{100 * line.mfu:.1f} %"])
    return rows


def collectives(flight: Flight) -> Rows:
    """Rows of kind, axes, count, bytes and bytes sent."""
    return [
        [kind, " x ".join(axes) or "none", f"{total['count']:,.0f}", bytes_of(total["bytes"]), bytes_of(total["sent"])]
        for (kind, axes), total in flight.collectives.items()
    ]


def bill(flight: Flight) -> Rows:
    """Rows of what and how much; empty if the program was refused."""
    b = flight.bill
    if b is None:
        return []
    rows = [["tokens", f"{b.tokens:,.0f}"], ["steps", f"{b.steps:,.0f}"], ["time", seconds_of(3600 * b.hours)]]
    rows.append(["chip-hours", f"{b.chip_hours:,.4g}"])
    rows += [["cost", f"${b.dollars:,.2f}"]] if b.dollars is not None else []
    rows += [["energy", f"{b.kwh:,.4g} kWh"], ["CO2", f"{b.kg_co2:,.4g} kg"]] if b.kwh is not None else []
    return rows


COLLECTIVES = ("kind", "mesh axes", "count", "bytes", "sent a device")


def show(console: Console, flight: Flight) -> None:
    """Print everything as tables."""
    console.print(markup.escape(headline(flight)), highlight=False)
    _print(console, "Memory of one device", None, memory(flight))
    _print(console, "One step", None, step(flight))
    _print(console, "Collectives of one step", COLLECTIVES, collectives(flight))
    _print(console, "The bill", None, bill(flight))
    for note in flight.notes:
        console.print(f"[yellow]note:[/yellow] {markup.escape(note)}", highlight=False)


class Section(NamedTuple):
    """A part of the page, and of what is printed: a sentence, tables of (title, columns, rows), and figures by name."""

    title: str
    sentence: str
    tables: tuple[tuple[str, tuple[str, ...] | None, Rows], ...]
    notes: tuple[str, ...] = ()
    figures: tuple[tuple[str, Figure, str], ...] = ()  # name, figure, caption


def show_section(console: Console, section: Section) -> None:
    """Print a section."""
    console.print(f"\n[bold]{markup.escape(section.title)}[/bold]\n{markup.escape(section.sentence)}", highlight=False)
    for title, names, rows in section.tables:
        _print(console, title, names, rows)
    for note in section.notes:
        console.print(f"[yellow]note:[/yellow] {markup.escape(note)}", highlight=False)


def publish(folder: Path, flight: Flight, grid: chips.Grid, command: str, sections: Sequence[Section] = ()) -> Path:
    """Write folder/preflight.html and folder/figures/*.png; returns where the page lies. sections: what comes last."""
    drawn = {"memory": memory_figure(flight)} | ({"step": step_figure(flight)} if flight.roofline else {})
    drawn |= {name: figure for section in sections for name, figure, _ in section.figures}
    images = files.save(drawn, folder / "figures")
    captions = {
        "memory": "Bytes of one device by kind, against what it has.",
        "step": "Seconds of one step at the chip's peak rates; the longest bar bounds it.",
    }
    captions |= {name: caption for section in sections for name, _, caption in section.figures}
    shown = {name: page.figure(name, image, captions[name]) for name, image in images.items()}
    topology = flight.machine.topology
    facts = [(f"{flight.parameters.total:,}", "parameters"), (f"{topology.chips}", topology.chip.title)]
    if flight.roofline is not None:
        facts += [(seconds_of(flight.roofline.step), "a step"), (f"{100 * flight.roofline.mfu:.1f} %", "utilisation")]
    sources = topology.chip.sources | grid.sources
    body = PAGE.substitute(
        title=escape(f"{flight.run.family} {flight.run.size} on {topology.chips} x {topology.chip.title}"),
        headline=escape(headline(flight)),
        facts=page.facts(facts),
        notes=page.items(flight.notes, "warnings"),
        memory=page.table(("", "bytes", "of the memory"), memory(flight)),
        memory_figure=shown["memory"],
        step=page.table(("", "", "seconds"), step(flight)),
        step_figure=shown.get("step", ""),
        collectives=page.table(COLLECTIVES, collectives(flight)),
        bill=page.table(("", ""), bill(flight)),
        more="\n".join(_html(section, shown) for section in sections),
        command=escape(command),
        sources=page.table(("number", "from", "on"), [[name, s.url, s.date] for name, s in sources.items()]),
    )
    path = folder / "preflight.html"
    page.write(path, f"Preflight of {flight.run.family} {flight.run.size}", body)
    return path


@styled
def memory_figure(flight: Flight) -> Figure:
    """One bar, in pieces by kind, and the memory of a device as a line."""
    figure = Figure((WIDTH, 1.8))
    ax = figure.subplots()
    left = 0.0
    parts = flight.compiled.memory._asdict()
    colours = matplotlib.colormaps["viridis"]([i / len(parts) for i in range(len(parts))])
    for (name, value), colour in zip(parts.items(), colours, strict=True):
        ax.barh([0], [value / 1e9], left=[left], color=colour, label=f"{name}, {bytes_of(value)}")
        left += value / 1e9
    ax.axvline(flight.room / 1e9, color="#d55e00", label=f"memory, {bytes_of(flight.room)}")
    ax.set(xlabel="GB on one device", yticks=[], xlim=(0, 1.05 * max(left, flight.room / 1e9)))
    figure.legend(loc="outside upper center", ncols=4, fontsize=7.5)
    return figure


@styled
def step_figure(flight: Flight) -> Figure:
    """A bar for arithmetic, main memory, and the links of each set of mesh axes."""
    line = flight.roofline
    bars = {"arithmetic": line.compute, "main memory": line.memory}
    bars |= {f"links: {' x '.join(link.axes) or 'other'}": link.seconds for link in line.links}
    figure = Figure((WIDTH, 0.9 + 0.32 * len(bars)))
    ax = figure.subplots()
    ax.barh(list(bars)[::-1], [1e3 * seconds for seconds in bars.values()][::-1], color="#0072b2", height=0.6)
    ax.axvline(1e3 * line.step, color="#000000", linewidth=1.0, label=f"a step, {seconds_of(line.step)}")
    ax.set(xlabel="milliseconds of one step")
    figure.legend(loc="outside upper right")
    return figure


def _html(section: Section, shown: dict[str, str]) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.sentence)}</p>"]
    parts += [page.items(section.notes, "warnings")] if section.notes else []
    parts += [f"<p>{escape(title)}</p>{page.table(names or ('', ''), rows)}" for title, names, rows in section.tables]
    return "\n".join([*parts, *(shown[name] for name, _, _ in section.figures)])


def _print(console: Console, title: str, names: tuple[str, ...] | None, rows: Rows) -> None:
    if not rows:
        return
    grid = Grid(title=title, title_justify="left", box=box.SIMPLE, show_header=names is not None)
    for i, name in enumerate(names or ("",) * len(rows[0])):
        grid.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)
