"""`python -m experiments.fit`, run as users run it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from synthetic import DATA, grid

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.fit", *arguments]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)


@pytest.mark.slow
def test_a_sweep_with_held_out_runs(tmp_path):
    table, larger = grid(), grid(2, 2, seed=1)
    runs = [f"{n},{d},{loss},done,fit" for n, d, loss in zip(table.params, table.tokens, table.loss, strict=True)]
    runs += [
        f"{n},{d},{loss},done,held_out" for n, d, loss in zip(larger.params, larger.tokens, larger.loss, strict=True)
    ]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["params,tokens,loss,status,split", *runs]))
    done = run(str(path), f"--out={tmp_path / 'law'}", "--replicates=100", "--unit=bits/byte", "--budgets=1e12,1e13")
    assert done.returncode == 0, done.stderr
    law = json.loads((tmp_path / "law" / "law.json").read_text())
    assert set(law["profiles"]) == set(law["params"]) and len(law["specifications"]) >= 10
    page = (tmp_path / "law" / "report.html").read_text()
    pictures = {path.stem for path in (tmp_path / "law" / "figures").iterdir()}
    assert pictures == {"residuals", "frontier", "rolling", "bootstrap", "profiles", "specification"}
    assert page.count("data:image/png;base64,") == len(pictures) and "http" not in page
    assert law["n_runs"] == 20 and law["unit"] == "bits/byte"
    assert f"{law['params']['alpha']['value']:.5g}" in done.stdout
    for words in ("20 runs", "bits/byte", "Certificate", "1e+13", "Held-out runs", "4 of 24 runs left out"):
        assert words in done.stdout
    assert done.stdout.count("yes") + done.stdout.count("no ") >= 4
    assert "…" not in done.stdout


def test_published_table_with_flops():
    done = run(str(DATA / "chinchilla.csv"), "--drop_highest=5", "--replicates=20")
    assert done.returncode == 0, done.stderr
    assert "240 runs" in done.stdout
    assert "0.00101827402" in done.stdout


def test_mistakes_end_in_one_sentence_and_exit_code_2(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("N,D,loss\n1,2,3\n2,x,3\n")
    for arguments, words in (
        ([str(path)], "line 3, column 'D': 'x' is not a number"),
        ([str(DATA / "chinchilla.csv"), "--budgets=1e20,many"], "--budgets takes numbers"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert np.char.count(done.stdout, "Traceback") == 0


@pytest.mark.slow
def test_another_table_to_compare_with(tmp_path):
    paths = []
    for name, saving in (("ours", 1.0), ("theirs", 2.0)):
        table = grid()
        rows = zip(table.params, table.tokens / saving, table.loss, strict=True)  # theirs takes half the data
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["params,tokens,loss", *(f"{n},{d},{loss}" for n, d, loss in rows)]))
        paths.append(str(path))
    done = run(paths[0], f"--against={paths[1]}", "--replicates=50", "--budgets=1e12")
    assert done.returncode == 0, done.stderr
    assert "Times less compute for the same loss" in done.stdout
    assert "theirs" in done.stdout and "is better than" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_parameter_that_the_law_does_not_have_is_named():
    done = run(str(DATA / "chinchilla.csv"), "--pin=gamma=1")
    assert done.returncode == 2
    assert "no parameter 'gamma'; it has E, A, B, alpha, beta" in done.stderr
