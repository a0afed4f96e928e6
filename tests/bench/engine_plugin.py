"""The cipher of a volume as a benchmark of ciphers sees it.

    python engine_limit.py --plugin tests.bench.engine_plugin:Engine --path .

It is what `luks.open` makes for the default cipher, in a process that has imported
NumPy: otherwise that happens at some time during the measurement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np  # noqa: F401

from luks.crypto.ciphers import sector_cipher
from luks.crypto.spec import DEFAULT_CIPHER

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer, WritableBuffer


class Engine:
    """AES-XTS with sectors of one size."""

    def __init__(self, key: bytes, sector_size: int) -> None:
        self._cipher = sector_cipher(DEFAULT_CIPHER, key, sector_size)
        self._step = sector_size // 512

    def crypt(
        self, encrypt: bool, first: int, data: ReadableBuffer, out: WritableBuffer, step: int
    ) -> None:
        """Encrypt or decrypt sectors ``first``, ``first + step``, ..."""
        if step != self._step:
            raise ValueError("LUKS numbers sectors in units of 512 bytes")
        run = self._cipher.encrypt if encrypt else self._cipher.decrypt
        run(first, data, out)
