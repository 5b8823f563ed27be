"""Make every fault that the tests know happen, and write how each ended: python -m experiments.bench.chaos

The tests are those marked `chaos`. Writes runs/bench/chaos.json, a list of {fault, tries, passed}; ends with 1 if
something failed or could not be tried. Arguments go to pytest, for example a file of tests.
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

PATH = Path("runs/bench/chaos.json")


class Fault(NamedTuple):
    """tries: how often the fault was made to happen. why: what a test said that did not pass, or could not run."""

    fault: str
    tries: int
    passed: bool
    seconds: float
    lost: str
    why: str


def read(report: Path) -> list[Fault]:
    """The faults of a JUnit report. A test that recorded none counts by its name, tried once."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        told = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        wrong = [x for kind in ("failure", "error", "skipped") for x in case.iter(kind)]
        why = (wrong[0].get("message") or wrong[0].tag).splitlines()[0] if wrong else ""
        name = str(told.get("fault") or case.get("name", "").replace("_", " "))
        seconds = float(case.get("time") or 0)
        found.append(Fault(name, int(told.get("tries", 1)), not wrong, seconds, str(told.get("lost", "")), why))
    return found


def show(faults: list[Fault], console: Console) -> None:
    table = Table("fault", "tries", "result", "seconds", "lost", "why", box=None)
    for f in faults:
        result = "[green]passed" if f.passed else "[red]failed"
        table.add_row(f.fault, str(f.tries), result, f"{f.seconds:.0f}", f.lost, f.why)
    console.print(table)


def write(faults: list[Fault], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [{"fault": f.fault, "tries": f.tries, "passed": f.passed} for f in faults]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def main(argv: list[str]) -> int:
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # -m chaos replaces pyproject's own choice; -vv tells each test as it ends, a line each
        words = [sys.executable, "-m", "pytest", "-vv", "--tb=short", "-m", "chaos", f"--junitxml={report}", *argv[1:]]
        code = subprocess.run(words).returncode
        faults = read(report) if report.exists() else []
    show(faults, console)
    write(faults, PATH)
    missed = [f for f in faults if not f.passed]
    console.print(f"{len(faults) - len(missed)} of {len(faults)} passed, {sum(f.tries for f in faults)} tries; {PATH}")
    return 1 if missed or code or not faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
