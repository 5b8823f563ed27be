"""What others have written is never executed, never leaves its folder, and never becomes part of a page."""

import ast
import html.parser
import io
import os
import pathlib
import re
import tarfile

import numpy as np
import pytest
from matplotlib.figure import Figure

from deeplearn import laws
from deeplearn.config import ConfigError
from deeplearn.data import sources
from deeplearn.sweep import ledger, page, report, style
from deeplearn.sweep.grid import Unit
from experiments import law_report, preflight_report
from launch import gke, local, queued, slurm, submissions
from launch.backend import Job

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("deeplearn", "experiments", "launch")
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "runpy",
    "code",
}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
SHELLS = {"system", "popen", "getoutput", "getstatusoutput"}
EVIL = "<script>alert('x')</script>&\"$x$"


def findings(tree: ast.Module):
    """(line, what) of each thing that could execute what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            yield from ((node.lineno, name) for name in names if name.partition(".")[0] in FORBIDDEN_MODULES)
        if not isinstance(node, ast.Call):
            continue
        owner = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        name = owner.rpartition(".")[2]
        bare = isinstance(node.func, ast.Name)
        safe_yaml = keywords.get("Loader", "").endswith("SafeLoader")
        if (bare and name in FORBIDDEN_NAMES) or name in ("exec_module", "read_pickle"):
            yield node.lineno, name
        if owner in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            yield node.lineno, owner
        if "yaml" in owner and "load" in name and not name.startswith("safe_load") and not safe_yaml:
            yield node.lineno, owner
        if keywords.get("shell", "False") != "False" or (owner.startswith(("os.", "subprocess.")) and name in SHELLS):
            yield node.lineno, f"{owner} with a shell"
        if name in ("extractall", "unpack_archive") or (name == "extract" and "archive" in owner):
            yield node.lineno, name


def test_nothing_from_disk_is_executed_but_the_config_file_of_the_user():
    found = {
        (str(path.relative_to(ROOT)), what)
        for top in PACKAGES
        for path in sorted((ROOT / top).rglob("*.py"))
        for _, what in findings(ast.parse(path.read_text()))
    }
    assert found == {("experiments/cli.py", "exec_module")}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "def f():\n    import shelve", "eval(text)", "exec(text)",
        "np.load(path)", "np.load(path, allow_pickle=True)", "yaml.load(text)", "yaml.unsafe_load(text)",
        "spec.loader.exec_module(m)", "subprocess.run(text, shell=True)", "os.system(text)", "archive.extractall(to)",
    ],
)  # fmt: skip
def test_the_check_itself(code):
    assert list(findings(ast.parse(code)))


def test_a_module_by_name_is_one_of_a_fixed_list():
    """`import_module` takes text: what a ledger names as a family or a backend must be on the list first."""
    from deeplearn.train.run import from_json
    from launch import backend

    for name in ("os", "..data", "counting", "../x", "transformer.os", ""):
        with pytest.raises(ConfigError):
            from_json({"family": name})
        with pytest.raises(ConfigError):
            backend.get(name)


ESCAPES = ("../../x", "/etc", "..", ".", "", "a/b", "a\\b", "a\0b", "x" * 300, ".hidden", "-flag", "a b", EVIL, "a\n")


@pytest.mark.parametrize("name", ESCAPES)
def test_an_id_cannot_leave_the_root(tmp_path, name):
    root = tmp_path / "root"
    ledger.create(root, "s", {"a1": {"size": 1}})
    before = sorted(tmp_path.rglob("*"))
    calls = (
        lambda: ledger.create(root, "s", {name: {"size": 1}}), lambda: ledger.claim(root, name),
        lambda: ledger.status(root, name), lambda: ledger.config(root, name), lambda: ledger.directory(root, name),
        lambda: ledger.begun_with(root, name), lambda: ledger.last_attempt("memory://x", name),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ConfigError, match="is no id of a unit"):
            call()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_unit_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text('{"size": 1}')
    ledger.create(tmp_path / "root", "s", {"a1": {"size": 1}})
    (tmp_path / "root" / "units" / "b2").symlink_to(tmp_path / "elsewhere")
    for call in (ledger.claim, ledger.config, ledger.status):
        with pytest.raises(ConfigError, match="is a link, and units are folders"):
            call(tmp_path / "root", "b2")
    assert os.listdir(tmp_path / "elsewhere") == ["config.json"]


@pytest.mark.parametrize("name", [*ESCAPES, "$(reboot)", "`x`", "\u0130", "--x"])
def test_a_name_of_a_sweep_becomes_a_name_that_is_safe_everywhere(name):
    assert re.fullmatch(r"dl-[a-z0-9-]{1,20}-[0-9a-f]{8}", submissions.new_name(name))


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.words.append(data)


def escaped(text):
    found = Tags(text)
    assert "script" not in found.tags and EVIL in " ".join(found.words)


def table():
    n, d = (x.ravel() for x in np.meshgrid([1e5, 1e6, 1e7], [1e7, 1e8, 1e9]))
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=len(n)))
    return laws.runs(n, d, (1.7 + 400 * n**-0.34 + 410 * d**-0.28) * noise, unit=EVIL)


def test_pages_escape_what_they_show(tmp_path):
    fit = laws.fit(table(), starts=8, replicates=30)
    grid = [(EVIL, (EVIL,), [[EVIL]])]
    escaped(law_report.publish(tmp_path, fit, {}, grid, EVIL, EVIL, EVIL).read_text())
    row = {
        "id": EVIL, "family": EVIL, "size": EVIL, "params": 1e5, "tokens": 1e7, "flops": 1e13, "flops_spent": 1e13,
        "loss": 3.0, "unit": EVIL, "wall_s": 1.0, "tokens_per_s": 1.0, "status": "done", "split": "fit",
    }  # fmt: skip
    rows = [row, {**row, "status": EVIL, "split": EVIL}]
    law = {"count": "params", "held_out": [], "not_fitted": [{"id": EVIL, "status": EVIL, "why": EVIL}]}
    report.write(tmp_path / "r.html", {}, rows, fit, law, {EVIL: EVIL}, EVIL)
    escaped((tmp_path / "r.html").read_text())
    figure = Figure((1, 1))
    figure.savefig(tmp_path / "f.png")
    page.write(tmp_path / "p.html", EVIL, page.figure(EVIL, tmp_path / "f.png", EVIL) + page.facts([(EVIL, EVIL)]))
    escaped((tmp_path / "p.html").read_text())
    section = preflight_report.Section(EVIL, EVIL, ((EVIL, (EVIL,), [[EVIL]]),), (EVIL,))
    escaped(preflight_report._html(section, {}))


def test_a_unit_is_no_mathematics_to_a_figure(tmp_path):
    figure = Figure((2, 2))
    figure.subplots().set_ylabel(style.plain(r"$\nonsense{$"))
    figure.savefig(tmp_path / "f.png")
    with pytest.raises(ValueError, match="nonsense"):
        figure.axes[0].set_ylabel(r"$\nonsense{$")
        figure.savefig(tmp_path / "f.png")


def archive(path, *members):
    with tarfile.open(path, "w:gz") as file:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = 4 if kind == tarfile.REGTYPE else 0
            file.addfile(member, io.BytesIO(b"data") if member.size else None)


def test_a_hostile_archive_writes_nothing_and_is_read_by_its_plain_files_alone(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("secret")
    members = [
        ("../../up", tarfile.REGTYPE, ""), (f"{tmp_path}/absolute", tarfile.REGTYPE, ""),
        ("soft", tarfile.SYMTYPE, f"{tmp_path}/secret"), ("soft/through", tarfile.REGTYPE, ""),
        ("hard", tarfile.LNKTYPE, f"{tmp_path}/secret"), ("device", tarfile.CHRTYPE, ""),
        ("block", tarfile.BLKTYPE, ""), ("pipe", tarfile.FIFOTYPE, ""), ("folder", tarfile.DIRTYPE, ""),
    ]  # fmt: skip
    archive(tmp_path / "in" / "a.tar.gz", *members)
    before = sorted(tmp_path.rglob("*"))
    found = sources.read_members(tmp_path / "in" / "a.tar.gz", lambda name: True)
    assert set(found.values()) == {b"data"} and len(found) == 3
    assert sorted(tmp_path.rglob("*")) == before


SECRETS = (
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "WANDB_API_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "PGPASSWORD",
    "X_TOKEN",
)
CANARY = "canary-7f3d1b"


def test_secrets_of_the_environment_are_written_nowhere(tmp_path, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, CANARY)
    from deeplearn.sweep import study

    root = tmp_path / "root"
    ledger.create(root, "s", {"a1": {"size": 1}, "b2": {"size": 2}}, **study.versions())
    claim = ledger.claim(root, "a1", job="7")
    ledger.finish(claim, {"status": "done", "loss": 1.0})
    ledger.fail(ledger.claim(root, "b2"), "ValueError", "wrong")
    units = [Unit("a1", "fit", None, 1, 1, 1, 1.0)]
    job = Job("dl-s-0", str(root), "python", "/code", str(tmp_path / "logs"))
    bucket = job._replace(root="gs://b", options=("--image=i", "--topology=v5p:2x2x1", "--queue=q"))
    machine = job._replace(root="gs://b", options=("--zone=z", "--type=v5p-8", "--runtime=r"))
    texts = [local.render(units, job), slurm.render(units, job), gke.render(units, bucket)]
    texts.append(queued.render(units, machine))
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 6
    assert not [text for text in (*texts, *written) if CANARY in text]
