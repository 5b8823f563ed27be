"""A Slurm of two nodes on this machine, without systemd: for the time of some tests, as root."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
NODES = ("dln1", "dln2")

CONF = """
ClusterName=dl
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/s,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
KillWait=3
MessageTimeout=5
JobRequeue=1
MinJobAge=600
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={ports[0]}
NodeName=dln1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=dln2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PreemptMode=REQUEUE
"""


def missing() -> str:
    """Why there can be no cluster here; "" if there can."""
    path = os.environ["PATH"] + ":/usr/sbin"
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=path)]
    if absent:
        return f"Slurm is not installed: no {', '.join(absent)}; apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "a Slurm of its own wants root"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(is_so: Callable[[], object], what: str, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


class Cluster:
    """The daemons by name (munged, slurmctld, dln1, dln2), each a child of this process."""

    def __init__(self, folder: Path):
        self.folder, self.conf = folder, folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen] = {}
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        self.conf.write_text(CONF.format(folder=folder, host=host, ports=free_ports(3)))

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.conf), "PATH": os.environ["PATH"] + ":/usr/sbin"}

    def start(self, name: str) -> None:
        munge = {"key": "key-file", "s": "socket", "pid": "pid-file", "log": "log-file", "seed": "seed-file"}
        words = {
            "munged": ["munged", "-F", *(f"--{flag}={self.folder}/munge/{file}" for file, flag in munge.items())],
            "slurmctld": ["slurmctld", "-D", "-f", str(self.conf)],
        }.get(name, ["slurmd", "-D", "-f", str(self.conf), "-N", name])
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.daemons[name] = subprocess.Popen(words, env=os.environ | self.environment, **quiet)

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(number)
        daemon.wait(timeout=60)

    def ask(self, *words: str) -> str:
        done = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def ready(self) -> None:
        wait_until(lambda: self.ask("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * 2, "two idle nodes", 120)

    def clear(self) -> None:
        """End all jobs."""
        for job in set(self.ask("squeue", "-h", "-o", "%A").split()):
            self.ask("scancel", job)
        wait_until(lambda: not self.ask("squeue", "-h", "-o", "%A").split(), "an empty queue")

    def stop(self) -> None:
        for name in reversed(list(self.daemons)):
            self.end(name, signal.SIGKILL if name in NODES else signal.SIGTERM)
        for pid in self.strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def strays(self) -> list[int]:
        """What daemons that are dead have started and left: whoever has this cluster's file in its environment."""
        mark, found = f"SLURM_CONF={self.conf}".encode(), []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdecimal() and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return [pid for pid in found if pid != os.getpid()]


def name_nodes() -> None:
    """JAX finds its coordinator by the name of the node."""
    hosts = Path("/etc/hosts")
    if not set(NODES) <= set(hosts.read_text().split()):
        with hosts.open("a") as file:
            file.write(f"127.0.0.1 {' '.join(NODES)}\n")


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    name_nodes()
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        os.chmod(folder, 0o711)  # munged wants its socket to be within everyone's reach
        cluster = Cluster(Path(folder))
        try:
            cluster.start("munged")
            wait_until(lambda: (cluster.folder / "munge" / "s").exists(), "munge", 20)
            for daemon in ("slurmctld", *NODES):
                cluster.start(daemon)
            cluster.ready()
            yield cluster
        finally:
            cluster.stop()
