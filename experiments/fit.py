"""Fit a scaling law to a table of runs: python -m experiments.fit RUNS.csv [--law=NAME] [--out=DIR]

    python -m experiments.fit runs/quickstart/runs.csv --out=law
    python -m experiments.fit table.csv --params=n_params --flops=training_flops --loss=val_loss
    python -m experiments.fit table.csv --law=data_constrained --column=unique_tokens=U --pin=alpha=0.35
    python -m experiments.fit ours.csv --against=theirs.csv

RUNS.csv has one row a run, with the columns that the law reads - for most laws parameters N and training tokens D (or
training FLOPs C, then D = C / 6N) - and the final held-out loss. Columns are found by their usual names (N, params; D,
tokens; flops; loss, val_loss ...) unless named. Where there is a `status` column only runs that are done count; where
there is a `split` column the runs marked fit are fitted, and those marked held_out are predicted and compared.

Prints the parameters with their 95 % intervals, the certificate of the search, the best use of a few budgets, and what
these runs cannot say. --out=DIR writes all of it to DIR/law.json, and a page DIR/report.html with figures: residuals,
bootstrap cloud, profiles, specification curve, rolling hold-outs, and the frontier with its band. --against fits other
tables too, and says how much compute one saves over the other. A table that cannot be fitted ends in one sentence that
names the line and the column, and exit code 2.
"""

import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from absl import flags
from rich import box, markup
from rich.console import Console
from rich.table import Table as Grid

from deeplearn import laws
from deeplearn.config import ConfigError, nearest
from deeplearn.data.sources import cache_dir
from experiments import cli, law_figures, law_report

_LAW = flags.DEFINE_enum("law", "chinchilla", sorted(laws.FORMS), "The law.")
_PARAMS = flags.DEFINE_string("params", None, "Column of parameters N, if not one of the usual names.")
_TOKENS = flags.DEFINE_string("tokens", None, "Column of training tokens (or examples) D, if not a usual name.")
_FLOPS = flags.DEFINE_string("flops", None, "Column of training FLOPs C, for D = C / 6N in place of tokens.")
_COLUMN = flags.DEFINE_multi_string("column", [], "Another column that the law reads: its name=the file's name.")
_LOSS = flags.DEFINE_string("loss", None, "Column of the final held-out loss, if not one of the usual names.")
_UNIT = flags.DEFINE_string("unit", None, "Unit of the loss; else what the `unit` column says, else nats/token.")
_CLUSTERS = flags.DEFINE_string("clusters", None, "Column whose equal values mark runs to resample together.")
_PIN = flags.DEFINE_multi_string("pin", [], "Hold a parameter of the law: name=value; may be repeated.")
_OBJECTIVE = flags.DEFINE_enum("objective", "huber", laws.LOSSES, "Loss of the log-loss residuals.")
_QUANTILE = flags.DEFINE_float("quantile", 0.1, "Share of runs below the law, for --objective=quantile.", 0.001, 0.999)
_DROP_HIGHEST = flags.DEFINE_integer("drop_highest", 0, "Leave out this many runs of the highest loss.", 0)
_REPLICATES = flags.DEFINE_integer("replicates", 1000, "Bootstrap replicates.", 20)
_BOOTSTRAP = flags.DEFINE_enum("bootstrap", "pairs", ["pairs", "wild"], "How the bootstrap tables are made.")
_BUDGETS = flags.DEFINE_list("budgets", [], "FLOPs to allocate; else 1, 10 and 100 times the dearest fitted run.")
_AGAINST = flags.DEFINE_multi_string("against", [], "Another table to compare with; may be repeated.")
_OUT = flags.DEFINE_string("out", None, "Folder for law.json, report.html and figures.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random starts and of the bootstrap.", 0)


SAMPLE = 4096  # runs of which profiles, specification curve and rolling hold-outs are made, where there are more
HELD_OUT_ROWS = 100  # of the table of held-out runs


def main(argv: list[str]) -> int:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    console = Console()
    form = _form()
    budgets = _budgets(_BUDGETS.value)
    table, held_out = _read(argv[1], form, "fit"), _read(argv[1], form, "held_out")
    if _DROP_HIGHEST.value:
        table = table.take(np.sort(np.argsort(table.loss)[: -_DROP_HIGHEST.value]))
    options = {
        "loss": _OBJECTIVE.value,
        "quantile": _QUANTILE.value,
        "bootstrap": _BOOTSTRAP.value,
        "seed": _SEED.value,
    }
    fit = laws.fit(table, form, replicates=_REPLICATES.value, **options)

    shown = f"{form.formula}, {fit.n_runs} runs, {table.response} in {fit.unit}"
    console.print(shown, highlight=False, markup=False)
    _print(console, "Parameters", ("name", "value", "95 % from", "to"), law_report.parameters(fit))
    _print(console, "Certificate", None, law_report.certificate(fit))
    if form.allocation is not None:
        budgets = budgets or list(table.flops.max() * np.array([1.0, 10.0, 100.0]))
    tables = list(_tables(fit, held_out, budgets))
    if _AGAINST.value:
        others = {Path(path).stem: _read(path, form, "fit") for path in _AGAINST.value}
        fits = {Path(argv[1]).stem: fit} | laws.fit_many(others, form=form, replicates=_REPLICATES.value, **options)
        if len(fits) <= len(_AGAINST.value):
            raise ConfigError("--against: give the tables names that differ, by which they can be told apart")
        tables.append(law_report.against(laws.compare(fits, budgets)))
    for grid in tables:
        _print(console, *grid)
    for warning in fit.warnings:
        console.print(f"[yellow]warning:[/yellow] {markup.escape(warning)}", highlight=False)
    if _OUT.value:
        counts = _read(argv[1], form, "fit", also=("flops", "params_no_embed"))
        _write(Path(_OUT.value), fit, counts, held_out, tables, options, console)
    return 0


