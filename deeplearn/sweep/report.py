"""What a sweep leaves for people: figures, report.html, and a summary on the terminal."""

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich import markup
from rich.console import Console
from rich.table import Table

from deeplearn import laws
from deeplearn.sweep import figures, findings, ledger, page
from deeplearn.sweep.figures import Curves
from deeplearn.sweep.findings import Law, percent, signed
from deeplearn.sweep.progress import clock, short
from deeplearn.sweep.table import Row
from deeplearn.train import metrics

COUNTS = {"params": "parameters", "params_no_embed": "parameters without embeddings"}
NONE = "\N{EN DASH}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# Columns of the tables; the terminal, which is narrow, shows OUTCOME and OPTIMAL_TEXT.
OUTCOME = ("run", "predicted", "95 % band", "measured", "off by", "verdict")
HELD_OUT = (*OUTCOME, "size", "N", "D", "FLOPs", "times fitted", "predicted at", "training began")
OPTIMAL = ("C, FLOPs", "N", "N, 95 % interval", "D", "D, 95 % interval", "D / N", "loss", "loss, 95 % band")
OPTIMAL_TEXT = ("C, FLOPs", "N", "N, 95 % interval", "D", "D, 95 % interval", "loss")
PARAMS = ("parameter", "value", "95 % interval", "meaning")
RUNS = ("run", "size", "N", "D", "FLOPs", "loss", "residual", "minutes", "tokens/s", "status", "used for")
MEANING = {
    "E": "loss that neither size nor data removes",
    "A": "weight of the term of N",
    "B": "weight of the term of D",
    "alpha": "how fast more parameters help",
    "beta": "how fast more data helps",
}


def publish(
    root: Path, rows: list[Row], curves: Curves, fit: laws.Fit, law: Law, versions: dict[str, str], command: str
) -> Path:
    """Write root/figures/*.png and root/report.html, which holds the same figures; returns where the page lies.

    Args:
      root: the sweep's root.
      rows: the runs table.
      curves: id -> (tokens [n], training loss [n]), as the function `curves` reads them.
      fit: the fitted law.
      law: what law.json holds.
      versions: what made the numbers, name -> version.
      command: the command line that makes them again.
    """
    images = figures.save(figures.draw_all(rows, curves, fit, law), root / "figures")
    path = root / "report.html"
    write(path, images, rows, fit, law, versions, command)
    return path


def curves(root: Path, rows: list[Row]) -> Curves:
    """The training loss of each run that has a log: that of its first objective."""
    found = {}
    for row in rows:
        log = list(metrics.read(ledger.directory(root, row["id"])))
        if log:
            loss = next(name for name in log[0] if f"{name}/gradient_norm" in log[0])
            found[row["id"]] = tuple(np.array([line[name] for line in log], np.float64) for name in ("tokens", loss))
    return found


def write(
    path: Path,
    images: dict[str, Path],
    rows: list[Row],
    fit: laws.Fit,
    law: Law,
    versions: dict[str, str],
    command: str,
) -> None:
    """Write the page, whole or not at all. images: the PNG file of each figure; the rest as for `publish`."""
    fitted = findings.done(rows, "fit")
    text = page.SWEEP.substitute(
        family=escape(rows[0]["family"]),
        headline=escape(findings.headline(rows, law)),
        result=page.facts(_facts(rows, law, fit.unit)),
        fitted=len(fitted),
        sizes=len({r["size"] for r in fitted}),
        held_out=page.table(HELD_OUT, _held_out(rows, law)),
        figures="".join(page.figure(name, image, page.CAPTIONS[name]) for name, image in images.items()),
        equation=findings.equation(fit, "{}<sup>{}</sup>"),
        unit=escape(fit.unit),
        count=COUNTS[law["count"]],
        params=page.table(PARAMS, _params(fit)),
        caution="The fit comes with warnings; they stand under the law." if fit.warnings else "",
        certificate=page.items([*_certificate(fit), *findings.noise(law)], "certificate"),
        warnings=page.items(fit.warnings, "warnings"),
        optimal=page.table(OPTIMAL, _optimal(fit)),
        spending=findings.spending(rows),
        not_fitted=page.items(findings.not_fitted(rows, law), "warnings"),
        runs=page.table(RUNS, (_run(row, fit, law) for row in rows)),
        command=escape(command),
        versions=page.table(("what", "version"), versions.items()),
    )
    page.write(path, f"Scaling law of the {rows[0]['family']} family", text)


