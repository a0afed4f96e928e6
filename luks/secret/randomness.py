"""Where random bytes come from: the operating system, or for reproducible images a seed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Final

#: Returns as many random bytes as it is asked for.
RandomSource = Callable[[int], bytes]

_LABEL: Final = b"blobstore: random bytes from a seed, version 1"


def source_or_system(source: RandomSource | None) -> RandomSource:
    """Return the source, or the operating system's where there is none."""
    return os.urandom if source is None else source


class SeededSource:
    """Bytes that are the same whenever they are asked for in the same order.

    They are as secret as the seed: keys among them are known to whoever has it.
    The n-th answer is SHAKE-256 over a key and n, where the key is SHA-256 over a
    label, the sizes of the seed's parts and these parts.
    """

    def __init__(self, *seed: bytes) -> None:
        """Start from the parts of a seed; none of them is empty of meaning, nor is the order."""
        key = hashlib.sha256(_LABEL)
        for part in seed:
            key.update(len(part).to_bytes(8, "big") + part)
        self._key = key.digest()
        self._count = 0

    def __call__(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes."""
        self._count += 1
        return hashlib.shake_256(self._key + self._count.to_bytes(8, "big")).digest(size)
