"""Grain pipelines that are pure: a batch depends on (seed, step, example index) and on nothing else.

All training examples are shuffled anew in every epoch, and the epochs follow each other as one endless sequence of
examples. Step t takes the examples [t * batch_size, (t + 1) * batch_size) of it, whoever asks and whenever; each of
several processes reads those of them that it wants. The position is one number, so resuming costs nothing.
"""

import functools
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from deeplearn.config import ConfigError
from deeplearn.data import arrays

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Data:
    """Which data, and how it is cut into examples.

    name: "shakespeare", "mnist_digits" or any TFDS name that has text, or images with labels.
    seq_len: for text the number of targets in an example (bytes); 0 for images.
    """

    name: str
    seq_len: int = 0


class Windows:
    """Text cut into windows of seq_len + 1 bytes that advance by seq_len, so that every byte is a target once.

    A window never leaves its record: what remains of a record, less than a window, is left out.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray, seq_len: int):
        begins = [0, *ends[:-1]]
        self._starts = np.concatenate([np.arange(b, e - seq_len, seq_len) for b, e in zip(begins, ends, strict=True)])
        # A view without copies: row i is text[i : i + seq_len + 1].
        self._views = sliding_window_view(text, seq_len + 1) if len(self._starts) else None

    def __len__(self) -> int:
        return len(self._starts)

    def take(self, indices: np.ndarray) -> Batch:
        """{"tokens": int32 [*indices.shape, seq_len + 1]}."""
        return {"tokens": self._views[self._starts[indices]].astype(np.int32)}


class Pictures:
    """Labelled images with intensities in [-1, 1]."""

    def __init__(self, image: np.ndarray, label: np.ndarray):
        self._image, self._label = image, label

    def __len__(self) -> int:
        return len(self._label)

    def take(self, indices: np.ndarray) -> Batch:
        """{"image": float32 [*indices.shape, H, W, C], "label": int32 [*indices.shape]}."""
        image = self._image[indices].astype(np.float32)
        image /= 127.5
        image -= 1
        return {"image": image, "label": self._label[indices]}


class TrainIterator(grain.DatasetIterator):
    """The training batches of one process, without end. `get_state` is {"step": batches given out}, plain JSON."""

    def __init__(self, examples: Windows | Pictures, batch_size: int, seed: int, rows: np.ndarray):
        super().__init__()
        self._examples, self._batch_size, self._seed, self._rows = examples, batch_size, seed, rows
        self._step = 0
        self._orders: dict[int, np.ndarray] = {}

    def __next__(self) -> Batch:
        batch = self.at(self._step)
        self._step += 1
        return batch

    def take(self, steps: int) -> Batch:
        """The next `steps` batches stacked, [steps, local_batch, ...]; much cheaper than one by one."""
        batches = self.at(np.arange(self._step, self._step + steps)[:, None])
        self._step += steps
        return batches

    def at(self, step: int | np.ndarray) -> Batch:
        """The batch of any step, wherever the iterator stands. step: a number, or int [steps, 1] for a stack."""
        places = step * self._batch_size + self._rows
        epochs, places = np.divmod(places, len(self._examples))
        first, last = int(epochs.flat[0]), int(epochs.flat[-1])
        indices = self._order(first)[places]
        for epoch in range(first + 1, last + 1):
            indices = np.where(epochs == epoch, self._order(epoch)[places], indices)
        return self._examples.take(indices)

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = int(state["step"])

    def _order(self, epoch: int) -> np.ndarray:
        """The permutation of the examples in one epoch."""
        if epoch not in self._orders:
            # RandomState's stream is frozen for good (NEP 19), Generator's is not.
            random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((self._seed, epoch))))
            kept = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders = kept | {epoch: random.permutation(len(self._examples))}
        return self._orders[epoch]


def train_iterator(data: Data, batch_size: int, seed: int, rows: np.ndarray | None = None) -> TrainIterator:
    """The endless training batches of one process: the global batch is the same for any number of processes.

    It goes on with a new shuffle after `train_examples` examples; a rule against that is the caller's.

    Args:
      batch_size: examples in the global batch.
      rows: which of them this process gets, int [rows]; all if left out.

    Raises ConfigError for wrong data, an empty batch, or a seed below 0.
    """
    if batch_size < 1:
        raise ConfigError(f"a batch of {batch_size} examples holds nothing")
    if seed < 0:
        raise ConfigError(f"the seed is {seed}; it must be at least 0")
    return TrainIterator(_examples(data, "train"), batch_size, seed, np.arange(batch_size) if rows is None else rows)


def eval_batches(data: Data, batch_size: int, examples: int) -> grain.IterDataset:
    """The same `examples` of the held-out split in the same order whenever it is iterated.

    They are spread evenly over the split. The last batch is smaller when batch_size does not divide examples.
    Raises ConfigError when there are fewer.
    """
    held_out = _examples(data, "held_out")
    if not 1 <= examples <= len(held_out):
        raise ConfigError(f"{examples} held-out examples wanted; {data.name!r} has {len(held_out)}")
    indices = np.arange(examples) * len(held_out) // examples
    batches = grain.MapDataset.range(0, examples, batch_size).map(lambda i: held_out.take(indices[i : i + batch_size]))
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def train_examples(data: Data) -> int:
    """How many different training examples there are: one epoch."""
    return len(_examples(data, "train"))


@functools.lru_cache(maxsize=8)
def _examples(data: Data, split: str) -> Windows | Pictures:
    if data.seq_len < 0:
        raise ConfigError(f"data.seq_len is {data.seq_len}; text needs at least 1, images need 0")
    loaded = arrays.load(data.name, split)
    is_text = "text" in loaded
    if is_text != (data.seq_len > 0):
        kind = "text, so data.seq_len must be at least 1" if is_text else "images, so data.seq_len must be 0"
        raise ConfigError(f"data {data.name!r} is {kind}; it is {data.seq_len}")
    examples = Windows(seq_len=data.seq_len, **loaded) if is_text else Pictures(**loaded)
    if not len(examples):
        raise ConfigError(f"no record of {data.name!r} is as long as data.seq_len {data.seq_len} and a byte")
    return examples
