"""Overrides, canonical JSON and identity, for any value that a configuration can hold."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from deeplearn import config
from deeplearn.config import ConfigError, aside, from_dict, identity, overlay, to_dict

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)  # a busy machine is not a bug
settings.load_profile("tests")


@dataclasses.dataclass(frozen=True)
class Model:
    depth: int = 2
    width: int = 8
    dropout: float = 0.0
    activation: str = "gelu"
    tied: bool = True
    kernel: tuple[int, int] = (3, 3)
    betas: tuple[float, ...] = (0.9, 0.95)
    names: tuple[str, ...] = ()
    trace: str = aside("")

    def __post_init__(self):
        if self.width < self.depth:
            raise ConfigError(f"width {self.width} is less than depth {self.depth}")


@dataclasses.dataclass(frozen=True)
class Decay:
    steps: int = 10


@dataclasses.dataclass(frozen=True)
class Run:
    model: Any = Model()
    size: int | str = 4
    clip: float | None = None
    decay: Decay | None = None
    seed: int = 0
    mesh: str = aside("data:1")


ROOT = pathlib.Path(__file__).parents[1]
CLASSES = {"model": Model}
floats = st.floats(allow_nan=False, allow_infinity=False)
depths = st.integers(1, 2**40)
models = st.builds(
    lambda depth, extra, **rest: Model(depth=depth, width=depth + extra, **rest),
    depth=depths,
    extra=depths,
    dropout=floats,
    activation=st.text(),
    tied=st.booleans(),
    kernel=st.tuples(st.integers(), st.integers()),
    betas=st.lists(floats, max_size=3).map(tuple),
    names=st.lists(st.text(), max_size=3).map(tuple),
    trace=st.text(),
)
runs = st.builds(
    Run,
    model=models,
    size=st.integers() | st.sampled_from(["small", "large"]),
    clip=st.none() | floats,
    decay=st.none() | st.builds(Decay, steps=st.integers()),
    seed=st.integers(),
    mesh=st.text(),
)


@given(runs)
def test_json_round_trip(run):
    text = config.canonical_json(run)
    assert from_dict(Run, json.loads(text), CLASSES) == run
    assert "\n" not in text and text.isascii()


@given(runs, runs)
def test_overlay_with_all_values_of_another_gives_the_other(run, other):
    run = dataclasses.replace(run, decay=None)
    other = dataclasses.replace(other, decay=None)
    assert overlay(run, config.flatten(run)) == run
    assert overlay(run, config.flatten(other)) == other


@given(models)
def test_overlay_reads_what_a_user_would_type(model):
    typed = {
        "depth": str(model.depth),
        "width": str(model.width),
        "dropout": repr(model.dropout),
        "activation": model.activation,
        "tied": str(model.tied).lower(),
        "kernel": ",".join(map(str, model.kernel)),
        "betas": ", ".join(map(repr, model.betas)),
        "trace": model.trace,
    }
    assert overlay(Model(names=model.names), typed) == model


@given(runs, st.text(), st.text())
def test_identity_ignores_what_is_aside_at_any_depth(run, mesh, trace):
    other = dataclasses.replace(run, mesh=mesh, model=dataclasses.replace(run.model, trace=trace))
    assert identity(other) == identity(run)


@given(runs, runs)
def test_identity_differs_exactly_when_another_leaf_differs(run, other):
    for key, value in config.flatten(dataclasses.replace(other, decay=run.decay)).items():
        if key in ("mesh", "model.trace", "decay.steps"):
            continue
        if key in ("model.depth", "model.width"):
            value = min(max(value, run.model.depth), run.model.width)
        changed = overlay(run, {key: value})
        assert (identity(changed) == identity(run)) == (changed == run), key


def test_identity_is_the_same_in_another_order_of_fields_and_for_equal_numbers():
    first = dataclasses.make_dataclass("First", [("a", int), ("b", float)], frozen=True)
    second = dataclasses.make_dataclass("Second", [("b", float), ("a", int)], frozen=True)
    assert identity(first(a=1, b=2.0)) == identity(second(b=2, a=1)) == identity(first(a=np.int64(1), b=np.float32(2)))
    assert identity(first(a=1, b=-0.0)) == identity(first(a=1, b=0.0))


def test_identity_is_a_published_constant():
    """A ledger outlives the process and the Python that wrote it: this value must never change."""
    assert config.canonical_json(Model(), identity_only=True) == (
        '{"activation":"gelu","betas":[0.9,0.95],"depth":2,"dropout":0.0,"kernel":[3,3],"names":[],"tied":true,"width":8}'
    )
    assert identity(Model()) == "308c1966deb3"


def test_identity_does_not_depend_on_the_seed_of_string_hashes():
    code = """
