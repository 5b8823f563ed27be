"""What training takes beside its bare compiled steps: data, metrics, checkpoints, the ledger.

    python -m experiments.bench.overhead     # of a sweep's cohort, on one core; prints JSON

Both sides take turns in one process, with programs that are compiled before.
"""

import dataclasses
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMBERS = 4


def loop_overhead(rounds: int) -> float:
    """How much longer the training loop (data, metrics, checkpoints) takes than its bare step: 0.01 is 1 %."""
    from deeplearn.train import loop
    from experiments.configs.transformer import get_config

    run = dataclasses.replace(get_config(48), budget=4 * 128 * 16 * 48, mesh="data:1")

    def whole() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return loop.train(run, Path(folder)).wall_s

    def bare() -> float:
        return _bare(run, 1)

    return _ratio(whole, bare, rounds) - 1


def cohort_overhead(rounds: int) -> float:
    """The same of a cohort as a sweep's worker trains it: with the ledger, the start and the last write to disk.

    What evaluating the members takes is left out; the steps of the benchmarked sweep's middle size.
    """
    from deeplearn import config
    from deeplearn.sweep import ledger, worker
    from experiments.configs.transformer import get_config

    one = dataclasses.replace(get_config(32), budget=524_288, mesh="data:1")
    runs = [dataclasses.replace(one, seed=seed) for seed in range(MEMBERS)]
    described = {config.identity(r): config.to_dict(r) for r in runs}

    def whole() -> float:
        with tempfile.TemporaryDirectory() as root:
            ledger.create(root, "overhead", described)
            start = time.perf_counter()
            silent, stop = lambda **event: None, threading.Event()
            worker.train_units(Path(root), list(described.values()), [[]] * MEMBERS, silent, stop)
            return time.perf_counter() - start - _evaluations(one)

    def bare() -> float:
        return _bare(one, MEMBERS)

    return _ratio(whole, bare, rounds) - 1


def _ratio(whole: Callable[[], float], bare: Callable[[], float], rounds: int) -> float:
    whole(), bare()  # to compile
    pairs = [(whole(), bare()) if turn % 2 else (bare(), whole())[::-1] for turn in range(rounds)]
    return statistics.median(w for w, _ in pairs) / statistics.median(b for _, b in pairs)


def _bare(run: Any, members: int) -> float:
    """Seconds of the run's steps alone, one batch over and over, in a cohort of so many."""
    import jax
    import numpy as np

    from deeplearn import data, sharding
    from deeplearn.train import cohort, loop, state as states

    mesh, count = sharding.make_mesh(run.mesh), run.steps_per_dispatch
    rows = data.train_iterator(run.data, run.batch_size, 0).take(count)
    with loop.on_mesh(mesh):
        if members == 1:
            program = loop.compiled_steps(loop.program(run), mesh, count)
            state, where = states.create(run, mesh), sharding.of_batch(mesh, 1)
        else:
            program = cohort.compiled_steps(loop.program(run), mesh, count, members)
            state = cohort.stacked(loop.program(run), mesh, [states.create(run, mesh)] * members)
            rows, where = {k: np.stack([x] * members) for k, x in rows.items()}, cohort.where(mesh)
        batch = loop.put(run, rows, where)
        jax.block_until_ready((state, batch))
        start = time.perf_counter()
        for _ in range(run.steps // count):
            state, metrics = program(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start


def _evaluations(run: Any) -> float:
    """Seconds of evaluating each member."""
    from deeplearn import sharding
    from deeplearn.train import loop, state as states

    mesh = sharding.make_mesh(run.mesh)
    with loop.on_mesh(mesh):
        state = states.create(run, mesh)
        start = time.perf_counter()
        for _ in range(MEMBERS):
            loop.evaluate(run, state, mesh)
        return time.perf_counter() - start


if __name__ == "__main__":
    os.sched_setaffinity(0, {0})  # as a worker is
    print(json.dumps({"overhead": cohort_overhead(4)}))
