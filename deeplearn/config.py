"""Configurations: frozen dataclasses with dotted overrides, canonical JSON and an identity.

A configuration is a frozen dataclass of int, float, bool, str, tuple, X | None and nested configurations.
A field annotated `Any` holds a nested configuration whose class is known only from its value.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import numbers
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


class ConfigError(ValueError):
    """The user's configuration is wrong. Entry points turn it into one sentence and its exit code."""

    exit_code = 2


def nearest(word: str, options: Iterable[str]) -> str:
    """The end of an error message about an unknown `word`: "; did you mean 'x'?" or "; known: a, b, c"."""
    options = [str(option) for option in options]
    scores = {option: _likeness(word, option) for option in options}
    best = max(scores, key=scores.__getitem__, default=None)
    if best is not None and scores[best][0] >= 0.6:
        return f"; did you mean '{best}'?"
    return f"; known: {', '.join(options[:20])}{', ...' if len(options) > 20 else ''}" if options else ""


def aside(default: Any) -> Any:
    """A field that does not define the result (mesh, paths, logging): `identity` leaves it out."""
    return dataclasses.field(default=default, metadata={"aside": True})


def to_dict(config: Any) -> dict[str, Any]:
    """All fields as nested plain JSON types. Raises ConfigError for a value that its field does not allow."""
    return _to_dict(config, "", identity_only=False)


def from_dict(cls: type[Config], data: Mapping[str, Any], classes: Mapping[str, type] | None = None) -> Config:
    """The strict inverse of `to_dict`: every field is there (only `aside` ones may be absent), none is unknown.

    Args:
      cls: the class to build.
      data: what `to_dict` gave, perhaps by way of JSON.
      classes: dotted field name -> class, for fields annotated `Any`.
    """
    return _from_dict(cls, data, classes or {}, "")


def canonical_json(config: Any, identity_only: bool = False) -> str:
    """One line of JSON, the same for equal configurations: sorted keys, compact, typed numbers.

    With `identity_only` the fields marked `aside` are left out at any depth.
    """
    tree = _to_dict(config, "", identity_only)
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity(config: Any) -> str:
    """12 hex digits that name what defines the result: sha256 of the canonical JSON without `aside` fields."""
    return hashlib.sha256(canonical_json(config, identity_only=True).encode()).hexdigest()[:12]


def flatten(config: Any) -> dict[str, Any]:
    """Every setting by its full dotted name, in the order of the fields: {"model.depth": 4, ...}."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = flatten(value) if _is_config(value) else None
        flat |= {field.name: value} if inner is None else {f"{field.name}.{key}": leaf for key, leaf in inner.items()}
    return flat


def overlay(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with settings replaced by their dotted names; text is read as the type of its field.

    All overrides take effect at once, so a check across fields in `__post_init__` never sees half of them.

    Args:
      config: a configuration.
      overrides: for example {"model.depth": 4} or {"model.depth": "4", "optim.decay": "none", "betas": "0.9,0.95"}.

    Raises:
      ConfigError: an unknown name (the message has the nearest), a wrong type, a nested configuration as a whole.
    """
    known = list(flatten(config))
    for key in overrides:
        inside = [name for name in known if name.startswith(f"{key}.")]
        if inside:
            raise ConfigError(f"'{key}' cannot be set as a whole; set its fields: {', '.join(inside)}")
        if key not in known:
            raise ConfigError(f"no setting is called '{key}'{nearest(key, known)}")
    return _overlay(config, overrides, "")


def _likeness(word: str, option: str) -> tuple[float, float]:
    """How alike two dotted names are: their last parts ("depth" is "model.depth") or the whole; then both."""
    tails = word.rsplit(".", 1)[-1], option.rsplit(".", 1)[-1]
    ratios = [difflib.SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in (tails, (word, option))]
    return max(ratios), sum(ratios)


def _overlay(config: Any, overrides: Mapping[str, Any], prefix: str) -> Any:
    changes: dict[str, Any] = {}
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        if _is_config(value):
            inside = {key[len(name) + 1 :]: new for key, new in overrides.items() if key.startswith(f"{name}.")}
            if inside:
                changes[name] = _overlay(value, inside, f"{prefix}{name}.")
        elif name in overrides:
            changes[name] = _typed(hint, overrides[name], prefix + name, text=True)
    return dataclasses.replace(config, **changes) if changes else config


