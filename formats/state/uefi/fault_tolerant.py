"""edk2's fault-tolerant writes: the work area and the spare area of a flash (F34 to F36).

The rules are those of ``spec/foreign-state.md``.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import Final

_SIGNATURE: Final = uuid.UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95").bytes_le
# Signature, CRC, state and three reserved bytes, size of the queue of writes.
_WORK: Final = struct.Struct("<16sI4sQ")
_CRC_AT, _STATE_AT = 16, 20
_VALID: Final = b"\xfe\xff\xff\xff"
# State, caller, number of writes, size of private data.
_HEADER: Final = struct.Struct("<B3x16s4xQQ")
# State, first block, offset in it, size, distance from the spare area to the blocks.
_RECORD: Final = struct.Struct("<B7xQQQq")

_ALLOCATED, _WRITES_ALLOCATED, _COMPLETE = 0x01, 0x02, 0x04
_BOOT_BLOCK, _SPARE_COMPLETE, _TARGET_COMPLETE = 0x01, 0x02, 0x04

#: Both areas begin at multiples of it, in every edk2 build.
_BLOCK: Final = 4096
#: Most writes of one header. edk2's variable driver makes one at a time.
_MOST_WRITES: Final = 64


@dataclass(frozen=True, slots=True)
class Areas:
    """Where the work area and the spare area of a flash lie. All in bytes.

    Attributes:
        work_at: Offset of the work area.
        work_size: Its size; the spare area follows it.
        spare_size: Of the spare area.
    """

    work_at: int
    work_size: int
    spare_size: int

    @property
    def spare_at(self) -> int:
        """Offset of the spare area."""
        return self.work_at + self.work_size

    @property
    def end(self) -> int:
        """Offset of the first byte after both."""
        return self.spare_at + self.spare_size


@dataclass(frozen=True, slots=True)
class Pending:
    """A write that firmware finishes when it starts.

    Attributes:
        target: Offset of the blocks that the spare area is copied to.
        size: Of those, in bytes.
    """

    target: int
    size: int


def find_work_area(flash: bytes, first: int, end: int) -> Areas | None:
    """Return where a valid work area lies, and the spare area after it; None if there is none.

    Args:
        flash: All of it.
        first: Offset after the store: what lies in that may be a guest's imitation.
        end: Offset of the end of the volume, where the spare area ends (F34).
    """
    at = flash.find(_SIGNATURE, first, end)
    while at >= 0:
        if at % _BLOCK == 0 and is_sound(flash, at):
            size = _WORK.size + _WORK.unpack_from(flash, at)[3]
            if size % _BLOCK == 0 and at + size < end:
                return Areas(at, size, end - at - size)
        at = flash.find(_SIGNATURE, at + 1, end)
    return None


def is_sound(flash: bytes, at: int) -> bool:
    """Say whether a work area begins here whose header is valid (F34)."""
    header = flash[at : at + _WORK.size]
    if len(header) < _WORK.size or not header.startswith(_SIGNATURE):
        return False
    return header[_STATE_AT : _STATE_AT + 4] == _VALID and _crc(header) == int.from_bytes(
        header[_CRC_AT : _CRC_AT + 4], "little"
    )


def blank_work_area(size: int) -> bytes:
    """Return a work area in which nothing has been written yet."""
    header = bytearray(_WORK.pack(_SIGNATURE, 0, _VALID, size - _WORK.size))
    struct.pack_into("<I", header, _CRC_AT, _crc(header))
    return bytes(header).ljust(size, b"\xff")


def _crc(header: bytes | bytearray) -> int:
    """The CRC leaves itself and the state out: they count as erased."""
    content = bytearray(header)
    content[_CRC_AT : _STATE_AT + 4] = b"\xff" * 8
    return zlib.crc32(content)


def pending_write(flash: bytes, areas: Areas) -> Pending | None:
    """Return the write that firmware would finish at its next start, if there is one (F35)."""
    end = areas.work_at + areas.work_size
    at = areas.work_at + _WORK.size
    while at + _HEADER.size <= end:
        state, _, writes, private_size = _HEADER.unpack_from(flash, at)
        if state & (_ALLOCATED | _WRITES_ALLOCATED) or writes > _MOST_WRITES:
            return None
        size = _HEADER.size + writes * (_RECORD.size + private_size)
        if at + size > end:
            return None
        if state & _COMPLETE:
            return _unfinished(flash, areas, at + _HEADER.size, writes, private_size)
        at += size
    return None


def _unfinished(
    flash: bytes, areas: Areas, at: int, writes: int, private_size: int
) -> Pending | None:
    for _ in range(writes):
        state, _, offset, length, distance = _RECORD.unpack_from(flash, at)
        if state & _TARGET_COMPLETE:
            if state & _SPARE_COMPLETE or not state & _BOOT_BLOCK:
                return None
            size = -(-(offset + length) // _BLOCK) * _BLOCK
            target = areas.spare_at + distance
            if 0 < size <= areas.spare_size and 0 <= target <= areas.spare_at - size:
                return Pending(target, size)
            return None
        at += _RECORD.size + private_size
    return None
