"""BlockDevice, the one seam of the project, and the devices that need no file.

Everything that stores bytes is a `BlockDevice`: a file, memory, a LUKS segment,
a slice of another device. One conformance suite (`tests/conformance`) runs over
all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from formats.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

#: Bytes that a device takes in `write`.
ReadableBuffer = bytes | bytearray | memoryview
#: Memory that a device fills in `read_into`.
WritableBuffer = bytearray | memoryview


@runtime_checkable
class BlockDevice(Protocol):
    """A store of a fixed number of bytes, which can make them durable.

    Offsets and sizes are bytes, of any alignment. A request is carried out
    exactly or raises; nothing is ever short. A request outside ``0 ..
    size`` is the caller's mistake and raises `ValueError`.

    Writes become durable some time before `flush` returns, in any order and torn
    at 512-byte sectors; nothing is promised earlier.
    """

    @property
    def size(self) -> int:
        """Number of bytes stored."""

    @property
    def block_size(self) -> int:
        """Bytes, a power of two; aligned writes of whole blocks cost no read."""

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        """Fill ``buffer`` with the bytes that start at ``offset``.

        Raises:
            DeviceError: They cannot be read; ``buffer`` is then undefined.
        """

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        """Store ``data`` at ``offset``; ``data`` is not modified.

        Raises:
            ReadOnlyError: The device is open for reading only.
            DeviceFullError: There is no space to store it.
            DeviceError: The write failed; any part of it may have happened.
        """

    def flush(self) -> None:
        """Make everything written so far durable.

        Raises:
            DeviceError: The data is not durable. Everything written since the last
                successful flush must be written again, not only flushed again.
        """

    def resize(self, size: int, /) -> None:
        """Change the size; new bytes are zero, or undefined under encryption.

        Raises:
            UnsupportedError: This kind of device has a fixed size.
        """

    def discard(self, offset: int, size: int, /) -> None:
        """Give back the space of a range; it then reads as zeros, or as noise under encryption.

        Like a write it is durable after the next `flush`.

        Raises:
            ReadOnlyError: The device is open for reading only.
            UnsupportedError: This device cannot give space back; nothing changed.
            DeviceError: It failed; any part of it may have happened.
        """

    def close(self) -> None:
        """Release the device's resources without a flush. It may be called twice."""


@runtime_checkable
class SparseDevice(Protocol):
    """A `BlockDevice` that knows which of its ranges hold only zeros."""

    def data_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield offset and length of the parts of a range that may hold data, in order.

        The rest is known to read as zeros, without being read.

        Raises:
            StorageError: It could not be determined.
        """


@runtime_checkable
class SpaceDevice(Protocol):
    """A `BlockDevice` that may have to allocate space when it is written."""

    def backed_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield offset and length of the parts of a range that have space, in order.

        Raises:
            StorageError: It could not be determined.
        """

    def reserve(self, offset: int, size: int, /) -> None:
        """Allocate the space of a range, so that a write to it cannot fail for lack of space.

        The content of the range does not change. Where space cannot be reserved, the
        need is only compared with the space that is free.

        Raises:
            ReadOnlyError: The device is open for reading only.
            DeviceFullError: There is not enough space; none was taken.
            DeviceError: It failed.
        """


