"""A cohort: runs that differ only in traced numbers and train as one program, each as it would alone.

The program is the single run's, mapped over a leading axis of members (`jax.vmap`). Each member keeps its own folder
with its own checkpoints and metrics, as if it were alone there.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from deeplearn import data, families, sharding
from deeplearn.config import ConfigError
from deeplearn.train import branches as forks, loop, memory, metrics as records, spent, state as states
from deeplearn.train.checkpoint import Checkpoints, fingerprint
from deeplearn.train.loop import Diverged, Ended, NotFinite, Progress, Result, Stopped
from deeplearn.train.metrics import Log
from deeplearn.train.once import once
from deeplearn.train.run import Run
from deeplearn.train.state import State
from deeplearn.train.step import make_steps

RECOMPILE_S = 20.0  # a smaller program for the members that are left must save this much


class TooWide(RuntimeError):
    """The members do not fit into the device's memory together."""


class Member(NamedTuple):
    """A run of a cohort. observe, may_write: as `loop.train` takes them; observe may raise Ended, which ends this
    member. end: called once, with how it ended. branches: shorter runs that get their start from this one."""

    run: Run
    folder: Path
    observe: Callable[[Progress], None]
    may_write: Callable[[], None]
    end: Callable[[Result | Ended], None]
    branches: Sequence[forks.Branch] = ()


def key(run: Run) -> tuple[Any, ...]:
    """Runs with equal keys may train together."""
    return loop.program(run), run.steps, run.eval_examples, run.max_epochs


def train(members: Sequence[Member], should_stop: Callable[[], bool], tell: Callable[[str], None]) -> None:
    """Train the members to their ends, going on from the newest step that all have a sound checkpoint of.

    A member that diverges ends, and its lane goes on empty until a smaller program for the others pays.
    should_stop: asked once a dispatch; True saves and raises Stopped. tell: gets one-line messages. Also raises
    TooWide, before anything is trained, ConfigError, and what a member's may_write raises.
    """
    if len({key(m.run) for m in members}) > 1:
        raise ConfigError("these runs differ in more than numbers that can be traced")
    while members:
        members = _together(members, should_stop, tell)


@once(16)
def compiled_steps(program: Run, mesh: Mesh, count: int, members: int) -> Any:
    """`loop.compiled_steps` of a cohort; state and batches have a leading axis of members."""
    batches = {
        name: jax.ShapeDtypeStruct((members, count, program.batch_size, *s.shape), s.dtype, sharding=where(mesh))
        for name, s in families.get(program.family).example(program.model).items()
    }
    mapped = jax.vmap(make_steps(program), spmd_axis_name=sharding.members_axis(mesh))
    return jax.jit(mapped, donate_argnums=0).lower(_abstract(program, mesh, members), batches).compile()


@once(16)
def _picking(program: Run, mesh: Mesh) -> Callable[[State, int], State]:
    """(state of all, which) -> the state of one member, as a single run has it."""
    shardings = jax.tree.map(lambda x: x.sharding, states.abstract(program, mesh))

    @functools.partial(jax.jit, out_shardings=shardings)
    def pick(state: State, i: Array) -> State:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), state)

    return lambda state, i: pick(state, jax.device_put(np.int32(i), sharding.everywhere(mesh)))


def where(mesh: Mesh) -> jax.sharding.NamedSharding:
    """Sharding of training batches [members, steps, B, ...]."""
    return sharding.of_members(sharding.of_batch(mesh, leading=1))


