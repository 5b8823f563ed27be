"""Short runs of every family on its real data, from the family's own config at its smallest size, and their bits."""

import dataclasses
from typing import Any

import jax
import numpy as np

from deeplearn import data, families, sharding
from deeplearn.train import loop, metrics, state as states
from deeplearn.train.checkpoint import Checkpoints
from deeplearn.train.run import Run
from experiments import cli


def short_run(family: str, steps: int = 20, **changes: Any) -> Run:
    """`steps` updates with a batch that eight devices can share."""
    size = families.get(family).SIZES[0]
    run = cli.load_config(family).get_config(size=size)
    per_example = families.get(family).tokens_per_example(run.model)
    settings = {"batch_size": 16, "budget": 16 * per_example * steps, "eval_examples": 64, "eval_batch": 32}
    return dataclasses.replace(
        run, **settings | {"microbatches": 1, "steps_per_dispatch": 4, "mesh": "data:1"} | changes
    )


def after(run: Run, steps: int) -> tuple[Any, dict[str, Any]]:
    """The state and the metrics of the first `steps` updates on the run's mesh, on the host."""
    mesh = sharding.make_mesh(run.mesh)
    with loop.on_mesh(mesh):
        batches = data.train_iterator(run.data, run.batch_size, run.seed).take(steps)
        put = loop.put(run, batches, sharding.of_batch(mesh, 1))
        return jax.device_get(loop.compiled_steps(run, mesh, steps)(states.create(run, mesh), put))


def final(run, workdir):
    """The last checkpoint's state and iterator, on the host."""
    mesh = sharding.make_mesh(run.mesh)
    with loop.on_mesh(mesh), Checkpoints(workdir / "checkpoints") as checkpoints:
        state, saved = checkpoints.restore(states.abstract(run, mesh), print)
    return jax.device_get(state), saved["iterator"]


def assert_same_bits(run, a, b):
    (state_a, iterator_a), (state_b, iterator_b) = final(run, a), final(run, b)
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)
    assert iterator_a == iterator_b
    assert (a / metrics.NAME).read_bytes() == (b / metrics.NAME).read_bytes()