def text_summary(rows: list[Row], fit: laws.Fit, law: Law, console: Console) -> None:
    """The law, how sure it is of itself, what it advises and how it did, on the terminal."""
    _print(console, findings.equation(fit), PARAMS, PARAMS, _params(fit))
    console.print(f"L in {fit.unit}, N: {COUNTS[law['count']]}, D: training tokens", highlight=False)
    for line in [*_certificate(fit), *findings.noise(law)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in fit.warnings:
        console.print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    _print(console, "Optimal N and D for C = 6 N D", OPTIMAL, OPTIMAL_TEXT, _optimal(fit))
    for line in findings.not_fitted(rows, law):
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    _print(console, "Predicted before training, and measured", OUTCOME, OUTCOME, map(_outcome, law["held_out"]))


def _print(
    console: Console, title: str, columns: tuple[str, ...], shown: tuple[str, ...], cells: Iterable[list[str]]
) -> None:
    console.print(f"\n{title}", style="bold", markup=False, highlight=False, soft_wrap=True)
    table = Table(*shown, box=None, pad_edge=False)
    for row in cells:
        named = dict(zip(columns, row, strict=True))
        table.add_row(*(markup.escape(named[name]) for name in shown))
    console.print(table, highlight=False)


def _facts(rows: list[Row], law: Law, unit: str) -> Iterator[tuple[str, str]]:
    """The largest held-out run in large print."""
    for p in sorted(law["held_out"], key=lambda p: p["flops"])[-1:]:
        yield f"{p['predicted']:.4f}", f"predicted, {unit}"
        yield f"{p['lo']:.4f} to {p['hi']:.4f}", "95 % band"
        yield _loss(p["measured"]), f"measured, {unit}"
        yield findings.verdict(p).removesuffix(" the band"), "the band"
        yield f"{findings.ratio(rows, p):.3g} times", "the largest fitted FLOPs"


def _outcome(p: dict[str, Any]) -> list[str]:
    off = NONE if p["measured"] is None else signed(percent(p["measured"], p["predicted"]))
    band = f"{p['lo']:.4f} to {p['hi']:.4f}"
    return [p["id"], _loss(p["predicted"]), band, _loss(p["measured"]), off, findings.verdict(p)]


def _held_out(rows: list[Row], law: Law) -> Iterator[list[str]]:
    by_id = {row["id"]: row for row in rows}
    for p in law["held_out"]:
        row = by_id[p["id"]]
        yield [
            *_outcome(p), str(row["size"]), short(row[law["count"]]), short(row["tokens"]),
            _power(p["flops"]), f"{findings.ratio(rows, p):.3g}", _time(p["predicted_at"]), _time(p["started_at"]),
        ]  # fmt: skip


def _params(fit: laws.Fit) -> Iterator[list[str]]:
    for name, x in fit.params.items():
        yield [name, f"{x.value:.4g}", f"{x.lo:.4g} to {x.hi:.4g}", MEANING.get(name, "")]


def _certificate(fit: laws.Fit) -> list[str]:
    found = fit.certificate
    return [
        f"{100 * found.share_at_optimum:.0f} % of the random starts of the fit reach this optimum.",
        "The search has converged." if found.converged else "The search has NOT converged: do not rely on this fit.",
        f"Condition number {found.condition_number:.3g}: how far the parameters can trade off against each other while "
        "the fit hardly changes (1: not at all; the larger, the wider the intervals).",
    ]


def _optimal(fit: laws.Fit) -> Iterator[list[str]]:
    largest = fit.table.flops.max()
    best = findings.optimal(fit, largest, 1e3 * largest, 4)
    for i, c in enumerate(best.flops):
        (n, n_lo, n_hi), (d, d_lo, d_hi), (loss, lo, hi) = (
            (x.value[i], x.lo[i], x.hi[i]) for x in (best.params, best.tokens, best.loss)
        )
        yield [
            _power(c), short(n), _span(n_lo, n_hi), short(d), _span(d_lo, d_hi), f"{d / n:.3g}",
            f"{loss:.4f}", f"{lo:.4f} to {hi:.4f}",
        ]  # fmt: skip


def _run(row: Row, fit: laws.Fit, law: Law) -> list[str]:
    n, ended = row[law["count"]], row["status"] == "done"
    return [
        row["id"], str(row["size"]), short(n), short(row["tokens"]), _power(row["flops"]),
        _loss(row["loss"] if ended else None),
        signed(percent(row["loss"], float(fit.curve(n, row["tokens"])))) if ended else NONE,
        clock(row["wall_s"]) if ended else NONE,
        short(row["tokens_per_s"]) if ended else NONE,
        row["status"],
        "fit" if row["split"] == "fit" else "test",
    ]  # fmt: skip


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _time(stamp: str | None) -> str:
    """`2025-01-31T10:20:30.456+00:00` without the last half."""
    return NONE if stamp is None else stamp[:19].replace("T", " ")


def _span(lo: float, hi: float) -> str:
    return f"{short(lo)} to {short(hi) if np.isfinite(hi) else 'any'}"


def _power(x: float) -> str:
    """`2.5e13` -> 2.5 times ten to the power of 13, in plain text."""
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa} \N{MULTIPLICATION SIGN} 10" + str(int(exponent)).translate(SUPERSCRIPTS)
