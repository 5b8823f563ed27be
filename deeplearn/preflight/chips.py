"""The table of chips: peak rates, memory, links, power and price, each with its source; a file can replace it."""

import dataclasses
import datetime
import math
import tomllib
from pathlib import Path
from typing import Any

from deeplearn.config import ConfigError, nearest

TABLE = Path(__file__).with_name("chips.toml")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a number was read, and when (ISO 8601)."""

    url: str
    date: str


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as chips.toml explains; what is not known is None. sources: field -> where its number is from."""

    name: str
    title: str
    peak: float
    hbm: float
    bandwidth: float
    link: float | None = None
    links: float | None = None
    ring: float | None = None
    domain: float | None = None
    network: float | None = None
    watts: float | None = None
    dollars: float | None = None
    sources: dict[str, Source] = dataclasses.field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        """Dimensions of the torus that it stands in; 0 for a switched network."""
        return int(self.links or 0) // 2


@dataclasses.dataclass(frozen=True)
class Grid:
    """grams_co2_per_kwh: of the electricity. pue: energy of the building over that of its computers."""

    grams_co2_per_kwh: float
    pue: float
    sources: dict[str, Source] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    chips: dict[str, Chip]
    grid: Grid

    def chip(self, name: str) -> Chip:
        """The chip called `name`. Raises ConfigError that names the nearest."""
        if name not in self.chips:
            raise ConfigError(f"no chip is called {name!r}{nearest(name, self.chips)}")
        return self.chips[name]


def load(path: Path = TABLE) -> Table:
    """Read a table. Raises ConfigError that names the file, the chip and the number that is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the table of chips {path}: {error}") from None
    sources = {name: _source(path, name, given) for name, given in data.get("sources", {}).items()}
    chips = {}
    for name, row in data.get("chips", {}).items():
        title = row.pop("title", name)
        chips[name] = _build(Chip, f"{path}: chips.{name}", row, sources, {"name": name, "title": title})
    if not chips:
        raise ConfigError(f"{path} has no [chips.NAME]")
    grid = data.get("grid") or {}
    return Table(chips, _build(Grid, f"{path}: grid", grid, sources, {}) if grid else load().grid)


def with_intensity(grid: Grid, grams_co2_per_kwh: float) -> Grid:
    """The grid of a place whose intensity the user gives."""
    rest = {name: source for name, source in grid.sources.items() if name == "pue"}
    return dataclasses.replace(grid, grams_co2_per_kwh=grams_co2_per_kwh, sources=rest)


def _source(path: Path, name: str, given: Any) -> Source:
    try:
        source = Source(given["url"], given["date"])
        datetime.date.fromisoformat(source.date)
    except (TypeError, KeyError, ValueError):
        raise ConfigError(f"{path}: sources.{name} wants a url and a date as YYYY-MM-DD, got {given!r}") from None
    return source


def _build(cls: type, where: str, row: dict[str, Any], sources: dict[str, Source], values: dict[str, Any]) -> Any:
    known = [f.name for f in dataclasses.fields(cls) if f.name not in ("name", "title", "sources")]
    used = {}
    for field, given in row.items():
        if field not in known:
            raise ConfigError(f"{where} has an unknown number {field!r}{nearest(field, known)}")
        value = given.get("value") if isinstance(given, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ConfigError(f"{where}.{field} wants {{ value = a positive number, source = ... }}, got {given!r}")
        if given.get("source") not in sources:
            raise ConfigError(f"{where}.{field} names no source{nearest(str(given.get('source')), sources)}")
        values[field], used[field] = float(value), sources[given["source"]]
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} has no {field.name}")
    return cls(**values, sources=used)
