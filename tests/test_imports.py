"""The import rule: rooms import only what stands below them, `laws` stands alone, only sharding names mesh axes.

The rule is read from the syntax tree of every module, so an import inside a function counts like any other.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LEVELS = (
    {"config"},
    {"layers"},
    {"families", "data", "optim", "sharding"},
    {"train"},
    {"sweep", "preflight"},
    {"experiments", "launch"},
)
MAY_IMPORT = {room: set().union(*LEVELS[:level]) for level, rooms in enumerate(LEVELS) for room in rooms}
MAY_IMPORT["launch"] |= {"experiments"}  # the command line that entry points share
MAY_IMPORT["sweep"] |= {"laws"}
MAY_IMPORT["experiments"] |= {"laws"}
MAY_IMPORT["laws"] = set()
MAY_IMPORT["deeplearn"] = {"config"}  # the package's own __init__

MESH_WORDS = re.compile(r"\bfsdp\b")  # the other axes have names that are ordinary words
NAMES_AXES = {"PartitionSpec", "P", "Mesh", "make_mesh", "AbstractMesh", "NamedSharding", "psum", "pmean", "axis_index"}


def room_of(dotted: str) -> str | None:
    """The room of a module ("deeplearn.train.loop" -> "train"), or None for what is not ours."""
    parts = dotted.split(".")
    if parts[0] == "deeplearn":
        return parts[1] if len(parts) > 1 else "deeplearn"
    return parts[0] if parts[0] in ("experiments", "launch") else None


def imported(tree: ast.Module, package: str):
    """(line, dotted module) of every import; `from deeplearn import laws` gives "deeplearn.laws"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__") and node.args:
            text = next((part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)), "")
            yield node.lineno, str(text)


def called(call: ast.Call) -> str:
    return getattr(call.func, "attr", None) or getattr(call.func, "id", "")


def strings(tree: ast.AST):
    """(line, text) of every string literal that is not a docstring or another bare expression."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.lineno, node.value


def named_axes(tree: ast.Module):
    """(line, text) of strings that name a mesh axis: a mesh word anywhere, any string given to a mesh call."""
    yield from ((line, text) for line, text in strings(tree) if MESH_WORDS.search(text))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in NAMES_AXES:
            yield from strings(node)


def violations(root: pathlib.Path) -> list[str]:
    """One sentence for each import or mesh axis under `root` that breaks the rule."""
    broken = []
    for top in ("deeplearn", "experiments", "launch"):
        for path in sorted((root / top).rglob("*.py")):
            where = path.relative_to(root)
            parts = where.with_suffix("").parts
            package = ".".join(parts[:-1])
            room = room_of(package if parts[-1] == "__init__" else ".".join(parts))
            tree = ast.parse(path.read_text())
            if room not in MAY_IMPORT:
                broken.append(f"{where}: '{room}' is not a room")
                continue
            for line, module in imported(tree, package):
                other = room_of(module)
                if other not in (None, room, "deeplearn", *MAY_IMPORT[room]):
                    broken.append(f"{where}:{line}: {room} imports {other}")
            if top == "deeplearn" and room != "sharding":
                broken += [
                    f"{where}:{line}: '{text}' names a mesh axis" for line, text in sorted(set(named_axes(tree)))
                ]
    return broken


def test_the_repository_keeps_the_rule():
    assert len(list((ROOT / "deeplearn").rglob("*.py"))) > 3
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "code", "broken"),
    [
        ("deeplearn/train/loop.py", "from deeplearn import config, data\nfrom deeplearn.families import cnn", None),
        ("deeplearn/train/loop.py", "import jax\nimport deeplearn.optim\nfrom . import step", None),
        ("deeplearn/train/loop.py", "import deeplearn.sweep.ledger", "train imports sweep"),
        ("deeplearn/train/loop.py", "def f():\n    from deeplearn.sweep import ledger", "train imports sweep"),
        ("deeplearn/train/loop.py", "from deeplearn import sweep", "train imports sweep"),
        ("deeplearn/train/loop.py", "from .. import sweep", "train imports sweep"),
        ("deeplearn/train/loop.py", "from ..sweep.ledger import claim", "train imports sweep"),
        ("deeplearn/train/__init__.py", "from .. import sweep", "train imports sweep"),
        (
            "deeplearn/train/loop.py",
            "import importlib\nimportlib.import_module('deeplearn.laws')",
            "train imports laws",
        ),
        ("deeplearn/data/text.py", "import deeplearn.families.cnn", "data imports families"),
        ("deeplearn/data/text.py", "import importlib\nimportlib.import_module(f'deeplearn.families.{n}')", "families"),
        ("deeplearn/layers/norm.py", "import deeplearn.sharding", "layers imports sharding"),
        ("deeplearn/laws/fit.py", "from deeplearn.config import ConfigError", "laws imports config"),
        ("deeplearn/laws/fit.py", "from . import forms\nimport scipy", None),
        ("deeplearn/sweep/report.py", "from deeplearn import laws", None),
        ("deeplearn/preflight/tpu.py", "from deeplearn import laws", "preflight imports laws"),
        ("deeplearn/sweep/report.py", "from experiments import cli", "sweep imports experiments"),
        ("deeplearn/__init__.py", "from deeplearn import train", "deeplearn imports train"),
        ("deeplearn/misc.py", "", "'misc' is not a room"),
        ("experiments/fit.py", "from deeplearn import laws, sweep", None),
        ("launch/slurm.py", "import deeplearn.laws", "launch imports laws"),
        ("launch/slurm.py", "from experiments import cli\nfrom deeplearn.sweep import ledger", None),
        ("deeplearn/train/step.py", "mesh = 'data:4,fsdp:2'", "names a mesh axis"),
        ("deeplearn/train/step.py", "'''fsdp in a docstring'''\ndata = {'data': 1}", None),
        ("deeplearn/train/step.py", "import jax\nspec = jax.P('data')", "'data' names a mesh axis"),
        ("deeplearn/train/step.py", "y = lax.psum(x, axis_name='data')", "'data' names a mesh axis"),
        ("deeplearn/sharding.py", "AXES = ('data', 'fsdp')", None),
    ],
)
def test_the_checker_itself(tmp_path, path, code, broken):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(code)
    found = violations(tmp_path)
    if broken is None:
        assert found == []
    else:
        assert len(found) == 1 and path in found[0] and broken in found[0]
