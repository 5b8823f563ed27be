"""Theory against the compiler, searches that it confirms, slices of every size, and runs that a law proposes."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest

from deeplearn import laws, sharding
from deeplearn.config import ConfigError, overlay
from deeplearn.families import transformer
from deeplearn.laws import written
from deeplearn.preflight import chips, scaling, search as searches, theory, topology as topologies
from deeplearn.preflight.collectives import by_kind_and_axes
from deeplearn.preflight.flight import preflight
from deeplearn.preflight.topology import Topology
from deeplearn.preflight.uses import uses
from experiments import cli, proposal, search_report

TABLE = chips.load()
SUMS = ("all-reduce", "reduce-scatter")


def a_run(config="transformer", **changes):
    small = {"size": "32", "model.depth": "2", "model.scan_layers": "true", "model.heads": "4", "model.kv_heads": "4"}
    return overlay(cli.get_run(cli.load_config(config), {**small, "batch_size": "16"}), changes)


def machine(hbm=80e9, count=8):
    return topologies.machine(Topology(dataclasses.replace(TABLE.chip("h100"), hbm=hbm), (count,)))


def estimated(flag, run, there):
    run = dataclasses.replace(run, mesh=flag)
    return run, theory.estimate(run, sharding.make_mesh(flag, there.devices), there)


def _sum(table, kinds):
    return sum(total["bytes"] for (kind, _), total in table.items() if kind in kinds)


def test_uses_are_those_of_the_layers():
    model = dataclasses.replace(transformer.config(32), depth=3, heads=2, kv_heads=1, seq_len=16, scan_layers=True)
    found = {(use.rows, use.inputs, use.outputs) for use in uses(transformer, model)}
    layers, width, vocab = 3 * 16, 32, 256
    assert found == {
        (16, 0, width), (16, width, vocab),  # the table and the head
        (layers, width, width), (layers, width, width // 2), (layers, width, 4 * width), (layers, 4 * width, width),
    }  # fmt: skip


def test_meshes_worth_trying_use_all_devices_and_cut_something():
    found = dict(searches.meshes(a_run(), machine()))
    assert {"data:8", "fsdp:8", "data:2,tensor:4", "fsdp:4,context:2"} <= set(found)
    assert all(mesh.size == 8 for mesh in found.values())
    assert not any("expert" in flag for flag in found)  # no expert is there
    assert not any("tensor:8" in flag for flag in found)  # of four heads
    assert any("expert:8" in flag for flag, _ in searches.meshes(a_run("moe"), machine()))
    assert set(dict(searches.meshes(a_run(batch_size=4), machine(), ("fsdp", "tensor")))) == {
        "fsdp:4,tensor:2", "fsdp:2,tensor:4",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no mesh of 8 devices divides batch_size 3"):
        searches.search(a_run(batch_size=3, **{"model.seq_len": 7}), machine(), TABLE.grid, 1e6)


@pytest.mark.slow
def test_theory_says_what_the_compiler_says():
    """Bytes and what is sent within a fifth, and meshes that clearly differ in bytes are in the compiler's order."""
    there, rows = machine(), []
    for flag in ("data:8", "fsdp:8", "data:4,tensor:2", "data:2,tensor:4", "fsdp:2,context:4"):
        run, guess = estimated(flag, a_run(), there)
        flight = preflight(run, there, TABLE.grid, 1e6, mend=False)
        rows.append((guess, flight))
        assert guess.bytes == pytest.approx(flight.compiled.memory.total, rel=0.2), flag
        sent = by_kind_and_axes(list(theory.sent(run, sharding.make_mesh(flag))))
        for kinds in (SUMS, ("all-gather",), ("collective-permute",)):  # this backend has no reduce-scatter
            wanted, found = (_sum(table, kinds) for table in (sent, flight.collectives))
            assert wanted == pytest.approx(found, rel=0.2), (flag, kinds)
    for (guess, flight), (other, confirmed) in itertools.combinations(rows, 2):
        totals = flight.compiled.memory.total, confirmed.compiled.memory.total
        if max(totals) > 1.15 * min(totals):
            assert (totals[0] < totals[1]) == (guess.bytes < other.bytes), (flight.run.mesh, confirmed.run.mesh)


