"""Results in plain JSON types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Dataclasses and mappings as objects, arrays and tuples as lists; what is not finite (open ends are not), None."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, list | tuple) or np.ndim(value):
        return [plain(item) for item in value]
    if isinstance(value, np.bool_ | np.integer | int):
        return value.item() if isinstance(value, np.generic) else value
    return float(value) if np.isfinite(value) else None
