"""A process in which nothing moves says where it stands, and ends."""

import subprocess
import sys
from pathlib import Path

import pytest

HANGS = """
import threading, time
from deeplearn.train.watchdog import Watchdog

def waits_for_ever():
    threading.Event().wait()

with Watchdog(60):
    pass
with Watchdog(1.5) as dog:
    for _ in range(20):
        time.sleep(0.1)
        dog.pat()
    print("moved", flush=True)
    waits_for_ever()
"""


@pytest.mark.chaos
def test_a_hang_is_told_and_ends_with_42(record_property):
    words = [sys.executable, "-c", HANGS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 42 and done.stdout == "moved\n"
    assert "no step has ended for 1.5 s" in done.stderr and "in waits_for_ever" in done.stderr
    record_property("fault", "a thread that waits for ever")
    record_property("tries", 1)
