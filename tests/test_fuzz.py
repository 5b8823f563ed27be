"""Readers given any bytes: a right value or one clear error, never another exception and never an invented result."""

import contextlib
import dataclasses
import gzip
import io
import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from deeplearn import config, laws
from deeplearn.config import ConfigError
from deeplearn.data import sources
from deeplearn.sweep import ledger
from experiments import cli
from launch import submissions
from launch.backend import Unreadable

settings.register_profile("stable", derandomize=True, deadline=None, max_examples=80, database=None)
settings.load_profile("stable")

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["status", "attempt", "cohort", "x"]), inner)
    ),
    max_leaves=6,
)
# Bytes at random, deep nesting, and JSON of any other shape than the one that is wanted.
CONTENTS = (
    st.binary(max_size=60)
    | st.sampled_from([b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xef\xbb\xbf{}", b"1" * 5000, b"\xff\xfe{}"])
    | VALUES.map(lambda value: json.dumps(value).encode())
)
FILES = ("result.json", "error.json", "owner.json", "config.json", "attempts/1.json")


@given(st.dictionaries(st.sampled_from(FILES), CONTENTS), CONTENTS)
def test_a_ledger_of_any_bytes_is_read_without_an_error_and_without_an_invented_result(contents, sweep):
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "units" / "a1"
        (folder / "attempts").mkdir(parents=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        (Path(root) / "sweep.json").write_bytes(sweep)
        found = ledger.results(root)
        assert ledger.status(root, "a1") in ("new", "started", "failed", *ledger.OVER)
        ledger.begun_with(root, "a1")
        if ledger.status(root, "a1") in ledger.OVER or found:
            assert isinstance(json.loads(contents["result.json"]), dict)  # there is a whole one
        else:
            assert ledger.read_json(folder / "result.json") is None
        if "config.json" not in contents or ledger.read_json(folder / "config.json") is None:
            with pytest.raises(ConfigError):
                ledger.config(root, "a1")
        try:
            ledger.create(root, "s", {"a1": {"size": 1}})
        except ConfigError:
            assert ledger.read_json(Path(root) / "sweep.json").get("name") != "s"
        else:
            assert ledger.config(root, "a1") == {"size": 1}


@given(CONTENTS)
def test_a_record_of_a_submission_is_read_or_called_damaged(content):
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "submissions").mkdir()
        (Path(root) / "submissions" / "1.json").write_bytes(content)
        with pytest.raises(Unreadable, match=r"1\.json is damaged"):
            submissions.read(root)


def read(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        path.write_bytes(content)
        return laws.read_csv(path)


CELLS = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from(["", "nan", "inf", "-1", "1e999", "1_000", '"', "0x10", "\x00", "\u0663"]),
).map(str)


@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: b"params,tokens,loss\n1,2,3\n" + tail))
def test_a_table_of_any_bytes_is_read_or_refused(content):
    try:
        found = read(content)
    except laws.TableError as error:
        assert "\n" not in str(error)[:20]
    else:
        assert (found.loss > 0).all()


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4))
def test_what_is_read_of_a_table_is_what_stands_there(rows):
    text = "params,tokens,loss\n" + "".join(",".join(row) + "\n" for row in rows)
    try:
        found = read(text.encode())
    except laws.TableError:
        return
    for i, row in enumerate(rows):
        assert [found.params[i], found.tokens[i], found.loss[i]] == [float(cell) for cell in row]


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    size: int = 1
    name: str = "x"
    tied: bool = True
    inner: Inner = Inner()


KEYS = st.sampled_from([*config.flatten(Outer()), "inner", "inner.", ".", "inner.rate.x"]) | st.text(max_size=8)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["1e400", "nan", "9" * 5000, "none", "0.1,0.2", "1e6", "\u0661", "1_0", "-0.0"]
)


@given(st.lists(st.tuples(KEYS, st.sampled_from(["=", ""]), TEXTS).map("".join), max_size=3))
def test_any_text_of_overrides_gives_a_configuration_or_a_config_error(texts):
    try:
        found = config.overlay(Outer(), cli.parse_overrides(texts))
    except ConfigError:
        return
    again = config.from_dict(Outer, json.loads(config.canonical_json(found)))
    assert again == found and config.identity(again) == config.identity(found)


@given(VALUES)
def test_any_json_as_a_configuration_gives_one_or_a_config_error(value):
    with contextlib.suppress(ConfigError):
        assert config.from_dict(Outer, value) == value


def packed():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 600
        archive.addfile(member, io.BytesIO(bytes(range(200)) * 3))
    return buffer.getvalue()


PACKED = packed()
UNPACKED = gzip.decompress(PACKED)


def flipped(content):
    return st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)).map(
        lambda at: content[: at[0]] + bytes([content[at[0]] ^ at[1]]) + content[at[0] + 1 :]
    )


@given(
    st.binary(max_size=60)
    | flipped(PACKED)
    | flipped(UNPACKED[:1024]).map(lambda head: gzip.compress(head + UNPACKED[1024:]))
    | st.integers(0, len(PACKED)).map(lambda end: PACKED[:end])
)
def test_an_archive_of_any_bytes_is_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar.gz"
        path.write_bytes(content)
        try:
            found = sources.read_members(path, lambda name: True)
        except ConfigError as error:
            assert "is no sound .tar.gz" in str(error)
        else:
            assert all(isinstance(value, bytes) for value in found.values())
        assert [p.name for p in Path(folder).iterdir()] == ["a.tar.gz"]
