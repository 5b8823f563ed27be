"""Strict JAX for every test: 8 emulated CPU devices, no implicit transfers, no silent rank promotion.

Programs are compiled with few optimisations of their machine code, for most tests compile far longer than they run.
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # read by the processes that tests start, too

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
# Grain's workers read absl flags, which nothing parses under pytest.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def no_implicit_transfers():
    with jax.transfer_guard("disallow"):
        yield
