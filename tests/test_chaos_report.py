"""What `make chaos` makes of a report of pytest."""

import json

from experiments.bench import chaos

REPORT = """<testsuites><testsuite>
<testcase name="test_a" time="3.5"><properties><property name="fault" value="disk full"/>
<property name="tries" value="3"/><property name="lost" value="2 steps"/></properties></testcase>
<testcase name="test_b" time="1"><skipped message="no Slurm here"/></testcase>
<testcase name="test_c_d" time="1"><failure message="assert 1 == 2&#10;more"/></testcase>
</testsuite></testsuites>"""


def test_what_was_skipped_did_not_pass(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    a, b, c = chaos.read(tmp_path / "report.xml")
    assert a == ("disk full", 3, True, 3.5, "2 steps", "")
    assert (b.passed, b.why, c.passed, c.fault, c.why) == (False, "no Slurm here", False, "test c d", "assert 1 == 2")
    chaos.write([a, b], tmp_path / "bench" / "chaos.json")
    assert json.loads((tmp_path / "bench" / "chaos.json").read_text()) == [
        {"fault": "disk full", "tries": 3, "passed": True},
        {"fault": "test b", "tries": 1, "passed": False},
    ]
