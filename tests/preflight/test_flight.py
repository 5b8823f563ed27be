"""Preflights on emulated devices: bytes against what arrays hold, what does not fit, and the command itself."""

import dataclasses
import importlib.util
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from deeplearn import sharding
from deeplearn.config import ConfigError, overlay
from deeplearn.layers.remat import POLICIES
from deeplearn.preflight import chips, fits, hlo, topology as topologies
from deeplearn.preflight.compiled import shard_bytes, temporaries_refused
from deeplearn.preflight.flight import preflight, to_json
from deeplearn.preflight.roofline import flops
from deeplearn.preflight.topology import Topology
from deeplearn.train import state as states
from experiments import cli, preflight_report

TABLE = chips.load()


def a_run(mesh="fsdp:8", **changes):
    run = cli.get_run(cli.load_config("transformer"), {"size": "32", "model.depth": "2", "model.scan_layers": "true"})
    return overlay(dataclasses.replace(run, batch_size=16, mesh=mesh), changes)


def machine(hbm=80e9, chips=8):
    chip = dataclasses.replace(TABLE.chip("h100"), hbm=hbm)
    return topologies.machine(Topology(chip, (chips,)))


@pytest.fixture(scope="module")
def flight():
    """On a mesh that spreads the parameters."""
    return preflight(a_run(), machine(), TABLE.grid, tokens=1e6)


def test_bytes_of_the_state_are_those_of_the_arrays_of_one_device(flight):
    memory = flight.compiled.memory
    state = states.create(flight.run, sharding.make_mesh(flight.run.mesh))
    held = {
        name: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(getattr(state, name)))
        for name in ("params", "opt")
    }
    assert (memory.parameters, memory.optimiser) == (held["params"], held["opt"])
    assert memory.batch == 16 // 8 * (flight.run.model.seq_len + 1) * 4 and memory.total == sum(memory)


def test_a_flight_says_what_theory_says(flight):
    whole = preflight(a_run("data:8"), machine(), TABLE.grid, tokens=1e6)
    assert whole.fits and whole.fix is None and whole.machine.bound
    run, parameters = whole.run, whole.parameters
    assert whole.compiled.memory.parameters == 4 * parameters.total > 4 * flight.compiled.memory.parameters
    assert whole.flops.model == pytest.approx(6 * parameters.total * run.tokens_per_step, rel=0.3)
    gradients = whole.collectives["all-reduce", ("data",)]
    assert gradients["bytes"] == pytest.approx(4 * parameters.total, rel=0.1)
    assert {axes for _, axes in whole.collectives} == {("data",)}
    assert whole.bill.dollars == pytest.approx(whole.bill.hours * 8 * 3.99)
    written = json.loads(json.dumps(to_json(whole), allow_nan=False))
    assert written["memory"]["total"] == whole.compiled.memory.total and written["roofline"]["links"][0]["sent"] > 0


def test_recomputation_is_work_but_not_the_models():
    mesh = sharding.make_mesh("fsdp:8")
    kept, again = (flops(a_run(**{"model.remat": remat}), mesh) for remat in ("none", "full"))
    assert again.model == kept.model == kept.done and again.done > 1.15 * kept.done


def test_a_bubble_is_work_but_not_the_models():
    """Two rows a device: 2 pieces a stage, twice round 4 stages."""
    run = a_run("data:2,pipeline:4", **{"model.depth": 8, "model.rounds": 2})
    work = flops(run, sharding.make_mesh(run.mesh))
    assert work.done / work.model == pytest.approx((2 * 4 * 2 + 3) / (2 * 4 * 2))


def test_the_estimate_follows_the_batch_and_recomputation():
    one, two, again, pieces = (
        fits.estimate(run, sharding.make_mesh(run.mesh))
        for run in (
            a_run(), a_run(batch_size=32), a_run(batch_size=32, **{"model.remat": "full"}),
            a_run(batch_size=32, microbatches=2),
        )
    )  # fmt: skip
    assert two > 1.5 * one and again < 0.6 * two and one < pieces < 1.3 * one


def bytes_by_policy():
    runs = [a_run(batch_size=32, **{"model.remat": policy}) for policy in POLICIES]
    return runs, [fits.estimate(run, sharding.make_mesh(run.mesh)) for run in runs]


def test_policies_keep_less_and_less():
    _, found = bytes_by_policy()
    assert found == sorted(set(found), reverse=True)


@pytest.mark.slow
def test_policies_are_proposed_from_the_least_recomputation_on():
    runs, needed = bytes_by_policy()
    found = fits.changes(runs[1], jax.devices(), int(1.01 / 0.95 * needed[2]), 1.0)
    alone = [change.overrides["model.remat"] for change in found if set(change.overrides) == {"model.remat"}]
    assert alone == ["attention", "full"]