class Device(ABC):
    """Base of all devices here: `read`, range checks, ``with``."""

    @property
    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None: ...

    def read(self, offset: int, size: int) -> bytes:
        """Return the ``size`` bytes at ``offset``; errors as for `read_into`."""
        buffer = bytearray(size)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def resize(self, size: int, /) -> None:
        """Refuse: the size of this device is fixed; subclasses may differ."""
        raise UnsupportedError(
            f"a {type(self).__name__} cannot be resized to {size} bytes", feature="resize"
        )

    def discard(self, offset: int, size: int, /) -> None:
        """Refuse: this device gives no space back; subclasses may differ."""
        raise UnsupportedError(
            f"a {type(self).__name__} cannot discard {size} bytes at byte {offset}",
            feature="discard",
        )

    def close(self) -> None:  # noqa: B027  most devices hold nothing to release
        """Release nothing; subclasses that hold something override it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_range(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(
                f"bytes {offset} to {offset + size} are outside a device of {self.size} bytes"
            )


class SharedDevice(Device):
    """Base of the devices at the bottom, on which images lie: others may use them, too.

    Attributes:
        read_only: Whether writing is refused.
        observer: Called with the offset and bytes of each read, if it is set.
    """

    read_only: bool
    observer: Callable[[int, memoryview], None] | None = None

    @property
    @abstractmethod
    def block_size(self) -> int: ...

    @abstractmethod
    def write(self, offset: int, data: ReadableBuffer, /) -> None: ...

    @abstractmethod
    def flush(self) -> None: ...

    @abstractmethod
    def data_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a range that may hold data, as `SparseDevice.data_ranges`."""

    @abstractmethod
    def lock(self) -> None:
        """Keep other processes out, as far as is possible, and note the size of today (C65).

        Raises:
            DeviceBusyError: Another process has it.
            DeviceError: It failed.
        """

    @abstractmethod
    def unlock(self) -> None:
        """Let other processes have it; the device stays open."""

    @abstractmethod
    def measure(self) -> None:
        """Note the size that it has now, if another process may have changed it."""


class MemoryDevice(Device):
    """Bytes in memory: for tests, and for images built before they are stored."""

    def __init__(self, content: int | ReadableBuffer, *, block_size: int = 512) -> None:
        """Start with ``content``: that many zero bytes, or a copy of those bytes."""
        self.content = bytearray(content)
        self._block_size = block_size

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def block_size(self) -> int:
        return self._block_size

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._check_range(offset, len(buffer))
        buffer[:] = memoryview(self.content)[offset : offset + len(buffer)]

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._check_range(offset, len(data))
        self.content[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Do nothing: memory has no second, durable state."""

    def resize(self, size: int, /) -> None:
        if size < len(self.content):
            del self.content[size:]
        else:
            self.content.extend(bytes(size - len(self.content)))

    def discard(self, offset: int, size: int, /) -> None:
        """Zero the bytes: memory has no holes, but reads as if it had them."""
        self.write(offset, bytes(size))


class SliceDevice(Device):
    """A fixed range of another device, which its opener has to close."""

    def __init__(self, device: BlockDevice, offset: int, size: int) -> None:
        """Expose bytes ``offset`` to ``offset + size`` of ``device``."""
        if offset < 0 or size < 0 or offset + size > device.size:
            raise ValueError(
                f"bytes {offset} to {offset + size} are outside a device of {device.size} bytes"
            )
        self._device = device
        self._offset = offset
        self._size = size

    @property
    def base(self) -> BlockDevice:
        """The device of which this is a range."""
        return self._device

    @property
    def size(self) -> int:
        return self._size

    @property
    def block_size(self) -> int:
        return self._device.block_size

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._check_range(offset, len(buffer))
        self._device.read_into(self._offset + offset, buffer)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._check_range(offset, len(data))
        self._device.write(self._offset + offset, data)

    def flush(self) -> None:
        self._device.flush()

    def discard(self, offset: int, size: int, /) -> None:
        self._check_range(offset, size)
        self._device.discard(self._offset + offset, size)


def read_exactly(device: BlockDevice, offset: int, size: int) -> bytes:
    """Return the ``size`` bytes at ``offset`` of any `BlockDevice`; errors as its `read_into`."""
    buffer = bytearray(size)
    device.read_into(offset, buffer)
    return bytes(buffer)


def is_blank(device: BlockDevice, *, limit: int = 4 << 20) -> bool:
    """Say whether the first ``limit`` bytes and the last MiB are all zero.

    A device of size 0 is blank. Used before formatting: a device that is not blank
    may hold data that is still needed.
    """
    step = 1 << 20
    ends = [(0, min(limit, device.size)), (max(0, device.size - step), device.size)]
    for start, end in ends:
        for offset in range(start, end, step):
            chunk = read_exactly(device, offset, min(step, end - offset))
            if chunk.count(0) != len(chunk):
                return False
    return True
