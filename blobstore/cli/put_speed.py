"""How fast durable puts are in a directory, and what its disk allows."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import blobstore
import luks
from formats.errors import device_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO

_synchronise: Final = getattr(os, "fdatasync", os.fsync)

#: Bytes of the blobs that are put.
SIZES: Final = (4 << 10, 64 << 10, 1 << 20)

#: Unlocking is not what is measured here.
_KDF: Final = luks.Pbkdf2("sha256", 1000)
_WARM_UP: Final = 3


@dataclass(frozen=True)
class PutSpeed:
    """How long durable puts of blobs of one size take, in seconds.

    Attributes:
        size: Bytes of the blob.
        count: How many were measured.
        median: What half of the puts took at most.
        slowest: What the slowest took.
        disk: The median of a write of as many bytes in place, and a flush: the
            least that anything durable takes there. (On macOS this reaches only the cache
            of the disk, and a put the disk itself.)
    """

    size: int
    count: int
    median: float
    slowest: float
    disk: float


def measure_puts(directory: Path, *, seconds: float = 1.0) -> Iterator[PutSpeed]:
    """Put blobs to an encrypted, authenticated image in ``directory``.

    Nothing remains there.

    Args:
        directory: On the disk to measure; it must exist.
        seconds: For each size, about.

    Raises:
        DeviceError: Nothing can be written there.
        DeviceFullError: There is no room for a few MiB.
    """
    with ExitStack() as stack:
        try:
            name = stack.enter_context(TemporaryDirectory(prefix=".benchmark-", dir=directory))
        except OSError as error:
            raise device_error(error, f"cannot write to {directory}") from error
        path = Path(name, "image")
        sections = {str(size): size for size in SIZES}
        store = stack.enter_context(blobstore.create(path, sections, b"benchmark", kdf=_KDF))
        blobstore.write_file(Path(name, "plain"), bytes(max(SIZES)))
        plain = stack.enter_context(Path(name, "plain").open("r+b", buffering=0))
        for size in SIZES:
            yield _measure(store, plain, size, seconds)


def _measure(store: blobstore.Store, plain: FileIO, size: int, seconds: float) -> PutSpeed:
    """Measure both in turn, so that both see the same disk."""
    blob = os.urandom(size)
    puts: list[float] = []
    writes: list[float] = []

    def put() -> None:
        store.put(str(size), blob)

    def write() -> None:
        plain.seek(0)
        plain.write(blob)
        _synchronise(plain.fileno())

    for _ in range(_WARM_UP):
        put()
        write()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        puts.append(_seconds(put))
        writes.append(_seconds(write))
    return PutSpeed(
        size=size,
        count=len(puts),
        median=statistics.median(puts),
        slowest=max(puts),
        disk=statistics.median(writes),
    )


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
