"""What a search, a scaling and a proposal found: rows for the terminal and the page, and their figures."""

from typing import Any

from matplotlib.figure import Figure

from deeplearn.preflight import search as searches
from deeplearn.preflight.scaling import KINDS, Point
from deeplearn.preflight.search import Candidate, Search
from deeplearn.sweep.progress import short
from deeplearn.sweep.style import INTERVAL, WIDTH, styled
from experiments.preflight_report import Section
from experiments.proposal import COUNTS, Proposal
from experiments.units import bytes_of, seconds_of

Rows = list[list[str]]
SEARCH = (
    "mesh", "remat", "pieces", "estimated", "", "compiled", "", "MFU", "verdict",
)  # fmt: skip
SCALING = ("chips", "slices", "mesh", "remat", "pieces", "batch", "a step", "tokens/s", "efficiency", "MFU", "")
SHOWN = 12
NONE = "\N{EN DASH}"
WORDS = {"strong": "the same batch", "weak": "the same batch a chip"}


def headline(search: Search) -> str:
    """One sentence: the best, or that nothing fits."""
    tried = f"Of {len(search.candidates)} meshes worth trying"
    if search.best is None:
        first = search.candidates[0]
        if first.refused:
            return f"{tried} none was compiled: {first.refused}"
        least = f"{bytes_of(search.bytes(first))} of {bytes_of(search.room)}"
        return f"{tried} none fits: the smallest takes {least} a device."
    settings = " ".join(f"--set {name}={value}" for name, value in search.best.overrides.items())
    off = search.off_of()
    compiled = sum(c.flight is not None for c in search.candidates)
    return (
        f"{tried}, {compiled} of them compiled, the fastest that fits is {settings}. Compiled programs take "
        f"{off.bytes:.2f} times the bytes and {off.step:.2f} times the time of the estimate, which the "
        "ranking takes into account."
    )


def search_rows(search: Search) -> Rows:
    """Rows of the first candidates, best first."""
    return [_candidate(search, c) for c in search.candidates[:SHOWN]]


def scaling_rows(points: list[Point], kind: str) -> Rows:
    """Rows of one kind of scaling."""
    rows = []
    for p in points:
        if p.kind != kind:
            continue
        sizes = "x".join(map(str, p.topology.sizes))
        where = f"{p.topology.slices} x {sizes}" if p.topology.slices > 1 else sizes
        row = [str(p.topology.chips), where, *_settings(p.overrides), f"{p.batch:g}"]
        if p.step is None:
            rows.append([*row, *[NONE] * 4, p.note])
            continue
        how = ", ".join(filter(None, ("compiled" if p.compiled else "estimated", p.note)))
        figures = seconds_of(p.step), f"{p.tokens_per_s:,.0f}", f"{100 * p.efficiency:.0f} %", f"{100 * p.mfu:.1f} %"
        rows.append([*row, *figures, how])
    return rows


def proposal_headline(p: Proposal) -> str:
    """One sentence: what to train, and what it will reach."""
    cost = f" and ${p.bill.dollars:,.2f}" if p.bill.dollars is not None else ""
    band = f" (95 % band {p.loss.lo:.4f} to {p.loss.hi:.4f})" if p.loss.lo == p.loss.lo else ""
    return (
        f"Train size {p.run.size} on {short(p.run.budget)} tokens: {seconds_of(3600 * p.bill.hours)}, "
        f"{p.bill.chip_hours:,.4g} chip-hours{cost}, for a predicted loss of {p.loss.value:.4f} {p.unit}{band}."
    )


def proposal_rows(p: Proposal, count: str) -> Rows:
    """Rows of what and how much."""
    n, d = p.ideal
    mesh, remat, pieces = _settings(p.search.best.overrides)
    without = " without embeddings" if COUNTS[count] != "total" else ""
    return [
        ["budget", f"{p.chip_hours:,.4g} chip-hours"],
        [f"parameters{without}", f"{p.params:,} (the optimum of the law: {short(n)})"],
        ["tokens", f"{p.run.budget:,} (the optimum of the law: {short(d)})"],
        ["tokens per parameter", f"{p.run.budget / p.params:.3g}"],
        ["mesh", mesh],
        ["recomputation, microbatches", f"{remat}, {pieces}"],
        ["predicted loss", f"{p.loss.value:.4f} {p.unit}"],
        ["95 % band of one run", f"{p.loss.lo:.4f} to {p.loss.hi:.4f}" if p.loss.lo == p.loss.lo else "not known"],
    ]


