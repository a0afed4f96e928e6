"""Sources of random bytes: the operating system, or a seed for reproducible images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Final

#: Returns the requested number of random bytes.
RandomSource = Callable[[int], bytes]

_LABEL: Final = b"blobstore: random bytes from a seed, version 1"


def source_or_system(source: RandomSource | None) -> RandomSource:
    """Return the source, or that of the operating system by default."""
    return os.urandom if source is None else source


class SeededSource:
    """Bytes that are the same whenever the same requests are made in the same order.

    They are only as secret as the seed: a holder of the seed knows all keys among them.
    The n-th result is SHAKE-256 over a key and n, where the key is SHA-256 over a
    label, the sizes of the seed's parts and these parts.
    """

    def __init__(self, *seed: bytes) -> None:
        """Start from the parts of a seed; each part matters, even an empty one, and their order."""
        key = hashlib.sha256(_LABEL)
        for part in seed:
            key.update(len(part).to_bytes(8, "big") + part)
        self._key = key.digest()
        self._count = 0

    def __call__(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes."""
        self._count += 1
        return hashlib.shake_256(self._key + self._count.to_bytes(8, "big")).digest(size)
