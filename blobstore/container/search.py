"""Finding heads in space of which nothing tells what lies where (C43).

Space is read in large pieces, and a block that cannot start an item costs next to
nothing: a gibibyte takes about as long as reading it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.container.decoder import locate_check
from formats.container.der import read_framing
from formats.container.model import FREE_TAG, HEAD_SIZE, RECORD_TAG
from formats.devices.device import read_exactly
from formats.errors import DeviceError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice

#: Bytes that are searched at most before all that follows is taken as hidden.
SEARCH_LIMIT = 4 << 30

_PIECE_SIZE = 1 << 20
_TAGS = (RECORD_TAG, FREE_TAG)


def likely_heads(
    device: BlockDevice, start: int, end: int, block_size: int
) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and first 512 bytes of each block that may be an item's first.

    What cannot be read is skipped. Whether a head is sound is the caller's to find out.

    Args:
        device: Of the container.
        start: Where to begin, in bytes: the start of a block.
        end: Where to stop, in bytes; no further than `SEARCH_LIMIT` is looked.
        block_size: B, in bytes.
    """
    end = min(end, start + SEARCH_LIMIT)
    buffer = bytearray(min(_PIECE_SIZE, max(end - start, 0)))
    for piece_start in range(start, end, _PIECE_SIZE):
        del buffer[end - piece_start :]
        piece = buffer
        try:
            device.read_into(piece_start, piece)
        except DeviceError:
            piece = bytearray().join(_read_apart(device, piece_start, len(piece), block_size))
        firsts = piece[::block_size]
        for number in sorted(index for tag in _TAGS for index in _indexes(firsts, tag)):
            at = number * block_size
            head = bytes(piece[at : at + HEAD_SIZE])
            if _may_be_one(head, block_size):
                yield piece_start + at, head


def _read_apart(device: BlockDevice, start: int, size: int, block_size: int) -> Iterator[bytes]:
    """Read only the first 512 bytes of each block; zeros where that fails."""
    for offset in range(start, start + size, block_size):
        try:
            head = read_exactly(device, offset, HEAD_SIZE)
        except DeviceError:
            head = bytes(HEAD_SIZE)
        yield head.ljust(block_size, b"\0")


def _indexes(octets: bytearray, value: int) -> Iterator[int]:
    index = octets.find(value)
    while index >= 0:
        yield index
        index = octets.find(value, index + 1)


def _may_be_one(head: bytes, block_size: int) -> bool:
    try:
        _, start, size = read_framing(head, 0)
        locate_check(head)
    except FormatError:
        return False
    return (start + size) % block_size == 0
