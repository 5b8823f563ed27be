"""The real train step of a run, compiled for a machine that is not here, and the memory that it takes there."""

import math
import re
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from deeplearn import families, sharding
from deeplearn.config import ConfigError
from deeplearn.train import loop, state as states
from deeplearn.train.run import Run
from deeplearn.train.step import make_step

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
    """Bytes on one device. temporaries: activations, gradients and workspace, as the compiler lays them out.

    program: the code itself. other: collections that are not parameters, counters, and results that replace no input.
    """

    parameters: int
    optimiser: int
    other: int
    batch: int
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        return sum(self)


class Compiled(NamedTuple):
    """text: the optimised HLO; "" if the compiler found that the step does not fit, which `refused` then tells.

    seconds: of tracing and lowering, and of compiling.
    """

    memory: Memory
    text: str
    refused: str
    lowering_s: float
    compiling_s: float


def compile_step(run: Run, mesh: Mesh) -> Compiled:
    """Lower and compile one update of `run` on `mesh`, from shapes alone: nothing is allocated or executed.

    Raises ConfigError if the batch does not divide over the mesh.
    """
    started = time.monotonic()
    batch = _batch(run, mesh)
    with loop.on_mesh(mesh):
        state = states.abstract(run, mesh)
        lowered = jax.jit(make_step(run), donate_argnums=0).lower(state, batch)
        lowered_at = time.monotonic()
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed, seconds = _resident(state, batch), (lowered_at - started, time.monotonic() - lowered_at)
            needed = needed._replace(temporaries=temporaries_refused(str(error), needed.total))
            return Compiled(needed, "", str(error).splitlines()[0], *seconds)
    done = time.monotonic()
    memory = _with_analysis(_resident(state, batch), executable.memory_analysis())
    return Compiled(memory, executable.as_text(), "", lowered_at - started, done - lowered_at)


def shard_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _batch(run: Run, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    where = sharding.of_batch(mesh)
    try:
        where.shard_shape((run.batch_size // run.microbatches,))
    except ValueError:
        pieces = f"batch_size {run.batch_size} / microbatches {run.microbatches}"
        raise ConfigError(f"{pieces} does not divide over mesh {dict(mesh.shape)}") from None
    example = families.get(run.family).example(run.model)
    return {k: jax.ShapeDtypeStruct((run.batch_size, *s.shape), s.dtype, sharding=where) for k, s in example.items()}


def temporaries_refused(message: str, resident: int) -> int:
    """Bytes of temporaries in what the TPU compiler says when a program does not fit; 0 if it names no number.

    resident: bytes of state and batch, for the message that tells the whole.
    """
    if alone := re.search(r"temporaries \(([\d.]+)([KMGT]?)\)", message):
        return int(float(alone[1]) * _UNITS[alone[2]])
    if whole := re.search(r"Used ([\d.]+)([KMGT]?) of", message):
        return max(0, int(float(whole[1]) * _UNITS[whole[2]]) - resident)
    return 0


def _resident(state: states.State, batch: Any) -> Memory:
    """What a device holds before the step begins."""
    other = shard_bytes((state.step, state.collections, state.hyper))
    return Memory(shard_bytes(state.params), shard_bytes(state.opt), other, shard_bytes(batch), 0, 0)


def _with_analysis(memory: Memory, analysis: Any) -> Memory:
    results = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    return memory._replace(
        other=memory.other + results,
        temporaries=analysis.temp_size_in_bytes,
        program=analysis.generated_code_size_in_bytes,
    )
