"""Several slices: what may cross the slow network between them, at what rate, and layouts that are refused or named."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from deeplearn import sharding
from deeplearn.config import ConfigError, overlay
from deeplearn.preflight import chips, topology as topologies
from deeplearn.preflight.flight import preflight
from deeplearn.preflight.roofline import bandwidth_of
from deeplearn.preflight.topology import Topology
from experiments import cli

TABLE = chips.load()
tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is an extra")


def a_run(mesh, **changes):
    run = cli.get_run(cli.load_config("transformer"), {"size": "32", "model.depth": "2", "model.scan_layers": "true"})
    return overlay(dataclasses.replace(run, batch_size=16, mesh=mesh), changes)


def emulated():
    """Two switches of four chips."""
    return topologies.machine(Topology(dataclasses.replace(TABLE.chip("h100"), domain=4), (8,)))


def test_an_axis_that_should_not_cross_is_noted():
    assert topologies.crossing(emulated(), sharding.make_mesh("data:2,fsdp:4")) == ("data",)
    assert topologies.crossing(emulated(), sharding.make_mesh("fsdp:4,data:2")) == ("fsdp",)
    wrong = preflight(a_run("fsdp:4,data:2"), emulated(), TABLE.grid, 1e6)
    noted = [note for note in wrong.notes if "crosses the network between slices" in note]
    assert len(noted) == 1 and noted[0].startswith("axis 'fsdp' of size 4")


def test_a_group_with_members_in_each_slice_crosses_at_all_of_them():
    """Ring sums: n rings share what crosses. All-to-all sends from each chip what only it has."""
    members = np.array([[s, i] for s in range(2) for i in range(4)])
    h100 = TABLE.chip("h100")
    assert bandwidth_of(h100, (8,), members, "all-reduce")[0] == 4 * 50e9
    assert bandwidth_of(h100, (8,), members, "all-to-all")[0] == 50e9
    many = np.array([[s, i] for s in range(2) for i in range(16)])
    assert bandwidth_of(h100, (32,), many, "all-gather")[0] == 450e9  # what the chip's own links give


@tpu
def test_slices_of_tpus_are_crossed_by_their_own_axis_alone():
    machine = topologies.machine(topologies.parse("v5p:2x2x1", 2, TABLE))
    for flag in ("", "slice:2,fsdp:2,tensor:2", "slice:2,fsdp:4"):
        assert topologies.crossing(machine, sharding.make_mesh(flag, machine.devices)) == ("slice",)
    for flag in ("fsdp:8", "data:2,fsdp:4", "slice:4,fsdp:2"):
        with pytest.raises(ConfigError, match="number of slices 2; write for example slice:2,fsdp:4"):
            sharding.make_mesh(flag, machine.devices)


@tpu
def test_axes_lie_along_the_torus():
    machine = topologies.machine(topologies.parse("v5p:4x4x4", 1, TABLE))
    mesh = sharding.make_mesh("data:4,fsdp:16", machine.devices)
    spans = [len(set(column)) for column in topologies.group(machine, mesh, ("fsdp",)).T.tolist()]
    assert sorted(spans) == [1, 1, 4, 4]  # a plane, which closes both ways


@tpu
@pytest.mark.slow
def test_the_tpu_compiler_sends_only_gradients_between_slices():
    machine = topologies.machine(topologies.parse("v5p:2x2x1", 2, TABLE))
    run = a_run("slice:2,fsdp:2,tensor:2", precision="bfloat16")
    run = overlay(run, {"model.width": 256, "model.heads": 4, "model.kv_heads": 4})  # less is padded to whole tiles
    flight = preflight(run, machine, TABLE.grid, 1e6)
    assert {axes for _, axes in flight.collectives} == {("slice",), ("fsdp",), ("tensor",)}
    across = {kind: row["bytes"] for (kind, axes), row in flight.collectives.items() if axes == ("slice",)}
    gradients = 2 * flight.parameters.total / 4  # bfloat16, and a quarter on each device
    assert across == {"all-reduce": pytest.approx(gradients, rel=0.1)}
    link = next(link for link in flight.roofline.links if link.axes == ("slice",))
    assert link.over == "the network between slices" and link.bandwidth == pytest.approx(6.25e9)
    assert flight.notes == ("the table has no power of TPU v5p: energy and CO2 are not given",)
