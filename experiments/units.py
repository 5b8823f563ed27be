"""Bytes and seconds in three digits."""


def bytes_of(number: float) -> str:
    """`1234567` -> "1.23 MB"."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f} B"


def seconds_of(number: float) -> str:
    """`0.0123` -> "12.3 ms"."""
    for factor, unit in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{1e6 * number:.3g} us"
