"""How the figures of a sweep look: one style, one colour a size, axes with readable ticks, numbers in words."""

import functools
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from deeplearn.sweep.progress import short
from deeplearn.sweep.table import Row

RC = {
    "font.size": 9, "axes.titlesize": 9, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "ytick.minor.width": 0.4, "legend.frameon": False,
    "legend.handletextpad": 0.3, "legend.columnspacing": 1.2, "figure.constrained_layout.use": True,
    "figure.facecolor": "white", "savefig.dpi": 140, "svg.fonttype": "none",
}  # fmt: skip
WIDTH = 7.2  # inches: with the dpi above, about 1000 pixels, so that text is readable at 700
HELD_OUT = "#d55e00"  # the vermilion of Okabe and Ito, which is far from every colour of viridis for all eyes
LAW = "#000000"
INTERVAL = "#0072b2"
COUNTS = {"params": "parameters", "params_no_embed": "parameters without embeddings"}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function in the style, and leaves matplotlib's own settings as they were."""

    @functools.wraps(draw)
    def drawn(*args: Any) -> Any:
        with matplotlib.rc_context(RC):
            return draw(*args)

    return drawn


def colours(sizes: Iterable[float]) -> dict[float, Any]:
    """Size -> colour, dark for small ones. The palest fifth of the map is left out: it does not show on white."""
    ordered = sorted(set(sizes))
    places = np.linspace(0.0, 0.82, len(ordered)) if len(ordered) > 1 else [0.4]
    return dict(zip(ordered, matplotlib.colormaps["viridis"](places), strict=True))


def dot(row: Row, colour: Any) -> dict[str, Any]:
    """How the point of a run looks: a circle, or for a held-out one a diamond with a vermilion edge."""
    if row["split"] == "held_out":
        edge = {"marker": "D", "markersize": 6, "markeredgecolor": HELD_OUT, "markeredgewidth": 1.4}
    else:
        edge = {"marker": "o", "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
    return {"markerfacecolor": colour, "linestyle": "none", **edge}


def key(ax: Axes, sizes: dict[float, Any], count: str) -> None:
    """One line above the axes that says which colour is which size; of many sizes, eight."""
    shown = list(sizes)[:: -(-len(sizes) // 8)]
    name = Line2D([], [], linestyle="none", label="N:" if count == "params" else "N without embeddings:")
    dots = [Line2D([], [], label=short(n), **dot({"split": "fit"}, sizes[n])) for n in shown]
    ax.legend(
        handles=[name, *dots], loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=9, borderaxespad=0.2,
        handlelength=0.8, columnspacing=0.9, fontsize=8.5,
    )  # fmt: skip


def plain(text: str) -> str:
    """Text of others for matplotlib, which else reads what stands between dollars as mathematics and refuses some."""
    return text.replace("$", r"\$")


def title(figure: Figure, text: str) -> None:
    """The finding, bold, from the left edge."""
    figure.suptitle(textwrap.fill(text, 88), x=0.01, ha="left", fontsize=10, fontweight="bold")


def held_out_point(ax: Axes, x: float, p: dict[str, Any], colour: Any) -> None:
    """At x, a prediction with its band as error bar, and what was measured as diamond. p: as in the law's held_out."""
    bar = [[p["predicted"] - p["lo"]], [p["hi"] - p["predicted"]]]
    ax.errorbar(
        [x], [p["predicted"]], bar, fmt="_", color=HELD_OUT, markersize=10, markeredgewidth=1.5, elinewidth=1.5,
        capsize=3, label="held out: predicted, 95 % band", zorder=4,
    )  # fmt: skip
    if p["measured"] is not None:
        ax.plot([x], [p["measured"]], label="held out: measured", zorder=5, **dot({"split": "held_out"}, colour))


def legend(ax: Axes, place: str) -> None:
    """A legend inside the axes, beside the key, that says each thing once."""
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    ax.add_artist(Legend(ax, once.values(), once.keys(), loc=place))


def log_axis(axis: Axis, lo: float, hi: float, powers: bool = False) -> None:
    """A logarithmic axis from lo to hi whose ticks are few and never overlap: 10 k, 100 k ... or powers of ten."""
    set_scale, set_limits = (
        (axis.axes.set_xscale, axis.axes.set_xlim)
        if axis.axis_name == "x"
        else (axis.axes.set_yscale, axis.axes.set_ylim)
    )
    set_scale("log")
    set_limits(lo, hi)
    decades = math.log10(hi / lo)
    steps = (1, 2, 3, 4, 6) if decades < 0.9 else (1, 2, 5) if decades < 1.6 else (1, 3) if decades < 3 else (1,)
    axis.set_major_locator(ticker.LogLocator(10, steps, numticks=8 if steps == (1,) else 20))
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: power(x) if powers else short(x)))
    axis.set_minor_formatter(ticker.NullFormatter())


def power(x: float) -> str:
    """`3e12` -> "$3\\times10^{12}$", for matplotlib."""
    mantissa, exponent = f"{x:.1e}".split("e")
    factor = "" if mantissa == "1.0" else rf"{float(mantissa):g}\times"
    return f"${factor}10^{{{int(exponent)}}}$"
