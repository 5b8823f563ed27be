"""What a step would take on a mesh, from theory and without compiling: bytes of a device, bytes that it sends, seconds.

Modelled, from the logical axes of the parameters and the traced loss (`uses.py`):

- a mesh axis that spreads the batch and cuts a parameter (ZeRO-3, Rajbhandari et al. 2019, arXiv 1910.02054): the
  parameter is gathered forward and backward, and its gradient is reduced and scattered, in every microbatch;
- one that spreads the batch or the sequence and does not cut it: its gradient is all-reduced;
- one that cuts a parameter and not the batch (Shoeybi et al. 2019, arXiv 1909.08053): where the cut axis is summed
  over, results are all-reduced forward; where it is not, gradients of the inputs are backward, once for all parameters
  of a module, and nothing runs beside that;
- one that spreads both the batch and experts (GShard, Lepikhin et al. 2020, arXiv 2006.16668): an all-to-all to the
  experts and one back, each way; if no product reads the experts where they lie, they are gathered instead;
- one that spreads the sequence (Liu et al. 2023, arXiv 2310.01889): keys and values go round a ring forward and
  backward, and their gradients with them;
- one that spreads layers: stages of a pipeline send pieces of the batch on, and wait for the first and the last;
- what is computed again sends again what it sent forward;
- memory: the state, gradients, what the backward pass keeps of its examples, two layers' gathered parameters, and the
  gradient of the largest array that is kept;
- main memory: the state is read and written; a parameter is written as the products want it, and read by three of them
  in each microbatch; what the backward pass keeps is written, read by what follows and in the backward pass, and its
  gradient is written and read by two products.

Not modelled: workspace, fusion and layouts of the compiler, padding of what does not divide, and latency. `search.py`
corrects all of that by what the compiler says of the best few.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jax import numpy as jnp
from jax.sharding import Mesh

from deeplearn import families, sharding
from deeplearn.layers.pipeline import bubble, pieces_of
from deeplearn.preflight import roofline as rooflines
from deeplearn.preflight.anatomy import Kept, Leaf, Model, of_model, of_pass
from deeplearn.preflight.collectives import Collective
from deeplearn.preflight.topology import Machine
from deeplearn.preflight.uses import Use
from deeplearn.train.run import Run

KEYS = "kv_heads"  # the logical axis of parameters that make what goes round a ring
LAYERS = "layers"  # that of parameters of layers that are scanned


class Estimate(NamedTuple):
    """bytes: of one device. roofline: as if the collectives were those of a compiled program."""

    bytes: int
    roofline: rooflines.Roofline


def estimate(run: Run, mesh: Mesh, machine: Machine, efficiency: float = 1.0) -> Estimate:
    """Bytes and seconds of one step of `run` on a mesh over the machine's devices."""
    work = of_pass(run)
    total = rooflines.Flops(run.batch_size * work.flops, run.batch_size * work.done, "counted from the traced step")
    busy = 1 - _stages(run, mesh).idle
    found = list(sent(run, mesh))
    line = rooflines.roofline(total, moved(run, mesh) / busy, found, machine, mesh, efficiency * busy)
    return Estimate(held(run, mesh), line)


def cuts(leaf: Leaf, mesh: Mesh) -> dict[str, int]:
    """Mesh axis -> which axis of the parameter it cuts."""
    return _cuts(leaf.names, leaf.shape, mesh)


def held(run: Run, mesh: Mesh) -> int:
    """Bytes of one device."""
    model, work = of_model(run), of_pass(run)
    gradients = sum(4 * _shard(leaf.names, leaf.shape, mesh) for leaf in model.leaves)
    gathered = max(_gathered(run, leaf, mesh) for leaf in model.leaves)
    kept = sum(_local(model, work.kept, mesh))
    largest = max(_local(model, [one._replace(bytes=one.layer) for one in work.kept], mesh), default=0.0)
    pieces = 2 if run.microbatches > 1 else 1  # gradients are then added up
    activations = run.batch_size / run.microbatches * (kept + largest)
    return int(_state(model, mesh) + pieces * gradients + 2 * gathered + activations)


def moved(run: Run, mesh: Mesh) -> float:
    """Bytes that one device reads and writes in its main memory in one step."""
    model, work = of_model(run), of_pass(run)
    weights = run.microbatches * sum(_whole(run, leaf, mesh) for leaf in model.leaves)
    activations = run.batch_size * sum(_local(model, work.everything, mesh))
    return 2 * _state(model, mesh) + 4 * weights + (6 + 2 * work.again) * activations


