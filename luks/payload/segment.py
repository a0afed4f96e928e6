"""An encrypted segment as a BlockDevice: any byte range over whole sectors."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from formats.devices.device import Device, SpaceDevice
from luks.crypto.ciphers import NullCipher, sector_cipher
from luks.errors import LuksHeaderError, TruncatedImageError
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer
    from luks.crypto.spec import SectorCipher
    from luks.model import Segment
    from luks.secret.secrets import Secret

#: Most bytes encrypted, and then written, at a time; a multiple of all sector sizes.
_CHUNK: Final = 1 << 20


class CryptSegment(Device):
    """A range of a device, decrypted and encrypted on the way.

    Reading and writing are safe from several threads at once, also next to each
    other in one sector. A write is handed on in whole sectors, in one piece up
    to 1 MiB; only the sectors at its edges are read before, and only where it
    does not cover them.
    """

    def __init__(
        self,
        device: BlockDevice,
        cipher: SectorCipher,
        *,
        offset: int,
        size: int,
        sector_size: int,
        first_sector: int,
    ) -> None:
        """Serve ``size`` bytes of ``device`` from ``offset`` on.

        Args:
            device: Holds the encrypted bytes; it stays its opener's to close.
            cipher: Made for sectors of ``sector_size`` bytes.
            offset: Byte offset in ``device``.
            size: A multiple of ``sector_size``.
            sector_size: Bytes.
            first_sector: Number of the first sector, in 512-byte units: the
                segment's iv_tweak.
        """
        self._device = device
        self._cipher = cipher
        self._offset = offset
        self._size = size
        self._sector_size = sector_size
        self._first_sector = first_sector
        # No other thread may see, or complete from, a sector of which only a part is
        # new: it would decrypt to garbage.
        self._lock = threading.Lock()
        # Encrypted bytes on their way out. It is kept between writes, because allocating
        # large memory is slow; the lock guards it as well.
        self._room = bytearray()
        self._closed = False

    @property
    def size(self) -> int:
        return self._size

    @property
    def block_size(self) -> int:
        return self._sector_size

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._check_range(offset, len(buffer))
        start, end = self._sectors(offset, len(buffer))
        if (start, end) == (offset, offset + len(buffer)):
            self._read_sectors(start, memoryview(buffer))
            return
        target = memoryview(buffer)
        for at in range(start, end, _CHUNK):
            chunk = bytearray(min(_CHUNK, end - at))
            self._read_sectors(at, memoryview(chunk))
            first, last = max(at, offset), min(at + len(chunk), offset + len(buffer))
            target[first - offset : last - offset] = chunk[first - at : last - at]

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._write(offset, data, self._device.write)

    def write_durably(self, offset: int, data: ReadableBuffer, /) -> None:
        start, end = self._sectors(offset, len(data))
        if 0 < end - start <= _CHUNK:
            self._write(offset, data, self._device.write_durably)
        else:
            super().write_durably(offset, data)

    def _write(
        self, offset: int, data: ReadableBuffer, write: Callable[[int, memoryview], None]
    ) -> None:
        self._check_range(offset, len(data))
        start, end = self._sectors(offset, len(data))
        source = memoryview(data)
        if 0 < end - start <= _CHUNK:
            with self._lock:
                self._write_sectors(start, end, offset, source, write)
            return
        for at in range(start, end, _CHUNK):
            stop = min(at + _CHUNK, end)
            first, last = max(at, offset), min(stop, offset + len(data))
            with self._lock:
                self._write_sectors(at, stop, first, source[first - offset : last - offset], write)

    def flush(self) -> None:
        self._device.flush()

    def discard(self, offset: int, size: int, /) -> None:
        """Give back the sectors that lie wholly in the range; they read as noise then."""
        self._check_range(offset, size)
        step = self._sector_size
        start, end = offset + -offset % step, (offset + size) // step * step
        if start < end:
            with self._lock:
                self._check_open()
                self._device.discard(self._offset + start, end - start)

    def backed_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield what in a range has space of its own in the device below, if that can tell."""
        self._check_range(offset, size)
        if not isinstance(self._device, SpaceDevice):
            yield offset, size
            return
        for start, length in self._device.backed_ranges(self._offset + offset, size):
            yield start - self._offset, length

    def reserve(self, offset: int, size: int, /) -> None:
        """Have the device below find the space for a range, if that can."""
        self._check_range(offset, size)
        if isinstance(self._device, SpaceDevice):
            self._device.reserve(self._offset + offset, size)

    def resize(self, size: int, /) -> None:
        """Resize the device below so that it ends with this segment, which gets ``size`` bytes.

        Only for a segment of dynamic size. New sectors read as noise.

        Raises:
            UnsupportedError, DeviceError: As `BlockDevice.resize`; nothing changed.
        """
        with self._lock:
            self._check_open()
            self._device.resize(self._offset + size)
            self._size = size

    def follow(self, size: int) -> None:
        """Take it that the device below was resized by another program.

        Args:
            size: Bytes of this segment now, whole sectors.
        """
        with self._lock:
            self._size = size

    def close(self) -> None:
        """Let a write that is under way end, and no other begin.

        Call it before the cipher's key is wiped: what a wiped key encrypts is lost.
        """
        with self._lock:
            self._closed = True

    def _sectors(self, offset: int, size: int) -> tuple[int, int]:
        """Return the bounds of the sectors that a range of bytes touches."""
        start = offset - offset % self._sector_size
        end = offset + size
        return (start, end + -end % self._sector_size) if size else (offset, offset)

    def _number(self, offset: int) -> int:
        return self._first_sector + offset // SECTOR_SIZE

    def _read_sectors(self, offset: int, view: memoryview) -> None:
        with self._lock:
            self._device.read_into(self._offset + offset, view)
        self._cipher.decrypt(self._number(offset), view, view)
        self._check_open()  # the key may have been wiped meanwhile

    def _write_sectors(
        self,
        start: int,
        end: int,
        offset: int,
        data: memoryview,
        write: Callable[[int, memoryview], None],
    ) -> None:
        """Write the sectors from ``start`` to ``end``, which ``data`` covers but for edges.

        The caller holds the lock.
        """
        self._check_open()
        if len(self._room) < end - start:
            self._room = bytearray(end - start)
        sectors = memoryview(self._room)[: end - start]
        if offset == start and len(data) == end - start:
            self._cipher.encrypt(self._number(start), data, sectors)
        else:
            try:
                self._complete(sectors, start, end, offset, data)
                self._cipher.encrypt(self._number(start), sectors, sectors)
            except BaseException:
                sectors[:] = bytes(end - start)  # parts of it are still in the clear
                raise
        write(self._offset + start, sectors)

    def _complete(
        self, sectors: memoryview, start: int, end: int, offset: int, data: memoryview
    ) -> None:
        """Put ``data`` into ``sectors``, and around it what the sectors at the edges hold."""
        size = self._sector_size
        edges = {start} if offset != start else set()
        if offset + len(data) != end:
            edges.add(end - size)
        for edge in edges:
            sector = sectors[edge - start :][:size]
            self._device.read_into(self._offset + edge, sector)
            self._cipher.decrypt(self._number(edge), sector, sector)
        sectors[offset - start :][: len(data)] = data

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the segment is closed")


