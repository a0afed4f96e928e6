"""Sizes as people write them: ``4096``, ``"256KiB"``, ``"1.5MiB"``, ``"2M"``."""

from __future__ import annotations

import re

_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:iB)?|B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str | int) -> int:
    """Return a number of bytes; K, KiB, M, MiB, G, GiB, T, TiB are powers of 1024.

    Raises:
        ValueError: It is not a whole, non-negative number of bytes. ``KB`` and the
            like are refused: some mean 1000 by it.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        whole, rest = text, 0
    else:
        match = _PATTERN.fullmatch(str(text).strip())
        if not match:
            raise ValueError(f"{text!r} is not a size; write 4096, 256KiB or 1MiB")
        number, unit = match.groups()
        integer, _, fraction = number.partition(".")
        # In integers, for a float would round.
        digits = int(integer + fraction) * 1024 ** _POWERS[(unit or "").upper()]
        whole, rest = divmod(digits, 10 ** len(fraction))
    if whole < 0 or rest:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return whole


def format_size(size: int) -> str:
    """Return a size for people: exact where a unit divides it, else in bytes."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power} {unit}"
    return f"{size} B"
