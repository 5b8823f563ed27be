"""Sweeps on a real Slurm of two nodes, and what happens to them there."""

import csv
import json
import os
import re
import signal
import time

import pytest
import slurm_cluster
from commands import LONG, ROOT, SHORT, Launch, write_config
from slurm_cluster import wait_until

from deeplearn.train import metrics

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module")
def cluster():
    if why := slurm_cluster.missing():
        (pytest.fail if os.environ.get("DEEPLEARN_REQUIRE_SLURM") == "1" else pytest.skip)(why)
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The facts of all units, trained on this machine without Slurm and undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    local = Launch(write_config(folder / "all.py", SHORT + LONG), folder / "root", "--backend=local")
    local("submit", "--max_parallel=2")
    wait_until(local.is_over, "local units")
    return local.facts()


@pytest.fixture
def slurm(cluster, tmp_path):
    """Launch on Slurm: slurm(name, points)."""

    def make(name, points, *flags):
        config = write_config(tmp_path / "sweep.py", points)
        return Launch(config, tmp_path / name, "--backend=slurm", *flags, **cluster.environment)

    yield make
    cluster.clear()


def ended(launch, cluster):
    """Wait for all results, and for Slurm to see the jobs end."""

    def is_over():
        assert not list(launch.root.glob("units/*/error.json")), "a unit has failed"
        return launch.is_over()

    try:
        wait_until(is_over, "results")
    except AssertionError as error:
        queue = cluster.ask("squeue", "--array", "-o", "%i %j %T %r %N")
        raise AssertionError(f"{error}\n{queue}\n{launch.logs()}") from None
    wait_until(lambda: not cluster.ask("squeue", "-h", "-o", "%A").split(), "an empty queue")


def rows(launch):
    return sum(metrics.rows(unit) for unit in launch.units)


def test_a_sweep_under_a_hostile_name_is_trained_once_whatever_is_submitted_again(
    cluster, slurm, whole, record_property
):
    record_property(
        "fault", "submitted twice, while live, and after a crash before the handle was written; hostile root"
    )
    launch = slurm("a 'b' \"c\" $(touch x) `touch y`; touch z & %j", SHORT + LONG)
    assert "to start at" in launch("submit", "--dry_run")
    assert not launch.root.exists()
    launch("submit", "--max_parallel=1")
    assert "5 units have no result" in launch("collect", code=1)
    (record,) = (launch.root / "submissions").glob("*.json")
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"handle": None}))  # as a command leaves it that dies right after sbatch
    assert "units are live" in (said := launch("submit")) and "nothing to send" in said
    assert json.loads(record.read_text()) == told
    assert " live " in launch("status")
    ended(launch, cluster)
    assert "nothing to send" in launch("submit")
    assert launch.attempts() == [1] * 5 and len(list((launch.root / "submissions").iterdir())) == 1
    launch("collect")
    with (launch.root / "runs.csv").open() as file:
        table = {row["id"]: float(row["loss"]) for row in csv.DictReader(file)}
    assert table == {unit: whole[unit][0] for unit in table} and len(table) == 5
    assert launch.facts() == {unit: whole[unit] for unit in table}
    assert not [path for path in (launch.root.parent, *launch.root.parents) if any((path / n).exists() for n in "xyz")]
    assert not any((ROOT / name).exists() for name in "xyz")


def test_without_a_controller_submit_refuses_and_units_go_on(cluster, slurm, whole, record_property):
    record_property("fault", "controller of Slurm killed and restarted in mid-sweep")
    launch = slurm("root", SHORT)
    launch("submit", "--max_parallel=2")
    wait_until(lambda: rows(launch), "a first step")
    cluster.end("slurmctld", signal.SIGKILL)
    said = launch("submit", "--retry_failed", code=1)
    assert said.startswith("Slurm does not answer as it should: squeue said") and said.count("\n") == 1
    cluster.start("slurmctld")
    ended(launch, cluster)
    assert launch.attempts() == [1] * 4
    assert launch.facts() == {unit.name: whole[unit.name] for unit in launch.units}


def test_two_nodes_that_are_requeued_go_on_to_the_same_bits(cluster, slurm, record_property):
    record_property("fault", "job of two nodes requeued")
    flags = ("--nodes=2", "--devices=2")
    calm, disturbed = (slurm(name, LONG, *flags) for name in ("calm", "disturbed"))
    disturbed("submit")
    wait_until(lambda: disturbed.units and rows(disturbed) > 40, "forty steps")
    (job,) = cluster.ask("squeue", "-h", "-o", "%A").split()
    cluster.ask("scontrol", "requeue", job)
    wait_until(lambda: disturbed.attempts() == [2], "a second attempt")
    calm("submit")
    ended(disturbed, cluster)
    ended(calm, cluster)
    assert disturbed.attempts() == [2] and calm.attempts() == [1]
    assert disturbed.facts() == calm.facts()
    second = disturbed.logs().split("attempt 2")[1]
    assert int(re.search(r"step (\d+)/600", second)[1]) > 40, second


def test_an_orphan_of_a_dead_node_is_fenced_out(cluster, slurm, whole, record_property):
    record_property("fault", "kill -9 of slurmd: its orphan is fenced out")
    launch = slurm("root", LONG)
    launch("submit")
    wait_until(lambda: launch.units and rows(launch) > 40, "forty steps")
    (unit,) = launch.units
    orphan = json.loads((unit / "owner.json").read_text())["pid"]
    (node,) = cluster.ask("squeue", "-h", "-o", "%N").split()
    os.kill(orphan, signal.SIGSTOP)  # so that it is still there when its successor comes
    cluster.end(node, signal.SIGKILL)
    wait_until(lambda: (unit / "attempts" / "2.json").exists(), "a second attempt")
    os.kill(orphan, signal.SIGCONT)
    wait_until(lambda: not os.path.exists(f"/proc/{orphan}"), "the end of the orphan")
    wait_until(launch.is_over, "the result")
    assert launch.attempts() == [2]
    assert launch.facts() == {unit.name: whole[unit.name]}
    assert not (unit / "error.json").exists()
    cluster.start(node)
    time.sleep(1)
    cluster.clear()
    cluster.ready()
