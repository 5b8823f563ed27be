"""Which tensor was the first that is not finite: a dispatch once more, with a look at all that passes."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, numpy as jnp

from deeplearn.train.once import once
from deeplearn.train.run import Run
from deeplearn.train.state import State
from deeplearn.train.step import make_step


class Look(NamedTuple):
    """Of one update, in the order in which it happens: for each tensor whether it is finite."""

    data: Any
    parameter: Any
    collection: Any
    gradient: Any
    moment: Any
    updated: Any


SAID = Look(
    data="{path} of the training data is not finite at step {step}",
    parameter="parameter {path} is not finite before step {step}",
    collection="{path} is not finite before step {step}",
    gradient="gradient of {path} is not finite at step {step}",
    moment="optimiser state {path} is not finite after step {step}",
    updated="parameter {path} is not finite after step {step}",
)


@once(4)
def _looking(program: Run) -> Any:
    """(state, batches of K updates) -> a `Look` of arrays [K]. The state is not donated."""

    def finite(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)

    def step(state: State, batch: dict[str, Array]) -> tuple[State, Look]:
        gradients: dict[str, Any] = {}
        after, _ = make_step(program, gradients.__setitem__)(state, batch)
        told = (batch, state.params, state.collections, gradients, after.opt, after.params)
        return after, Look(*(finite(tree) for tree in told))

    return jax.jit(lambda state, batches: jax.lax.scan(step, state, batches)[1])


def first(program: Run, state: State, batches: dict[str, Array], step: int) -> str:
    """A sentence that names the first tensor which is not finite in the updates after `step`, and the update.

    A gradient is named by its parameter. Where a loss is not finite, all gradients are not, and the first in the order
    of their names stands for them.
    """
    look = jax.device_get(_looking(program)(state, batches))
    count = len(next(iter(batches.values())))
    for k in range(count):
        for said, tree in zip(SAID, look, strict=True):
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            broken = [path for path, ok_K in leaves if not np.asarray(ok_K)[k]]
            if broken:
                path = broken[0][1:] if said is SAID.gradient else broken[0]  # without the objective's name
                many = f" ({len(broken)} of {len(leaves)} are not)" if len(broken) > 1 else ""
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                return said.format(path=name, step=step + k + 1) + many
    return "all tensors were finite when it was done again"
