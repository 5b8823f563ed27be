"""The training loop: restore, step, log, checkpoint, evaluate."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh, NamedSharding

from deeplearn import data, families, sharding
from deeplearn.config import ConfigError
from deeplearn.train import blame, branches as forks, metrics as logs, spent, state as states, together, transfer
from deeplearn.train.checkpoint import Checkpoints, fingerprint
from deeplearn.train.metrics import Log
from deeplearn.train.once import once
from deeplearn.train.precision import cast
from deeplearn.train.run import Run, program
from deeplearn.train.state import State
from deeplearn.train.step import make_steps
from deeplearn.train.together import Votes
from deeplearn.train.watchdog import Watchdog


class Progress(NamedTuple):
    """Where a run is. loss: mean over the last dispatch. tokens_per_s: mean over all attempts, without its trunk's."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float


class Result(NamedTuple):
    """loss: held-out, in the family's unit. wall_s: seconds spent in the loop over all attempts, compiling left out.

    Of a branch, wall_s and tokens_per_s are of its own part; tokens are those that it has learnt from."""

    loss: float
    unit: str
    tokens: int
    wall_s: float
    tokens_per_s: float


class Stopped(Exception):
    """The run was asked to stop, and its state is saved: run the same again to go on."""

    exit_code = 42


class Ended(Exception):
    """A run that is over before its last step, for a reason that is a result and no failure; status says which."""

    status = "ended"


class Diverged(Ended):
    """The loss is not a finite number any more."""

    status = "diverged"


class NotFinite(Diverged):
    """The first metric that is not finite, and the exact update whose it is."""

    def __init__(self, metric: str, step: int):
        super().__init__(f"{metric} is not a finite number at step {step}")
        self.step = step


class Hopeless(Ended):
    """The run is too far behind others to be worth its FLOPs; raised by whoever observes it."""

    status = "hopeless"


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """The context that programs are traced in."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.rules(mesh)):
        yield


@once(16)
def compiled_steps(program: Run, mesh: Mesh, count: int) -> Any:
    """`count` updates as one compiled program, shared by all runs whose `program` is this one. The state is donated."""
    where = sharding.of_batch(mesh, leading=1)
    batches = {
        k: jax.ShapeDtypeStruct((count, program.batch_size, *s.shape), s.dtype, sharding=where)
        for k, s in families.get(program.family).example(program.model).items()
    }
    return jax.jit(make_steps(program), donate_argnums=0).lower(states.abstract(program, mesh), batches).compile()


@once(16)
def _evaluation(program: Run) -> Any:
    """The compiled sums of one held-out batch, shared by all runs whose `program` is this one."""
    family = families.get(program.family)

    def evaluate(state: State, batch: dict[str, Array], index: Array) -> tuple[Array, Array]:
        key = jax.random.fold_in(jax.random.key(0), index)
        variables = {"params": cast(state.params, program.precision), **state.collections}
        return family.evaluate(program.model, variables, cast(batch, program.precision), key)

    return jax.jit(evaluate)


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


def dispatch(run: Run, step: int) -> int:
    """Updates in the dispatch after `step`. Boundaries do not depend on where a run was resumed, so its bits do not."""
    return min(run.steps_per_dispatch - step % run.steps_per_dispatch, run.steps - step)


def dispatches(run: Run, step: int) -> set[int]:
    """The different lengths of the dispatches that are still to come."""
    if step >= run.steps:
        return set()
    first = dispatch(run, step)
    last = run.steps % run.steps_per_dispatch
    return {n for n in (first, last, run.steps_per_dispatch) if 0 < n <= run.steps - step}


def check(run: Run, mesh: Mesh, members: int = 1) -> None:
    """Raise ConfigError for what would fail or mislead only later: divisibility, shapes, a second epoch.

    members: of the cohort that the run trains in.
    """
    if jax.process_count() > 1:
        sharding.check_all_used(mesh)
    if members == 1 and sharding.members_axis(mesh):
        raise ConfigError(f"mesh {run.mesh!r} spreads the members of a cohort, and this run trains alone")
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
    if run.optim.warmup_steps > run.steps:
        raise ConfigError(f"optim.warmup_steps {run.optim.warmup_steps} outlasts the run of {run.steps} updates")
    epochs = run.steps * run.batch_size / data.train_examples(run.data)
    if epochs > run.max_epochs:
        name, most = run.data.name, run.max_epochs
        raise ConfigError(f"budget {run.budget} is {epochs:.2f} epochs of {name!r}, over max_epochs {most}")


def check_finite(first_step: int, metrics_K: dict[str, np.ndarray]) -> None:
    """Raise NotFinite for the first broken metric of a dispatch, and its step."""
    broken = {name: int(np.argmin(ok)) for name, x in metrics_K.items() if not (ok := np.isfinite(x)).all()}
    if broken:
        metric = min(broken, key=lambda name: (broken[name], name.endswith("norm")))
        raise NotFinite(metric, first_step + broken[metric])


def explained(
    run: Run, mesh: Mesh, checkpoints: Checkpoints, broken: NotFinite, tell: Callable[[str], None]
) -> Diverged:
    """The same with the path of the first tensor that was not finite.

    The state is gone by then, so the run is replayed from its newest checkpoint: a healthy step pays nothing for this.
    All processes of a job call it alike.
    """
    try:
        why = _replay(run, mesh, checkpoints, broken.step, tell)
    except Exception as error:  # what is wrong here must not hide what the run has come to
        why = f"where it began could not be found: {type(error).__name__}: {error}".splitlines()[0]
    return Diverged(f"{broken}; {why}")


def _replay(run: Run, mesh: Mesh, checkpoints: Checkpoints, bad: int, tell: Callable[[str], None]) -> str:
    checkpoints.wait()
    batches = data.train_iterator(run.data, run.batch_size, run.seed, sharding.rows_here(mesh, run.batch_size))
    state, saved = checkpoints.restore(states.abstract(run, mesh), tell) or (states.create(run, mesh), {})
    batches.set_state(saved.get("iterator", batches.get_state()))
    step = int(jax.device_get(state.step))
    while step < bad:
        count = dispatch(run, step)
        batch = put(run, batches.take(count), sharding.of_batch(mesh, 1), run.batch_size)
        if step + count >= bad:
            return blame.first(program(run), state, batch, step)
        state, _ = compiled_steps(program(run), mesh, count)(state, batch)
        step += count
    return "its newest checkpoint is from after that"


def evaluate(run: Run, state: State, mesh: Mesh) -> float:
    """Held-out loss in the family's unit, over the same examples each time."""
    evaluate_batch = _evaluation(program(run))
    total = weight = 0.0
    for i, batch in enumerate(data.eval_batches(run.data, run.eval_batch, run.eval_examples)):
        index = jax.device_put(np.int32(i), sharding.everywhere(mesh))
        sums = evaluate_batch(state, put(run, batch, sharding.of_batch(mesh)), index)
        t, w = jax.device_get(sums)
        total, weight = total + float(t), weight + float(w)
    return total / weight