def _abstract(program: Run, mesh: Mesh, members: int) -> State:
    def stacked(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((members, *x.shape), x.dtype, sharding=sharding.of_members(x.sharding))

    return jax.tree.map(stacked, states.abstract(program, mesh))


def stacked(program: Run, mesh: Mesh, each: Sequence[State]) -> State:
    """The states of all members as one, from their own."""
    where = jax.tree.map(lambda x: x.sharding, _abstract(program, mesh, len(each)))
    return jax.tree.map(lambda to, *x: jax.device_put(np.stack(jax.device_get(x)), to), where, *each)


def _restore(
    program: Run, mesh: Mesh, stores: Sequence[Checkpoints], rows: int, tell: Callable[[str], None]
) -> tuple[State, list[dict[str, Any]]] | None:
    """States of all members from the newest step that each has a sound checkpoint of, and what lay beside them.

    rows: of the shortest log. If it has lost some, a step from before the loss is taken where there is one.
    """
    abstract = states.abstract(program, mesh)
    common = set.intersection(*(set(store.steps) for store in stores))
    for step in sorted({step for step in common if step <= rows} or common, reverse=True):
        found = [store.restore_at(step, abstract, tell) for store in stores]
        if all(found):
            return stacked(program, mesh, [state for state, _ in found]), [saved for _, saved in found]
    return None


def _together(
    members: Sequence[Member], should_stop: Callable[[], bool], tell: Callable[[str], None]
) -> Sequence[Member]:
    """Train all members in one program. Returns those that are to go on in a smaller one: none if all have ended."""
    run, program, lanes = members[0].run, loop.program(members[0].run), len(members)
    mesh = sharding.mesh_of_members(run.mesh, lanes)
    for member in members:
        loop.check(member.run, mesh, lanes)
    with loop.on_mesh(mesh), contextlib.ExitStack() as stack:
        stores = [stack.enter_context(Checkpoints(m.folder / "checkpoints")) for m in members]
        feeds = [data.train_iterator(run.data, run.batch_size, m.run.seed) for m in members]
        rows = min(records.rows(m.folder) for m in members)
        restored = _restore(program, mesh, stores, rows, tell)
        fresh = [{"wall_s": 0.0, "iterator": feed.get_state()} for feed in feeds]
        state, saved = restored or (stacked(program, mesh, [states.create(m.run, mesh) for m in members]), fresh)
        for feed, kept in zip(feeds, saved, strict=True):
            feed.set_state(kept["iterator"])
        step = int(jax.device_get(state.step)[0])
        programs = {n: compiled_steps(program, mesh, n, lanes) for n in loop.dispatches(run, step)}
        _check_memory(programs.values(), lanes)
        pick = _picking(program, mesh)
        jax.block_until_ready(fingerprint(pick(state, 0)))  # compiles both
        live = dict(enumerate(members))
        leaving = [forks.leaving(m.branches, m.run, step) for m in members]
        for member in members:
            member.may_write()
        begun = [spent.go_on(m.folder, step) for m in members]
        logs = [stack.enter_context(contextlib.closing(Log(m.folder, step))) for m in members]
        main = families.get(run.family).objectives(run.model)[0].name
        start = saved_at = time.monotonic()
        first = step

        def wall_s(i: int) -> float:
            """A member's share of the time: the shares add up to what has passed."""
            return saved[i]["wall_s"] + (time.monotonic() - start) / lanes

        def save(wait: bool = False) -> None:
            for i, member in live.items():
                member.may_write()
                logs[i].sync()
                beside = {"iterator": feeds[i].get_state(), "wall_s": wall_s(i)}
                stores[i].save(step, pick(state, i), beside, wait)

        def write(first_step: int, metrics: dict[str, Array]) -> None:
            metrics_MxK = jax.device_get(metrics)
            for i, member in list(live.items()):
                metrics_K = {name: values[i] for name, values in metrics_MxK.items()}
                logs[i].write(first_step, run.tokens_per_step, metrics_K)
                try:
                    loop.check_finite(first_step, metrics_K)
                    rate = run.tokens_per_step * (step - begun[i]) / max(wall_s(i), 1e-9)
                    member.observe(Progress(step, run.steps, float(metrics_K[main].mean()), rate))
                except Ended as ended:
                    del live[i]
                    found = isinstance(ended, NotFinite)
                    member.end(loop.explained(member.run, mesh, stores[i], ended, tell) if found else ended)

        pending: list[Any] = []  # the metrics of the dispatch before, read while this one runs
        while step < run.steps and live:
            if any(step in leaves for leaves in leaving):
                if pending:
                    write(*pending)
                    pending = []
                for i, member in live.items():
                    member.may_write()
                    for branch in leaving[i].get(step, ()):
                        one = pick(state, i)
                        branch.ready(forks.seed(branch, member.folder, step, one, feeds[i].get_state()))
            count = loop.dispatch(run, step)
            rows = [feed.take(count) for feed in feeds]
            batch = loop.put(run, {name: np.stack([r[name] for r in rows]) for name in rows[0]}, where(mesh))
            state, metrics = programs[count](state, batch)
            if pending:
                write(*pending)
            pending = [step + 1, metrics]
            step += count
            left_s = (time.monotonic() - start) / (step - first) * (run.steps - step)
            smaller = left_s * (lanes - len(live)) / lanes > RECOMPILE_S
            stop, due = should_stop(), time.monotonic() - saved_at > run.checkpoint_seconds
            if stop or due or smaller or step == run.steps:
                write(*pending)
                pending = []
                save(wait=stop or smaller)
                saved_at = time.monotonic()
            if stop and step < run.steps:
                raise Stopped(f"stopped at step {step} of {run.steps}; run it again to go on from there")
            if smaller and step < run.steps:
                tell(f"{len(live)} of {lanes} members go on by themselves")
                return list(live.values())
        trained_s = {i: wall_s(i) for i in live}
        for i, member in live.items():
            # One after another: mapped over the members, with one batch for all, a CPU takes four times as long.
            loss = loop.evaluate(run, pick(state, i), mesh)
            stores[i].wait()
            try:
                member.end(loop.result(run, loss, trained_s[i], begun[i]))
            except Diverged as diverged:
                member.end(diverged)
    return []


def prepare(runs: Sequence[Run]) -> None:
    """Compile what these runs need to train together from the start, or one alone: for a thread beside the training."""
    run, program, lanes = runs[0], loop.program(runs[0]), len(runs)
    mesh = sharding.mesh_of_members(run.mesh, lanes) if lanes > 1 else sharding.make_mesh(run.mesh)
    with loop.on_mesh(mesh):
        for count in sorted(loop.dispatches(run, 0)):
            if lanes > 1:
                compiled_steps(program, mesh, count, lanes)
            else:
                loop.compiled_steps(program, mesh, count)


def _check_memory(programs: Iterable[Any], lanes: int) -> None:
    for program in programs:
        wanted, free = memory.needed(program), memory.free()
        if wanted > free and lanes > 1:
            raise TooWide(
                f"{lanes} members want {wanted / 1e9:.3g} GB of memory together, and {free / 1e9:.3g} are free"
            )