@pytest.mark.slow
def test_the_estimate_of_a_pipeline_has_less_state_and_the_same_activations():
    kept = []
    for flag in ("data:8", "data:2,pipeline:4"):
        run, mesh = a_run(flag, **{"model.depth": 8, "model.rounds": 2}), sharding.make_mesh(flag)
        state = states.abstract(run, mesh)
        kept.append(fits.estimate(run, mesh) - shard_bytes((state, state.params)))
    assert kept[1] == pytest.approx(kept[0], rel=0.1)


@pytest.mark.slow
def test_what_does_not_fit_gets_the_nearest_change_that_does(flight):
    room = 0.8 * flight.compiled.memory.total
    tight = preflight(flight.run, machine(hbm=room), TABLE.grid, 1e6)
    assert not tight.fits and tight.fix.bytes <= room
    assert overlay(tight.run, tight.fix.overrides) != tight.run and len(tight.fix.overrides) == 1
    assert "does not fit" in preflight_report.headline(tight) and "--set " in preflight_report.headline(tight)
    assert fits.changes(flight.run, jax.devices(), 1000, 1.0) == []
    assert "No change" in preflight_report.headline(tight._replace(fix=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "batch_size 12 / microbatches 1 does not divide over mesh {'fsdp': 8}"),
        ({"mesh": "data:4"}, "mesh data:4 has 4 places and the topology 8 devices"),
        ({"mesh": "data:16"}, "mesh 'data:16' needs 16 devices and 8 are here"),
    ],
)
def test_wrong_meshes_are_named(changes, message):
    with pytest.raises(ConfigError) as error:
        preflight(a_run(**changes), machine(), TABLE.grid, 1e6)
    assert message in str(error.value)


def test_the_page_holds_the_numbers_and_the_sources(flight, tmp_path):
    text = preflight_report.publish(tmp_path, flight, TABLE.grid, "the command").read_text()
    assert preflight_report.headline(flight).split(".")[0] in text and "the command" in text
    assert text.count("data:image/png;base64") == 2 and all(s.url in text for s in TABLE.chip("h100").sources.values())


def test_notes_are_printed_as_they_are(flight):
    console = Console(width=200, record=True, file=io.StringIO())
    preflight_report.show(console, flight._replace(notes=("pip install 'deeplearn[preflight]'",)))
    text = console.export_text()
    assert "note: pip install 'deeplearn[preflight]'" in text and preflight_report.headline(flight) in text


@pytest.mark.parametrize(
    ("message", "temporaries"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (45.41G) exceeds "
         "available HBM (15.75G).", 45.41 * 2**30),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.50G of 15.75G hbm.", 25.5 * 2**30 - 1000),
        ("RESOURCE_EXHAUSTED: no more", 0),
    ],
)  # fmt: skip
def test_what_the_tpu_compiler_says_of_a_program_that_does_not_fit(message, temporaries):
    assert temporaries_refused(message, 1000) == int(temporaries)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is an extra")
def test_the_tpu_compiler_compiles_for_chips_that_are_not_here():
    run = a_run(precision="bfloat16")
    there = topologies.machine(topologies.parse("v5p:2x2x2", 1, TABLE))
    assert not there.bound and np.unique(there.places, axis=0).shape == (8, 4)
    flight = preflight(run, there, TABLE.grid, 1e6)
    assert flight.fits and flight.compiled.memory.parameters < 8 * flight.parameters.total
    assert flight.collectives and all(axes == ("fsdp",) for _, axes in flight.collectives)
    assert 0 < flight.roofline.mfu < 1 and not any("turns of loop" in note for note in flight.notes)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is an extra")
def test_a_tpu_runs_its_own_attention_on_a_mesh_of_three_axes():
    """Forward, its recomputation, and two kernels for the gradient; no array of scores in the program."""
    shape = {"model.width": 256, "model.heads": 2, "model.kv_heads": 2, "model.seq_len": 384, "data.seq_len": 384}
    run = a_run("data:2,fsdp:2,tensor:2", precision="bfloat16", **shape, **{"model.remat": "full"})
    there = topologies.machine(topologies.parse("v5p:2x2x2", 1, TABLE))
    flight = preflight(run, there, TABLE.grid, 1e6)
    program = hlo.parse(flight.compiled.text)
    found = [i for c in program.computations.values() for i in c.values()]
    kernels = [i for i in found if 'custom_call_target="tpu_custom_call"' in i.attributes]
    assert len(kernels) == 4
    assert not any(array.shape.count(384) > 1 for i in found for array in i.arrays)
    gathered = [i for i in found if i.opcode.startswith("all-gather")]
    assert gathered and not any(384 in array.shape for i in gathered for array in i.arrays)
    assert flight.flops.how == "counted from the traced step"
