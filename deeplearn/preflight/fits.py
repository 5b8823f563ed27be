"""The nearest change that would make a run fit: recomputation, smaller microbatches, or another mesh."""

import functools
import itertools
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from deeplearn import families, sharding
from deeplearn.config import ConfigError, overlay
from deeplearn.families.family import Objective
from deeplearn.layers.remat import POLICIES
from deeplearn.preflight.compiled import shard_bytes
from deeplearn.train import loop, state as states
from deeplearn.train.precision import cast
from deeplearn.train.run import Run

LIMIT = 0.95  # of the memory: the estimate must leave this much room for what it does not know


class Change(NamedTuple):
    """overrides: what to set, by dotted name. run: with them. estimate: bytes on one device."""

    overrides: dict[str, str]
    run: Run
    estimate: int


def estimate(run: Run, mesh: Mesh) -> int:
    """Bytes on one device without compiling: state, gradients, and what the backward pass keeps of each example.

    What is kept are the residuals of `jax.vjp` on shapes alone, so recomputation counts as it is. Workspace and
    activations that a mesh spreads beyond the batch are not modelled.
    """
    state = states.abstract(run, mesh)
    gradients = shard_bytes(state.params) * (2 if run.microbatches > 1 else 1)
    local = sharding.of_batch(mesh).shard_shape((run.batch_size // run.microbatches,))[0]
    return int(shard_bytes(state) + gradients + _kept_per_example(run.family, run.model, run.precision, mesh) * local)


def changes(run: Run, devices: list[Any], room: int, miss: float, slices: int = 1) -> list[Change]:
    """Changes whose estimate fits: fewest changes first, then the least recomputation, then the smallest estimate.

    Args:
      run: what does not fit. devices: of the machine, all of which its mesh uses; slices: how many these are in.
      room: bytes of one device.
      miss: what the compiler's bytes are over the estimate, for the run as it is.
    """
    found = []
    for overrides in _candidates(run, len(devices), slices):
        try:
            changed = overlay(run, overrides)
            needed = int(miss * estimate(changed, sharding.make_mesh(changed.mesh, devices)))
        except (ConfigError, ValueError):  # a batch or an axis that does not divide
            continue
        if needed < LIMIT * room:
            found.append(Change(overrides, changed, needed))
    return sorted(found, key=lambda c: (len(c.overrides), _policy(c.run), c.estimate))


def _policy(run: Run) -> int:
    """How much the run computes again: its place among POLICIES, the last where the model knows of none."""
    return POLICIES.index(getattr(run.model, "remat", POLICIES[-1]))


def remats(model: Any) -> tuple[str, ...]:
    """What `model.remat` may be, least recomputation first; () if the model knows no recomputation."""
    return POLICIES if hasattr(model, "remat") else ()


def _candidates(run: Run, devices: int, slices: int) -> Iterator[dict[str, str]]:
    """Every combination of one mesh, one number of microbatches, and one policy that keeps less than the run's own."""
    meshes = [None, *(flag for flag in sharding.single_axis(devices, slices) if flag != run.mesh)]
    more = [run.microbatches * 2**n for n in range(1, 11)]
    pieces = [None, *(str(n) for n in more if run.batch_size % n == 0)]
    policies = [None, *remats(run.model)[_policy(run) + 1 :]]
    for mesh, piece, policy in itertools.product(meshes, pieces, policies):
        overrides = {"mesh": mesh, "microbatches": piece, "model.remat": policy}
        overrides = {name: value for name, value in overrides.items() if value is not None}
        if overrides:
            yield overrides


@functools.lru_cache(maxsize=64)
def _kept_per_example(name: str, model: Any, precision: str, mesh: Mesh) -> float:
    """Bytes that the backward pass keeps of one more example: what grows with the batch, so no parameters."""
    family = families.get(name)
    with loop.on_mesh(mesh):
        few, many = (
            sum(
                math.prod(x.shape) * x.dtype.itemsize
                for objective in family.objectives(model)
                for x in residuals(family, objective, model, precision, n * mesh.size)
            )
            for n in (1, 2)
        )
    return (many - few) / mesh.size


def residuals(family: ModuleType, objective: Objective, model: Any, precision: str, examples: int) -> list[Any]:
    """Shapes of what `jax.vjp` keeps of one objective for so many examples, on all devices together."""
    batch = {k: jax.ShapeDtypeStruct((examples, *s.shape), s.dtype) for k, s in family.example(model).items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda k, b: sharding.unbox(family.init(model, k, b)), key, batch)

    def kept(variables, batch, key):
        rest = {name: value for name, value in variables.items() if name != "params"}

        def loss(params):
            return objective.loss({"params": cast(params, precision), **rest}, cast(batch, precision), key, True)[0]

        return jax.vjp(loss, variables["params"])[1]

    return jax.tree.leaves(jax.eval_shape(kept, variables, batch, key))
