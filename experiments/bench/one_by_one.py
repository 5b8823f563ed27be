"""Train the units of a sweep one after another in one process: python -m experiments.bench.one_by_one CONFIG

Prints the seconds that it took as JSON; what is compiled is compiled before.
"""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

from deeplearn.train import loop
from deeplearn.train.run import Run
from experiments import cli


def main() -> None:
    module = cli.load_config(sys.argv[1])
    runs = [cli.get_run(module, point) for point in module.get_sweep().fit]
    for run in {loop.program(run): run for run in runs}.values():
        _train(dataclasses.replace(run, budget=run.tokens_per_step * run.steps_per_dispatch))
    start = time.perf_counter()
    for run in runs:
        _train(run)
    print(json.dumps({"seconds": time.perf_counter() - start}))


def _train(run: Run) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loop.train(run, Path(folder))


if __name__ == "__main__":
    main()
