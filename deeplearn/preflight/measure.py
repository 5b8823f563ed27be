"""This machine's CPU as a row of the table of chips: rates that were measured, not read."""

import datetime
import os
import platform
import time
from pathlib import Path

import jax
from jax import numpy as jnp

_SIZE = 1024  # of the square matrices, which with their product are in no cache
_COPIED = 2**28  # bytes of the array that is copied
_REPEATS = 7


def write(path: Path) -> str:
    """Write a table with the one chip "cpu", and return a sentence about it. Takes some seconds."""
    peak, bandwidth = matmul_flops(), copy_bandwidth()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    url, today = (
        f"measured on {platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        datetime.date.today(),
    )
    path.write_text(
        f'[sources]\nhere = {{ url = "{url}", date = "{today.isoformat()}" }}\n\n[chips.cpu]\ntitle = "this CPU"\n'
        + "".join(
            f'{name} = {{ value = {value:.6g}, source = "here" }}\n'
            for name, value in (("peak", peak), ("hbm", memory), ("bandwidth", bandwidth))
        )
    )
    rates = f"{peak / 1e9:.0f} GFLOP/s of float32 products, {bandwidth / 1e9:.1f} GB/s of copies"
    return f"{path}: {rates}, {memory / 1e9:.1f} GB"


def matmul_flops() -> float:
    """FLOP/s of a chain of float32 matrix products inside one program, the best of several runs."""
    x = jax.random.normal(jax.random.key(0), (_SIZE, _SIZE)) / _SIZE
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, 4, lambda _, y: y @ x, x))
    return 4 * 2.0 * _SIZE**3 / _best(chain, x)


def copy_bandwidth() -> float:
    """Bytes/s read and written together by additions to a large array in place, the best of several runs."""
    x = jnp.zeros(_COPIED // 4, jnp.float32)
    passes = jax.jit(lambda x: jax.lax.fori_loop(0, 4, lambda _, y: y + 1.0, x))
    return 4 * 2.0 * _COPIED / _best(passes, x)


def _best(function, x) -> float:
    times = []
    function(x).block_until_ready()
    for _ in range(_REPEATS):
        start = time.perf_counter()
        function(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)
