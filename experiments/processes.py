"""Several processes that train one run together: their flags, and how they find each other."""

import socket
import time

from absl import flags

from deeplearn.config import ConfigError

PATIENCE_S = 120  # until a process that does not come is given up

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
            _wait_for(given.coordinator)
        jax.distributed.initialize(*by_hand, initialization_timeout=PATIENCE_S)
    elif given.distributed:
        try:
            jax.distributed.initialize(initialization_timeout=PATIENCE_S)
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


def _wait_for(coordinator: str) -> None:
    """Return once the port is open: JAX itself ends a process that waits in vain without saying for whom."""
    host, _, port = coordinator.rpartition(":")
    until, reason = time.monotonic() + PATIENCE_S, ""
    while time.monotonic() < until:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            reason = str(error)
            time.sleep(0.2)
        else:
            return
    raise Unreachable(f"process 0 does not answer at {coordinator} for {PATIENCE_S} s: {reason}")
