"""Several processes that train one run together: their flags, and how they find each other."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

from absl import flags

from deeplearn.config import ConfigError

PATIENCE_S = 120  # until a process that does not come is given up
LONGER_S = 60  # that JAX waits beyond it: its own patience ends in an abort

flags.disclaim_key_flags()  # they belong to the entry point, so its --help shows them


class Unreachable(RuntimeError):
    """Processes did not find each other: a matter of the machines, not of the configuration."""

    exit_code = 42


def define_flags() -> None:
    """Defines --distributed, --coordinator, --processes and --process as flags of the calling entry point."""
    flags.DEFINE_bool("distributed", False, "One of several processes that Slurm, MPI, GKE or a TPU started together.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, the same for all: processes started by hand.")
    flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator.", 1)
    flags.DEFINE_integer("process", None, "Which of them this is, counted from 0, with --coordinator.", 0)


def join() -> bool:
    """Meet the other processes, if there are any, and say whether this is process 0, which alone prints and writes.

    Call it before JAX looks for devices. Raises ConfigError for flags that do not fit together, Unreachable when
    process 0 does not answer.
    """
    import jax  # slow, and a wrong flag should not wait for it

    given = flags.FLAGS
    by_hand = (given.coordinator, given.processes, given.process)
    if by_hand != (None, None, None):
        _check(*by_hand)
        if given.process > 0:
            _wait_for(given.coordinator, given.process)
        else:
            _gather(given.coordinator, given.processes)
        with _patient():
            jax.distributed.initialize(*by_hand, initialization_timeout=PATIENCE_S + LONGER_S)
    elif given.distributed:
        try:
            with _patient():
                jax.distributed.initialize(initialization_timeout=PATIENCE_S + LONGER_S)
        except ValueError as error:
            how = "pass --coordinator=HOST:PORT --processes=N --process=I"
            raise ConfigError(f"--distributed: JAX knows of no cluster here ({error}); {how}") from None
    return jax.process_index() == 0


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is None or processes is None or process is None:
        raise ConfigError("--coordinator, --processes and --process go together")
    if process >= processes:
        raise ConfigError(f"--process={process} is none of --processes={processes}: they count from 0")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator={coordinator} is no HOST:PORT, for example 10.0.0.1:8476")


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Ends this process with 42 if the block takes too long: JAX would abort it in C++, for an engine a failure."""

    def give_up() -> None:
        print(f"the other processes did not come within {PATIENCE_S} s", file=sys.stderr, flush=True)
        os._exit(Unreachable.exit_code)

    timer = threading.Timer(PATIENCE_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _gather(coordinator: str, processes: int) -> None:
    """Process 0 waits on JAX's port until every other process has given its number, and lets them all go on.

    Raises Unreachable that names those which do not come.
    """
    port, until = int(coordinator.rpartition(":")[2]), time.monotonic() + PATIENCE_S
    both = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    missing, here = set(range(1, processes)), []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port), backlog=processes, **both))
        while missing:
            server.settimeout(max(until - time.monotonic(), 0.001))
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)
                missing.discard(int.from_bytes(connection.recv(4)))
                here.append(connection)
            except TimeoutError:
                if time.monotonic() > until:
                    who = ", ".join(map(str, sorted(missing)))
                    text = f"process {who} of {processes} did not come to {coordinator} within {PATIENCE_S} s"
                    raise Unreachable(text) from None
            except OSError:  # somebody who only looked whether the port is open
                continue
        for connection in here:
            with contextlib.suppress(OSError):
                connection.sendall(b"go")
                connection.recv(1)  # who closes first keeps the port from being used at once: let it be the other


def _wait_for(coordinator: str, process: int) -> None:
    """Give process 0 this one's number, and return once all have come. Raises Unreachable."""
    host, _, port = coordinator.rpartition(":")
    until, reason = time.monotonic() + PATIENCE_S, ""
    while time.monotonic() < until:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
                connection.sendall(process.to_bytes(4))
                connection.settimeout(max(until - time.monotonic(), 0.001) + 1)
                if connection.recv(2):
                    return
                reason = "others are missing"
        except OSError as error:
            reason = str(error)
        time.sleep(0.2)
    raise Unreachable(f"process 0 does not answer at {coordinator} for {PATIENCE_S} s: {reason}")
