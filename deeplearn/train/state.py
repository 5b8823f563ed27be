"""What a run carries from step to step."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import optax
from jax import Array, numpy as jnp
from jax.sharding import Mesh

from deeplearn import families, optim, sharding
from deeplearn.families.family import Objective
from deeplearn.optim import Hyper
from deeplearn.train import transfer
from deeplearn.train.once import once
from deeplearn.train.run import Run, program


class State(NamedTuple):
    """step: updates done, int32. params: {name: subtree}. collections: state that is not a parameter, {} for most
    families. opt: one optimiser state for each objective. hyper: the run's traced numbers."""

    step: Array
    params: dict[str, Any]
    collections: dict[str, Any]
    opt: dict[str, Any]
    hyper: Hyper


def trained_by(objective: Objective, params: dict[str, Any]) -> dict[str, Any]:
    """The top-level subtrees of the parameters that an objective trains."""
    return {name: params[name] for name in objective.trains or params}


def recipe(run: Run, objective: Objective, hyper: Hyper) -> optax.GradientTransformation:
    """What makes an objective's gradient a direction of descent."""
    rates = transfer.rates(run)
    return optim.direction(run.optim, hyper, rates and trained_by(objective, rates))


def root_key(hyper: Hyper) -> Array:
    """The key that all randomness of a run is folded from; derived, never stored."""
    return jax.random.key(hyper.seed)


def example_batch(family: ModuleType, config: Any, size: int) -> dict[str, Array]:
    """A batch of zeros in the family's shapes."""
    return {k: jnp.zeros((size, *s.shape), s.dtype) for k, s in family.example(config).items()}


def _create(run: Run, hyper: Hyper) -> State:
    family = families.get(run.family)
    key = jax.random.fold_in(root_key(hyper), 2**31 - 1)  # no step has this number
    variables = family.init(run.model, key, example_batch(family, run.model, 1))
    params, collections = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    params = transfer.scale_initial(run, params)
    opt = {o.name: recipe(run, o, hyper).init(trained_by(o, params)) for o in family.objectives(run.model)}
    return State(jnp.zeros((), jnp.int32), params, collections, opt, hyper)


def numbers(run: Run) -> Hyper:
    return optim.hyper(run.optim, run.steps, run.seed)


def boxed(run: Run) -> State:
    """The state as shapes, boxed with logical names."""
    return jax.eval_shape(lambda h: _create(run, h), numbers(run))


def abstract(run: Run, mesh: Mesh) -> State:
    """The state as shapes with shardings: what a checkpoint is restored to, whatever it was saved from.

    Raises ConfigError for a mesh that does not fit the family.
    """
    return _abstract(program(run), mesh)


@once(32)
def _abstract(program: Run, mesh: Mesh) -> State:
    shapes = boxed(program)
    sharding.check(shapes.params, mesh)
    shardings = sharding.of_state(shapes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), sharding.unbox(shapes), shardings
    )


def creation(run: Run) -> Callable[[Hyper], State]:
    """hyper -> a fresh state. Pure; the caller compiles it."""
    return lambda hyper: sharding.unbox(_create(run, hyper))


def create(run: Run, mesh: Mesh) -> State:
    """A fresh state, made in place on the mesh."""
    created, where = _compiled_creation(program(run), mesh)
    return created(jax.device_put(numbers(run), where))


@once(16)
def _compiled_creation(program: Run, mesh: Mesh) -> tuple[Any, Any]:
    """For all runs of one program: it takes longer to compile than a small model's first second of training."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract(program, mesh))
    return jax.jit(creation(program), out_shardings=shardings), shardings.hyper
