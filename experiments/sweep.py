"""Train a sweep, fit its law, and put the prediction to the test: python -m experiments.sweep --config=NAME --root=DIR

Trains the runs that the config's get_sweep() lists, one worker a core, the dearest first, and as one program those that
differ only in numbers (rates, weight decay, betas, seed); fits L(N, D) to all but the held-out runs; prints the
prediction with its 95 % band; and only then trains the held-out runs. DIR gets runs.csv, law.json, report.html and
figures/. Run the same again and it goes on where it stopped; nothing is trained twice. Ctrl-C saves.
With --set optim.warmup_steps=N, runs that differ in budget alone share their start: less work, the same losses.
Overrides apply to every run: --set optim.weight_decay=0.1

A budget ends it earlier. --budget_flops is of DIR: what earlier commands spent there counts. Room is kept for the
cheapest held-out run; then it pays for runs cheapest first, as many as fit. A budget that does not hold even the
cheapest runs that make a law, and that one, is refused at the start. --budget_seconds is of this command's training,
without fits and figures: no run begins that would not end in time by the rates seen so far, nor, once a law can be
fitted, one that would leave no time for the cheapest held-out run. What still runs then is saved, for the next command
to go on with (exit code 42 if there is no law yet). What was left out is said by name, and stands in the report.

With --stop_hopeless=0.3 a run that a quarter of its steps leave more than .3 above the training loss of the best that
differs only in its optimiser, or above its own first loss, is ended, named, and kept out of the law.

With --target_flops=6e12 --target_width=0.1 the sweep is active: after the config's own runs it chooses among its
candidates, round by round, until the 95 % interval of what the law says of a compute-optimal run of 6e12 FLOPs (6 N D)
is 10 % wide, or the budget is spent. rounds.json in DIR keeps what was decided.

    python -m experiments.sweep --config=quickstart --root=runs/quickstart
    python -m experiments.sweep --config=active --root=runs/active --target_flops=6e12 --target_width=0.1
"""

import math
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
_FLOPS = flags.DEFINE_float("budget_flops", None, "Training FLOPs, as counted, of all runs in the folder together.", 0)
_SECONDS = flags.DEFINE_float("budget_seconds", None, "Seconds that this command may train.", 0)
_HOPELESS = flags.DEFINE_float("stop_hopeless", None, "End a run that is this far above the best like it, in loss.", 0)
_TARGET = flags.DEFINE_float("target_flops", None, "Of an active sweep: C = 6 N D, N as the law counts it.", 0)
_WIDTH = flags.DEFINE_float("target_width", None, "Of an active sweep: relative width of the interval there.", 0)


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
    module = cli.load_sweep(flags.FLAGS.config)
    if (_TARGET.value is None) != (_WIDTH.value is None):
        raise ConfigError("an active sweep takes both --target_flops and --target_width")
    import jax  # slow to import: a wrong flag should not wait for it

    jax.config.update("jax_platforms", "cpu")  # an accelerator is for the workers
    from deeplearn.sweep import active, budget, findings, study
    from deeplearn.sweep.grid import unit_of

    console = Console()
    sweep, overrides = module.get_sweep(), cli.parse_overrides(flags.FLAGS.set)

    def units(split: str, points: list) -> list:
        return [unit_of(cli.get_run(module, {**point, **overrides}), split) for point in points]

    listed, root = units("fit", sweep.fit) + units("held_out", sweep.held_out), Path(_ROOT.value)
    aim = None if _TARGET.value is None else active.Aim(_TARGET.value, _WIDTH.value)
    ids = {unit.id for unit in listed}
    candidates = [u for u in units("fit", sweep.candidates if aim or active.read(root) else []) if u.id not in ids]
    limits = budget.Limits(*(math.inf if f.value is None else f.value for f in (_FLOPS, _SECONDS, _HOPELESS)))
    try:
        done = study.run(sweep, listed, root, console, staff, limits, candidates, aim)
    except KeyboardInterrupt:
        console.print("interrupted; every run is saved: the same command goes on from here", soft_wrap=True)
        return 130
    from deeplearn.sweep import report  # with matplotlib, for which no worker should wait

    report.publish(root, done.rows, report.curves(root, done.rows), done.fit, done.law, study.versions(), _command())
    report.text_summary(done.rows, done.fit, done.law, console)
    console.print(f"{findings.spending(done.rows)}.", highlight=False, soft_wrap=True)
    console.print(f"report: {root / 'report.html'}", highlight=False, soft_wrap=True)
    return 0


def _command() -> str:
    return " ".join(["python -m experiments.sweep", *sys.argv[1:]])


if __name__ == "__main__":
    cli.run(main)
