"""What each command does with bad input: one line that names the thing, exit code 2, and nothing written."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deeplearn import sharding
from deeplearn.config import ConfigError, canonical_json
from experiments import cli

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = ("train", "sweep", "branches", "sample", "fit", "preflight")


@pytest.fixture
def command(tmp_path):
    """Start `python -m experiments.NAME ...` in an empty folder, with the devices that users have."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}

    def start(name, *arguments):
        words = [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True)

    return start


def listing(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_has_an_example_and_every_flag(command, name):
    out, err = (process := command(name, "--help")).communicate(timeout=120)
    assert process.returncode == 0 and err == ""
    source = (ROOT / "experiments" / f"{name}.py").read_text()
    own = [line.split('"')[1] for line in source.splitlines() if "= flags.DEFINE_" in line]
    shared = ["config", "set"] if "define_config_flags" in source else []
    shared += ["distributed", "coordinator", "processes", "process"] if "processes.define_flags" in source else []
    assert len(own) >= 2
    for flag in own + shared:
        assert f"--{flag}:" in out or f"--[no]{flag}:" in out
    examples = [line for line in out.splitlines() if line.startswith(f"    python -m experiments.{name} ")]
    assert examples
    for line in examples:  # of flags that there are, and configs that there are
        flags = [word[2:].split("=")[0] for word in line.split() if word.startswith("--")]
        assert set(flags) <= {*own, *shared}
        configs = [word.removeprefix("--config=") for word in line.split() if word.startswith("--config=")]
        assert set(configs) <= set(cli.known_configs())


TRAIN = ("train", "--workdir=new", "--config=transformer")
SWEEP = ("sweep", "--root=new", "--config=quickstart")
PREFLIGHT = ("preflight", "--config=transformer", "--out=new")
BAD = [
    ((*TRAIN, "--wrokdir=x"), "no flag is called '--wrokdir'; did you mean '--workdir'?"),
    ((*TRAIN, "--set", "model.dpeth=4"), "no setting is called 'model.dpeth'; did you mean 'model.depth'?"),
    ((*TRAIN, "--config.batch_size=many"), "'batch_size' wants an int, got 'many' (str)"),
    ((*TRAIN, "--set=data.name=shakespere"), "unknown data 'shakespere'; did you mean 'shakespeare'?"),
    ((*TRAIN, "--set=budget=1000000000"), "epochs of 'shakespeare', over max_epochs 1"),
    ((*TRAIN, "--mesh=data:64"), "mesh 'data:64' needs 64 devices and 1 are here"),
    ((*TRAIN, "--coordinator=here:1"), "--coordinator, --processes and --process go together"),
    ((*TRAIN, "--coordinator=here:1", "--processes=2", "--process=2"), "--process=2 is none of --processes=2"),
    ((*TRAIN, "--coordinator=here", "--processes=2", "--process=0"), "--coordinator=here is no HOST:PORT"),
    ((*TRAIN, "--distributed"), "JAX knows of no cluster here"),
    (("train", "--workdir=new", "--config=trasformer"), "no config file 'trasformer'; did you mean 'transformer'?"),
    (("train", "--workdir=new"), "which configuration? pass --config=NAME"),
    (("train", "--config=transformer"), "where to? pass --workdir=DIR"),
    (("train", "--config=transformer", "--workdir=file", "--set=budget=2000"), "cannot write file/config.json"),
    ((*SWEEP, "--worker=2"), "no flag is called '--worker'; did you mean '--workers'?"),
    ((*SWEEP, "--workers=-1"), "flag --workers=-1"),
    ((*SWEEP, "--set=optim.learning_rat=1"), "'optim.learning_rat'; did you mean 'optim.learning_rate'?"),
    ((*SWEEP, "--set=seed=1.5"), "'seed' wants an int, got '1.5' (str)"),
    (
        (*SWEEP, "--budget_flops=1e9"),
        "a budget of 1e+09 FLOPs holds no sweep: the 6 cheapest fitted runs and the cheap",
    ),
    ((*SWEEP, "--target_flops=1e12"), "an active sweep takes both --target_flops and --target_width"),
    ((*SWEEP, "--target_flops=1e12", "--target_width=0.1"), "chooses among Sweep.candidates, of which this config's"),
    (("sweep", "--root=new", "--config=transformer"), "config 'transformer' has no get_sweep()"),
    (("sweep", "--root=new", "--config=quikstart"), "no config file 'quikstart'; did you mean 'quickstart'?"),
    (("sweep", "--root=new"), "which sweep? pass --config=NAME"),
    (("sweep", "--config=quickstart"), "where to? pass --root=DIR"),
    (("branches", "--config=branches"), "where to? pass --root=DIR"),
    (("branches", "--root=new", "--config=lstm"), "has no get_sweep(); --config=branches has"),
    (("sample", "--workdir=empty"), "empty holds no run: config.json is not there"),
    (("sample", "--workdir=sweep"), "its runs are in folders such as sweep/units/0123"),
    (("sample", "--workdir=untrained"), "untrained has no checkpoint yet"),
    (("sample", "--workdir=empty", "--temprature=1"), "'--temprature'; did you mean '--temperature'?"),
    (("sample", "--workdir=empty", "--temperature=0"), "flag --temperature=0"),
    (("sample",), "of which run? pass --workdir=DIR"),
    ((*PREFLIGHT,), "for which machine? pass --topology=CHIP:N"),
    ((*PREFLIGHT, "--topology=h10:8"), "no chip is called 'h10'; did you mean 'h100'?"),
    ((*PREFLIGHT, "--topology=h100:8", "--mesh=data:4"), "mesh data:4 has 4 places and the topology 8 devices"),
    ((*PREFLIGHT, "--topology=h100:8", "--chips=file"), "file has no [chips.NAME]"),
    ((*PREFLIGHT, "--topology=h100:8", "--search", "--mesh=data:8"), "--search chooses the mesh: leave out --mesh"),
    ((*PREFLIGHT, "--topology=h100:8", "--law=file"), "--law wants one budget: --dollars=1000 or --chip_hours=200"),
    ((*PREFLIGHT, "--topology=h100:8", "--law=file", "--chip_hours=1"), "cannot read the law file"),
    ((*PREFLIGHT, "--topology=v4:2x2x2", "--law=file", "--dollars=1"), "no price of TPU v4: give the budget as"),
    ((*PREFLIGHT, "--topology=h100:8", "--dollars=1"), "--dollars is the budget of a law: pass --law=law.json"),
    (("preflight", "--topology=h100:8"), "which configuration? pass --config=NAME"),
    (("fit", "nothing.csv"), "cannot read 'nothing.csv': No such file or directory"),
    (("fit",), "RUNS.csv is missing"),
    (("fit", "file", "--los=x"), "no flag is called '--los'; did you mean '--loss'?"),
    (("fit", "table.csv", "--loss=lss"), "no column 'lss' for loss; did you mean 'loss'?"),
    (("fit", "table.csv", "--law=chinchila"), "flag --law=chinchila"),
]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_bad_input_is_one_line_and_exit_code_2_and_writes_nothing(command, tmp_path, part):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep" / "units" / "0123").mkdir(parents=True)
    (tmp_path / "untrained").mkdir()
    run = cli.load_config("transformer").get_config()
    (tmp_path / "untrained" / "config.json").write_text(canonical_json(run, identity_only=True))
    (tmp_path / "table.csv").write_text("N,D,loss\n1000,2000,3.0\n")
    before = listing(tmp_path)
    for arguments, message in BAD[part::4]:
        out, err = (process := command(*arguments)).communicate(timeout=120)
        assert process.returncode == 2, (arguments, err)
        assert err.startswith("error: ") and message in err and err.count("\n") == 1, (arguments, err)
        assert out == "", arguments
        assert listing(tmp_path) == before, arguments


def test_a_folder_that_holds_another_run_is_left_as_it_is(command, tmp_path):
    run = cli.load_config("lstm").get_config()
    other = dataclasses.replace(run, seed=3, optim=dataclasses.replace(run.optim, clip=0.5))
    (tmp_path / "config.json").write_text(canonical_json(other, identity_only=True))
    (tmp_path / "metrics.jsonl").write_text('{"step":1}\n')
    before = listing(tmp_path)
    _, err = (process := command("train", "--config=lstm", f"--workdir={tmp_path}")).communicate(timeout=120)
    assert process.returncode == 2
    assert err == f"error: {tmp_path} holds another run: optim.clip, seed differ; choose another --workdir\n"
    assert listing(tmp_path) == before


def test_a_mesh_needs_as_many_devices_as_it_names():
    assert dict(sharding.make_mesh("data:4,fsdp:2").shape) == {"data": 4, "fsdp": 2}
    with pytest.raises(ConfigError, match="mesh 'data:4,fsdp:4' needs 16 devices and 8 are here"):
        sharding.make_mesh("data:4,fsdp:4")