def open_segment(device: BlockDevice, segment: Segment, key: Secret | None) -> CryptSegment:
    """Return a segment of a header as a device.

    Args:
        device: Holds it.
        segment: Passed the policy, also if it is not encrypted.
        key: Its key; referred to, not copied. None if it is not encrypted.

    Raises:
        LuksHeaderError, TruncatedImageError: As `segment_size`.
    """
    if segment.type == "linear":
        cipher: SectorCipher = NullCipher()
    elif key is None:
        raise LuksHeaderError("an encrypted segment has no digest", rule="L29")
    else:
        cipher = sector_cipher(
            segment.cipher or "", key.view(), segment.sector_size, permit_null=True
        )
    return CryptSegment(
        device,
        cipher,
        offset=segment.offset,
        size=segment_size(device, segment),
        sector_size=segment.sector_size,
        first_sector=segment.iv_tweak,
    )


def segment_size(device: BlockDevice, segment: Segment) -> int:
    """Return the bytes of a segment, in whole sectors, with the size that the device has.

    Raises:
        LuksHeaderError: It ends inside a sector (L28).
        TruncatedImageError: The device ends before it does.
    """
    remaining = device.size - segment.offset
    size = segment.size
    if size is None:
        # What is left after the last whole sector is not part of the payload.
        size = remaining - remaining % segment.sector_size
    elif size % segment.sector_size:
        raise LuksHeaderError("a segment ends inside a sector", rule="L28")
    if size > remaining or remaining < 0:
        raise TruncatedImageError(
            f"the image of {device.size} bytes ends before the payload does, which starts at"
            f" byte {segment.offset}"
        )
    return size