@styled
def search_figure(search: Search) -> Figure:
    """Seconds of a step and bytes of a device of the first candidates, best at the top."""
    shown = search.candidates[:SHOWN]
    figure = Figure((WIDTH, 0.9 + 0.24 * len(shown)))
    times, sizes = figure.subplots(1, 2, sharey=True)
    places = range(len(shown))
    done = [(i, c.flight) for i, c in enumerate(shown) if c.flight is not None]
    offs = [search.off_of(c) for c in shown]
    times_guessed = [1e3 * c.estimate.roofline.step * off.step for c, off in zip(shown, offs, strict=True)]
    bytes_guessed = [c.estimate.bytes * off.bytes / 1e9 for c, off in zip(shown, offs, strict=True)]
    lined = [(i, 1e3 * flight.roofline.step) for i, flight in done if flight.roofline is not None]
    totals = [(i, flight.compiled.memory.total / 1e9) for i, flight in done]
    for ax, guesses, real in zip((times, sizes), (times_guessed, bytes_guessed), (lined, totals), strict=True):
        ax.plot(
            guesses, places, "o", color=INTERVAL, markerfacecolor="white", markersize=5, label="estimated, corrected"
        )
        ax.plot([x for _, x in real], [i for i, _ in real], "D", color="#000000", markersize=5, label="compiled")
        ax.set_xlim(0, 1.08 * max(*guesses, *(x for _, x in real)))
    widest = sizes.get_xlim()[1]
    if search.room / 1e9 < 2 * widest:
        sizes.set_xlim(0, max(widest, 1.05 * search.room / 1e9))
    sizes.axvline(search.room / 1e9, color="#d55e00", label=f"memory, {bytes_of(search.room)}")
    times.set(xlabel="milliseconds of a step", yticks=places)
    times.set_yticklabels([" \N{MIDDLE DOT} ".join(_settings(c.overrides)) for c in shown])
    times.invert_yaxis()
    sizes.set(xlabel="GB on one device")
    figure.legend(*sizes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


@styled
def scaling_figure(points: list[Point]) -> Figure:
    """Tokens per second and efficiency against chips; compiled points are filled."""
    figure = Figure((WIDTH, 3.2))
    left, right = figure.subplots(1, 2)
    for kind, colour in zip(KINDS, (INTERVAL, "#d55e00"), strict=True):
        there = [p for p in points if p.kind == kind and p.step is not None]
        if not there:
            continue
        x = [p.topology.chips for p in there]
        for ax, y in ((left, [p.tokens_per_s for p in there]), (right, [100 * p.efficiency for p in there])):
            ax.plot(x, y, "-", color=colour, linewidth=1.0, label=f"{kind}: {WORDS[kind]}" if ax is left else None)
            for p, a, b in zip(there, x, y, strict=True):
                face = colour if p.compiled else "white"
                ax.plot([a], [b], "o" if not p.note else "X", color=colour, markerfacecolor=face, markersize=5)
        if kind == "weak":
            left.plot(x, [there[0].tokens_per_s * n / x[0] for n in x], ":", color="#808080", label="linear")
    ticks = sorted({p.topology.chips for p in points})
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xlabel("chips")
    left.set_yscale("log")
    left.set_ylabel("tokens a second")
    right.set_ylabel("efficiency, %")
    right.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def search_section(search: Search) -> Section:
    """The search as a part of the page."""
    table = ("", SEARCH, search_rows(search))
    return Section(
        "The search", headline(search), (table,), (), (("search", search_figure(search), CAPTIONS["search"]),)
    )


def search_json(search: Search) -> dict[str, Any]:
    """The search as a part of preflight.json."""
    off = search.off_of()._asdict()
    return {"search": searches.to_json(search), "compiled_over_estimated": off, "meshes": len(search.candidates)}


def scaling_section(points: list[Point]) -> Section:
    """Both kinds of scaling as a part of the page."""
    tables = tuple((f"{kind.capitalize()}: {WORDS[kind]}", SCALING, scaling_rows(points, kind)) for kind in KINDS)
    sentence = (
        "Seconds of a step and tokens a second on slices of the same chip, with meshes of the same axes. Latency is "
        "not modelled: steps of well under a millisecond take longer than this."
    )
    return Section("Scaling", sentence, tables, (), (("scaling", scaling_figure(points), CAPTIONS["scaling"]),))


def proposal_section(p: Proposal, count: str) -> Section:
    """A proposal as a part of the page."""
    return Section("What the law proposes", proposal_headline(p), (("", None, proposal_rows(p, count)),), p.notes)


CAPTIONS = {
    "search": (
        "Mesh, recomputation and microbatches, best at the top. Circles: by theory, corrected by what is compiled. "
        "Diamonds: compiled. What lies right of the line does not fit."
    ),
    "scaling": (
        "Filled points are compiled, open ones estimated and corrected by them; a cross does not fit. Strong scaling "
        "keeps the batch, weak scaling the batch of a chip. Efficiency: tokens a second and chip, against the fewest "
        "chips."
    ),
}


def _candidate(search: Search, c: Candidate) -> list[str]:
    estimated, line = c.estimate.roofline, c.flight and c.flight.roofline
    mfu = line.mfu if line else estimated.mfu / search.off_of(c).step
    return [
        *_settings(c.overrides), bytes_of(c.estimate.bytes), seconds_of(estimated.step),
        bytes_of(c.flight.compiled.memory.total) if c.flight else NONE, seconds_of(line.step) if line else NONE,
        f"{100 * mfu:.1f} %" if line or not c.flight else NONE, search.verdict(c),
    ]  # fmt: skip


def _settings(overrides: dict[str, str]) -> list[str]:
    """Mesh, recomputation and microbatches."""
    return [overrides.get(name) or NONE for name in ("mesh", "model.remat", "microbatches")]
