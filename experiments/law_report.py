"""The report of `python -m experiments.fit`: one page that opens without a network, and the same figures as PNG."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure

from deeplearn import laws
from deeplearn.sweep import figures as files, page
from experiments.law_figures import CAPTIONS

Rows = list[list[str]]
Grid = tuple[str, tuple[str, ...], Rows]  # title, names of the columns, rows
GAIN = ("gain", "gain_lo", "gain_hi")
ENDS = ("value", "95 % from", "to")

PAGE = Template("""<h1>$formula</h1>
<p>Fitted to $n_runs runs, loss in $unit. $headline</p>
$warnings
<h2>Parameters</h2>
$params
<p class="soft">Intervals are 95 % $bootstrap bootstrap intervals: the whole search was repeated on each resampled
table.</p>
<p>How sure the fit is of itself:</p>
$certificate

<h2>Figures</h2>
$note
$figures
$tables
<h2>Make it again</h2>
<pre>$command</pre>
""")


def publish(
    folder: Path,
    fit: laws.Fit,
    drawn: Mapping[str, Figure],
    tables: Iterable[Grid],
    bootstrap: str,
    command: str,
    note: str = "",
) -> Path:
    """Write folder/report.html and folder/figures/*.png; returns where the page lies.

    Args:
      folder: where to.
      fit: the fitted law.
      drawn: its figures, by name.
      tables: (title, names of the columns, rows) of what follows the figures.
      bootstrap: which kind made the intervals.
      command: the command line that makes the page again.
      note: what the figures do not show, if anything.
    """
    images = files.save(dict(drawn), folder / "figures")
    body = PAGE.substitute(
        formula=escape(fit.problem.form.formula),
        n_runs=fit.n_runs,
        unit=escape(fit.unit),
        headline="The fit comes with warnings." if fit.warnings else "Nothing speaks against this fit.",
        warnings=page.items(fit.warnings, "warnings"),
        params=page.table(("name", "value", "95 % from", "to"), parameters(fit)),
        bootstrap=escape(bootstrap),
        certificate=page.items((f"{name}: {value}" for name, value in certificate(fit)), "certificate"),
        note=f'<p class="soft">{escape(note)}</p>' if note else "",
        figures="".join(page.figure(name, image, CAPTIONS[name]) for name, image in images.items()),
        tables="".join(f"<h2>{escape(title)}</h2>\n{page.table(names, rows)}\n" for title, names, rows in tables),
        command=escape(command),
    )
    path = folder / "report.html"
    page.write(path, f"The {fit.form} law of {fit.n_runs} runs", body)
    return path


def parameters(fit: laws.Fit) -> Rows:
    """Rows of name, value, and the ends of the interval; pinned parameters without."""
    rows = [[n, *(f"{end:.5g}" for end in (i.value, i.lo, i.hi))] for n, i in fit.params.items()]
    shown = {row[0] for row in rows}
    return rows + [[name, f"{value:.5g}", "held", ""] for name, value in fit.problem.form.pinned if name not in shown]


def certificate(fit: laws.Fit) -> Rows:
    """Rows of name and value."""
    c = fit.certificate
    return [
        ["converged", "yes" if c.converged else "NO"],
        ["random starts at the optimum", f"{100 * c.share_at_optimum:.0f} %"],
        ["objective", f"{c.objective:.9g}"],
        ["gradient", f"{c.gradient_norm:.1e}"],
        ["condition number", f"{c.condition_number:.3g}"],
        ["bands widened by hold-outs", f"{fit.widening:.2f} x"],
    ]


def allocation(fit: laws.Fit, budgets: list[float]) -> Rows:
    """Rows of the best use of each budget, a quantity a row."""
    best = fit.optimal(np.array(budgets))
    ratio = laws.Interval(*(d / n for d, n in zip(_ends(best.tokens), _ends(best.params, True), strict=True)))
    rows = []
    named = (("params", best.params), ("tokens", best.tokens), ("tokens per parameter", ratio), ("loss", best.loss))
    for i, budget in enumerate(budgets):
        for name, interval in named:
            rows.append([f"{budget:.4g}" if name == "params" else "", name, *(f"{e[i]:.4g}" for e in _ends(interval))])
    return rows


def comparison(fit: laws.Fit, held_out: laws.Table) -> Rows:
    """Rows of predicted against measured, a held-out run each."""
    columns = [held_out[name] for name in fit.problem.form.columns]
    band = fit.predict(*columns)
    rows = []
    for i, measured in enumerate(held_out.loss):
        value, lo, hi = band.value[i], band.lo[i], band.hi[i]
        rows.append(
            [
                *(f"{column[i]:.3g}" for column in columns),
                f"{value:.4g}",
                f"{lo:.4g}-{hi:.4g}",
                f"{measured:.4g}",
                f"{100 * (value / measured - 1):+.2f} %",
                "yes" if lo <= measured <= hi else "no",
            ]
        )
    return rows


def approaches(found: laws.Approaches) -> Grid:
    """Approaches 1, 2 and 3 at the last budget of `found`, and the spread between them."""
    rows = []
    for row in found.rows:
        if row.exponent is None:
            rows.append([row.name, f"no answer: {row.notes[-1]}", "", ""])
            continue
        rows.append([row.name, _between(row.exponent), _between(row.params, -1), _between(row.tokens_per_param, -1)])
    names = ("approach", "a of N ~ C^a", "N", "tokens per parameter")
    return f"Approaches side by side at {found.flops[-1]:.3g} FLOPs. {found.sentences[-1]}", names, rows


def against(found: laws.Comparison) -> Grid:
    """Compute-equivalent gain of each law over the baseline, and the crossovers."""
    rows = [
        [row["law"], f"{row['flops']:.3g}", f"{row['loss']:.4g}", *(f"{row[end]:.3g}" for end in GAIN)]
        for row in found.table
        if row["law"] != found.baseline
    ]
    crossovers = " ".join(crossover.sentence for crossover in found.crossovers)
    title = f"Times less compute for the same loss than {found.baseline}. {crossovers}"
    return title, ("law", "FLOPs", "loss", "gain", "95 % from", "to"), rows


def _between(interval: laws.Interval, i: int | None = None) -> str:
    value, lo, hi = (end if i is None else end[i] for end in _ends(interval))
    return f"{value:.3g} ({lo:.3g} to {hi:.3g})"


def _ends(interval: laws.Interval, swap: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (interval.value, interval.hi, interval.lo) if swap else (interval.value, interval.lo, interval.hi)
