"""The figures of `python -m experiments.fit`: what a law leaves over, what it does not know, how it extrapolates.

Black is the law, blue its intervals, vermilion what was not fitted.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deeplearn import laws
from deeplearn.sweep import style
from deeplearn.sweep.style import HELD_OUT, INTERVAL, LAW, styled

CHOICES = {"drop": "left out", "loss": "loss", "size": "parameters", "compute": "FLOPs"}
POINTS = 5000  # that a figure draws at most
POINT = {"linestyle": "none", "marker": "o", "markersize": 4, "markeredgewidth": 0, "alpha": 0.6}
CAPTIONS = {
    "residuals": (
        "How far each measured loss lies from the law, against each of the columns it reads and against compute. A "
        "right law leaves noise: points that lie on one side over a stretch are what the law misses."
    ),
    "bootstrap": (
        "The fit repeated on resampled tables of runs: each blue point is one of them, the black cross is the fit. "
        "Long thin clouds are parameters that trade off against each other."
    ),
    "profiles": (
        "How much worse the best fit gets when one parameter is held. Below the dashed line a value is compatible with "
        "the runs; a curve that stays below it to the edge is a parameter that these runs do not identify."
    ),
    "specification": (
        "One quantity under every defensible choice of the analysis, from the lowest to the highest. Where the choices "
        "spread wider than the intervals, the interval of any one of them says too little."
    ),
    "rolling": (
        "Fits to the cheaper runs, each against the dearer ones that it did not see: the error of the prediction, and "
        "the 95 % band it claimed."
    ),
    "frontier": "The runs, and the loss the law expects of each amount of compute when N and D are chosen best.",
    "curve": "The runs, and the law with its 95 % band for one new run.",
}


def draw_all(
    fit: laws.Fit,
    held_out: laws.Table,
    profiles: Mapping[str, laws.Profile],
    choices: Sequence[laws.Specification],
    rolling: Sequence[laws.HoldOut],
) -> dict[str, Figure]:
    """Every figure that this fit has, by its name."""
    figures = {"residuals": residuals(fit)}
    if fit.problem.form.allocation is not None:
        figures["frontier"] = frontier(fit, held_out)
    elif len(fit.problem.form.columns) == 1:
        figures["curve"] = curve(fit, held_out)
    if rolling:
        figures["rolling"] = rolling_hold_out(rolling)
    if len(fit.params) > 1:
        figures["bootstrap"] = bootstrap(fit)
    if profiles:
        figures["profiles"] = profile_curves(profiles)
    if choices:
        figures["specification"] = specification(choices)
    return figures


@styled
def residuals(fit: laws.Fit) -> Figure:
    """Residuals in per cent against each column of the law and against compute, with their running median."""
    table = fit.table
    columns = {name: table[name] for name in fit.problem.form.columns}
    if {"params", "tokens"} <= set(columns):
        columns["C = 6 N D" if "flops" not in table.columns else "flops"] = table.flops
    figure = Figure((style.WIDTH, 2.7))
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    per_cent, shown = 100 * np.expm1(fit.residuals), _shown(fit.table)
    for ax, (name, x) in zip(axes, columns.items(), strict=True):
        ax.axhline(0, color=LAW, linewidth=0.8)
        ax.plot(x[shown], per_cent[shown], color=INTERVAL, **POINT)
        order = np.argsort(x)
        pieces = np.array_split(order, min(8, max(2, len(order) // 6)))
        middle = [(np.exp(np.mean(np.log(x[piece]))), np.median(per_cent[piece])) for piece in pieces]
        ax.plot(*zip(*middle, strict=True), color=HELD_OUT, linewidth=1.4, label="running median")
        _narrow(ax, x.min() / 1.3, x.max() * 1.3)
        ax.set_xlabel(name)
    axes[0].set_ylabel("measured over law (%)")
    axes[-1].legend(loc="best")
    spread = float(np.std(per_cent))
    style.title(figure, f"The residuals of {fit.n_runs} runs have a standard deviation of {spread:.2g} %")
    return figure


@styled
def frontier(fit: laws.Fit, held_out: laws.Table) -> Figure:
    """Loss against compute: the runs, and the compute-optimal frontier with the band of one new run."""
    flops, shown = fit.table.flops, _shown(fit.table)
    top = max(flops.max() * 100, *(held_out.flops if len(held_out) else [0]))
    budgets = np.geomspace(flops.min(), top, 60)
    best = fit.optimal(budgets).loss
    figure = Figure((style.WIDTH, 4.0))
    ax = figure.subplots()
    ax.axvspan(flops.min(), flops.max(), color="#f2f2f2", zorder=0, label="compute of the fitted runs")
    ax.fill_between(budgets, best.lo, best.hi, color=INTERVAL, alpha=0.2, linewidth=0, label="95 % band of one run")
    ax.plot(budgets, best.value, color=LAW, label="the law, N and D chosen best")
    ax.plot(flops[shown], fit.table.loss[shown], color=INTERVAL, label="fitted runs", **POINT)
    if len(held_out):
        few = _shown(held_out)
        ax.plot(held_out.flops[few], held_out.loss[few], "D", color=HELD_OUT, markersize=5, label="held-out runs")
    style.log_axis(ax.xaxis, budgets[0] / 1.5, budgets[-1] * 1.5, powers=True)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:.3g}")
    ax.yaxis.set_minor_formatter("{x:.3g}")
    ax.set(xlabel="C, training FLOPs", ylabel=f"Loss ({style.plain(fit.unit)})")
    ax.legend(loc="upper right")
    end = fit.optimal(budgets[-1]).loss
    ends = f"{end.value:.4g} ({end.lo:.4g} to {end.hi:.4g})"
    style.title(figure, f"At {style.power(budgets[-1])} FLOPs, well spent, the law expects a loss of {ends}")
    return figure


@styled
def curve(fit: laws.Fit, held_out: laws.Table) -> Figure:
    """Loss against the one column of the law, with the band of one new run."""
    (name,) = fit.problem.form.columns
    x, shown = fit.table[name], _shown(fit.table)
    top = max(x.max() * 10, *(held_out[name] if len(held_out) else [0]))
    places = np.geomspace(x.min(), top, 100)
    band = fit.predict(places)
    figure = Figure((style.WIDTH, 4.0))
    ax = figure.subplots()
    ax.fill_between(places, band.lo, band.hi, color=INTERVAL, alpha=0.2, linewidth=0, label="95 % band of one run")
    ax.plot(places, band.value, color=LAW, label="the law")
    ax.plot(x[shown], fit.table.loss[shown], color=INTERVAL, label="fitted runs", **POINT)
    if len(held_out):
        few = _shown(held_out)
        ax.plot(held_out[name][few], held_out.loss[few], "D", color=HELD_OUT, markersize=5, label="held-out runs")
    style.log_axis(ax.xaxis, places[0] / 1.3, places[-1] * 1.3, powers=top > 1e9)
    ax.set(xlabel=name, ylabel=f"{style.plain(fit.table.response)} ({style.plain(fit.unit)})")
    ax.legend()
    expected = f"{fit.curve(x.max() * 10):.4g} {style.plain(fit.unit)}"
    style.title(figure, f"At ten times the largest run the law expects {expected}")
    return figure


@styled
def rolling_hold_out(rolling: Sequence[laws.HoldOut]) -> Figure:
    """Error of each rolling hold-out's predictions against compute, with the band it claimed."""
    figure = Figure((style.WIDTH, 2.8))
    axes = figure.subplots(1, len(rolling), sharey=True, squeeze=False)[0]
    hits = np.concatenate([part.inside for part in rolling])
    for ax, part in zip(axes, rolling, strict=True):
        order = np.argsort(part.cost)
        center = np.log(part.predicted.value)
        ends = (100 * np.expm1(np.log(end) - center) for end in (part.predicted.lo, part.predicted.hi))
        lo, hi = (end[order] for end in ends)
        ax.fill_between(part.cost[order], lo, hi, color=INTERVAL, alpha=0.2, linewidth=0, step="mid")
        ax.axhline(0, color=LAW, linewidth=0.8)
        ax.plot(part.cost, 100 * (part.measured / part.predicted.value - 1), color=HELD_OUT, **POINT)
        _narrow(ax, part.cost.min() / 1.5, part.cost.max() * 1.5)
        ax.set_title(f"{part.fitted} predict {len(part.cost)}", fontsize=8)
    axes[0].set_ylabel("measured over predicted (%)")
    axes[len(axes) // 2].set_xlabel("cost of the held-out runs")
    style.title(figure, f"{100 * hits.mean():.0f} % of the predictions of dearer runs fell inside their 95 % bands")
    return figure


def _shown(table: laws.Table) -> np.ndarray:
    """The runs that a figure draws: more than POINTS of them are a random sample, which shows as much."""
    rows = np.arange(len(table))
    return rows if len(table) <= POINTS else np.random.default_rng(0).choice(rows, POINTS, replace=False)


def _narrow(ax: Axes, lo: float, hi: float) -> None:
    """A logarithmic x axis that has room for three ticks at most."""
    ax.set(xscale="log", xlim=(lo, hi))
    ends = np.geomspace(lo, hi, 7)[[1, 5]]
    decades = np.arange(np.ceil(np.log10(lo)), np.floor(np.log10(hi)) + 1)
    ticks = 10.0 ** decades[:: -(-len(decades) // 3)] if len(decades) > 1 else [float(f"{end:.0e}") for end in ends]
    ax.set_xticks(ticks, [style.power(tick) for tick in ticks])
    ax.set_xticks([], minor=True)


@styled
def bootstrap(fit: laws.Fit) -> Figure:
    """Replicates of the parameters, two and two: the first parameter of each pair is in the most pairs' trade-off."""
    names = [name for name, cloud in fit.replicates.items() if np.ptp(cloud) > 0][-4:]
    pairs = list(itertools.pairwise(names)) or [(names[0], names[0])]
    figure = Figure((style.WIDTH, 2.7))
    axes = figure.subplots(1, len(pairs), squeeze=False)[0]
    for ax, (a, b) in zip(axes, pairs, strict=True):
        x, y = fit.replicates[a], fit.replicates[b]
        ax.plot(x, y, color=INTERVAL, linestyle="none", marker="o", markersize=2, markeredgewidth=0, alpha=0.3)
        ax.plot([fit.params[a].value], [fit.params[b].value], "+", color=LAW, markersize=11, markeredgewidth=1.6)
        for axis, name, values in ((ax.xaxis, a, x), (ax.yaxis, b, y)):
            lo, hi = np.quantile(values, [0.005, 0.995])
            wide = lo > 0 and hi / lo > 20
            pad = 0.08 * ((np.log(hi / lo) if wide else hi - lo) or 1.0)
            ends = (lo * np.exp(-pad), hi * np.exp(pad)) if wide else (lo - pad, hi + pad)
            getattr(ax, f"set_{axis.axis_name}lim")(*ends)
            if wide:
                getattr(ax, f"set_{axis.axis_name}scale")("log")
                axis.set_minor_formatter(ticker.NullFormatter())
            axis.set_label_text(name)
    style.title(figure, f"{len(fit.cloud):,} bootstrap fits, and the fit itself")
    return figure


@styled
def profile_curves(profiles: Mapping[str, laws.Profile]) -> Figure:
    """Objective against each parameter, all others fitted anew."""
    columns = min(3, len(profiles))
    rows = -(-len(profiles) // columns)
    figure = Figure((style.WIDTH, 0.5 + 2.1 * rows))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(profiles) :]:
        ax.set_axis_off()
    for ax, (name, profile) in zip(axes, profiles.items(), strict=False):
        floor = profile.objective.min()
        ax.plot(profile.values, profile.objective / floor, color=INTERVAL)
        ax.axhline(profile.threshold / floor, color=LAW, linewidth=0.8, linestyle="--")
        ax.axvline(profile.value, color=LAW, linewidth=0.8)
        top = 1 + 5 * (profile.threshold / floor - 1)
        near = profile.values[profile.objective <= top * floor]
        least = max(near.min(), profile.value / 1e3) if near.min() > 0 else near.min()  # an open end may go on and on
        ax.set(ylim=(1 - 0.05 * (top - 1), top), xlim=(least, near.max()))
        if least > 0 and near.max() / least > 20:
            ax.set_xscale("log")
        ax.set_title(name if profile.identified else f"{name}: not identified", fontsize=9)
    axes[0].set_ylabel("objective over its minimum")
    missing = [name for name, profile in profiles.items() if not profile.identified]
    found = f"not identified: {', '.join(missing)}" if missing else "every parameter is identified"
    style.title(figure, f"Profiles of the objective: {found}")
    return figure


@styled
def specification(choices: Sequence[laws.Specification]) -> Figure:
    """Tokens per parameter under every choice, sorted, with the choices marked below."""
    ordered = sorted(choices, key=lambda choice: choice.value.value)
    # A kind of choice that is made one way only is none.
    kinds = [kind for kind in CHOICES if len({getattr(choice, kind) for choice in ordered}) > 1]
    keys = [key for kind in kinds for key in dict.fromkeys((kind, getattr(choice, kind)) for choice in ordered)]
    figure = Figure((style.WIDTH, 2.6 + 0.17 * len(keys)))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 0.17 * len(keys)))
    places = np.arange(len(ordered))
    value, lo, hi = (np.array([getattr(choice.value, end) for choice in ordered]) for end in ("value", "lo", "hi"))
    top.vlines(places, lo, hi, color=INTERVAL, linewidth=1.2, alpha=0.6)
    top.plot(places, value, "o", color=LAW, markersize=4)
    top.set_yscale("log")
    style.log_axis(top.yaxis, value.min() / 4, value.max() * 4)  # an interval may be open
    top.set_ylabel("D / N, tokens per parameter")
    for row, key in enumerate(keys):
        on = [place for place, choice in zip(places, ordered, strict=True) if getattr(choice, key[0]) == key[1]]
        bottom.plot(on, [row] * len(on), "s", color=LAW, markersize=3.5)
    bottom.set_yticks(range(len(keys)), [f"{CHOICES[name]}: {choice}" for name, choice in keys], fontsize=7.5)
    bottom.set(ylim=(len(keys) - 0.5, -0.5), xticks=[])
    ends = f"{value.min():.3g} to {value.max():.3g}"
    style.title(figure, f"{len(ordered)} defensible analyses of the same runs: optimal tokens per parameter {ends}")
    return figure
