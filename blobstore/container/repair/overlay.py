"""A device with some heads replaced in memory: a repair is read before it is written (C70)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.container.model import HEAD_SIZE
from formats.devices.device import Device

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer


class Overlay(Device):
    """Reads as a device would with other heads; never writes to it.

    Attributes:
        heads: 512 bytes each, by the byte offset they are to have.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self.heads: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        return self._device.size

    @property
    def block_size(self) -> int:
        return self._device.block_size

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        target = memoryview(buffer).cast("B")
        if len(target) == HEAD_SIZE and offset in self.heads:
            # What it replaces may be unreadable.
            target[:] = self.heads[offset]
            return
        self._device.read_into(offset, buffer)
        for start, head in self.heads.items():
            low, high = max(start, offset), min(start + HEAD_SIZE, offset + len(target))
            if low < high:
                target[low - offset : high - offset] = head[low - start : high - start]

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        del data
        raise AssertionError(f"nothing is written through an overlay, as at {offset}")

    def flush(self) -> None:
        raise AssertionError("nothing is written through an overlay")