def _to_dict(config: Any, prefix: str, identity_only: bool) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if identity_only and field.metadata.get("aside"):
            continue
        if _is_config(value):
            tree[field.name] = _to_dict(value, f"{path}.", identity_only)
        else:
            tree[field.name] = _jsonable(_typed(hints[field.name], value, path))
    return tree


def _from_dict(cls: type, data: Any, classes: Mapping[str, type], prefix: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"'{prefix[:-1] or cls.__name__}' wants the fields of {cls.__name__}, got {data!r}")
    hints = _hints(cls)
    for key in data:
        if key not in hints:
            known = [prefix + name for name in hints]
            raise ConfigError(f"no setting is called '{prefix}{key}'{nearest(prefix + key, known)}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        path = prefix + field.name
        if field.name not in data:
            if field.metadata.get("aside"):
                continue
            raise ConfigError(f"the setting '{path}' is missing")
        value = data[field.name]
        nested = _nested_class(hints[field.name], classes.get(path))
        if isinstance(value, Mapping) and nested is None:
            raise ConfigError(f"the class of '{path}' is not known here; pass classes={{'{path}': ...}}")
        if nested is not None and not (value is None and _typed_none(hints[field.name])):
            values[field.name] = _from_dict(nested, value, classes, f"{path}.")
        else:
            values[field.name] = _typed(hints[field.name], value, path)
    return cls(**values)


def _typed(hint: Any, value: Any, path: str, text: bool = False) -> Any:
    """`value` as the type `hint`, or ConfigError. With `text`, a str is read as that type would be written."""
    if _typed_none(hint) and (value is None or (text and isinstance(value, str) and value.lower() == "none")):
        return None
    members = [member for member in _members(hint) if member is not types.NoneType]
    for member in members:
        try:
            return _typed_as(member, value, path, text)
        except (ValueError, OverflowError):
            continue
    wanted = " or ".join(_describe(member) for member in _members(hint))
    raise ConfigError(f"'{path}' wants {wanted}, got {value!r:.80} ({type(value).__name__})")


def _typed_as(kind: Any, value: Any, path: str, text: bool) -> Any:
    """`value` as the plain type `kind`; raises ValueError or OverflowError when it is not one."""
    if kind is bool:
        value = {"true": True, "false": False}.get(value.lower()) if text and isinstance(value, str) else value
        if isinstance(value, bool):
            return value
    elif kind is int and not isinstance(value, bool):
        return _integer(value, text)
    elif kind is float and not isinstance(value, bool):
        number = float(value) if isinstance(value, numbers.Real) or (text and isinstance(value, str)) else math.nan
        if math.isfinite(number):
            return number + 0.0  # -0.0 becomes 0.0: equal configurations have equal JSON
    elif kind is str and isinstance(value, str):
        return str(value)
    elif kind is tuple or typing.get_origin(kind) is tuple:
        return _tuple(typing.get_args(kind), value, path, text)
    raise ValueError


def _integer(value: Any, text: bool) -> int:
    if text and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)  # 1e6 is how people write a token budget
    if isinstance(value, numbers.Integral) or (isinstance(value, numbers.Real) and float(value).is_integer()):
        return int(value)
    raise ValueError


def _tuple(args: tuple, value: Any, path: str, text: bool) -> tuple:
    if text and isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    if not isinstance(value, list | tuple):
        raise ValueError
    args = args or (bool | int | float | str, ...)
    hints = args[:1] * len(value) if args[1:] == (...,) else args
    return tuple(_typed(hint, item, path, text) for hint, item in zip(hints, value, strict=True))


def _jsonable(value: Any) -> Any:
    return [_jsonable(item) for item in value] if isinstance(value, tuple) else value


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _members(hint: Any) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _typed_none(hint: Any) -> bool:
    return types.NoneType in _members(hint)


def _nested_class(hint: Any, given: type | None) -> type | None:
    return given or next((member for member in _members(hint) if dataclasses.is_dataclass(member)), None)


def _describe(kind: Any) -> str:
    if kind is types.NoneType:
        return "none"
    if kind is float:
        return "a finite float"
    if kind is Any or dataclasses.is_dataclass(kind):
        return "a nested configuration"
    names = {bool: "a bool (true or false)", int: "an int", str: "a str", tuple: "a tuple"}
    return names.get(kind) or str(kind)
