"""Decisions that several processes take alike: when to save, when to stop, whether a checkpoint can be read."""

import functools

import jax
import numpy as np
from jax import Array, numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from deeplearn import sharding


class Votes:
    """Asks all processes of a mesh the same questions, and answers yes where one of them says yes.

    One process is answered at once. Of several, each gets the answer to what it asked before, so that no process
    waits: the count runs on the devices behind the step that they are at.
    """

    def __init__(self, mesh: Mesh, questions: int):
        self._where, self._shape = sharding.one_each(mesh), (mesh.size, questions)
        # Compiled before any step runs: a CPU's threads can all be waiting in its sums when a compiler asks for some.
        self._count = _count(self._where, self._shape) if jax.process_count() > 1 else None
        self._asked: Array | None = None

    def any(self, *mine: bool) -> tuple[bool, ...]:
        """For each question whether one process says yes. All processes must ask equally often."""
        if self._count is None:
            return mine
        row = np.array([mine])
        votes = jax.make_array_from_callback(self._shape, self._where, lambda _: row)
        before, self._asked = self._asked, self._count(votes)
        return (False,) * len(mine) if before is None else tuple(jax.device_get(before).tolist())


@functools.cache
def _count(where: NamedSharding, shape: tuple[int, int]) -> jax.stages.Compiled:
    some = jax.jit(lambda votes: jnp.any(votes, axis=0), out_shardings=sharding.everywhere(where.mesh))
    return some.lower(jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=where)).compile()


def everywhere(mine: bool) -> bool:
    """Whether all processes say yes; waits for them."""
    return bool(np.all(multihost_utils.process_allgather(np.array(mine)))) if jax.process_count() > 1 else mine


def from_first(mine: int) -> int:
    """The number that process 0 gives; waits for all."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(mine))) if jax.process_count() > 1 else mine
