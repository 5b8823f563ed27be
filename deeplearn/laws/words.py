"""Words that options are given by."""

import difflib
from collections.abc import Iterable


def known(kind: str, word: str, options: Iterable[str]) -> str:
    """The word, if it is one of the options. Raises ValueError that names the nearest one if it is not."""
    options = list(options)
    if word in options:
        return word
    near = difflib.get_close_matches(str(word), options, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options)}"
    raise ValueError(f"unknown {kind} {word!r}; {hint}")
