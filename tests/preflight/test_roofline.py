"""Roofline and bill of numbers that can be checked by hand, and bytes of memory that theory or XLA tell."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh

from deeplearn import sharding
from deeplearn.preflight import chips, hlo, topology as topologies
from deeplearn.preflight.bill import bill
from deeplearn.preflight.collectives import Collective
from deeplearn.preflight.roofline import Flops, bandwidth_of, roofline
from deeplearn.preflight.topology import Machine, Topology
from deeplearn.preflight.traffic import main_memory_bytes

TABLE = chips.load()


def places(*columns):
    """[members, 1 + dimensions] of one slice, from the places along each dimension."""
    grid = np.meshgrid(*columns, indexing="ij")
    return np.stack([np.zeros(grid[0].size, int), *(column.reshape(-1) for column in grid)], axis=1)


@pytest.mark.parametrize(
    ("members", "links"),
    [
        (places(range(4), [0], [0]), 2),  # a whole dimension is a ring: both directions
        (places(range(2), [0], [0]), 1),  # half of one is a line
        (places(range(4), range(4), [0]), 4),
        (places(range(4), range(4), range(4)), 6),
        (places(range(4), range(2), [0]), 3),
    ],
)
def test_links_of_a_torus(members, links):
    assert bandwidth_of(TABLE.chip("v5p"), (4, 4, 4), members)[0] == links * 100e9


def test_links_of_small_slices_switches_and_networks():
    v5e, h100 = TABLE.chip("v5e"), TABLE.chip("h100")
    assert bandwidth_of(v5e, (4, 4), places(range(4), [0]))[0] == 50e9  # only 16 closes
    assert bandwidth_of(v5e, (16, 16), places(range(16), range(16)))[0] == 4 * 50e9
    assert bandwidth_of(h100, (16,), np.array([[0, 0], [0, 1], [0, 2]]))[0] == 450e9
    assert bandwidth_of(h100, (16,), np.array([[0, 0], [1, 0]])) == (50e9, "the network between slices")
    assert bandwidth_of(TABLE.chip("a100"), (16,), np.array([[0, 0], [1, 0]]))[0] is None


def v5p_cube(bound=""):
    topology = Topology(TABLE.chip("v5p"), (2, 2, 2))
    spots = np.stack(np.unravel_index(np.arange(8), (1, 2, 2, 2)), axis=1)
    return Machine(topology, jax.devices(), spots, bound)


def test_a_step_takes_its_longest_part_and_what_it_waits_for():
    chip, mesh = TABLE.chip("v5p"), sharding.make_mesh("fsdp:8")
    one_second = Collective("all-gather", ("fsdp",), 8, int(300e9 * 8 / 7), 1, True, "")
    work = Flops(8 * chip.peak, 16 * chip.peak, "")
    beside = roofline(work, 0.5 * chip.bandwidth, [one_second], v5p_cube(), mesh)
    assert (beside.compute, beside.memory) == pytest.approx((2.0, 0.5))
    assert beside.links[0].seconds == pytest.approx(1.0)  # three open lines of 100 GB/s
    assert (beside.step, beside.best, beside.mfu) == pytest.approx((2.0, 2.0, 0.5)) and beside.bound == "arithmetic"

    waiting = roofline(work, 0.5 * chip.bandwidth, [one_second._replace(asynchronous=False)], v5p_cube(), mesh)
    assert (waiting.step, waiting.best, waiting.mfu) == pytest.approx((3.0, 2.0, 1 / 3))
    emulated = roofline(work, 0.0, [one_second._replace(asynchronous=False)], v5p_cube("emulated"), mesh)
    assert emulated.step == pytest.approx(2.0)  # its compiler does not tell what could run beside
    halved = roofline(work, 0.5 * chip.bandwidth, [], v5p_cube(), mesh, efficiency=0.5)
    assert halved.step == pytest.approx(4.0)


def test_links_are_those_of_the_axis():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("outer", "inner"), axis_types=(AxisType.Auto,) * 2)
    each = [Collective("collective-permute", axes, 2, 100, 1, True, "") for axes in (("outer",), ("inner",))]
    found = {link.axes: link.bandwidth for link in roofline(Flops(1, 1, ""), 1, each, v5p_cube(), mesh).links}
    assert found == {("outer",): 100e9, ("inner",): 200e9}


def test_a_bill_by_hand():
    v4 = bill(1e9, 1e6, 3.6, Topology(TABLE.chip("v4"), (4, 4, 4)), TABLE.grid)
    assert (v4.steps, v4.hours, v4.chip_hours, v4.dollars) == (1000, 1.0, 64.0, None)
    assert v4.kwh == pytest.approx(64 * 170 * 1.1 / 1000)
    assert v4.kg_co2 == pytest.approx(v4.kwh * 0.481)
    assert v4.missing == ("the table has no price of TPU v4: cost is not given",)
    v5e = bill(1.5e6, 1e6, 1800, Topology(TABLE.chip("v5e"), (16, 16)), TABLE.grid)
    assert (v5e.steps, v5e.dollars, v5e.kwh, v5e.kg_co2) == (2, pytest.approx(256 * 1.2), None, None)


def compiled(f, *shapes):
    executable = jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    return executable, main_memory_bytes(hlo.parse(executable.as_text()))


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (lambda x, y: x @ y, ((256, 128), (128, 512))),
        (lambda x: jnp.sin(x) + jnp.cos(x[:, ::-1]), ((128, 256),)),
        (lambda x, y: jnp.sum(jax.nn.softmax(x @ y) ** 2, axis=0), ((64, 128), (128, 32))),
        (lambda x: jax.lax.dynamic_slice(x, (3, 0), (2, 512))  @ x.T, ((64, 512),)),
    ],
)  # fmt: skip
def test_traffic_is_what_xla_says_where_there_is_no_loop(f, shapes):
    executable, moved = compiled(f, *shapes)
    analysis = executable.cost_analysis()
    assert moved == pytest.approx(analysis["bytes accessed"], rel=0.05)


def test_traffic_counts_each_turn_of_a_loop_and_only_the_slice_that_it_reads():
    turns, n = 16, 256

    def f(w_TxNxN, x_NxN):
        return jax.lax.scan(lambda x, w: (x @ w, None), x_NxN, w_TxNxN)[0]

    executable, moved = compiled(f, (turns, n, n), (n, n))
    least = turns * 3 * 4 * n * n  # x and one w are read and x is written, every turn
    assert least <= moved <= 2.5 * least
    assert executable.cost_analysis()["bytes accessed"] < moved  # which counts the body once


def test_an_update_in_place_writes_only_what_it_changes():
    turns, n = 32, 4096

    def f(x_N):
        return jax.lax.scan(lambda x, i: (x * 1.5, x), x_N, None, length=turns)[1]

    _, moved = compiled(f, (n,))
    assert moved < 10 * turns * 4 * n  # of a result that has turns * n elements, written whole in every turn: 32


def test_emulated_places_are_of_the_torus_or_of_switches():
    torus = topologies._emulated(Topology(TABLE.chip("v5p"), (2, 2)), "why")
    assert torus.places.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0]] and torus.bound == "why"
    switched = topologies._emulated(Topology(TABLE.chip("h100"), (8,)), "")
    assert set(switched.places[:, 0].tolist()) == {0}
