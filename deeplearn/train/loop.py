"""The training loop: restore, step, log, checkpoint, evaluate."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh, NamedSharding

from deeplearn import data, families, sharding
from deeplearn.config import ConfigError
from deeplearn.train import state as states, transfer
from deeplearn.train.checkpoint import Checkpoints, fingerprint
from deeplearn.train.metrics import Log
from deeplearn.train.precision import cast
from deeplearn.train.run import Run
from deeplearn.train.state import State
from deeplearn.train.step import make_steps
from deeplearn.train.together import Votes


class Progress(NamedTuple):
    """Where a run is. loss: mean over the last dispatch. tokens_per_s: mean over all attempts."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float


class Result(NamedTuple):
    """loss: held-out, in the family's unit. wall_s: seconds spent in the loop over all attempts, compiling left out."""

    loss: float
    unit: str
    tokens: int
    wall_s: float
    tokens_per_s: float


class Stopped(Exception):
    """The run was asked to stop, and its state is saved: run the same again to go on."""

    exit_code = 42


class Diverged(Exception):
    """The loss is not a finite number any more."""


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """The context that programs are traced in."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.rules(mesh)):
        yield


@functools.lru_cache(maxsize=16)
def compiled_steps(program: Run, mesh: Mesh, count: int) -> Any:
    """`count` updates as one compiled program, shared by all runs whose `program` is this one. The state is donated."""
    where = sharding.of_batch(mesh, leading=1)
    batches = {
        k: jax.ShapeDtypeStruct((count, program.batch_size, *s.shape), s.dtype, sharding=where)
        for k, s in families.get(program.family).example(program.model).items()
    }
    return jax.jit(make_steps(program), donate_argnums=0).lower(states.abstract(program, mesh), batches).compile()


@functools.lru_cache(maxsize=16)
def _evaluation(program: Run) -> Any:
    """The compiled sums of one held-out batch, shared by all runs whose `program` is this one."""
    family = families.get(program.family)

    def evaluate(state: State, batch: dict[str, Array], index: Array) -> tuple[Array, Array]:
        key = jax.random.fold_in(jax.random.key(0), index)
        variables = {"params": cast(state.params, program.precision), **state.collections}
        return family.evaluate(program.model, variables, cast(batch, program.precision), key)

    return jax.jit(evaluate)


def program(run: Run) -> Run:
    """The run without the numbers that are traced: runs with equal programs share compiled code."""
    recipe = dataclasses.replace(run.optim, learning_rate=0.0, weight_decay=0.0)
    return dataclasses.replace(
        run, optim=recipe, budget=1, seed=0, eval_examples=run.eval_batch, checkpoint_seconds=0.0, max_epochs=1
    )


def put(run: Run, batch: dict[str, np.ndarray], where: NamedSharding, examples: int | None = None) -> dict[str, Array]:
    """A batch on the mesh; what the family does not read is left out.

    examples: of the global batch, where `batch` is this process's rows of it; None if every process has all of them.
    """
    named = {name: batch[name] for name in families.get(run.family).example(run.model)}
    if jax.process_count() == 1:  # the same, in a sixth of the time
        return jax.device_put(named, where)
    axis = len(where.spec) - 1  # the batch's

    def whole(x: np.ndarray) -> tuple[int, ...]:
        return x.shape if examples is None else (*x.shape[:axis], examples, *x.shape[axis + 1 :])

    return {name: jax.make_array_from_process_local_data(where, x, whole(x)) for name, x in named.items()}


def _dispatch(run: Run, step: int) -> int:
    """Updates in the dispatch after `step`. Boundaries do not depend on where a run was resumed, so its bits do not."""
    return min(run.steps_per_dispatch - step % run.steps_per_dispatch, run.steps - step)


def _dispatches(run: Run, step: int) -> set[int]:
    """The different lengths of the dispatches that are still to come."""
    if step >= run.steps:
        return set()
    first = _dispatch(run, step)
    last = run.steps % run.steps_per_dispatch
    return {n for n in (first, last, run.steps_per_dispatch) if 0 < n <= run.steps - step}


def check(run: Run, mesh: Mesh) -> None:
    """Raise ConfigError for what would fail or mislead only later: divisibility, shapes, a second epoch."""
    if jax.process_count() > 1:
        sharding.check_all_used(mesh)
    sizes = {"batch_size / microbatches": run.batch_size // run.microbatches, "eval_batch": run.eval_batch}
    places = sharding.batch_places(mesh)
    for name, size in sizes.items():
        if size % places:
            raise ConfigError(f"{name} is {size}, which does not divide over mesh {dict(mesh.shape)}: {places} places")
    if sharding.sequence_places(mesh) > 1 and not getattr(families.get(run.family), "SPREADS_SEQUENCE", False):
        raise ConfigError(f"mesh {dict(mesh.shape)} spreads the sequence, which family {run.family!r} cannot do")
    if mesh.size > 1:
        with on_mesh(mesh):
            states.abstract(run, mesh)  # which checks that every axis has something to cut
    check_data(run)


def check_data(run: Run) -> None:
    """The part of `check` that needs no device. Fetches the data if it is not here yet."""
    transfer.factors(run)
    given = {k: x.shape[1:] for k, x in next(iter(data.eval_batches(run.data, 1, run.eval_examples))).items()}
    for name, wanted in families.get(run.family).example(run.model).items():
        if given.get(name) != wanted.shape:
            have = ", ".join(f"{k}{list(shape)}" for k, shape in given.items())
            raise ConfigError(f"{run.family} wants {name}{list(wanted.shape)}; data {run.data.name!r} gives {have}")
    epochs = run.steps * run.batch_size / data.train_examples(run.data)
    if epochs > run.max_epochs:
        name, most = run.data.name, run.max_epochs
        raise ConfigError(f"budget {run.budget} is {epochs:.2f} epochs of {name!r}, over max_epochs {most}")


def evaluate(run: Run, state: State, mesh: Mesh) -> float:
    """Held-out loss in the family's unit, over the same examples each time."""
    evaluate_batch = _evaluation(program(run))
    total = weight = 0.0
    for i, batch in enumerate(data.eval_batches(run.data, run.eval_batch, run.eval_examples)):
        sums = evaluate_batch(state, put(run, batch, sharding.of_batch(mesh)), jax.device_put(np.int32(i)))
        t, w = jax.device_get(sums)
        total, weight = total + float(t), weight + float(w)
    return total / weight


