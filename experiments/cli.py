"""What the entry points share: flags, dotted overrides, config files, and errors as one sentence and an exit code."""

import dataclasses
import errno
import importlib.util
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from deeplearn.config import ConfigError, nearest, overlay

CONFIGS = pathlib.Path(__file__).parent / "configs"
DOTTED = re.compile(r"--?config\.([^=]*)(?:=(.*))?", re.DOTALL)

# What a disk refuses, by whatever library and class of exception it comes: its traceback would help nobody.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)

flags.disclaim_key_flags()  # the flags defined below belong to the entry point, so its --help shows them


def run(main: Callable[[list[str]], Any], arguments: Sequence[str] = ()) -> None:
    """Parses the command line, calls `main(argv)` as `absl.app.run` does, and exits.

    An exception with an `exit_code` (ConfigError: 2, Fenced: 3) ends in one line on stderr and that code; so does a
    wrong flag, and with 1 what a disk refuses. Any other exception keeps its traceback.

    Args:
      main: called with the program's name and the positional arguments; its return value is the exit status.
      arguments: names of the positional arguments, for the message when there are too few or too many.
    """
    try:
        app.run(main, flags_parser=lambda argv: _parse(argv, arguments))
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None and any(os.strerror(number) in str(error) for number in _OF_THE_DISK):
            _exit(f"error: {error}", 1)
        if code is None:
            raise
        _exit(f"error: {error}" if code == 2 else str(error), code)


def define_config_flags(config: str = "config") -> None:
    """Defines --config, or what else it is called, and --set as flags of the calling entry point."""
    flags.DEFINE_string(config, None, "A config file, or the bare name of one in experiments/configs.")
    flags.DEFINE_multi_string(
        "set",
        [],
        "An override, for example --set model.depth=4; may be repeated. --config.model.depth=4 is the same. "
        "size=... derives the whole model anew; every other override is applied after it.",
    )


def config_from_flags() -> Any:
    """The configuration that --config and the overrides name."""
    if flags.FLAGS.config is None:
        raise ConfigError(f"which configuration? pass --config=NAME{nearest('', known_configs())}")
    return get_run(load_config(flags.FLAGS.config), parse_overrides(flags.FLAGS.set))


def parse_overrides(texts: Sequence[str]) -> dict[str, str]:
    """["model.depth=4", ...] -> {"model.depth": "4", ...}, in order; the last of two for one key counts."""
    overrides: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"an override is written KEY=VALUE, for example --set model.depth=4; got '{text}'")
        overrides.pop(key, None)
        overrides[key] = value
    return overrides


def known_configs() -> list[str]:
    """The bare names that --config knows."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


def load_config(name: str) -> types.ModuleType:
    """The module in a config file, which defines `get_config(size=...)` and maybe `get_sweep()`.

    Args:
      name: a path, or the bare name of a file in experiments/configs.

    Raises:
      ConfigError: there is no such file, it fails to load, or it has no get_config.
    """
    path = pathlib.Path(name)
    if not path.is_file() and path.parent == pathlib.Path():
        path = CONFIGS / f"{path.stem}.py"
    if not path.is_file():
        raise ConfigError(f"there is no config file '{name}'{nearest(pathlib.Path(name).stem, known_configs())}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"a config file is a Python file, '{name}' is not")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1]
        raise ConfigError(f"config file '{path}', line {line}: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"config file '{path}' defines no get_config(size=...)")
    return module


def load_sweep(name: str) -> types.ModuleType:
    """The module in a config file that defines `get_sweep()`, too. Raises ConfigError."""
    module = load_config(name)
    if not hasattr(module, "get_sweep"):
        raise ConfigError(f"config {name!r} has no get_sweep(); experiments.train trains a single run")
    return module


def get_run(module: types.ModuleType, overrides: Mapping[str, Any]) -> Any:
    """`module.get_config()` with overrides. `size` goes through get_config(size=...), so that all follows from it."""
    config = module.get_config()
    if not dataclasses.is_dataclass(config):
        raise ConfigError(f"get_config in '{module.__file__}' returns no configuration but {config!r:.80}")
    if "size" in overrides:
        config = module.get_config(size=overlay(config, {"size": overrides["size"]}).size)
    return overlay(config, {key: value for key, value in overrides.items() if key != "size"})


def _parse(argv: list[str], arguments: Sequence[str]) -> list[str]:
    """absl's parsing, with our errors; --help exits with 0."""
    if not {"--help", "-help", "-h"}.isdisjoint(argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
        rest = flags.FLAGS(_dotted_to_set(argv))
    except flags.UnrecognizedFlagError as error:
        names = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(argv[0])]
        hint = nearest(f"--{error.flagname}", [f"--{name}" for name in names])
        raise ConfigError(f"no flag is called '--{error.flagname}'{hint}") from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # libraries tell every small step at absl's own default
    given = rest[1:]
    if len(given) < len(arguments):
        raise ConfigError(f"{arguments[len(given)]} is missing; --help says more")
    if len(given) > len(arguments):
        extra = given[len(arguments)]
        raise ConfigError(f"unexpected argument '{extra}'" + (f"; write --set {extra}" if "=" in extra else ""))
    return rest


def _dotted_to_set(argv: Sequence[str]) -> list[str]:
    """--config.KEY=VALUE and --config.KEY VALUE, as --set=KEY=VALUE."""
    rest, written = list(argv), []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*written, word, *rest]
        if match := DOTTED.fullmatch(word):
            key, value = match.groups()
            if value is None and (not rest or rest[0].startswith("--")):
                raise ConfigError(f"'{word}' has no value; write {word}=VALUE")
            word = f"--set={key}={rest.pop(0) if value is None else value}"
        written.append(word)
    return written


def _exit(message: str, code: int) -> None:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)
