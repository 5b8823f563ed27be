"""The table of chips: every number has its source, a user's own table replaces it, and mistakes are named."""

import pytest

from deeplearn.config import ConfigError
from deeplearn.preflight import chips, measure
from deeplearn.preflight.topology import parse

OWN = """[sources]
s = { url = "https://example.org", date = "2026-01-31" }
[chips.mine]
peak = { value = 1e12, source = "s" }
hbm = { value = 1e9, source = "s" }
bandwidth = { value = 1e10, source = "s" }
"""


def test_every_number_of_every_chip_has_a_source_and_a_date():
    table = chips.load()
    assert {"v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200"} == set(table.chips)
    for row in (*table.chips.values(), table.grid):
        numbers = {k for k, v in vars(row).items() if isinstance(v, float)}
        assert numbers == set(row.sources) and len(numbers) >= 2
        assert all(s.url.startswith("https://") and "2020" < s.date < "2027" for s in row.sources.values())


def test_rates_are_of_the_order_that_vendors_print():
    for chip in chips.load().chips.values():
        assert 1e14 < chip.peak < 1e16 and 1e10 < chip.hbm < 1e12 and 1e11 < chip.bandwidth < 1e13, chip.name
        assert 50 < chip.peak / chip.bandwidth < 1000, chip.name  # FLOPs a byte at which memory stops to bound
        assert chip.dimensions in (0, 2, 3) and (chip.dimensions > 0) == chip.title.startswith("TPU")


def test_a_table_of_ones_own(tmp_path):
    (tmp_path / "own.toml").write_text(OWN)
    table = chips.load(tmp_path / "own.toml")
    assert list(table.chips) == ["mine"] and table.chip("mine").peak == 1e12 and table.chip("mine").dollars is None
    assert table.grid == chips.load().grid


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1e12", "-1", "chips.mine.peak wants { value = a positive number"),
        ("1e12", "true", "chips.mine.peak wants"),
        ("bandwidth", "bandwith", "has an unknown number 'bandwith'; did you mean 'bandwidth'?"),
        ("hbm = { value = 1e9, source = \"s\" }", "", "chips.mine has no hbm"),
        ('source = "s"', 'source = "t"', "names no source"),
        ("2026-01-31", "January", "sources.s wants a url and a date as YYYY-MM-DD"),
        ("[chips.mine]", "[chips", "cannot read the table of chips"),
        ("[chips.mine]", "[cips.mine]", "has no [chips.NAME]"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_named(tmp_path, old, new, message):
    assert old in OWN
    (tmp_path / "own.toml").write_text(OWN.replace(old, new))
    with pytest.raises(ConfigError) as error:
        chips.load(tmp_path / "own.toml")
    assert message in str(error.value) and "own.toml" in str(error.value)


def test_topologies():
    table = chips.load()
    v5p, h100 = parse("v5p:4x4x8", 2, table), parse("h100:16", 1, table)
    assert (v5p.chips, v5p.sizes, h100.chips) == (256, (4, 4, 8), 16)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("v5q:4x4x4", "no chip is called 'v5q'; did you mean"),
        ("v5p", "write for example v5p:4x4x4"),
        ("v5e:4x0", "write for example v5e:4x4"),
        ("h100:2x4", "no torus: give a number of chips"),
        ("v5e:4x4x4", "has 3 dimensions, and TPU v5e stands in a torus of 2 dimensions"),
    ],
)
def test_wrong_topologies_are_named(flag, message):
    with pytest.raises(ConfigError) as error:
        parse(flag, 1, chips.load())
    assert message in str(error.value)


@pytest.mark.slow
def test_this_cpu_is_measured_into_a_table(tmp_path):
    import jax

    with jax.transfer_guard("allow"):
        measure.write(tmp_path / "here.toml")
    cpu = chips.load(tmp_path / "here.toml").chip("cpu")
    assert 1e9 < cpu.peak < 1e14 and 1e8 < cpu.bandwidth < 1e13 and cpu.hbm > 1e8