@pytest.mark.slow
def test_experts_cross_as_the_compiler_says():
    run, _ = estimated("data:4,expert:2", a_run("moe"), there := machine())
    sent = by_kind_and_axes(list(theory.sent(run, sharding.make_mesh(run.mesh))))
    flight = preflight(run, there, TABLE.grid, 1e6, mend=False)
    crossing = "all-to-all", ("expert",)
    assert sent[crossing]["bytes"] == pytest.approx(flight.collectives[crossing]["bytes"], rel=0.1)
    dropless, _ = estimated("data:4,expert:2", a_run("moe", **{"model.dispatch": "dropless"}), there)
    assert crossing not in by_kind_and_axes(list(theory.sent(dropless, sharding.make_mesh(run.mesh))))


@pytest.mark.slow
def test_a_search_is_confirmed_and_a_machine_that_is_too_small_is_named():
    run, heard = a_run(**{"model.depth": 1}), []
    found = searches.search(run, machine(), TABLE.grid, 1e6, tell=heard.append)
    first = found.candidates[: searches.BEST]
    assert all(c.flight is not None and c.flight.run == c.run for c in first)
    assert 3 <= len(heard) <= searches.TRIES and heard[0].startswith("compiling 1 of at most 6: mesh=")
    assert found.best is found.candidates[0] and found.best.flight.fits
    steps = [found.step(c) for c in found.candidates]
    assert steps == sorted(steps)
    assert search_report.search_rows(found)[0][-1] == "compiled: fits"
    assert f"mesh={found.best.run.mesh}" in search_report.headline(found)
    written_down = json.loads(json.dumps(search_report.search_json(found), allow_nan=False))
    assert written_down["search"][0]["compiled"]["bytes"] == found.best.flight.compiled.memory.total

    small = searches.search(run, machine(hbm=1e5), TABLE.grid, 1e6)
    assert small.best is None and "none fits: the smallest takes" in search_report.headline(small)
    assert [c.flight is not None for c in small.candidates].count(True) == 1
    with pytest.raises(ConfigError, match="fits no mesh of 8 x NVIDIA H100"):
        proposal.propose(law(), 1.0, sized, machine(hbm=1e5), TABLE.grid)


def test_microbatches_and_recomputation_are_taken_where_they_are_needed():
    run = a_run(batch_size=64)
    one = {c.run.mesh: c for c in searches.candidates(run, machine())}["data:8"]
    tight = machine(hbm=0.4 * one.estimate.bytes)
    two = {c.run.mesh: c for c in searches.candidates(run, tight)}["data:8"]
    assert one.run.microbatches == 1 and one.run.model.remat == run.model.remat
    assert two.run.microbatches > 1 or two.run.model.remat != run.model.remat
    assert two.estimate.bytes <= tight.room < one.estimate.bytes
    assert two.estimate.roofline.step > one.estimate.roofline.step


@pytest.mark.parametrize(
    ("chip", "count", "sizes", "slices"),
    [
        ("v5p", 8, (2, 2, 2), 1), ("v5p", 16, (2, 2, 4), 1), ("v5p", 32, (2, 4, 4), 1), ("v5p", 64, (4, 4, 4), 1),
        ("v5p", 512, (8, 8, 8), 1), ("v5e", 8, (2, 4), 1), ("v5e", 16, (4, 4), 1), ("v5e", 128, (8, 16), 1),
        ("v5e", 256, (16, 16), 1), ("v5e", 512, (16, 16), 2), ("h100", 64, (64,), 1),
    ],
)  # fmt: skip
def test_shapes_of_slices(chip, count, sizes, slices):
    there = scaling.shape(TABLE.chip(chip), count)
    assert (there.sizes, there.slices, there.chips) == (sizes, slices, count)


@pytest.mark.slow
def test_scaling_is_anchored_where_it_is_compiled():
    run = a_run("transformer", mesh="fsdp:8", batch_size=128)
    chip = dataclasses.replace(TABLE.chip("h100"), network=1e9)
    points = scaling.scaling(run, Topology(chip, (8,)), TABLE.grid, 1e6)
    strong, weak = ([p for p in points if p.kind == kind] for kind in scaling.KINDS)
    assert [p.topology.chips for p in strong] == [p.topology.chips for p in weak] == list(scaling.CHIPS)
    assert [p.batch for p in strong[:2]] == [128, 128] and [p.batch for p in weak[:2]] == [128, 256]
    assert [p.compiled for p in weak] == [True] + 6 * [False] and weak[0].efficiency == 1
    assert "no such mesh divides a batch of 128" in strong[-1].note and strong[-1].step is None
    assert weak[0].step == strong[0].step and weak[1].overrides["mesh"] == "fsdp:16"
    # 8 devices are behind one switch: beyond them parameters cross the network, which here is slow.
    assert weak[1].efficiency < 0.5 and strong[1].efficiency < weak[1].efficiency
    rows = search_report.scaling_rows(points, "weak")
    assert rows[0][-1] == "compiled" and rows[1][-1] == "estimated"
    json.dumps(scaling.to_json(points), allow_nan=False)