def sent(run: Run, mesh: Mesh) -> Iterator[Collective]:
    """The collectives of one step."""
    model = of_model(run)
    for leaf in model.leaves:
        yield from _of_parameter(run, leaf, mesh)
    stages = _stages(run, mesh)
    if stages.axes:
        rows = stages.rows / sharding.sequence_places(mesh) * families.get(run.family).tokens_per_example(run.model)
        yield _collective(
            "collective-permute", stages.axes, mesh, rows * (_width(model) or 0) * _itemsize(run.precision), 2
        )
    modules: dict[str, list[Leaf]] = {}
    for leaf in model.leaves:
        modules.setdefault(leaf.module, []).append(leaf)
    for leaves in modules.values():
        yield from _of_activations(run, leaves, mesh)


def _of_parameter(run: Run, leaf: Leaf, mesh: Mesh) -> Iterator[Collective]:
    gathered = _gathers(leaf, mesh)
    batch = (*sharding.batch_axes(mesh), *_sequence(mesh))
    summed = tuple(axis for axis in batch if mesh.shape[axis] > 1 and axis not in cuts(leaf, mesh))
    whole, n = _whole(run, leaf, mesh), run.microbatches
    places = math.prod(mesh.shape[axis] for axis in gathered)
    if gathered:
        looked_up = all(not use.inputs for use in leaf.uses)  # a table is not needed for its own gradient
        yield _collective("all-gather", gathered, mesh, whole, n * (1 if leaf.uses and looked_up else 2))
        yield _collective("reduce-scatter", gathered, mesh, whole, n)
    if summed:
        yield _collective("all-reduce", summed, mesh, whole / places, n)


def _of_activations(run: Run, leaves: list[Leaf], mesh: Mesh) -> Iterator[Collective]:
    """What a module sends of its activations."""
    share = sharding.batch_places(mesh) * sharding.sequence_places(mesh)
    row = run.batch_size / share * _itemsize(run.precision)  # bytes of one element of each row of an example
    forward = 1 + of_pass(run).again
    batch, ring = sharding.batch_axes(mesh), _sequence(mesh)
    backward: dict[tuple[str, float], float] = {}
    crossing: dict[str, list[Use]] = {}
    for leaf in leaves:
        used = {axis: d for axis, d in cuts(leaf, mesh).items() if axis not in _gathers(leaf, mesh)}
        for use in leaf.uses:
            for axis, d in used.items():
                role = _role(leaf, use, d)
                if role == "stack" and axis in batch and sharding.ACTIVATIONS.get(leaf.names[d]) == axis:
                    crossing.setdefault(axis, []).append(use)
                elif role == "in":
                    yield _collective("all-reduce", (axis,), mesh, row * use.rows * use.outputs, forward, False)
                elif role == "out":
                    backward[axis, use.rows] = max(backward.get((axis, use.rows), 0.0), row * use.rows * use.inputs)
            if ring and KEYS in leaf.names:
                n = mesh.shape[ring[0]]
                yield _collective(
                    "collective-permute", ring, mesh, row * use.rows * use.outputs / _places(used, mesh),
                    (n - 1) * forward + (n - 1) + n,
                )  # fmt: skip
    for (axis, _), size in backward.items():
        yield _collective("all-reduce", (axis,), mesh, size, 1, False)
    for axis, found in crossing.items():
        first, *_, last = sorted(found, key=lambda use: use.order)
        size = row * (first.rows * first.inputs + last.rows * last.outputs)
        yield _collective("all-to-all", (axis,), mesh, size, forward + 1, False)


def _collective(
    kind: str, axes: tuple[str, ...], mesh: Mesh, size: float, count: float, asynchronous: bool = True
) -> Collective:
    group = math.prod(mesh.shape[axis] for axis in axes)
    return Collective(kind, axes, group, int(size), count, asynchronous, "theory")


def _role(leaf: Leaf, use: Use, d: int) -> str:
    """What axis d of a parameter is in a product: "stack" (layers, experts), "in" (summed over) or "out"."""
    stacked = math.prod(leaf.shape) // (max(1, use.inputs) * use.outputs)
    if use.inputs == 0:
        return "in" if d < len(leaf.shape) - 1 else "out"
    before = math.prod(leaf.shape[:d])
    if before < stacked:
        return "stack"
    first = next((i for i in range(len(leaf.shape) + 1) if math.prod(leaf.shape[:i]) == stacked * use.inputs), None)
    if first is None:  # used the other way round, as a table of embeddings is at the end
        first = next(i for i in range(len(leaf.shape) + 1) if math.prod(leaf.shape[:i]) >= stacked * use.outputs)
        return "out" if d < first else "in"
    return "in" if d < first else "out"


