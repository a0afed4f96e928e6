"""Copying the bytes of an image to another device, while others may write to it (P40 to P46).

The image is copied as it is, and no key is needed. It is read again and again, and of each piece
a digest is kept: what has another one than before is copied again. A last pass is made
while the image does not change; then the copy is equal to it, whatever happened before.

Until that is so, no program must take the copy for an image. The sectors that an image is told
by, its *heads*, are kept in memory and written when all else is durable: the first one, and
those with which second copies begin, of a LUKS2 header or of the container's, which lie at
powers of two. In place of the first there is a marker meanwhile (`blobstore.image.markers`).
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from blobstore.errors import StoreBusyError
from blobstore.image.markers import (
    MARK_SIZE,
    SECTOR,
    CopyMarker,
    first_bytes,
    move_marker,
    moved_to,
)
from formats.devices.device import SparseDevice, read_exactly
from formats.errors import DeviceError, DeviceFullError, StorageError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from formats.devices.device import BlockDevice

    Progress = Callable[[int, int], None]

#: Where second copies can begin: of LUKS2 headers at 16 KiB to 4 MiB, of the container's at the
#: size of a block, 512 bytes to 64 KiB; and with what.
_SECOND: Final = tuple(SECTOR << shift for shift in range(14))
_LUKS2: Final = b"SKUL\xba\xbe"
_CONTAINER: Final = b"\x0c\x09blobstore"
#: Bytes that are read at a time; and of which there is a digest, if the image is not larger
#: than so many of them.
_PIECE: Final = 1 << 20
_CHUNK: Final = 64 << 10
_MOST_CHUNKS: Final = 1 << 20
#: How often the image is copied again while it changes, unless a pass copied only so many
#: bytes, or took only so many seconds: another one costs as much as the last, and gains little.
_PASSES: Final = 10
_LITTLE: Final = 1 << 20
_SHORT: Final = 2.0

#: Of SHA-256, which processors compute: twice as fast as BLAKE2 where it was measured.
_DIGEST_SIZE: Final = 16
_ZEROS: Final = bytes(_DIGEST_SIZE)
_UNKNOWN: Final = b"\xff" * _DIGEST_SIZE


class ImageCopy:
    """One copying of an image. Any error, and any interrupt, leaves a copy that does not open."""

    def __init__(
        self, source: BlockDevice, destination: BlockDevice, *, progress: Progress | None = None
    ) -> None:
        """Prepare to copy; both devices stay the caller's.

        Args:
            source: The image. Others may write to it.
            destination: Becomes as large as it if it can; what it holds is lost.
            progress: Called in the first pass with bytes done and in all.
        """
        self._source, self._destination = source, destination
        self._progress = progress
        self._marker = CopyMarker(os.urandom(MARK_SIZE // 2))
        self._chunk = _CHUNK
        while source.size > self._chunk * _MOST_CHUNKS:
            self._chunk *= 2
        self._digests = bytearray()
        self._heads: dict[int, bytes] = {}
        self.copied = 0

    # ------------------------------------------------------------- steps

    def begin(self) -> None:
        """Make the destination one that no program opens.

        Raises:
            DeviceFullError: It is smaller than the image, and cannot be made larger.
            DeviceError: It cannot be written.
        """
        to = self._destination
        if to.size < SECTOR:
            self._resize()
        before = CopyMarker.decode(first_bytes(to))
        if before is not None:
            self._marker = replace(before, first=None)
        with self._doubting():
            to.write(0, self._marker.encode())
            to.flush()
            _wipe_second_heads(to)
            to.flush()
            self._resize()
        if not self._marker.doubted:
            self._know_holes()

    def run(self) -> int:
        """Copy the image while others write to it, until little of it can have changed.

        Returns:
            The number of passes.
        """
        for number in range(1, _PASSES + 1):
            began = time.monotonic()
            copied = self._pass(self._progress if number == 1 else None)
            if copied <= _LITTLE or time.monotonic() - began < _SHORT:
                break
        with self._doubting():
            self._destination.flush()
        return number

    def settle(self, *, still: bool = True) -> None:
        """Copy what has changed, for the last time.

        Args:
            still: Whether it cannot change meanwhile. Otherwise it is read until it has not.

        Raises:
            StoreBusyError: It changed in each of several passes.
        """
        for _ in range(_PASSES):
            if not self._pass(None) or still:
                return
        raise StoreBusyError(f"the image changed in each of {_PASSES} passes", hint="try again")

    def finish(self) -> None:
        """Let the copy be an image: it is durable when this returns."""
        self._write_second_heads()
        with self._doubting():
            self._destination.write(0, self._heads[0])
            self._destination.flush()

    def hand_over(self) -> None:
        """Let the copy be the image, and the source none (P46).

        There is no moment at which both can be opened, and none from which this cannot be
        completed (`complete_hand_over`).
        """
        self._marker = self._marker.handing_over(self._heads[0])
        self._write_second_heads()
        with self._doubting():
            self._destination.write(0, self._marker.encode())
            self._destination.flush()
        complete_hand_over(self._source, self._destination)

    # ------------------------------------------------------------- passes

    def _pass(self, progress: Progress | None) -> int:
        """Copy what has another digest than before; return how many bytes that were."""
        self._resize()
        before = self.copied
        size = self._source.size
        done, total = 0, sum(length for _, length in self._data(size)) if progress else 0
        buffer = memoryview(bytearray(max(_PIECE, self._chunk)))
        for start, length, has_data in self._pieces(size):
            if has_data:
                self._source.read_into(start, buffer[:length])
            for at in range(0, length, self._chunk):
                chunk = buffer[at : min(at + self._chunk, length)]
                self._copy_chunk(start + at, len(chunk), chunk if has_data else None)
            if progress and has_data:
                done = min(done + length, total)
                progress(done, total)
        return self.copied - before

    def _pieces(self, size: int) -> Iterator[tuple[int, int, bool]]:
        """Yield offset and length of pieces up to ``size``, and whether they may have data."""
        piece = max(_PIECE, self._chunk)
        ranges = self._data(size)
        start, stop = next(ranges, (size, 0))
        for at in range(0, size, piece):
            length = min(piece, size - at)
            while start + stop <= at and start < size:
                start, stop = next(ranges, (size, 0))
            yield at, length, start < at + length

    def _data(self, size: int) -> Iterator[tuple[int, int]]:
        if isinstance(self._source, SparseDevice):
            yield from self._source.data_ranges(0, size)
        elif size:
            yield 0, size

    def _copy_chunk(self, offset: int, length: int, data: memoryview | None) -> None:
        # The ends tell nearly always that it is not a hole.
        if data is not None and not data[0] and not data[-1] and bytes(data).count(0) == length:
            data = None
        digest = _ZEROS if data is None else sha256(data).digest()[:_DIGEST_SIZE]
        first = offset // self._chunk * _DIGEST_SIZE
        known = bytes(self._digests[first : first + _DIGEST_SIZE])
        if known == digest:
            return
        self._digests[first : first + _DIGEST_SIZE] = digest
        written = self._without_heads(offset, bytes(length if data is None else data))
        # What could not be written once may read as if it had been.
        compares = known == _UNKNOWN and not self._marker.doubted
        if compares and written == read_exactly(self._destination, offset, length):
            return
        self._store(offset, written)
        self.copied += length

    def _store(self, offset: int, data: bytes) -> None:
        with self._doubting():
            if data.count(0) == len(data):
                try:
                    self._destination.discard(offset, len(data))
                except UnsupportedError:
                    pass
                else:
                    return
            self._destination.write(offset, data)

    def _without_heads(self, offset: int, data: bytes) -> bytes:
        """Return what is written for now, and keep the heads in it."""
        for head in [one for one in self._heads if offset <= one < offset + len(data)]:
            del self._heads[head]
        written = bytearray(data)
        for head in (0, *_SECOND):
            place = slice(head - offset, head - offset + SECTOR)
            sector = data[place] if offset <= head < offset + len(data) else b""
            if sector and (head == 0 or _is_second_head(sector)):
                self._heads[head] = sector
                written[place] = bytes(len(sector))
        if not offset:
            written[:SECTOR] = self._marker.encode()
        return bytes(written)

    def _know_holes(self) -> None:
        """Note what is known to be zeros in the destination."""
        to, size = self._destination, self._source.size
        if not isinstance(to, SparseDevice):
            return
        known = bytearray(_ZEROS * (len(self._digests) // _DIGEST_SIZE))
        for start, length in to.data_ranges(0, size):
            first, last = start // self._chunk, (start + length - 1) // self._chunk
            known[first * _DIGEST_SIZE : (last + 1) * _DIGEST_SIZE] = _UNKNOWN * (last + 1 - first)
        self._digests = known

    def _resize(self) -> None:
        """Make the destination as large as the image is now."""
        measure = getattr(self._source, "measure", None)
        if measure is not None:
            measure()
        size, has = self._source.size, self._destination.size
        if size < SECTOR:
            raise UnsupportedError(
                f"the image has {size} bytes, less than a sector", feature="such an image"
            )
        if has != size:
            try:
                self._destination.resize(size)
            except UnsupportedError as error:
                if has < size:
                    raise DeviceFullError(
                        f"the image has {size} bytes, and the destination {has}"
                    ) from error
        wanted = -(-size // self._chunk) * _DIGEST_SIZE
        if wanted != len(self._digests):
            # The last chunk may have been a part of one.
            del self._digests[max(min(len(self._digests), wanted) - _DIGEST_SIZE, 0) :]
            self._digests += _UNKNOWN * ((wanted - len(self._digests)) // _DIGEST_SIZE)

    # ---------------------------------------------------------------- end

    def _write_second_heads(self) -> None:
        """Write all heads but the first; everything else is durable before."""
        with self._doubting():
            self._destination.flush()
            for offset, sector in self._heads.items():
                if offset:
                    self._destination.write(offset, sector)
            self._destination.flush()

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """Note in the copy, if it can be written, that a write or flush in the block failed."""
        try:
            yield
        except DeviceError:
            with suppress(StorageError):
                self._destination.write(0, replace(self._marker, doubted=True).encode())
                self._destination.flush()
            raise


def is_being_handed_over(source: BlockDevice, destination: BlockDevice) -> bool:
    """Say whether the hand-over of an image to this copy was begun and not completed."""
    marker = CopyMarker.decode(first_bytes(destination))
    moved = moved_to(first_bytes(source, MARK_SIZE))
    return (
        moved is not None
        and marker is not None
        and marker.first is not None
        and (moved == marker.id)
    )


def complete_hand_over(source: BlockDevice, destination: BlockDevice) -> None:
    """Let a copy be the image that a source was, from what both hold (P46).

    Args:
        source: It has its first bytes, or the move marker for this copy.
        destination: Complete except for its first sector, which is the marker with the
            first bytes of the source.

    Raises:
        DeviceError: One of them cannot be written; the rest can be done later.
    """
    sector = first_bytes(destination)
    marker = CopyMarker.decode(sector)
    if marker is None or marker.first is None:
        raise ValueError("the destination is not a copy that is being handed over")
    rest = read_exactly(source, MARK_SIZE, SECTOR - MARK_SIZE)
    source.write(0, move_marker(marker) + rest)
    source.flush()
    _wipe_second_heads(source)
    source.flush()
    try:
        destination.write(0, marker.first + rest)
        destination.flush()
    except DeviceError:
        with suppress(StorageError):
            destination.write(0, sector)
            destination.flush()
        raise


def _wipe_second_heads(device: BlockDevice) -> None:
    """Overwrite what programs would find though the first head is not there."""
    for offset in _SECOND:
        if offset + SECTOR <= device.size and _is_second_head(read_exactly(device, offset, SECTOR)):
            device.write(offset, bytes(SECTOR))


def _is_second_head(sector: bytes) -> bool:
    return sector.startswith(_LUKS2) or _CONTAINER in sector[: MARK_SIZE + 1]