def result(run: Run, loss: float, wall_s: float, begun: int) -> Result:
    """Of a run that was trained from step `begun` to its end. Raises Diverged if its held-out loss is not finite."""
    if not math.isfinite(loss):
        raise Diverged(f"held-out loss is {loss}")
    rate = run.tokens_per_step * (run.steps - begun) / wall_s
    return Result(loss, families.get(run.family).UNIT, run.tokens, wall_s, rate)


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
    branches: Sequence[forks.Branch] = (),
    patience_s: float = math.inf,
) -> Result:
    """Train `run` in `workdir`, going on from its newest sound checkpoint, and evaluate it.

    In a job of several processes each calls this alike, and only process 0 writes the metrics.

    observe: called about once a dispatch; may raise Ended. may_write: called before anything is written; raises if
    another process has taken the run over. should_stop: asked once a dispatch; True, in any process, saves and raises
    Stopped in all. tell: gets one-line messages. branches: shorter runs that get their start from this one.
    patience_s: the process ends (`watchdog.py`) if one dispatch takes longer. Raises Ended, Stopped, ConfigError and
    what may_write raises.
    """
    mesh = sharding.make_mesh(run.mesh)
    check(run, mesh)
    with on_mesh(mesh), Checkpoints(workdir / "checkpoints") as checkpoints:
        batches = data.train_iterator(run.data, run.batch_size, run.seed, sharding.rows_here(mesh, run.batch_size))
        rows = together.from_first(logs.rows(workdir))
        restored = checkpoints.restore(states.abstract(run, mesh), tell, rows)
        state, saved = restored or (states.create(run, mesh), {"wall_s": 0.0, "iterator": batches.get_state()})
        batches.set_state(saved["iterator"])
        step = int(jax.device_get(state.step))
        leaving = forks.leaving(branches, run, step)
        main_objective = families.get(run.family).objectives(run.model)[0].name
        programs = {n: compiled_steps(program(run), mesh, n) for n in dispatches(run, step)}
        jax.block_until_ready(fingerprint(state))  # compiles it
        may_write()
        begun = spent.go_on(workdir, step) if jax.process_index() == 0 else 0
        log = Log(workdir, step, tensorboard) if jax.process_index() == 0 else None
        votes = Votes(mesh, questions=2)
        start = saved_at = time.monotonic()

        def wall_s() -> float:
            return saved["wall_s"] + time.monotonic() - start

        def save(wait: bool = False) -> None:
            may_write()
            if log:
                log.sync()
            checkpoints.save(step, state, {"iterator": batches.get_state(), "wall_s": wall_s()}, wait)

        def write(first_step: int, metrics: dict[str, Array]) -> None:
            metrics_K = jax.device_get(metrics)
            if log:
                log.write(first_step, run.tokens_per_step, metrics_K)
            check_finite(first_step, metrics_K)
            loss = float(metrics_K[main_objective].mean())
            observe(Progress(step, run.steps, loss, run.tokens_per_step * (step - begun) / max(wall_s(), 1e-9)))

        @contextlib.contextmanager
        def explaining() -> Iterator[None]:
            try:
                yield
            except NotFinite as broken:
                jax.tree.map(lambda x: x.delete(), state)  # there may be no room for a second one
                raise explained(run, mesh, checkpoints, broken, tell) from None

        writing = contextlib.closing(log) if log else contextlib.nullcontext()
        with explaining(), writing, Watchdog(patience_s) as watchdog:
            pending: list[Any] = []  # the metrics of the dispatch before, read while this one runs
            while step < run.steps:
                if step in leaving:
                    if pending:
                        write(*pending)
                        pending = []
                    may_write()
                    for branch in leaving[step]:
                        branch.ready(forks.seed(branch, workdir, step, state, batches.get_state()))
                count = dispatch(run, step)
                batch = put(run, batches.take(count), sharding.of_batch(mesh, 1), run.batch_size)
                state, metrics = programs[count](state, batch)
                if pending:
                    write(*pending)
                pending = [step + 1, metrics]
                step += count
                watchdog.pat()
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
    return result(run, loss, trained_s, begun)
