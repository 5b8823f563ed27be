"""Model families, one module each. `get(name)` finds one; a new module in this folder is found by itself."""

import importlib
import pkgutil
from types import ModuleType

from deeplearn.config import ConfigError, nearest

_NOT_FAMILIES = {"family", "counting", "next_token"}


def names() -> tuple[str, ...]:
    """The names of all families, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_FAMILIES))


def get(name: str) -> ModuleType:
    """The family called `name` (see `family.py` for what it provides). Raises ConfigError if there is none."""
    if name not in names():
        raise ConfigError(f"no family is called {name!r}{nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")
