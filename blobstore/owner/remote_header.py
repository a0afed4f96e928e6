"""The LUKS header of an owner's image as a device, so that keys are changed here (O88)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.devices.device import Device
from formats.errors import DeviceBusyError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import ReadableBuffer, WritableBuffer

    #: Reads so many bytes from there; returns them with the ETag of the header.
    Reader = Callable[[int, int], tuple[bytes, str]]
    #: Makes these writes durable if the header is at this ETag; returns the next one.
    Writer = Callable[[list[tuple[int, bytes]], str], str]

#: Bytes that are read at a time.
_PIECE: Final = 1 << 20


class RemoteHeader(Device):
    """A LUKS header that its owner reads and writes. Secrets stay here.

    What is written is sent with the next flush, and done by the owner as it would be here:
    these writes, then one flush. Used by one thread.
    """

    def __init__(self, size: int, read: Reader, write: Writer | None) -> None:
        """Serve a header of so many bytes; without ``write``, for reading only."""
        self._size = size
        self._read, self._write = read, write
        self._waiting: list[tuple[int, bytes]] = []
        self._etag: str | None = None
        self._overtaken = False

    @property
    def size(self) -> int:
        return self._size

    @property
    def block_size(self) -> int:
        return 512

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._check_range(offset, len(buffer))
        view = memoryview(buffer).cast("B")
        for start in range(0, len(view), _PIECE):
            part = view[start : start + _PIECE]
            data, etag = self._read(offset + start, len(part))
            if self._write is not None:
                self._require(etag)
            part[:] = data
        for at, data in self._waiting:
            first, last = max(at, offset), min(at + len(data), offset + len(view))
            if first < last:
                view[first - offset : last - offset] = data[first - at : last - at]

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._check_range(offset, len(data))
        if self._write is None:
            raise ReadOnlyError("the LUKS header is open for reading only")
        self._waiting.append((offset, bytes(data)))

    def flush(self) -> None:
        """Have the owner make what was written durable.

        Raises:
            DeviceBusyError: Another program has changed the header meanwhile.
            DeviceError: It failed, or the owner went away: the header is as after a power
                cut at this moment.
        """
        if not self._waiting or self._write is None:
            return
        if self._etag is None:
            _, self._etag = self._read(0, 0)
        self._require(self._etag)
        try:
            self._etag = self._write(self._waiting, self._etag)
        except DeviceBusyError:
            self._overtaken = True
            raise
        self._waiting = []

    def _require(self, etag: str) -> None:
        """Refuse to go on with a header that is not the one that was read first."""
        if self._overtaken or self._etag not in (None, etag):
            self._overtaken = True
            raise DeviceBusyError(
                "another program has changed the LUKS header meanwhile [O90]",
                hint="begin again with the header as it is now",
            )
        self._etag = etag
