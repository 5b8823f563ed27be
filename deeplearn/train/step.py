"""One update, for any family: for each objective a gradient, a direction and a step; nothing here knows a family."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import Array, numpy as jnp

from deeplearn import families, optim
from deeplearn.families.family import Objective
from deeplearn.train.precision import cast
from deeplearn.train.run import Run
from deeplearn.train.state import State, recipe, root_key, trained_by

Metrics = dict[str, Array]


def _cut(batch: dict[str, Array], pieces: int) -> dict[str, Array]:
    """[B, ...] -> [pieces, B / pieces, ...]; piece i takes rows i, i + pieces, ... so that no row leaves its device."""
    return {k: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1) for k, x in batch.items()}


def _gradient(run: Run, objective: Objective, state: State, batch: Any, key: Array) -> tuple[Any, Metrics, Any]:
    """Mean gradient over the microbatches, mean metrics, and the collections after the last of them."""

    def loss(trained, collections, piece, piece_key):
        params = cast({**state.params, **trained}, run.precision)
        value, aux = objective.loss({"params": params, **collections}, cast(piece, run.precision), piece_key, True)
        return value, ({objective.name: value, **aux.metrics}, {**collections, **aux.state})

    gradient = jax.grad(loss, has_aux=True)
    trained = trained_by(objective, state.params)
    if run.microbatches == 1:
        grads, (metrics, collections) = gradient(trained, state.collections, batch, key)
        return grads, metrics, collections

    def accumulate(carry, x):
        total, collections = carry
        piece, i = x
        grads, (metrics, collections) = gradient(trained, collections, piece, jax.random.fold_in(key, i))
        return (jax.tree.map(jnp.add, total, grads), collections), metrics

    zeros = jax.tree.map(jnp.zeros_like, trained)
    pieces = (_cut(batch, run.microbatches), jnp.arange(run.microbatches))
    (total, collections), metrics = jax.lax.scan(accumulate, (zeros, state.collections), pieces)
    mean = jax.tree.map(lambda g: g / run.microbatches, total)
    return mean, {k: jnp.mean(v) for k, v in metrics.items()}, collections


def make_step(
    run: Run, see: Callable[[str, Any], None] = lambda objective, grads: None
) -> Callable[[State, dict[str, Array]], tuple[State, Metrics]]:
    """(state, batch) -> (state after one update, metrics of this update). Pure; the caller compiles it.

    see: gets each objective's gradients as the update is traced.
    """
    objectives = families.get(run.family).objectives(run.model)

    def step(state: State, batch: dict[str, Array]) -> tuple[State, Metrics]:
        key = jax.random.fold_in(root_key(state.hyper), state.step)
        rate = optim.learning_rate(run.optim, state.hyper, state.step)
        metrics: Metrics = {"learning_rate": rate}
        for i, objective in enumerate(objectives):
            grads, found, collections = _gradient(run, objective, state, batch, jax.random.fold_in(key, i))
            see(objective.name, grads)
            trained = trained_by(objective, state.params)
            updates, opt = recipe(run, objective, state.hyper).update(grads, state.opt[objective.name], trained)
            trained = jax.tree.map(lambda p, u: p - rate * u, trained, updates)
            metrics |= found | {f"{objective.name}/gradient_norm": optax.tree.norm(grads)}
            state = state._replace(
                params={**state.params, **trained},
                collections=collections,
                opt={**state.opt, objective.name: opt},
            )
        return state._replace(step=state.step + 1), metrics

    return step


def make_steps(run: Run) -> Callable[[State, dict[str, Array]], tuple[State, Metrics]]:
    """(state, batches with a leading axis of K steps) -> (state after K updates, metrics with a leading axis K)."""
    step = make_step(run)

    def steps(state: State, batches: dict[str, Array]) -> tuple[State, Metrics]:
        return jax.lax.scan(step, state, batches)

    return steps
