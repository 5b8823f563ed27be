"""Does a law of trunks and branches say what a law of independent runs says? python -m experiments.branches --root=DIR

Trains the runs that the config's get_sweep() lists twice: under "wsd", where one trunk a size serves all budgets, each
a short cooldown branch; and under "cosine", where each run is of its own. Fits L(N, D) to both, and prints both laws
with their intervals, whether each exponent lies within the other's, and the FLOPs that each took, counted in what was
really trained. DIR gets branches.json, branches.png, and a folder an arm with runs.csv and law.json. Run the same again
and it goes on where it stopped.

    python -m experiments.branches --config=branches --root=runs/branches

After Hägele et al. 2024, arXiv 2405.18392.
"""

import dataclasses
from pathlib import Path

from absl import flags
from rich.console import Console

from deeplearn.config import ConfigError
from deeplearn.sweep.staff import Staff
from experiments import cli
from experiments.branches_report import compare, draw, show

cli.define_config_flags()
_ROOT = flags.DEFINE_string("root", None, "Folder of the study; made if it is not there.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Processes that train; 0: one a core, or one where an accelerator is.", 0)

ARMS = {"branches": {"optim.schedule": "wsd"}, "cosine": {"optim.schedule": "cosine"}}


def main(argv: list[str]) -> int:
    del argv
    if _ROOT.value is None:
        raise ConfigError("where to? pass --root=DIR")
    if flags.FLAGS.config is None:
        raise ConfigError("which sweep? pass --config=NAME, for example --config=branches")
    module = cli.load_config(flags.FLAGS.config)
    if not hasattr(module, "get_sweep"):
        raise ConfigError(f"config {flags.FLAGS.config!r} has no get_sweep(); --config=branches has")
    from deeplearn.sweep import ledger, study  # slow to import: a wrong flag should not wait for it
    from deeplearn.sweep.grid import unit_of

    console, root = Console(), Path(_ROOT.value)
    sweep, overrides = module.get_sweep(), cli.parse_overrides(flags.FLAGS.set)
    arms = {}
    for arm, schedule in ARMS.items():
        units = [unit_of(cli.get_run(module, {**point, **overrides, **schedule}), "fit") for point in sweep.fit]
        named = dataclasses.replace(sweep, name=f"{sweep.name}-{arm}", held_out=[])
        try:
            with Staff(_WORKERS.value) as staff:
                arms[arm] = study.run(named, units, root / arm, console, staff)
        except KeyboardInterrupt:
            console.print("interrupted; every run is saved: the same command goes on from here", soft_wrap=True)
            return 130
    found = compare({arm: (done.rows, done.law) for arm, done in arms.items()})
    ledger.write_json(root / "branches.json", found)
    show(found, console)
    draw({arm: (done.rows, done.fit) for arm, done in arms.items()}, found, sweep.count, root / "branches.png")
    console.print(f"figure: {root / 'branches.png'}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