def _form() -> laws.Form:
    values = {}
    for text in _PIN.value:
        name, _, value = text.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise ConfigError(f"--pin takes name=number, not {text!r}") from None
    try:
        return laws.FORMS[_LAW.value].pin(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _read(path: str, form: laws.Form, split: str, also: tuple[str, ...] = ()) -> laws.Table:
    given = {"params": _PARAMS.value, "tokens": _TOKENS.value, "flops": _FLOPS.value, "loss": _LOSS.value}
    names = {name: column for name, column in given.items() if column}
    for text in _COLUMN.value:
        name, _, column = text.partition("=")
        if not column or name not in form.columns:
            raise ConfigError(
                f"--column takes a column of the law=one of the file, not {text!r}{nearest(name, form.columns)}"
            )
        names[name] = column
    return laws.read_csv(
        path, form.columns, names=names, unit=_UNIT.value, split=split, clusters=_CLUSTERS.value, also=also
    )


def _budgets(texts: list[str]) -> list[float]:
    try:
        budgets = [float(text) for text in texts]
    except ValueError as error:
        raise ConfigError(f"--budgets takes numbers with commas between them: {error}") from None
    for budget in budgets:
        if not 0 < budget < np.inf:
            raise ConfigError(f"--budgets takes positive numbers of FLOPs, not {budget:g}")
    return budgets


def _tables(fit: laws.Fit, held_out: laws.Table, budgets: list[float]) -> Iterable[law_report.Grid]:
    """What follows the parameters: the best use of budgets, the approaches side by side, the held-out runs."""
    if fit.problem.form.allocation is not None:
        names = ("FLOPs", "", *law_report.ENDS)
        yield "Best use of a budget, C = 6 N D", names, law_report.allocation(fit, budgets)
    if fit.form == "chinchilla" and not fit.problem.form.pinned:
        yield law_report.approaches(laws.compare_approaches(fit.table, budgets, fitted=fit))
    if len(held_out):
        names = (*fit.problem.form.columns, "predicted", "95 %", "measured", "error", "in band")
        shown = held_out.sample(HELD_OUT_ROWS)
        yield (
            ". ".join(("Held-out runs", *shown.notes[len(held_out.notes) :])),
            names,
            law_report.comparison(fit, shown),
        )


def _write(
    folder: Path, fit: laws.Fit, counts: laws.Table, held_out: laws.Table, tables: list, options: dict, console: Console
) -> None:
    """law.json, the figures and the page. counts: all runs, with every count of parameters and FLOPs there is."""
    folder.mkdir(parents=True, exist_ok=True)
    few, note = fit, ""
    if len(fit.table) > SAMPLE:
        few = laws.fit(fit.table.sample(SAMPLE), fit.problem.form, replicates=200, **options)
        note = f"Profiles, specification curve and rolling hold-outs are of {few.table.notes[-1]}."
        console.print(note, highlight=False)
    with console.status("profiles, specification curve and rolling hold-outs"):
        profiles = {name: laws.profile_interval(few, name) for name in few.params}
        optimal = fit.problem.form.allocation is not None and not fit.problem.form.pinned
        choices = (
            laws.specifications(counts.sample(SAMPLE), flops=10 * fit.table.flops.max(), form=fit.problem.form)
            if optimal
            else []
        )
        rolling = laws.rolling(few, replicates=200, **options)
    law = fit.to_json() | {"profiles": laws.plain(profiles)}
    if _PARAMS.value in ("params", "params_no_embed"):  # the names that a preflight knows
        law["count"] = _PARAMS.value
    law["specifications"] = [laws.plain(choice) for choice in choices]
    law["sampled"] = note
    (folder / "law.json").write_text(json.dumps(law, indent=2, allow_nan=False) + "\n")
    console.print(f"law: {folder / 'law.json'}", highlight=False)
    drawn = law_figures.draw_all(fit, held_out, profiles, choices, rolling)
    command = shlex.join(["python", "-m", "experiments.fit", *sys.argv[1:]])
    page = law_report.publish(folder, fit, drawn, tables, _BOOTSTRAP.value, command, note)
    console.print(f"report: {page}", highlight=False)


def _print(console: Console, title: str, names: tuple[str, ...] | None, rows: list[list[str]]) -> None:
    grid = Grid(title=markup.escape(title), title_justify="left", box=box.SIMPLE, show_header=names is not None)
    for name in names or ("",) * len(rows[0]):
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(*map(markup.escape, row))
    console.print(grid)


if __name__ == "__main__":
    cli.run(main, ["RUNS.csv"])
