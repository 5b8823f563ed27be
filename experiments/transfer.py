"""Does the best learning rate stay where it is when a model gets wider? python -m experiments.transfer

Trains transformers on English at widths over a 16-fold range, of two layers with heads of 16 channels, at learning
rates in factors of two: once with one rate for all parameters, once with the factors of `deeplearn/train/transfer.py`
from the smallest width. Prints the losses and the best rate of each width, by a parabola through the three best in the
logarithm of the rate, how far it moved, and what published rules say. DIR gets units/, transfer.json and transfer.png.
Run the same again and it goes on where it stopped.

With --config nothing is trained: it prints the factors that a run's parameters would get.

    python -m experiments.transfer --root=runs/transfer
    python -m experiments.transfer --config=transformer --set size=128 --set optim.base_size=32
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli

WIDTHS = (16, 32, 64, 128, 256)
STEPS, BATCH, LENGTH = 512, 8, 32
BASES = {"muP": WIDTHS[0], "none": 0}
RATES = range(-8, -2)  # exponents of two, at the smallest width

cli.define_config_flags()
_ROOT = flags.DEFINE_string("root", "runs/transfer", "Folder of the runs; made if it is not there.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Processes that train; 0: one a core, or one where an accelerator is.", 0)

Losses = dict[str, dict[int, list[float]]]  # kind -> width -> loss at each of its rates, infinite where it diverged


def exponents(kind: str, width: int) -> range:
    """Of two, of the rates that are tried. Without muP they fall with the width, so that both kinds try the same rates
    of hidden matrices, and the best is among them."""
    shift = 0 if BASES[kind] else round(math.log2(width / WIDTHS[0]))
    return range(RATES.start - shift, RATES.stop - shift)


def make_run(width: int, rate: float, base: int) -> Any:
    """One run: two layers, 256 tokens an update."""
    from deeplearn.data import Data
    from deeplearn.families import transformer
    from deeplearn.optim import Optim
    from deeplearn.train.run import Run

    model = dataclasses.replace(transformer.config(WIDTHS[0]), depth=2, seq_len=LENGTH)
    return Run(
        family="transformer",
        size=width,
        model=transformer.at_size(model, width),
        data=Data("shakespeare", seq_len=LENGTH),
        optim=Optim(learning_rate=rate, b2=0.98, base_size=base),
        batch_size=BATCH,
        budget=STEPS * BATCH * LENGTH,
        steps_per_dispatch=32,
    )


def vertex(tried: Sequence[int], losses: Sequence[float]) -> tuple[float, bool]:
    """The exponent at the bottom of the parabola through the lowest loss and its two neighbours.

    Also whether there is one: at the end of the rates, or beside a run that diverged, it is the lowest loss's own.
    """
    i = int(np.argmin(losses))
    around = slice(i - 1, i + 2)
    if i in (0, len(losses) - 1) or not np.isfinite(losses[around]).all():
        return float(tried[i]), False
    a, b, _ = np.polyfit(tried[around], losses[around], 2)
    return float(-b / (2 * a)), True


def train(root: Path, workers: int, console: Console) -> Losses:
    """Held-out losses, from the results that are there and the runs that are not."""
    from deeplearn.sweep import ledger, local, study
    from deeplearn.sweep.grid import unit_of
    from deeplearn.sweep.progress import Display
    from deeplearn.sweep.staff import Staff
    from deeplearn.train import loop

    keys = [(kind, width, e) for kind in BASES for width in WIDTHS for e in exponents(kind, width)]
    units = [unit_of(make_run(width, 2.0**e, BASES[kind]), "fit") for kind, width, e in keys]
    loop.check_data(units[0].run)
    root.mkdir(parents=True, exist_ok=True)
    with ledger.hold(root):
        ledger.create(root, "transfer", {u.id: u.identity_json() for u in units}, **study.versions())
        waiting = [u for u in units if ledger.status(root, u.id) not in ledger.OVER]
        if waiting:
            ended = {u.id for u in units} - {u.id for u in waiting}
            with Staff(workers) as staff, Display(units, ended, len(staff.places), console) as display:
                local.execute(root, waiting, display.tell, staff)
    results = [ledger.read_json(ledger.directory(root, u.id) / "result.json") for u in units]
    losses: Losses = {kind: {width: [] for width in WIDTHS} for kind in BASES}
    for (kind, width, _), result in zip(keys, results, strict=True):
        losses[kind][width].append(math.inf if result["loss"] is None else result["loss"])
    return losses


def published() -> dict[str, dict[int, float]]:
    """What rules say of one rate for all parameters; they were fitted to far larger models with far larger batches."""
    from deeplearn.sweep.grid import unit_of
    from deeplearn.train import rules

    units = {width: unit_of(make_run(width, 1.0, 0), "fit") for width in WIDTHS}
    return {
        "Step Law": {width: rules.step_law_rate(u.params_no_embed, u.run.tokens) for width, u in units.items()},
        "DeepSeek LLM": {width: rules.deepseek_rate(u.flops) for width, u in units.items()},
    }


def report(losses: Losses, root: Path, console: Console) -> dict[str, Any]:
    """Print, draw and write what was found."""
    from deeplearn.sweep import ledger

    found: dict[str, Any] = {"tokens": STEPS * BATCH * LENGTH}
    for kind, of_width in losses.items():
        best = {width: vertex(exponents(kind, width), row) for width, row in of_width.items()}
        moved = max(e for e, _ in best.values()) - min(e for e, _ in best.values())
        tried = sorted({e for width in of_width for e in exponents(kind, width)})
        headers = ("width", *(f"2^{e}" for e in tried), "best")
        table = Table(*headers, box=None, padding=(0, 1, 0, 0), title=kind, title_justify="left")
        for width, row in of_width.items():
            exponent, inside = best[width]
            at = f"2^{exponent:.2f}" + ("" if inside else " end")
            loss = dict(zip(exponents(kind, width), row, strict=True))
            shown = ("" if e not in loss else "-" if math.isinf(loss[e]) else f"{loss[e]:.3f}" for e in tried)
            table.add_row(str(width), *shown, at)
        console.print(table)
        console.print(f"{kind}: the best rates are {moved:.2f} factors of two apart\n", highlight=False)
        finite = {width: [None if math.isinf(x) else x for x in row] for width, row in of_width.items()}
        found[kind] = {
            "exponents": {width: list(exponents(kind, width)) for width in of_width},
            "losses": finite,
            "best_exponents": {width: exponent for width, (exponent, _) in best.items()},
            "moved": moved,
        }
    found["rules"] = published()
    table = Table("width", *found["rules"], box=None, title="best rates by published rules", title_justify="left")
    for width in WIDTHS:
        table.add_row(str(width), *(f"2^{math.log2(rates[width]):.2f}" for rates in found["rules"].values()))
    console.print(table)
    ledger.write_json(root / "transfer.json", found)
    draw(losses, root / "transfer.png")
    console.print(f"figure: {root / 'transfer.png'}", highlight=False)
    return found


def draw(losses: Losses, path: Path) -> None:
    """Loss against rate, one line a width, the kinds side by side."""
    from matplotlib.figure import Figure

    from deeplearn.sweep import style

    def picture() -> None:
        figure = Figure(figsize=(style.WIDTH, 3.0))
        axes = figure.subplots(1, len(losses), sharex=True, sharey=True)
        lowest = min(min(row) for of_width in losses.values() for row in of_width.values())
        for ax, (kind, of_width) in zip(axes, losses.items(), strict=True):
            for (width, row), colour in zip(of_width.items(), style.colours(of_width).values(), strict=True):
                rates, i = [2.0**e for e in exponents(kind, width)], int(np.argmin(row))
                ax.plot(rates, row, "o-", color=colour, markersize=3.5, linewidth=1.2, label=f"width {width}")
                ax.plot(rates[i], row[i], "o", color=colour, markersize=8, fillstyle="none")
            ax.set_xscale("log", base=2)
            ax.set_title("one rate for all parameters" if kind == "none" else f"{kind} from width {WIDTHS[0]}")
            ax.set_xlabel("learning rate")
            ax.set_ylim(lowest - 0.05, lowest + 0.6)
        axes[0].set_ylabel("held-out loss (nats/token)")
        axes[0].legend(fontsize=8)
        figure.savefig(path)

    style.styled(picture)()


def show_factors(run: Any, console: Console) -> None:
    """The rate of each parameter of a run, and what its initial values are multiplied by."""
    from deeplearn.train import transfer

    table = Table("parameter", "shape", "rate", "initial", box=None, pad_edge=False)
    for path, names, shape, factors in transfer.table(run):
        rate = f"{run.optim.learning_rate * factors.rate:.3g}"
        sides = " ".join(f"{name or '-'}:{size}" for name, size in zip(names, shape, strict=True))
        table.add_row(path, sides, rate, f"{factors.initial:.3g}")
    console.print(table)


def main(argv: list[str]) -> int:
    del argv
    console, root = Console(), Path(_ROOT.value)
    if flags.FLAGS.config is not None:
        show_factors(cli.config_from_flags(), console)
        return 0
    try:
        losses = train(root, _WORKERS.value, console)
    except KeyboardInterrupt:
        console.print("interrupted; every run is saved: the same command goes on from here", soft_wrap=True)
        return 130
    report(losses, root, console)
    return 0


if __name__ == "__main__":
    cli.run(main)
