"""Fails unless a finished sweep keeps what the README promises: python .ci/check_sweep.py runs/quickstart"""

import csv
import json
import sys
from pathlib import Path

root = Path(sys.argv[1])
law = json.loads((root / "law.json").read_text())
missing = {"form", "unit", "n_runs", "params", "certificate", "held_out", "optimal"} - law.keys()
assert not missing, f"law.json lacks {missing}"
for name, interval in law["params"].items():
    assert {"value", "lo", "hi"} <= interval.keys(), f"parameter {name} has no interval"
assert {"share_at_optimum", "converged"} <= law["certificate"].keys(), "the certificate is incomplete"
for entry in law["optimal"]:
    assert {"flops", "params", "tokens"} <= entry.keys(), "an optimal allocation is incomplete"
assert law["optimal"] and law["held_out"], "nothing is allocated or held out"

with (root / "runs.csv").open() as file:
    rows = list(csv.DictReader(file))
assert all(row["status"] == "done" for row in rows), "not every run is done"
largest = max(float(row["flops"]) for row in rows if row["split"] == "fit")
for entry in law["held_out"]:
    assert {"id", "flops", "predicted", "lo", "hi", "measured"} <= entry.keys(), "a held-out entry is incomplete"
    assert entry["predicted_at"] <= entry["started_at"], f"{entry['id']} was trained before it was predicted"
    assert entry["flops"] >= 4 * largest, f"{entry['id']} is no larger run"
    assert entry["lo"] <= entry["predicted"] <= entry["hi"] and entry["measured"] > 0
    inside = entry["lo"] <= entry["measured"] <= entry["hi"]
    print(f"{entry['id']}: predicted {entry['predicted']:.4f}, measured {entry['measured']:.4f}, inside: {inside}")

page = (root / "report.html").read_text()
assert "<img" in page or "<svg" in page, "the report has no figures"
assert 'src="http' not in page and 'href="http' not in page, "the report needs a network"
assert len(list((root / "figures").glob("*.png"))) >= 5, "figures are missing"
print(f"{len(rows)} runs, law.json and report.html keep their promises")