def _gathers(leaf: Leaf, mesh: Mesh) -> tuple[str, ...]:
    """The axes over which a parameter is gathered: those of the batch, unless products read it as it is cut."""
    return tuple(
        axis for axis, d in cuts(leaf, mesh).items() if axis in sharding.batch_axes(mesh) and not _stacked(leaf, d)
    )


def _stacked(leaf: Leaf, d: int) -> bool:
    """Whether axis d of a parameter counts layers or experts, whose products read it as it is cut."""
    return any(use.inputs and _role(leaf, use, d) == "stack" for use in leaf.uses)


def _whole(run: Run, leaf: Leaf, mesh: Mesh) -> float:
    """Bytes of a parameter as a device uses it: gathered, in the type of the computation."""
    left = {axis: d for axis, d in cuts(leaf, mesh).items() if axis not in _gathers(leaf, mesh)}
    return math.prod(leaf.shape) * _itemsize(run.precision) / _places(left, mesh)


def _gathered(run: Run, leaf: Leaf, mesh: Mesh) -> float:
    """Bytes of one layer of a parameter that are here for a product only."""
    layers = leaf.shape[leaf.names.index(LAYERS)] if LAYERS in leaf.names else 1
    return _whole(run, leaf, mesh) / layers if _gathers(leaf, mesh) else 0.0


def _local(model: Model, kept: Iterable[Kept], mesh: Mesh) -> list[float]:
    """Bytes on one device of what the backward pass keeps of one example of the whole batch.

    An axis that cuts features cuts every array but those as wide as an embedding, which go from layer to layer.
    """
    features = {axis for leaf in model.leaves for axis in cuts(leaf, mesh) if axis not in sharding.batch_axes(mesh)}
    width = _width(model)
    share = sharding.batch_places(mesh) * sharding.sequence_places(mesh)
    return [one.bytes / share / (1 if one.last == width else _places(features, mesh)) for one in kept]


def _width(model: Model) -> int | None:
    """Of what goes from layer to layer: what the first lookup gives."""
    return next((use.outputs for leaf in model.leaves for use in leaf.uses if not use.inputs), None)


class _Stages(NamedTuple):
    """axes: that cut layers. idle: the share of its time in which a stage waits. rows: of the batch it passes on."""

    axes: tuple[str, ...]
    idle: float
    rows: float


def _stages(run: Run, mesh: Mesh) -> _Stages:
    """The schedule of `layers/pipeline.py`: in each of M R + S - 1 ticks a stage sends two pieces, and in S - 1 of them
    it has none to work at."""
    found = {
        axis
        for leaf in of_model(run).leaves
        for axis, d in cuts(leaf, mesh).items()
        if _stacked(leaf, d) and sharding.ACTIVATIONS.get(leaf.names[d]) != axis
    }
    stages = _places(found, mesh)
    here = run.batch_size // run.microbatches // sharding.batch_places(mesh)  # rows of a device outside them
    pieces, rounds = pieces_of(here, stages), getattr(run.model, "rounds", 1)
    ticks = pieces * rounds + stages - 1
    rows = run.microbatches * 2 * ticks * here * stages / pieces if stages > 1 else 0.0
    return _Stages(tuple(found), bubble(stages, rounds, pieces), rows)


def _state(model: Model, mesh: Mesh) -> float:
    return sum(count * size * _shard(names, shape, mesh) for (names, shape, size), count in model.state.items())


def _shard(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> float:
    """Elements on one device."""
    return math.prod(shape) / _places(_cuts(names, shape, mesh), mesh)


def _places(axes: Iterable[str], mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _sequence(mesh: Mesh) -> tuple[str, ...]:
    axis = sharding.ACTIVATIONS["length"]
    return (axis,) if mesh.shape.get(axis, 1) > 1 else ()


def _cuts(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> dict[str, int]:
    found = {}
    for d, axes in enumerate(sharding.spec(names, shape, mesh)):
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            if mesh.shape[axis] > 1:
                found[axis] = d
    return found


def _itemsize(precision: str) -> int:
    return jnp.dtype(precision).itemsize
