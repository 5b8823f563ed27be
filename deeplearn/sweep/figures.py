"""The five figures of a sweep, from its rows, curves and law alone. Their titles say what the data say.

Colour is size, vermilion is held out, black is the law. N is the column that the law counts; compute is counted FLOPs
where runs are shown by what they took, and C = 6 N D where the law chooses N and D.
"""

from pathlib import Path

import numpy as np
from matplotlib import ticker
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from deeplearn import laws
from deeplearn.sweep import findings, style
from deeplearn.sweep.active import percent as percent_of
from deeplearn.sweep.findings import Law, done, numbers, optimal, percent
from deeplearn.sweep.progress import short
from deeplearn.sweep.style import styled
from deeplearn.sweep.table import Row

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # id -> (tokens [n], training loss [n])


def draw_all(rows: list[Row], curves: Curves, fit: laws.Fit, law: Law) -> dict[str, Figure]:
    """Every figure by its name. rows as `table.rows` gives them."""
    return {
        "loss_against_compute": loss_against_compute(rows, fit, law),
        "predicted_against_measured": predicted_against_measured(rows, fit, law),
        "fitted_surface": fitted_surface(rows, fit, law),
        "optimal_allocation": optimal_allocation(rows, fit, law),
        "learning_curves": learning_curves(rows, curves, law),
        **({"interval_by_round": interval_by_round(law)} if law.get("rounds") else {}),
    }


@styled
def save(figures: dict[str, Figure], folder: Path) -> dict[str, Path]:
    """Write each figure as folder/<name>.png; returns where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(paths[name])
    return paths


@styled
def learning_curves(rows: list[Row], curves: Curves, law: Law) -> Figure:
    """Smoothed training loss against tokens, and the held-out loss that each run ended with."""
    figure = Figure((style.WIDTH, 4.4))
    ax = figure.subplots()
    ended = done(rows)
    colours = style.colours(r[law["count"]] for r in rows)
    for row in sorted(ended, key=lambda r: r["flops"]):
        colour = colours[row[law["count"]]]
        if row["id"] in curves:
            ax.plot(*findings.smooth(*curves[row["id"]]), color=colour, linewidth=1.0, alpha=0.8)
        ax.plot(row["tokens"], row["loss"], zorder=3, **style.dot(row, colour))
    tokens, loss = (np.array([r[name] for r in ended]) for name in ("tokens", "loss"))
    style.log_axis(ax.xaxis, tokens.min() / 20, tokens.max() * 1.3)
    spread = np.ptp(loss)
    ax.set_ylim(loss.min() - 0.06 * spread, loss.max() + 0.6 * spread)  # the first steps would take all the room
    ax.set(xlabel="D, training tokens so far", ylabel=f"Loss ({ended[0]['unit']})")
    for split, label in (("fit", "held-out loss at the end"), ("held_out", "the same, of a held-out run")):
        ax.plot([], [], label=label, **style.dot({"split": split}, "#888888"))
    style.legend(ax, "lower left")
    style.key(ax, colours, law["count"])
    best, worst = min(ended, key=lambda r: r["loss"]), max(ended, key=lambda r: r["loss"])
    ends = (f"{r['loss']:.3f} (N = {short(r[law['count']])}, D = {short(r['tokens'])})" for r in (worst, best))
    style.title(figure, f"{len(ended)} runs end between {' and '.join(ends)}")
    return figure


@styled
def loss_against_compute(rows: list[Row], fit: laws.Fit, law: Law) -> Figure:
    """Final held-out loss against counted FLOPs, the measured envelope, the law's optimal frontier and its band."""
    figure = Figure((style.WIDTH, 4.6))
    ax = figure.subplots()
    fitted = done(rows, "fit")
    colours = style.colours(r[law["count"]] for r in rows)
    _, _, c = numbers(rows, law)
    best = optimal(fit, c.min(), 3 * c.max())
    x = findings.counted(done(rows), law, best.params.value, best.tokens.value)
    ax.fill_between(x, best.loss.lo, best.loss.hi, color=style.LAW, alpha=0.1, linewidth=0)
    ax.plot(x, best.loss.value, color=style.LAW, linewidth=1.3, label="law at its optimal N and D, 95 % band")
    for n, colour in colours.items():
        line = np.array(sorted((r["flops"], r["loss"]) for r in fitted if r[law["count"]] == n)).reshape(-1, 2).T
        ax.plot(*line, color=colour, linewidth=1.0)
        ax.plot(*line, zorder=3, **style.dot(fitted[0], colour))
    envelope = findings.envelope(fitted)
    ax.plot(*zip(*envelope, strict=True), color="#777777", linestyle="--", linewidth=1.2, label="measured envelope")
    size = {r["id"]: r[law["count"]] for r in rows}
    for p in law["held_out"]:
        style.held_out_point(ax, p["flops"], p, colours[size[p["id"]]])

    flops = [r["flops"] for r in rows]
    style.log_axis(ax.xaxis, min(flops) / 1.4, max(flops) * 1.7, powers=True)
    shown = [r["loss"] for r in fitted] + [p[k] for p in law["held_out"] for k in ("lo", "hi", "measured") if p[k]]
    margin = 0.06 * np.ptp(shown)
    ax.set_ylim(min(shown) - margin, max(shown) + margin)
    ax.set(xlabel="Training compute, counted (FLOPs)", ylabel=f"Final held-out loss ({fit.unit})")
    style.legend(ax, "upper right")
    style.key(ax, colours, law["count"])
    style.title(figure, findings.headline(rows, law))
    return figure


