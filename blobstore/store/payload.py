"""What the container lies on, to be read while the store is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.devices.device import Device
from formats.errors import ReadOnlyError

if TYPE_CHECKING:
    from blobstore.store.session import Session
    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer


class Payload(Device):
    """The payload of an open store, for reading; `Store.payload` returns it.

    Each read is of one moment: the store writes nothing in the middle of it. Two reads are
    of two moments. After the store was closed a read raises `ValueError`, and after a fork
    `ForkedProcessError`.
    """

    def __init__(self, session: Session) -> None:
        """Read what this store lies on; use `Store.payload` instead."""
        self._session = session

    @property
    def size(self) -> int:
        """Bytes that there are now; a store that grows has more."""
        return self._device.size

    @property
    def block_size(self) -> int:
        return self._device.block_size

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        with self._session.lock:
            self._session.require_open()
            self._device.read_into(offset, buffer)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        raise ReadOnlyError(
            f"the {len(data)} bytes at byte {offset} of a store's payload are the store's to write"
        )

    def flush(self) -> None:
        """Do nothing: nothing was written here."""

    @property
    def _device(self) -> BlockDevice:
        # After `repair` and `Store.take_over` the store has another container.
        return self._session.container.device
