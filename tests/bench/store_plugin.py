"""The real store as a benchmark of durable puts sees it: open it, put, get, close.

    python store_peers.py --plugin tests.bench.store_plugin:sectors_of_4096 --plugin-path .

Each factory takes a directory and returns an object with ``put(name, data)``,
durable on return, ``get(name)`` and ``close()``. The sections that the benchmark
will put to are registered beforehand, as devices do. Nothing is left out: LUKS2,
two copies, authentication.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import blobstore
import luks

if TYPE_CHECKING:
    from blobstore import Store

_SECRET = b"benchmark"
#: Unlocking is not what is measured here.
_KDF = luks.Pbkdf2("sha256", 1000)

#: Sizes that are put, and how many puts each of the rounds makes of one.
_PUTS = {4 << 10: 20, 64 << 10: 20, 1 << 20: 10}
_ROUNDS = 10


def sectors_of_4096(directory: str) -> Store:
    """Return a store in a new image with LUKS2 sectors of 4096 bytes."""
    return _store(directory, 4096)


def sectors_of_512(directory: str) -> Store:
    """Return a store in a new image with LUKS2 sectors of 512 bytes."""
    return _store(directory, 512)


def _store(directory: str, sector_size: int) -> Store:
    path = Path(directory, "store.img")
    sections = {
        f"k{number:04d}-{size}-{put}": size
        for number, (size, count) in itertools.product(range(_ROUNDS), _PUTS.items())
        for put in range(count)
    }
    blobstore.create(path, sections, _SECRET, sector_size=sector_size, kdf=_KDF).close()
    return blobstore.open(path, _SECRET, direct=True)