@styled
def fitted_surface(rows: list[Row], fit: laws.Fit, law: Law) -> Figure:
    """The law as isoFLOP curves, and as contours of equal loss over N and D with the optimal path."""
    figure = Figure((style.WIDTH, 4.0))
    left, right = figure.subplots(1, 2)
    ended = done(rows)
    n, d, c = numbers(ended, law)
    loss = np.array([r["loss"] for r in ended])
    n_limits, d_limits = (n.min() / 2, n.max() * 2), (d.min() / 2, d.max() * 2)
    n_axis, d_axis = np.geomspace(*n_limits, 100), np.geomspace(*d_limits, 100)
    for axis, limits in ((left.xaxis, n_limits), (right.xaxis, n_limits), (right.yaxis, d_limits)):
        style.log_axis(axis, *limits)  # before anything is drawn: contour labels find their places by it
    compute = ScalarMappable(LogNorm(c.min(), c.max() * 4), "cividis")  # its last part, too pale on white, stays unused
    for budget in np.geomspace(c.min() * 2, c.max(), 5):
        tokens = budget / (6 * n_axis)
        left.plot(n_axis, fit.curve(n_axis, tokens), color=compute.to_rgba(budget), linewidth=1.2)
        right.plot(n_axis, tokens, color=compute.to_rgba(budget), linewidth=1.2)
    for split, marker, edge in (("fit", "o", "white"), ("held_out", "D", style.HELD_OUT)):
        of = np.array([r["split"] == split for r in ended])
        look = {"c": compute.to_rgba(c[of]), "marker": marker, "edgecolors": edge, "s": 28, "zorder": 3}
        left.scatter(n[of], loss[of], **look)
        right.scatter(n[of], d[of], **look)
    best = optimal(fit, c.min() / 100, c.max() * 100)
    left.plot(best.params.value, best.loss.value, color=style.LAW, linewidth=1.3)
    right.fill_betweenx(best.tokens.value, *_drawn(best.params), color=style.LAW, alpha=0.1, linewidth=0)
    right.plot(best.params.value, best.tokens.value, color=style.LAW, linewidth=1.3)
    surface = fit.curve(n_axis[None, :], d_axis[:, None])
    levels = ticker.MaxNLocator(7).tick_values(surface.min(), loss.max())
    lines = right.contour(n_axis, d_axis, surface, levels, colors="#555555", linewidths=0.7, linestyles="dashed")
    right.clabel(lines, fontsize=7.5, fmt="%g")

    bottom = 1.1 * loss.min() - 0.1 * loss.max()
    left.set_ylim(bottom, loss.max() + 0.1 * (loss.max() - bottom))
    left.set(xlabel=f"N, {style.COUNTS[law['count']]}", ylabel=f"Final held-out loss ({fit.unit})")
    left.set_title("Law at equal compute, optimum (black)", loc="left")
    right.set(xlabel=f"N, {style.COUNTS[law['count']]}", ylabel="D, training tokens")
    right.set_title("Law at equal loss (dashed), optimum", loc="left")
    bar = figure.colorbar(compute, ax=[left, right], location="bottom", aspect=50, shrink=0.6, pad=0.03)
    bar.set_label("Training compute, C = 6 N D (FLOPs)")
    formula = findings.equation(fit, r"\,{}^{{{}}}")
    style.title(figure, f"The fitted law: ${formula}$")
    return figure


@styled
def predicted_against_measured(rows: list[Row], fit: laws.Fit, law: Law) -> Figure:
    """Measured against predicted loss with each run's 95 % band, and below it what is left over in per cent."""
    figure = Figure((style.WIDTH, 5.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.7, 1))
    fitted = done(rows, "fit")
    colours = style.colours(r[law["count"]] for r in rows)
    size = {r["id"]: r[law["count"]] for r in rows}
    n, d, _ = numbers(fitted, law)
    band = fit.predict(n, d)
    loss = np.array([r["loss"] for r in fitted])
    ends = [min([*band.value, *(p["predicted"] for p in law["held_out"])]), band.value.max()]
    upper.plot(ends, ends, color=style.LAW, linewidth=0.8, label="measured = predicted", zorder=1)
    lower.axhline(0, color=style.LAW, linewidth=0.8, zorder=1)
    for ax, of in ((upper, lambda x, _: x), (lower, percent)):
        fills = [colours[x] for x in n]
        spans = of(band.lo, band.value), of(band.hi, band.value)
        ax.vlines(band.value, *spans, colors=fills, alpha=0.35, linewidth=3.5, zorder=2)
        ax.scatter(band.value, of(loss, band.value), s=30, c=fills, edgecolors="white", linewidths=0.6, zorder=3)
        for p in law["held_out"]:
            drawn = {key: of(p[key], p["predicted"]) for key in ("predicted", "lo", "hi", "measured")}
            style.held_out_point(ax, p["predicted"], drawn, colours[size[p["id"]]])
    upper.set_ylabel(f"Measured loss ({fit.unit})")
    lower.set(xlabel=f"Predicted loss ({fit.unit})", ylabel="Residual\n(% of predicted)")
    style.legend(upper, "upper left")
    style.key(upper, colours, law["count"])
    off = np.median(np.abs(percent(loss, band.value)))
    held_out = [findings.signed(percent(p["measured"], p["predicted"])) for p in law["held_out"] if p["measured"]]
    tail = f"; held out: {' and '.join(held_out)}" if held_out else ""
    style.title(figure, f"Half of the {len(fitted)} fitted runs are within {off:.2f} % of the law{tail}")
    return figure


