"""How much memory a compiled program takes, and how much there is."""

import os
from typing import Any

import jax


def needed(program: Any) -> int:
    """Bytes on one device while a compiled program runs: arguments, results and temporaries."""
    m = program.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes


def free() -> int:
    """Bytes that a program may take: of the first device here, or of a CPU's memory as this process's cores of all."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * here // (os.cpu_count() or 1)
