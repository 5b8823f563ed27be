"""The command line that the entry points share, run as users run it."""

import os
import pathlib
import subprocess
import sys

import pytest

from deeplearn.config import ConfigError
from experiments import cli

ROOT = pathlib.Path(__file__).parents[1]

CONFIG = """
import dataclasses
from typing import Any
from deeplearn.config import ConfigError

@dataclasses.dataclass(frozen=True)
class Model:
    width: int
    depth: int

@dataclasses.dataclass(frozen=True)
class Run:
    size: int
    model: Any
    lr: float = 1e-3
    tied: bool = True

def get_config(size=2):
    if size > 9:
        raise ConfigError(f"size {size} is too large")
    return Run(size=size, model=Model(width=16 * size, depth=size))
"""

ENTRY = '''
"""Prints the configuration that the flags name.

Takes 100 % of a second.
"""
import os
from absl import flags
from deeplearn.config import flatten
from experiments import cli

STEPS = flags.DEFINE_integer("steps", 1, "How many.")
cli.define_config_flags()

def main(argv):
    if argv[1:] == ["interrupt"]:
        raise KeyboardInterrupt
    if argv[1:] == ["crash"]:
        raise RuntimeError("a bug")
    print(flatten(cli.config_from_flags()), argv[1:])

if __name__ == "__main__":
    cli.run(main, os.environ["ARGUMENTS"].split())
'''


@pytest.fixture
def config(tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG)
    return tmp_path / "mine.py"


@pytest.fixture
def entry(tmp_path, config):
    """Runs the entry point with arguments."""
    (tmp_path / "entry.py").write_text(ENTRY)

    def call(*arguments, config=config, names=""):
        command = [sys.executable, "-W", "error", str(tmp_path / "entry.py"), *arguments]
        command += [f"--config={config}"] if config else []
        env = os.environ | {"PYTHONPATH": str(ROOT), "ARGUMENTS": names}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    return call


def test_both_spellings_of_overrides_reach_the_configuration_in_order(entry):
    done = entry(
        "--config.model.depth=7", "--set", "lr=3e-4", "--set=tied=false", "--config.lr", "1", "--config.size=3"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'size': 3, 'model.width': 48, 'model.depth': 7, 'lr': 1.0, 'tied': False} []"
    assert done.stderr == ""


def test_positional_arguments_reach_main(entry, config):
    done = entry(f"--config={config}", "--", "--config.lr=3", names="WHAT", config=None)
    assert done.returncode == 0 and done.stdout.endswith("['--config.lr=3']\n") and "'lr': 0.001" in done.stdout
    done = entry("runs.csv", names="RUNS.CSV")
    assert done.returncode == 0 and done.stdout.endswith("['runs.csv']\n")


def test_a_missing_argument_is_named(entry):
    done = entry(names="RUNS.CSV")
    assert done.returncode == 2 and done.stderr == "error: RUNS.CSV is missing; --help says more\n"


def test_help_shows_the_docstring_and_the_shared_flags_and_is_no_error(entry):
    done = entry("--help", config=None)
    assert done.returncode == 0 and done.stderr == ""
    for text in ("Takes 100 % of a second.", "--config", "--set", "--steps"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.dpeth=4"], "error: no setting is called 'model.dpeth'; did you mean 'model.depth'?"),
        (["--config.model.dpeth=4"], "error: no setting is called 'model.dpeth'; did you mean 'model.depth'?"),
        (["--set", "model.depth=four"], "error: 'model.depth' wants an int, got 'four' (str)"),
        (["--set", "model=4"], "error: 'model' cannot be set as a whole; set its fields: model.width, model.depth"),
        (["--set", "model.depth"], "error: an override is written KEY=VALUE, for example --set model.depth=4; got"),
        (["--set", "=4"], "error: an override is written KEY=VALUE"),
        (["--config.lr"], "error: '--config.lr' has no value; write --config.lr=VALUE"),
        (["--set", "size=small"], "error: 'size' wants an int, got 'small' (str)"),
        (["--set", "size=10"], "error: size 10 is too large"),
        (["--stesp=3"], "error: no flag is called '--stesp'; did you mean '--steps'?"),
        (["--conifg.lr=3"], "error: no flag is called '--conifg.lr'; did you mean '--config'?"),
        (["--steps=many"], "error: flag --steps=many: "),
        (["model.depth=4"], "error: unexpected argument 'model.depth=4'; write --set model.depth=4"),
    ],
)
def test_a_bad_command_line_is_one_sentence_and_exit_code_2(entry, arguments, message):
    done = entry(*arguments)
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert done.returncode == 2 and done.stdout == ""


def test_a_missing_config_flag_is_explained(entry):
    done = entry(config=None)
    assert done.returncode == 2 and done.stderr.startswith("error: which configuration? pass --config=NAME")


def test_an_interrupt_is_one_line_and_130_and_a_bug_keeps_its_traceback(entry):
    done = entry("interrupt", names="WHAT")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    done = entry("crash", names="WHAT")
    assert done.returncode == 1 and "Traceback" in done.stderr and "RuntimeError: a bug" in done.stderr


def test_a_bare_name_finds_a_bundled_config_and_a_wrong_one_names_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(CONFIG)
    (tmp_path / "large.py").write_text(CONFIG)
    monkeypatch.setattr(cli, "CONFIGS", tmp_path)
    assert cli.load_config("tiny").get_config().size == cli.load_config("tiny.py").get_config().size == 2
    for wrong in ("tniy", "tniy.py", "experiments/configs/tniy.py"):
        with pytest.raises(ConfigError, match=f"there is no config file '{wrong}'; did you mean 'tiny'?"):
            cli.load_config(wrong)
    with pytest.raises(ConfigError, match="known: large, tiny"):
        cli.load_config("zzz")
    with pytest.raises(ConfigError, match="there is no config file"):
        cli.load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "defines no get_config"),
        ("x = 1\nx = = 2", "line 2: SyntaxError: invalid syntax"),
        ("import math\n\nx = math.lgo(2)", "line 3: AttributeError: module 'math' has no attribute 'lgo'"),
        ("import not_here_at_all", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_broken_config_file_is_named_with_its_line(tmp_path, code, message):
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(ConfigError) as caught:
        cli.load_config(str(tmp_path / "broken.py"))
    assert "broken.py" in str(caught.value) and message in str(caught.value)


def test_a_config_must_be_python_and_return_a_configuration(tmp_path):
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(ConfigError, match="a config file is a Python file"):
        cli.load_config(str(tmp_path / "data.json"))
    (tmp_path / "none.py").write_text("def get_config(size=1):\n    return {'size': size}")
    with pytest.raises(ConfigError, match="returns no configuration but"):
        cli.get_run(cli.load_config(str(tmp_path / "none.py")), {})


def test_size_derives_the_model_anew_wherever_it_stands_among_the_overrides(config):
    module = cli.load_config(str(config))
    run = cli.get_run(module, {"model.depth": "1", "size": "4"})
    assert (run.size, run.model.width, run.model.depth) == (4, 64, 1)
    assert cli.parse_overrides(["a=1", "b=2", "a=x=y"]) == {"b": "2", "a": "x=y"}
    assert list(cli.parse_overrides(["a=1", "b=2", "a=3"])) == ["b", "a"]
