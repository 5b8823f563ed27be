"""What the compiled step sends between devices: what theory asks, and nothing else; and a table of it for every family.

The table (communication.json) is of XLA's CPU backend in the release of jax that it names.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import pytest
from short_runs import short_run

from deeplearn import families, sharding
from deeplearn.config import ConfigError
from deeplearn.families import counting
from deeplearn.preflight.collectives import by_kind_and_axes, collectives
from deeplearn.train import loop

GOLDEN = Path(__file__).parent / "communication.json"
MESHES = ("data:8", "fsdp:8", "data:2,fsdp:2,tensor:2", "data:2,context:4")
MESSAGE = (
    "a step of {} sends something else than before. If that is meant (another model, rule or release of jax), write "
    "the new table with UPDATE_GOLDEN=1 make test-slow, and say in the commit why it sends more or less."
)


def language_model(**changes):
    run = short_run("transformer")
    return dataclasses.replace(run, model=dataclasses.replace(run.model, heads=4, kv_heads=2, **changes))


@functools.lru_cache
def sent(run, flag):
    """The collectives of one step of a run on a mesh."""
    run = dataclasses.replace(run, mesh=flag)
    mesh = sharding.make_mesh(flag)
    with loop.on_mesh(mesh):
        return collectives(loop.compiled_steps(loop.program(run), mesh, 1).as_text(), mesh.shape)


def total(found, kind, axes):
    return sum(c.count * c.bytes for c in found if c.kind == kind and c.axes == axes)


def parameters_of(run):
    return 4 * counting.parameters(families.get(run.family), run.model).total


def test_data_parallel_sends_the_gradients_once_and_nothing_else():
    run = language_model()
    found = sent(run, "data:8")
    assert {(c.kind, c.axes) for c in found} == {("all-reduce", ("data",))}
    assert total(found, "all-reduce", ("data",)) == pytest.approx(parameters_of(run), rel=0.1)


def test_fsdp_gathers_parameters_and_no_activation():
    run = language_model()
    found = sent(run, "fsdp:8")
    assert {c.axes for c in found} == {("fsdp",)}
    gathered = [c for c in found if c.kind == "all-gather"]
    largest = 4 * run.model.vocab * run.model.width  # the table of embeddings; hidden activations are larger
    assert max(c.bytes for c in gathered) <= largest < 4 * run.tokens_per_step * run.model.width
    # Each parameter comes twice, forward and backward; the table of embeddings only forward.
    assert total(found, "all-gather", ("fsdp",)) == pytest.approx(2 * parameters_of(run) - largest, rel=0.1)
    # This backend has no reduce-scatter: gradients are all-reduced, and each device keeps its part.
    assert total(found, "all-reduce", ("fsdp",)) == pytest.approx(parameters_of(run), rel=0.1)


@pytest.mark.slow
def test_scanned_layers_that_are_computed_again_gather_their_parameters_once_more_and_no_activation():
    run = language_model(scan_layers=True, remat="full")
    found = sent(run, "data:8")
    assert {(c.kind, c.axes) for c in found} == {("all-reduce", ("data",))}
    assert total(found, "all-reduce", ("data",)) == pytest.approx(parameters_of(run), rel=0.1)
    found = sent(run, "fsdp:8")
    assert {(c.kind, c.axes) for c in found} == {("all-reduce", ("fsdp",)), ("all-gather", ("fsdp",))}
    table = 4 * run.model.vocab * run.model.width  # of embeddings, and as large is the head
    assert max(c.bytes for c in found if c.kind == "all-gather") <= table < 4 * run.tokens_per_step * run.model.width
    # Layer by layer, not all of the stack: forward, again, backward. The last matrix is in nothing that comes again.
    layers, last = parameters_of(run) - 2 * table, 4 * run.model.depth * 4 * run.model.width**2
    assert total(found, "all-gather", ("fsdp",)) == pytest.approx(3 * layers - last + 3 * table, rel=0.1)
    assert total(found, "all-reduce", ("fsdp",)) == pytest.approx(parameters_of(run), rel=0.1)


def test_tensor_parallel_sums_activations_twice_a_layer_each_way():
    """Shoeybi et al. 2019 (arXiv 1909.08053), section 3; and once each way around the vocabulary."""
    run = language_model()
    found = sent(run, "tensor:2")
    assert {(c.kind, c.axes) for c in found} == {("all-reduce", ("tensor",))}
    activation = 4 * run.tokens_per_step * run.model.width
    times = total(found, "all-reduce", ("tensor",)) / activation
    assert times == pytest.approx(4 * run.model.depth + 2, rel=0.1)


def test_a_ring_sends_keys_and_values_and_gathers_nothing():
    run = language_model()
    found = sent(run, "context:4")
    assert {c.kind for c in found} == {"collective-permute", "all-reduce"}
    # Of each of K and V a quarter is here. Forward and backward they take 3 steps, their gradients 4.
    keys = 4 * run.tokens_per_step * run.model.kv_heads * (run.model.width // run.model.heads) / 4
    moved = total(found, "collective-permute", ("context",)) / (2 * keys * run.model.depth)
    assert moved == pytest.approx(3 + 3 + 4, abs=1)  # this backend keeps what came first for the backward pass
    assert total(found, "all-reduce", ("context",)) == pytest.approx(parameters_of(run), rel=0.1)


def test_experts_get_their_tokens_by_all_to_all():
    run = language_model(experts=4)
    found = sent(run, "data:4,expert:2")
    crossing = [c for c in found if c.kind == "all-to-all"]
    assert {c.axes for c in crossing} == {("expert",)}
    capacity = -(-1.25 * 2 * run.model.seq_len // 4)
    slots = 4 * run.batch_size / 8 * run.model.experts * capacity * run.model.width
    assert sum(c.count * c.bytes for c in crossing) == pytest.approx(4 * run.model.depth * slots, rel=0.1)


def test_only_sums_of_gradients_cross_slices():
    """Two slices of four devices. A group sums a part of the gradients, and the other groups the rest."""
    run = language_model()
    found = sent(run, "slice:2,fsdp:2,tensor:2")
    crossing = [c for c in found if "slice" in c.axes]
    assert {c.kind for c in crossing} == {"all-reduce"}
    assert all("tensor" not in c.axes for c in crossing)
    assert sum(c.count * c.bytes * 8 / c.group for c in crossing) == pytest.approx(parameters_of(run), rel=0.1)
    assert all(c.axes for c in found)  # what runs along no known axes might cross as well


@pytest.mark.slow
def test_a_pipeline_sends_pieces_of_the_batch_on_and_its_gradients_once():
    """In each tick a piece to the next stage, and one along the line that brings pieces and fetches them; both ways.

    Gradients of a stage meet where the batch is spread, all others where stages share it too. No parameter moves.
    """
    run = language_model(scan_layers=True, depth=4)
    found = sent(run, "data:2,pipeline:4")
    assert {c.kind for c in found} == {"collective-permute", "all-reduce"}
    pieces = 2 * 4  # a device has 2 rows of the batch: as many pieces, times 4 stages
    piece = 4 * run.batch_size / 2 / pieces * run.model.seq_len * run.model.width
    ticks = pieces + 4 - 1
    assert total(found, "collective-permute", ("pipeline",)) == pytest.approx(2 * (2 * ticks + 1) * piece, rel=0.1)
    outside = 4 * (2 * run.model.vocab + 1) * run.model.width
    stage = (parameters_of(run) - outside) / 4
    assert total(found, "all-reduce", ("data",)) == pytest.approx(stage, rel=0.1)
    assert total(found, "all-reduce", ("data", "pipeline")) == pytest.approx(outside, rel=0.1)
    assert sum(c.sent for c in found if c.kind == "all-reduce" and c.axes == ("pipeline",)) < 0.1 * piece


@pytest.mark.slow
@pytest.mark.parametrize("family", families.names())
def test_every_family_sends_what_the_table_says(family):
    run = short_run(family)
    found = {}
    for flag in MESHES:
        try:
            loop.check(dataclasses.replace(run, mesh=flag), sharding.make_mesh(flag))
        except ConfigError:  # a sequence that it cannot spread
            continue
        rows = by_kind_and_axes(sent(run, flag))
        found[flag] = {f"{kind} {'+'.join(axes)}": row["bytes"] for (kind, axes), row in sorted(rows.items())}
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    release = jax.__version__.rpartition(".")[0]
    if os.environ.get("UPDATE_GOLDEN"):
        golden |= {"jax": release, family: found}
        GOLDEN.write_text(json.dumps(golden, indent=2, sort_keys=True) + "\n")
    if golden.get("jax") != release:
        pytest.skip(f"the table is of jax {golden.get('jax')}")
    assert {flag: pytest.approx(row, rel=0.1) for flag, row in golden.get(family, {}).items()} == found, MESSAGE.format(
        family
    )
