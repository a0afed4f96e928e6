"""From how many sectors on NumPy is faster.

The tables in luks/crypto/fast/bulk.py are measured with it.

The two ways take turns with requests of more and more sectors. What counts is
where the way in bulk is faster from, and remains so.
"""

from __future__ import annotations

import os
import timeit
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np  # noqa: F401  its import is no part of this

from luks.crypto.ciphers import sector_cipher
from luks.crypto.fast import bulk, xts
from luks.crypto.spec import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SECTOR_SIZES = (512, 1024, 2048, 4096)
DIRECTIONS = ("encrypt", "decrypt")
#: The table in luks/crypto/fast/bulk.py, with a cipher that it is for, and the bytes of its key.
_CIPHERS = {
    "AES_XTS": ("aes-xts-plain64", 64),
    "AES_XTS_BY_CONTEXTS": ("aes-xts-plain64", 64),
    "OTHER_XTS": ("aes-xts-benbi", 64),
    "CBC": ("aes-cbc-essiv:sha256", 32),
}
TABLES = tuple(_CIPHERS)
#: Sectors of the largest request; what is not faster there never is.
_MOST = 1024
_SECONDS = 0.001
_REPEATS = 7


class Measured(NamedTuple):
    """As `luks.crypto.fast.bulk.Crossover` has it; without sizes where NumPy never is faster.

    Attributes:
        encrypt: Sectors, by their size.
        decrypt: The same.
        saved: Microseconds of each sector of large requests, by its size.
    """

    encrypt: dict[int, int]
    decrypt: dict[int, int]
    saved: dict[int, float]


def run(tables: Iterable[str] = TABLES, *, most: int = _MOST) -> Iterator[tuple[str, Measured]]:
    """Yield each table's name and what was measured for it."""
    for name in tables:
        text, key_size = _CIPHERS[name]
        by_contexts = name == "AES_XTS_BY_CONTEXTS"
        patch = mock.patch.object(xts, "_tweak_can_follow", return_value=False)
        with patch if by_contexts else nullcontext():
            measured = Measured({}, {}, {})
            for sector_size in SECTOR_SIZES:
                saved = []
                for direction in DIRECTIONS:
                    least, each = _measure(text, key_size, sector_size, direction, most)
                    if each > 0:
                        getattr(measured, direction)[sector_size] = least
                        saved.append(each)
                if saved:
                    measured.saved[sector_size] = round(sum(saved) / len(saved), 2)
            yield name, measured


def describe(name: str, measured: Measured) -> str:
    """Return what was measured beside what the table says."""
    table = getattr(bulk, name)
    lines = [name]
    for field, found in measured._asdict().items():
        lines += [f"    {field:8} {found}", f"    {'now':8} {dict(getattr(table, field))}"]
    return "\n".join(lines)


def _measure(
    text: str, key_size: int, sector_size: int, direction: str, most: int
) -> tuple[int, float]:
    """Return from how many sectors on bulk is faster, and µs per sector that it saves at last."""
    key = os.urandom(key_size)
    one_by_one: Any = sector_cipher(text, key, sector_size)
    one_by_one._bulk = None
    in_bulk: Any = sector_cipher(text, key, sector_size)
    # With a table that names all sizes: the cipher's own may leave out some.
    path: Any = bulk.bulk_path(parse(text), memoryview(key), sector_size, bulk.OTHER_XTS)
    path._least_to_encrypt = path._least_to_decrypt = 0
    in_bulk._bulk = path
    runs = [getattr(cipher, direction) for cipher in (one_by_one, in_bulk)]
    least, saved = 1, 0.0
    for count in _counts(most):
        data = bytearray(count * sector_size)
        slow, fast = _seconds([partial(run, 0, data, data) for run in runs])
        saved = (slow - fast) * 1e6 / count
        if saved < 0:
            least = count + 1
    return least, saved


def _counts(most: int) -> Iterator[int]:
    """Yield numbers of sectors, each about an eighth more than the one before."""
    count = 1
    while count <= most:
        yield count
        count += max(1, count // 8)


def _seconds(actions: list[Callable[[], object]]) -> list[float]:
    """Return the least that each takes, in turn."""
    timers = [timeit.Timer(action) for action in actions]
    numbers = [max(1, int(_SECONDS / max(timer.timeit(1), 1e-7))) for timer in timers]
    best = [float("inf")] * len(timers)
    for _ in range(_REPEATS):
        for index, (timer, number) in enumerate(zip(timers, numbers, strict=True)):
            best[index] = min(best[index], timer.timeit(number) / number)
    return best
