"""Train a sweep, fit its law, and put the prediction to the test: python -m experiments.sweep --config=NAME --root=DIR

Trains the runs that the config's get_sweep() lists, cheapest first, one worker a core; fits L(N, D) to all but the
held-out runs; prints the prediction with its 95 % band; and only then trains the held-out runs. DIR gets runs.csv,
law.json, report.html and figures/. Run the same again and it goes on where it stopped; nothing is trained twice.
Ctrl-C saves. With --set optim.warmup_steps=N, runs differing in budget alone share their start: less work, same losses.
Overrides apply to every run: --set optim.weight_decay=0.1

    python -m experiments.sweep --config=quickstart --root=runs/quickstart
"""

import sys
from pathlib import Path

from absl import flags
from rich.console import Console

from deeplearn.config import ConfigError
from deeplearn.sweep.staff import Staff
from experiments import cli

cli.define_config_flags()
_ROOT = flags.DEFINE_string("root", None, "Folder of the sweep; made if it is not there.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Processes that train; 0: one a core, or one where an accelerator is.", 0)


def main(argv: list[str]) -> int:
    del argv
    if _ROOT.value is None:
        raise ConfigError("where to? pass --root=DIR")
    if flags.FLAGS.config is None:
        raise ConfigError("which sweep? pass --config=NAME, for example --config=quickstart")
    with Staff(_WORKERS.value) as staff:
        if not (Path(_ROOT.value) / "law.json").exists():
            staff.start()  # workers import while this process does
        return _study(staff)


def _study(staff: Staff) -> int:
    module = cli.load_config(flags.FLAGS.config)
    if not hasattr(module, "get_sweep"):
        raise ConfigError(f"config {flags.FLAGS.config!r} has no get_sweep(); experiments.train trains a single run")
    import jax  # slow to import: a wrong flag should not wait for it

    jax.config.update("jax_platforms", "cpu")  # an accelerator is for the workers
    from deeplearn.sweep import findings, report, study
    from deeplearn.sweep.grid import unit_of

    console = Console()
    sweep, overrides = module.get_sweep(), cli.parse_overrides(flags.FLAGS.set)
    units = [
        unit_of(cli.get_run(module, {**point, **overrides}), split)
        for split, points in (("fit", sweep.fit), ("held_out", sweep.held_out))
        for point in points
    ]
    root = Path(_ROOT.value)
    try:
        done = study.run(sweep, units, root, console, staff)
    except KeyboardInterrupt:
        console.print("interrupted; every run is saved: the same command goes on from here", soft_wrap=True)
        return 130
    report.publish(root, done.rows, report.curves(root, done.rows), done.fit, done.law, study.versions(), _command())
    report.text_summary(done.fit, done.law, console)
    console.print(f"{findings.spending(done.rows)}.", highlight=False, soft_wrap=True)
    console.print(f"report: {root / 'report.html'}", highlight=False, soft_wrap=True)
    return 0


def _command() -> str:
    return " ".join(["python -m experiments.sweep", *sys.argv[1:]])


if __name__ == "__main__":
    cli.run(main)
