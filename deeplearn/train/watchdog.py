"""Ends a process in which nothing moves: a peer that hangs, a collective that waits for ever."""

import faulthandler
import math
import os
import sys
import threading
import time

EXIT_CODE = 42  # infrastructure: whoever started the process may start it again


class Watchdog:
    """In its block, writes the stacks of all threads to stderr and ends the process if nobody pats it for so long.

    seconds: of patience; math.inf for a dog that sleeps. Compile before the block begins: it does not know why
    nothing moves.
    """

    def __init__(self, seconds: float):
        self._seconds, self._pats, self._done = seconds, 0, threading.Event()

    def pat(self) -> None:
        """Something has moved."""
        self._pats += 1

    def __enter__(self) -> "Watchdog":
        if self._seconds < math.inf:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        seen, since = self._pats, time.monotonic()
        while not self._done.wait(min(self._seconds / 4, 1.0)):
            if self._pats != seen:
                seen, since = self._pats, time.monotonic()
            elif time.monotonic() - since > self._seconds:
                print(f"no step has ended for {self._seconds:g} s; the stacks of all threads:", file=sys.stderr)
                faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
                sys.stderr.flush()
                os._exit(EXIT_CODE)
