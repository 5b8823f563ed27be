"""A sweep's files in a bucket: the paths of gs://, with fsspec's in-memory file system in place of the network."""

import importlib

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deeplearn import laws
from deeplearn.config import ConfigError
from deeplearn.sweep import ledger, table
from deeplearn.sweep.ledger import Fenced
from deeplearn.train import metrics, spent
from launch import submissions


class Bucket(MemoryFileSystem):
    """Objects by their names alone: no folder is there before something is in it."""

    protocol = ("gs", "gcs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://").removeprefix("gcs://"))


@pytest.fixture
def root(monkeypatch):
    kept = importlib.import_module("fsspec.registry")._registry  # fsspec.registry is a view of it
    for name in Bucket.protocol:
        monkeypatch.setitem(kept, name, Bucket)
    Bucket.store.clear()
    return "gs://bucket/sweep"


def test_the_life_of_a_unit_in_a_bucket(root):
    ledger.create(root, "s", {"a1": {"size": 1}, "b2": {"size": 2}}, git="1")
    with ledger.hold(root):
        claim = ledger.claim(root, "a1", job="7")
    assert ledger.status(root, "a1") == "started" and ledger.units(root) == {"a1": {"size": 1}, "b2": {"size": 2}}
    folder = claim.folder
    assert spent.go_on(folder, 0) == 0
    log = metrics.Log(folder, 0)
    log.write(1, 10, {"loss": np.array([3.0, 2.0, 1.0])})
    assert metrics.rows(folder) == 0
    log.sync()
    log.write(4, 10, {"loss": np.array([0.5])})
    log.sync()
    log.close()
    assert [row["loss"] for row in metrics.read(folder)] == [3.0, 2.0, 1.0, 0.5]
    assert spent.go_on(folder, 2) == 0 and spent.steps(folder) == 6  # two rows are thrown away, and were paid for
    again = metrics.Log(folder, 2)
    again.write(3, 10, {"loss": np.array([1.0])})
    again.sync()
    again.close()
    assert metrics.rows(folder) == 3
    successor = ledger.claim(root, "a1")
    with pytest.raises(Fenced):
        ledger.finish(claim, {"loss": 9.0})
    ledger.finish(successor, {"status": "done", "loss": 1.0})
    with pytest.raises(Fenced):
        ledger.finish(successor, {"loss": 2.0})
    ledger.fail(ledger.claim(root, "b2"), "ValueError", "wrong")
    assert (ledger.status(root, "a1"), ledger.status(root, "b2")) == ("done", "failed")
    assert ledger.results(root) == {"a1": {"status": "done", "loss": 1.0}}
    with pytest.raises(ConfigError, match="did you mean 'a1'"):
        ledger.config(root, "a11")
    assert not [name for name in Bucket.store if "/." in name or ".tmp" in name]


def test_a_bucket_that_cannot_be_read_is_told_in_one_sentence(root, monkeypatch):
    ledger.reach(root)
    ledger.reach("/no/such/folder")
    with pytest.raises(ConfigError, match="no bucket that epath knows"):
        ledger.reach("memory://x")
    monkeypatch.setattr(Bucket, "exists", lambda *_: (_ for _ in ()).throw(OSError("forbidden")))
    with pytest.raises(ConfigError, match="'gs://bucket/sweep' cannot be read: forbidden"):
        ledger.reach(root)


def test_a_record_of_a_submission_stays_in_a_bucket(root):
    fields = ("dl-s-0", root, "python", "/code", "/logs")
    record = {"name": "dl-s-0", "backend": "gke", "handle": "dl-s-0 default", "units": {"0": "a1"}, "time": ""}
    path = ledger.epath.Path(root) / "submissions" / "1.json"
    ledger.write_json(path, {**record, "job": submissions.Job(*fields)._asdict() | {"options": []}})
    [found] = submissions.read(root)
    assert found.units == ("a1",) and found.handle == "dl-s-0 default" and found.job.root == root


def test_a_table_of_runs_is_written_to_a_bucket_and_read_by_fit(root):
    rows = [dict.fromkeys(table.COLUMNS, "") | {"params": 10 * i, "tokens": 20, "loss": 1 / i} for i in (1, 2)]
    rows = [row | {"status": "done", "split": "fit", "unit": "nats/token"} for row in rows]
    path = ledger.epath.Path(root) / "runs.csv"
    table.write(path, rows)
    found = laws.read_csv(str(path))
    assert found.params.tolist() == [10, 20] and found.loss.tolist() == [1, 0.5]
    with pytest.raises(laws.TableError, match=r"cannot read 'gs://bucket/none\.csv'"):
        laws.read_csv("gs://bucket/none.csv")
