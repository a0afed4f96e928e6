"""The device that holds an image, as the image sees it: it grows, and ends in zeros."""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Final

from formats.errors import (
    DeviceError,
    DeviceFullError,
    FormatError,
    TruncatedImageError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice, ReadableBuffer

_SECTOR: Final = 512
_SWAP: Final = sys.byteorder == "little"


class Host:
    """The image file below a qcow2 disk.

    Clusters may lie partly behind the end of the file: those bytes are zero. One
    that lies there wholly was cut off.
    """

    def __init__(self, device: BlockDevice) -> None:
        """Use ``device``, which stays its opener's to close."""
        self.device = device
        self._discards = True
        self._failed = False

    @property
    def size(self) -> int:
        """Bytes of the device now."""
        return self.device.size

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset`` on; what lies behind the end is zero.

        Raises:
            TruncatedImageError: ``offset`` is behind the end.
            DeviceError: It cannot be read.
        """
        available = self.device.size - offset
        if available >= len(view):
            self.device.read_into(offset, view)
            return
        if available <= 0:
            raise TruncatedImageError(
                "the image ends before a cluster that it uses", offset=offset, rule="Q9"
            )
        self.device.read_into(offset, view[:available])
        view[available:] = bytes(len(view) - available)

    def check_whole(self, offset: int, size: int, what: str) -> None:
        """Check that the image does not end within something whose rest must not become zeros.

        Raises:
            TruncatedImageError: It does, or before it.
        """
        if offset + size > self.device.size:
            raise TruncatedImageError(
                f"the image ends within {what}, or before it", offset=offset, rule="Q9"
            )

    def read(self, offset: int, size: int) -> bytearray:
        """Return ``size`` bytes; as `read_into`."""
        buffer = bytearray(size)
        self.read_into(offset, memoryview(buffer))
        return buffer

    def read_table(self, offset: int, entries: int) -> array[int]:
        """Return a table of 64-bit entries; as `read_into`."""
        table = array("Q")
        table.frombytes(self.read(offset, entries * 8))
        if _SWAP:
            table.byteswap()
        return table

    def write_table(self, offset: int, table: array[int], first: int, last: int) -> None:
        """Write the sectors of a table that hold entries ``first`` to ``last`` - 1.

        Args:
            offset: Where the table begins.
            table: All of it.
            first: Index.
            last: Index behind.
        """
        step = _SECTOR // 8
        first -= first % step
        last = min(last + -last % step, len(table))
        data = encode_table(table[first:last])
        # Tables have their clusters to themselves, so whole sectors are theirs too.
        self.write(offset + first * 8, data.ljust(len(data) + -len(data) % _SECTOR, b"\0"))

    def write(self, offset: int, data: ReadableBuffer) -> None:
        """Write, and make the file longer if need be.

        Raises:
            DeviceFullError: There is no space, or the device cannot grow.
            DeviceError: It failed.
        """
        self._check_sound()
        self.reach(offset + len(data))
        self.device.write(offset, data)

    def reach(self, end: int) -> None:
        """Make the device at least ``end`` bytes long; errors as `write`."""
        if end > self.device.size:
            try:
                self.device.resize(end)
            except UnsupportedError as error:
                raise DeviceFullError(
                    f"the image needs {end} bytes, and its device has {self.device.size}"
                ) from error

    def discard(self, offset: int, size: int) -> None:
        """Give space back, where the device can; that it cannot is no error."""
        size = min(size, self.device.size - offset)
        if self._discards and size > 0:
            try:
                self.device.discard(offset, size)
            except UnsupportedError:
                self._discards = False

    def flush(self) -> None:
        """Make everything written durable.

        After a failure nothing is written any more: what the system then lost it
        would not lose again, and say so, at the next flush (Q16).

        Raises:
            DeviceError: It failed, now or earlier.
        """
        self._check_sound()
        self._failed = True  # also if it is interrupted
        self.device.flush()
        self._failed = False

    def distrust(self) -> None:
        """Write nothing any more, as after a flush that failed."""
        self._failed = True

    def _check_sound(self) -> None:
        if self._failed:
            raise DeviceError(
                "an earlier flush failed, or was interrupted, so that nobody knows what is on the"
                " medium [Q16]",
                hint="open the image again",
            )


def encode_table(table: array[int]) -> bytes:
    """Return a table as it is on disk."""
    if _SWAP:
        table = table[:]
        table.byteswap()
    return table.tobytes()


def check_entry(offset: int, cluster_size: int, what: str, place: int) -> None:
    """Check that a table refers to a whole cluster, and not to the header.

    Raises:
        FormatError: It does not.
    """
    if offset % cluster_size or not offset:
        raise FormatError(
            f"{what} is at byte {offset}, which is no cluster", offset=place, rule="Q9"
        )
