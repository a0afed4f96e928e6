"""The device that holds an image: it grows on demand, and reads as zeros at its end."""

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

    A cluster may lie partly beyond the end of the file: those bytes are zero. A cluster
    that lies wholly beyond the end was cut off.
    """

    def __init__(self, device: BlockDevice) -> None:
        """Use ``device``, which its opener has to close."""
        self.device = device
        self._discards = True
        self._failed = False

    @property
    def size(self) -> int:
        """Bytes of the device now."""
        return self.device.size

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; bytes beyond the end are zero.

        Raises:
            TruncatedImageError: ``offset`` is beyond the end.
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
        """Check that the image holds all of a range whose rest must not be read as zeros.

        Raises:
            TruncatedImageError: It ends within the range, or before it.
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
            last: Index after the last one.
        """
        step = _SECTOR // 8
        first -= first % step
        last = min(last + -last % step, len(table))
        data = encode_table(table[first:last])
        # Tables do not share clusters, so they do not share sectors either.
        self.write(offset + first * 8, data.ljust(len(data) + -len(data) % _SECTOR, b"\0"))

    def write(self, offset: int, data: ReadableBuffer) -> None:
        """Write, and make the file longer if necessary.

        Raises:
            DeviceFullError: No space is left, or the device cannot grow.
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
        """Give space back if the device can; if it cannot, that is not an error."""
        size = min(size, self.device.size - offset)
        if self._discards and size > 0:
            try:
                self.device.discard(offset, size)
            except UnsupportedError:
                self._discards = False

    def flush(self) -> None:
        """Make everything written durable.

        After a failure nothing more is written: the system may have dropped data then,
        and the next flush would succeed without it (Q16).

        Raises:
            DeviceError: It failed, now or earlier.
        """
        self._check_sound()
        self._failed = True  # also if it is interrupted
        self.device.flush()
        self._failed = False

    def distrust(self) -> None:
        """Refuse all further writes, as after a failed flush."""
        self._failed = True

    def _check_sound(self) -> None:
        if self._failed:
            raise DeviceError(
                "an earlier flush failed or was interrupted, so the content of the medium is not"
                " known [Q16]",
                hint="open the image again",
            )


def encode_table(table: array[int]) -> bytes:
    """Return the bytes of a table."""
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
            f"{what} is at byte {offset}, which is not a cluster", offset=place, rule="Q9"
        )