import dataclasses
from deeplearn.config import identity
fields = [(name, str, name) for name in ("a", "b", "c", "d")]
print(identity(dataclasses.make_dataclass("C", fields, frozen=True)()))
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_overlay_applies_all_overrides_before_it_checks_them():
    assert overlay(Run(), {"model.depth": "100", "model.width": "200"}).model.depth == 100
    with pytest.raises(ConfigError, match="width 8 is less than depth 100"):
        overlay(Run(), {"model.depth": 100})


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "1e6", 1_000_000),
        ("seed", 1e6, 1_000_000),
        ("seed", "123456789012345678901", 123456789012345678901),
        ("clip", 1, 1.0),
        ("clip", "3e-4", 3e-4),
        ("clip", "none", None),
        ("clip", None, None),
        ("model.tied", "False", False),
        ("model.betas", "1,2,3", (1.0, 2.0, 3.0)),
        ("model.betas", "", ()),
        ("model.names", [], ()),
        ("model.names", "a, b", ("a", "b")),
        ("model.activation", "none", "none"),
        ("size", "7", 7),
        ("size", "small", "small"),
    ],
)
def test_typed(key, text, value):
    got = config.flatten(overlay(Run(), {key: text}))[key]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.dpeth", 4, "no setting is called 'model.dpeth'; did you mean 'model.depth'?"),
        ("depth", 4, "no setting is called 'depth'; did you mean 'model.depth'?"),
        ("seed.x", 4, "no setting is called 'seed.x'"),
        ("zzz", 4, "no setting is called 'zzz'; known: model.depth, model.width"),
        ("", 4, "no setting is called ''; known: model.depth"),
        ("model", Model(), "'model' cannot be set as a whole; set its fields: model.depth, model.width"),
        ("model.depth", "four", "'model.depth' wants an int, got 'four' (str)"),
        ("model.depth", 1.5, "'model.depth' wants an int, got 1.5 (float)"),
        ("model.depth", "1.5", "'model.depth' wants an int"),
        ("model.depth", True, "'model.depth' wants an int, got True (bool)"),
        ("model.depth", None, "'model.depth' wants an int, got None"),
        ("model.depth", "none", "'model.depth' wants an int, got 'none'"),
        ("model.depth", "1e400", "'model.depth' wants an int"),
        ("model.depth", float("nan"), "'model.depth' wants an int, got nan"),
        ("model.dropout", "nan", "'model.dropout' wants a finite float, got 'nan'"),
        ("model.dropout", float("inf"), "'model.dropout' wants a finite float, got inf"),
        ("model.dropout", 10**400, "'model.dropout' wants a finite float, got 1000"),
        ("model.dropout", "", "'model.dropout' wants a finite float, got ''"),
        ("clip", "big", "'clip' wants a finite float or none, got 'big'"),
        ("clip", False, "'clip' wants a finite float or none, got False"),
        ("model.tied", 1, "'model.tied' wants a bool (true or false), got 1 (int)"),
        ("model.tied", "yes", "'model.tied' wants a bool (true or false), got 'yes'"),
        ("model.activation", 3, "'model.activation' wants a str, got 3 (int)"),
        ("model.kernel", "3", "'model.kernel' wants tuple[int, int], got '3'"),
        ("model.kernel", "3,x", "'model.kernel' wants tuple[int, int], got '3,x'"),
        ("model.names", ("a", 1), "'model.names' wants tuple[str, ...], got ('a', 1)"),
        ("size", 1.5, "'size' wants an int or a str, got 1.5"),
        ("decay", "4", "'decay' wants a nested configuration or none, got '4'"),
    ],
)
def test_bad_overrides_are_explained(key, value, message):
    with pytest.raises(ConfigError) as caught:
        overlay(Run(), {key: value})
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def change(tree, **changes):
    return tree | changes


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: change(t, sede=1), "no setting is called 'sede'; did you mean 'seed'?"),
        (lambda t: change(t, model=change(t["model"], dpeth=1)), "'model.dpeth'; did you mean 'model.depth'?"),
        (lambda t: {k: v for k, v in t.items() if k != "seed"}, "the setting 'seed' is missing"),
        (lambda t: change(t, seed="4"), "'seed' wants an int, got '4' (str)"),
        (lambda t: change(t, clip="none"), "'clip' wants a finite float or none, got 'none' (str)"),
        (lambda t: change(t, model=3), "'model' wants the fields of Model, got 3"),
        (lambda t: change(t, decay=[1]), "'decay' wants the fields of Decay, got [1]"),
        (lambda t: [t], "'Run' wants the fields of Run, got ["),
    ],
)
def test_from_dict_is_strict(edit, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(Run, edit(to_dict(Run())), CLASSES)
    assert message in str(caught.value)


def test_from_dict_needs_the_class_of_an_any_field_and_may_lack_what_is_aside():
    with pytest.raises(ConfigError, match="the class of 'model' is not known here"):
        from_dict(Run, to_dict(Run()))
    without = json.loads(config.canonical_json(Run(mesh="data:8"), identity_only=True))
    assert from_dict(Run, without, CLASSES) == Run()


def test_a_value_that_is_not_json_is_refused_when_written():
    for bad in (Run(clip=float("nan")), Run(seed="4"), Run(model={"depth": 2}), Run(size=[1])):
        with pytest.raises(ConfigError, match="wants"):
            to_dict(bad)


def test_nearest_lists_what_is_known_but_not_without_end():
    assert config.nearest("depht", ["width", "depth"]) == "; did you mean 'depth'?"
    assert config.nearest("x", ["width", "depth"]) == "; known: width, depth"
    assert config.nearest("x", [f"option{i}" for i in range(30)]).endswith("option19, ...")
    assert config.nearest("x", []) == ""