@styled
def optimal_allocation(rows: list[Row], fit: laws.Fit, law: Law) -> Figure:
    """Compute-optimal N, D and tokens per parameter against compute, with 95 % intervals."""
    figure = Figure((style.WIDTH, 3.3))
    _, _, c = numbers([r for r in rows if r["split"] == "fit"], law)
    best = optimal(fit, c.min(), c.max() * 1e3)
    if not best.flops.size:
        style.title(figure, "These runs do not show both terms of the law, so it has no optimal N and D")
        return figure
    n, d = best.params, best.tokens
    panels = (
        (f"N, {style.COUNTS[law['count']]}", n),
        ("D, training tokens", d),
        ("D / N, tokens per parameter", laws.Interval(d.value / n.value, d.lo / n.hi, d.hi / n.lo)),
    )
    axes = figure.subplots(1, 3)
    for ax, (label, interval) in zip(axes, panels, strict=True):
        lo, hi = _drawn(interval)
        ax.axvspan(c.min(), c.max(), color="#f0f0f0", linewidth=0, zorder=0)
        ax.fill_between(best.flops, lo, hi, color=style.INTERVAL, alpha=0.2, linewidth=0)
        ax.plot(best.flops, interval.value, color=style.INTERVAL, linewidth=1.5)
        ax.set_title(label, loc="left")
        style.log_axis(ax.xaxis, c.min(), c.max() * 1e3, powers=True)
        style.log_axis(ax.yaxis, lo.min() / 1.2, hi.max() * 1.2)
    axes[0].text(c.min() * 1.3, 0.97, "fitted runs", transform=axes[0].get_xaxis_transform(), va="top", color="#555555")
    figure.supxlabel("Training compute, C = 6 N D (FLOPs)", fontsize=9)
    growth = np.log(n.value[-1] / n.value[0]) / np.log(best.flops[-1] / best.flops[0])
    powers = f"N grows as $C^{{{growth:.2f}}}$, optimal D as $C^{{{1 - growth:.2f}}}$"
    style.title(figure, f"Optimal {powers} (shaded: 95 % interval)")
    return figure


@styled
def interval_by_round(law: Law) -> Figure:
    """Width of the interval of an active sweep's last target against the FLOPs that had been spent."""
    figure = Figure((style.WIDTH, 3.3))
    ax = figure.subplots()
    target = law["rounds"][-1]["target_flops"]
    rounds = [r for r in law["rounds"] if r["target_flops"] == target and r["width"] is not None]
    flops, width = (np.array([r[name] for r in rounds], np.float64) for name in ("flops", "width"))
    ax.plot(flops, 100 * width, color=style.INTERVAL, marker="o", markersize=5, linewidth=1.3, label="after each round")
    hoped = [(r["flops"] + r["cost"], 100 * r["expected_width"]) for r in rounds if r["chosen"]]
    ax.plot(*np.array(hoped).reshape(-1, 2).T, "o", color=style.INTERVAL, fillstyle="none", label="expected before it")
    asked = 100 * law["rounds"][-1]["target_width"]
    ax.axhline(asked, color=style.HELD_OUT, linewidth=1.0, linestyle="--", label="asked for")
    drawn, spent = [asked, *(100 * width), *(y for _, y in hoped)], [*flops, *(x for x, _ in hoped)]
    if rounds:
        style.log_axis(ax.xaxis, min(spent) / 1.2, max(spent) * 1.2, powers=True)
    style.log_axis(ax.yaxis, min(drawn) / 1.2, max(drawn) * 1.2)
    ax.set(xlabel="Training compute of the fitted runs, counted (FLOPs)", ylabel="Width of the interval (%)")
    style.legend(ax, "upper right")
    ends = f"from {percent_of(width[0])} to {percent_of(width[-1])} wide" if rounds else "not known yet"
    style.title(figure, f"95 % interval of the loss at {target:.3g} FLOPs: {ends}, {asked:.3g} % asked")
    return figure


def _drawn(x: laws.Interval) -> tuple[np.ndarray, np.ndarray]:
    """The ends of an interval, no further than a factor of 1000 off: an open one would take the whole axis."""
    return np.maximum(x.lo, x.value / 1e3), np.minimum(x.hi, x.value * 1e3)
