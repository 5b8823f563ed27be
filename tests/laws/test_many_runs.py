"""Tables of very many runs are fitted, and nothing grows with them that need not."""

import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest
from synthetic import TRUTH, true_loss

from deeplearn import laws
from deeplearn.laws import search

ROOT = pathlib.Path(__file__).parents[2]


def many(count: int, noise: float = 0.004) -> laws.Table:
    rng = np.random.default_rng(0)
    params, tokens = np.exp(rng.uniform(np.log(3e3), np.log(3e5), count)), np.exp(rng.uniform(11, 14, count))
    return laws.runs(params, tokens, true_loss(params, tokens) * np.exp(noise * rng.standard_normal(count)))


@pytest.mark.parametrize(("draw", "size"), [(search.pairs, 1), (search.wild, 4)])
def test_parts_of_the_runs_scatter_like_all_of_them(monkeypatch, draw, size):
    rng = np.random.default_rng(0)
    tokens = np.geomspace(1e4, 1e8, 2000)
    noise = np.repeat(rng.standard_normal(2000 // size), size)  # shared by the runs of a cluster
    loss = (1.0 + 30.0 * tokens**-0.3) * np.exp(0.01 * noise)
    table = laws.Table({"tokens": tokens, "loss": loss}, clusters=np.repeat(np.arange(2000 // size), size))
    fit = laws.fit(table, "power_constant", loss="squared", starts=8, replicates=20)

    def cloud(seed):
        return search.bootstrap(fit.problem, fit.best, draw, np.random.default_rng(seed), 400, table.clusters)

    whole = cloud(1)
    monkeypatch.setattr(search, "PART", 500)
    monkeypatch.setattr(search, "WEIGHTS", 500 * 40)  # ten parts
    parts = cloud(2)
    assert parts.shape == whole.shape
    np.testing.assert_allclose(parts.std(axis=0), whole.std(axis=0), rtol=0.2)
    assert np.all(np.abs(parts.mean(axis=0) - fit.best) < 0.3 * whole.std(axis=0))


@pytest.mark.slow
def test_hold_outs_of_many_runs_find_what_those_of_all_find(monkeypatch):
    tokens = np.geomspace(1e4, 1e8, 2000)
    rng = np.random.default_rng(0)
    # A law that is not right: the exponent falls with tokens.
    loss = (1.0 + 30.0 * tokens**-0.3 + 0.3 * tokens**-0.05) * np.exp(0.001 * rng.standard_normal(2000))
    table = laws.Table({"tokens": tokens, "loss": loss})
    whole = laws.fit(table, "power_constant", starts=8, replicates=100)
    monkeypatch.setattr(search, "PART", 1000)
    parts = laws.fit(table, "power_constant", starts=8, replicates=100)
    assert whole.widening > 1.5
    np.testing.assert_allclose(parts.widening, whole.widening, rtol=0.25)
    np.testing.assert_allclose(parts.params["a"].hi, whole.params["a"].hi, rtol=0.01)


@pytest.mark.slow
def test_a_profile_that_starts_from_a_sample_is_that_of_all_runs(monkeypatch):
    fit = laws.fit(many(1000), starts=8, replicates=20)
    whole = laws.profile_interval(fit, "beta", points=9)
    monkeypatch.setattr(search, "SCREEN", 300)
    sampled = laws.profile_interval(fit, "beta", points=9)
    np.testing.assert_allclose([sampled.lo, sampled.hi], [whole.lo, whole.hi], rtol=1e-4)


@pytest.mark.slow
def test_a_million_runs_are_fitted_and_drawn(tmp_path):
    count = 1_000_000
    table = many(count)
    path = tmp_path / "runs.csv"
    with path.open("w") as file:
        file.write("params,tokens,loss\n")
        file.writelines(f"{n},{d},{v}\n" for n, d, v in zip(table.params, table.tokens, table.loss, strict=True))
    command = [sys.executable, "-m", "experiments.fit", str(path), f"--out={tmp_path / 'law'}", "--replicates=100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    law = json.loads((tmp_path / "law/law.json").read_text())
    assert law["n_runs"] == count and law["certificate"]["converged"] and law["warnings"] == []
    for name, value in TRUTH.items():
        found = law["params"][name]
        assert found["lo"] - 0.5 * (found["hi"] - found["lo"]) < value < found["hi"] + 0.5 * (found["hi"] - found["lo"])
        np.testing.assert_allclose(found["value"], value, rtol=0.005)
        assert found["hi"] / found["lo"] < 1.02
    assert "a random sample of 4,096 of 1,000,000 runs" in " ".join(done.stdout.split())
    assert (tmp_path / "law/report.html").stat().st_size < 2e6
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 6e6  # kilobytes
