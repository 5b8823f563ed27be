"""A split as arrays in memory, by any TFDS name: our builders from packages, the others over the network.

TFDS is imported only when a split is loaded: workers start faster, and a wrong configuration needs no data to be told.
"""

import contextlib
import functools
import io
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from deeplearn.config import ConfigError, nearest
from deeplearn.data import sources

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

OURS = ("shakespeare", "mnist_digits")
# Any answer from the bucket where TFDS keeps its data sets means that there is a network.
TFDS_BUCKET = "https://storage.googleapis.com/tfds-data"


@functools.lru_cache(maxsize=8)
def load(name: str, split: str) -> dict[str, np.ndarray]:
    """The arrays of a split, read-only. The first call for a name fetches and prepares it.

    Args:
      name: one of OURS, or any TFDS name ("tiny_shakespeare", "cifar10", "name/config:version").
      split: "train" or "held_out"; the latter is TFDS's "test" split, or "validation" where there is none.

    Returns:
      text: {"text": uint8 [bytes], "ends": int64 [examples]}, the examples one after the other and where each ends.
      pictures: {"image": uint8 [N, H, W, C], "label": int32 [N]}.

    Raises ConfigError for an unknown name, no network where it is needed, no such split, or other features than these.
    """
    dataset = prepared(name)
    names = {"train": ("train",), "held_out": ("test", "validation")}[split]
    chosen = next((n for n in names if n in dataset.info.splits), None)
    if chosen is None:
        raise ConfigError(f"data {name!r} has no {' or '.join(names)} split, only {', '.join(dataset.info.splits)}")
    records = dataset.as_data_source(split=chosen)
    features = set(dataset.info.features)
    # In bulk, which is nine times faster than one by one.
    if "text" in features:
        texts = [record["text"] for record in records.__getitems__(range(len(records)))]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return _frozen({"text": np.frombuffer(b"".join(texts), np.uint8), "ends": ends})
    if {"image", "label"} <= features:
        if None in dataset.info.features["image"].shape:
            raise ConfigError(f"data {name!r} has images of different sizes; only one size is supported")
        records = records.__getitems__(range(len(records)))
        image, label = np.stack([r["image"] for r in records]), np.array([r["label"] for r in records], np.int32)
        return _frozen({"image": image, "label": label})
    raise ConfigError(f"data {name!r} has {', '.join(sorted(features))}; it needs 'text', or 'image' and 'label'")


def prepared(name: str) -> "DatasetBuilder":
    """The TFDS builder of `name` with its files on disk: ours in the cache, others where TFDS keeps them.

    Safe when several processes call it at once. Raises ConfigError as `load` does.
    """
    with _quiet():
        dataset = _builder(name)
        if not dataset.is_prepared():
            if name not in OURS and not online():
                raise ConfigError(f"data {name!r} must be downloaded, and there is no network")
            with sources.locked(sources.cache_dir() / "tfds" / dataset.name):
                dataset = _builder(name)  # another process may have prepared it meanwhile
                try:
                    dataset.download_and_prepare()
                except ImportError as error:
                    raise ConfigError(f"TFDS cannot prepare data {name!r} here: {error}") from error
    return dataset


def _builder(name: str) -> "DatasetBuilder":
    import tensorflow_datasets as tfds

    from deeplearn.data import builders  # noqa: F401  registers our names with TFDS

    try:
        folder = sources.cache_dir() / "tfds" if name in OURS else None
        return tfds.builder(name, data_dir=folder, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise ConfigError(f"unknown data {name!r}{nearest(name, OURS)} (or any TFDS name)") from None
    except (ImportError, ValueError) as error:
        # Data already stored in another format ends here too: without TensorFlow, TFDS reads parquet with rows missing.
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"TFDS cannot give data {name!r} in array_record files: {reason}") from error


def online(timeout: float = 5.0) -> bool:
    """Whether the network answers within `timeout` seconds; TFDS itself would retry for minutes."""
    try:
        urllib.request.urlopen(TFDS_BUCKET, timeout=timeout).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's progress bars, prints and notices off the screen: it belongs to the caller."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _frozen(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