@functools.cache
def law_json():
    """Of 20 runs that keep L = 1.7 + 400 N^-.34 + 400 D^-.28 but for .1 % of noise."""
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e4, 1e6, 4), np.geomspace(1e5, 1e7, 5)))
    noise = np.exp(1e-3 * np.random.default_rng(0).normal(size=n.shape))
    fit = laws.fit(laws.runs(n, d, (1.7 + 400 * n**-0.34 + 400 * d**-0.28) * noise), replicates=100)
    return json.loads(json.dumps(fit.to_json())) | {"count": "params_no_embed"}


def law():
    return proposal.Law(written.read(law_json()), "params_no_embed", False)


def sized(size):
    run = cli.get_run(cli.load_config("transformer"), {"batch_size": "16"} | ({"size": size} if size else {}))
    return overlay(run, {"model.scan_layers": "true"})


@pytest.mark.slow
def test_a_law_and_a_budget_make_a_run():
    """The machine is slow, so that the sizes are small."""
    chip = dataclasses.replace(TABLE.chip("h100"), peak=1e12, bandwidth=1e12)
    there = topologies.machine(Topology(chip, (1,)))
    few, many = (proposal.propose(law(), hours, sized, there, TABLE.grid) for hours in (0.0003, 0.03))
    assert few.run.size < many.run.size and few.run.budget < many.run.budget and few.loss.value > many.loss.value
    p = many
    flight = p.search.best.flight
    assert p.params == flight.parameters.without_embeddings and p.run.budget % p.run.tokens_per_step == 0
    assert p.bill.chip_hours == pytest.approx(0.03, rel=0.01) and p.bill.dollars == pytest.approx(0.03 * 3.99, rel=0.01)
    by_hand = 1.7 + 400 * p.params**-0.34 + 400 * p.run.budget**-0.28
    assert p.loss.value == pytest.approx(by_hand, rel=0.01) and p.loss.lo < by_hand < p.loss.hi
    ladder = [proposal.counted(sized(size), "params_no_embed") for size in transformer.SIZES]
    assert p.params == min(ladder, key=lambda n: max(n / p.ideal[0], p.ideal[0] / n))
    assert p.ideal[0] * p.ideal[1] * 6 == pytest.approx(0.03 * 3600 * 1e12 * flight.roofline.mfu)
    assert f"{p.run.budget / 1e7:.3g} times the D" in p.notes[0] and "does not carry over" in p.notes[-1]
    assert f"an update takes {p.run.tokens_per_step:.3g} tokens" in p.notes[-2]
    assert f"{p.loss.value:.4f} nats/token (95 % band" in search_report.proposal_headline(p)
    json.dumps(proposal.to_json(p), allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "chinchila"}, "unknown form 'chinchila'; did you mean 'chinchilla'?"),
        ({"params": {}}, "'E' is missing"),
        ({"count": "layers"}, "counts 'layers', and a family counts params or params_no_embed"),
        (None, "No such file"),
        ("{", "cannot read the law"),
    ],
)
def test_a_law_that_cannot_be_used_is_named(tmp_path, changes, message):
    path = tmp_path / "law.json"
    if changes is not None:
        path.write_text(changes if isinstance(changes, str) else json.dumps(law_json() | changes))
    with pytest.raises(ConfigError) as error:
        proposal.read(path)
    assert message in str(error.value) and "law.json" in str(error.value)


def test_a_law_of_an_older_file_has_no_band_and_a_budget_is_one():
    old = written.read({k: v for k, v in law_json().items() if k not in ("draws", "noise", "ranges")})
    assert old.predict(1e6, 1e7).value == law().law.predict(1e6, 1e7).value and not old.predict(1e6, 1e7).lo > 0
    with pytest.raises(ConfigError, match="wants one budget"):
        proposal.chip_hours(None, None, TABLE.chip("v5p"))
    with pytest.raises(ConfigError, match="no price of TPU v4: give the budget as --chip_hours"):
        proposal.chip_hours(1000.0, None, TABLE.chip("v4"))
    assert proposal.chip_hours(420.0, None, TABLE.chip("v5p")) == pytest.approx(100.0)