def load_variables(run: Run, workdir: Path) -> tuple[int, dict[str, Any]]:
    """The newest sound checkpoint's updates done, and its variables. Raises ConfigError if there is none."""
    mesh = sharding.one_device()
    with on_mesh(mesh), Checkpoints(workdir / "checkpoints") as checkpoints:
        restored = checkpoints.restore(states.abstract(run, mesh), print)
    if restored is None:
        raise ConfigError(f"{workdir} has no checkpoint yet")
    state = restored[0]
    return int(jax.device_get(state.step)), {"params": state.params, **state.collections}


def train(
    run: Run,
    workdir: Path,
    observe: Callable[[Progress], None] = lambda progress: None,
    may_write: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = print,
    tensorboard: bool = False,
) -> Result:
    """Train `run` in `workdir`, going on from its newest sound checkpoint, and evaluate it.

    In a job of several processes each calls this alike, and only process 0 writes the metrics.

    observe: called about once a dispatch. may_write: called before anything is written; raises if another process has
    taken the run over. should_stop: asked once a dispatch; True, in any process, saves and raises Stopped in all. tell:
    gets one-line messages. Raises Diverged, Stopped, ConfigError and what may_write raises.
    """
    mesh = sharding.make_mesh(run.mesh)
    check(run, mesh)
    with on_mesh(mesh), Checkpoints(workdir / "checkpoints") as checkpoints:
        batches = data.train_iterator(run.data, run.batch_size, run.seed, sharding.rows_here(mesh, run.batch_size))
        restored = checkpoints.restore(states.abstract(run, mesh), tell)
        state, saved = restored or (states.create(run, mesh), {"wall_s": 0.0, "iterator": batches.get_state()})
        batches.set_state(saved["iterator"])
        step = int(jax.device_get(state.step))
        main_objective = families.get(run.family).objectives(run.model)[0].name
        programs = {n: compiled_steps(program(run), mesh, n) for n in _dispatches(run, step)}
        jax.block_until_ready(fingerprint(state))  # compiles it
        may_write()
        log = Log(workdir, step, tensorboard) if jax.process_index() == 0 else None
        votes = Votes(mesh, questions=2)
        start = saved_at = time.monotonic()

        def wall_s() -> float:
            return saved["wall_s"] + time.monotonic() - start

        def save(wait: bool = False) -> None:
            may_write()
            checkpoints.save(step, state, {"iterator": batches.get_state(), "wall_s": wall_s()}, wait)

        def write(first_step: int, metrics: dict[str, Array]) -> None:
            metrics_K = jax.device_get(metrics)
            if log:
                log.write(first_step, run.tokens_per_step, metrics_K)
            broken = [name for name, values in metrics_K.items() if not np.isfinite(values).all()]
            if broken:
                raise Diverged(f"{broken[0]} is not a finite number near step {first_step}")
            loss = float(metrics_K[main_objective].mean())
            observe(Progress(step, run.steps, loss, run.tokens_per_step * step / max(wall_s(), 1e-9)))

        with contextlib.closing(log) if log else contextlib.nullcontext():
            pending: list[Any] = []  # the metrics of the dispatch before, read while this one runs
            while step < run.steps:
                count = _dispatch(run, step)
                batch = put(run, batches.take(count), sharding.of_batch(mesh, 1), run.batch_size)
                state, metrics = programs[count](state, batch)
                if pending:
                    write(*pending)
                pending = [step + 1, metrics]
                step += count
                stop, due = votes.any(should_stop(), time.monotonic() - saved_at > run.checkpoint_seconds)
                if stop or due or step == run.steps:
                    write(*pending)
                    pending = []
                    save(wait=stop)
                    saved_at, votes = time.monotonic(), Votes(mesh, questions=2)
                if stop and step < run.steps:
                    raise Stopped(f"stopped at step {step} of {run.steps}; run it again to go on from there")
        trained_s = wall_s()
        loss = evaluate(run, state, mesh)
    if not math.isfinite(loss):
        raise Diverged(f"held-out loss is {loss}")
    return Result(loss, families.get(run.family).UNIT, run.tokens, trained_s, run.tokens / trained_s)
