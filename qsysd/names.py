"""The natural order of names, web2 before web10, and the known name that is most similar to one."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile("([0-9]+)")


def natural_key(name: str) -> list[str | int]:
    """Return a sort key in which the numbers in names count by value."""
    # Text and numbers alternate: text is never compared with a number.
    return [int(part) if index % 2 else part for index, part in enumerate(_NUMBER.split(name))]


def in_order(names: Iterable[str]) -> list[str]:
    """Return names in their natural order."""
    return sorted(names, key=natural_key)


def closest(name: str, known: Iterable[str], *, similarity: float = 0.6) -> str | None:
    """Return the most similar known name; None if none is similar enough. similarity: difflib's ratio."""
    # A seam: only errors need similar names.
    import difflib

    return next(iter(difflib.get_close_matches(name, list(known), 1, similarity)), None)
