"""The look of a report: one file that needs nothing else, on paper, on a phone, by day and by night."""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

CAPTIONS = {
    "loss_against_compute": (
        "Each coloured line joins the token budgets of one model size. The black line is the loss that the law expects "
        "of each amount of compute when N and D are chosen best; the diamonds were trained after they were predicted."
    ),
    "predicted_against_measured": (
        "Every run against the law: a bar is the 95 % band for one new run there, a point is what was measured."
    ),
    "fitted_surface": (
        "The same law twice: loss against N when the compute is fixed, whose lowest points are the black line, and the "
        "N and D that give equal loss. Points are runs, coloured by their compute."
    ),
    "optimal_allocation": (
        "How the law would spend a budget on parameters and on tokens; right of the grey area it extrapolates."
    ),
    "interval_by_round": (
        "How an active sweep came to know its target: each point is a fit to all runs so far, and the runs between two "
        "points were chosen after the first of them. Open points are what was expected of the runs just chosen."
    ),
    "learning_curves": (
        "Training loss, smoothed, up to the held-out loss at the end of each run. Every budget has its own decay of "
        "the learning rate, so a shorter run is not the beginning of a longer one."
    ),
}

SHELL = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1c1c1e; --soft: #5b5b60; --page: #ffffff; --card: #f5f5f7; --line: #dcdce0; --mark: #b04a00;
  color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --soft: #a5a5ab; --page: #17171a; --card: #222226;
  --line: #3a3a40; --mark: #ff9d5c; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 54rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p, li { max-width: 44rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.result { display: flex; flex-wrap: wrap; gap: .5rem 1.8rem; background: var(--card); border-radius: 10px;
  padding: 1rem 1.2rem; margin: 1rem 0; }
.result b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.result span { color: var(--soft); font-size: .85rem; }
.law { font-family: Georgia, serif; font-size: 1.3rem; overflow-x: auto; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
figure { margin: 1.5rem 0; break-inside: avoid; }
img { width: 100%; max-width: 800px; height: auto; background: #fff; border-radius: 6px;
  padding: 6px; box-sizing: border-box; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem; }
.warnings { color: var(--mark); }
@media print { body { max-width: none; font-size: 11pt; } .wide, pre { overflow: visible; }
  table { font-size: 7pt; } th, td { padding-right: .4rem; } }
</style>
</head>
<body>
$body</body>
</html>
""")

SWEEP = Template("""<h1>Scaling law of the $family family</h1>
<p>$headline.</p>
$result
<p class="soft">$fitted runs of $sizes sizes were trained, and a law was fitted to the losses they ended with. The law
then predicted the larger, held-out runs below, and only after that were they trained. $caution</p>

<h2>Predicted before training, and measured</h2>
$held_out

<h2>Figures</h2>
$figures

<h2>The law</h2>
<p class="law">$equation</p>
<p class="soft">L: loss on held-out data, in $unit. N: $count. D: training tokens. Intervals are 95 % bootstrap
intervals: the fit was repeated on many resampled tables of runs.</p>
$params
<p>How sure the fit is of itself:</p>
$certificate
$warnings

<h2>How to spend compute</h2>
<p class="soft">The N and D with the lowest loss for a budget of C = 6 N D training FLOPs, and the loss of one run
there. The first line is the compute of the largest fitted run; below it the law extrapolates.</p>
$optimal

<h2>Runs</h2>
<p class="soft">FLOPs are counted from the traced computation of training. The residual is how far the measured loss
lies above the law. $spending.</p>
$not_fitted
$runs

<h2>Make it again</h2>
<pre>$command</pre>
$versions

<h2>Words</h2>
<dl>
<dt>held out</dt><dd>Of a run: not used to fit the law, but to test it. Of data: never seen in training.</dd>
<dt>95 % band</dt><dd>Where the law expects the loss of one new run, 19 times out of 20: it holds what the fit does not
know of the law's parameters, and the noise of one run.</dd>
<dt>FLOPs</dt><dd>Floating-point operations: the arithmetic that training takes.</dd>
</dl>
""")


def table(columns: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """Plain text in, an HTML table out."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in cells)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def items(lines: Iterable[str], kind: str) -> str:
    """Plain sentences in, an HTML list out."""
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """The few numbers that matter most, large. pairs: (number, what it is)."""
    return '<div class="result">' + "".join(
        f"<div><b>{escape(number)}</b><span>{escape(name)}</span></div>" for number, name in pairs
    ) + "</div>"  # fmt: skip


def write(path: Path, title: str, body: str) -> None:
    """Write a page of this title and HTML body, whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_text(SHELL.substitute(title=escape(title), body=body), encoding="utf-8")
    partial.replace(path)


def figure(name: str, image: Path, caption: str) -> str:
    """A PNG file as a part of the page."""
    data = base64.b64encode(image.read_bytes()).decode()
    source = f"data:image/png;base64,{data}"
    alt = escape(name.replace("_", " "))
    return f'<figure><img alt="{alt}" src="{source}"><figcaption>{escape(caption)}</figcaption></figure>\n'
