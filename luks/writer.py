"""Writing headers: the only module that does.

A crash at any instant, with unflushed sectors landing in any order and torn,
leaves the header as it was or as it shall be, and the key material of either
whole: what a header refers to is durable before the header is, and a LUKS2
header copy is touched only while the other one is valid (spec/luks.md, L10 to
L14).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from formats.device import read_exactly
from luks import luks1, luks2
from luks.errors import LuksHeaderError
from luks.load import secondary_offsets
from luks.luks2 import PRIMARY, SECONDARY
from luks.luks2_binary import BINARY_SIZE, MAX_SEQID
from luks.model import SECTOR_SIZE
from luks.validate import validate_luks1

if TYPE_CHECKING:
    from collections.abc import Mapping

    from formats.device import BlockDevice, ReadableBuffer
    from luks.model import Header

_CHUNK: Final = 1 << 20


def create_header(
    device: BlockDevice, header: Header, material: Mapping[int, ReadableBuffer]
) -> Header:
    """Write the first header of a volume, durably, over whatever was there.

    Args:
        device: Large enough for the header and its keyslots area.
        header: What to write, with `seqid` 0.
        material: Byte offset to key material, inside the keyslots area.

    Returns:
        The header as it was written.

    Raises:
        DeviceError: It was not; the device holds no header, or one that
            does not open, or the whole new one.
        LuksHeaderError: The metadata do not fit.
    """
    _erase_header(device)
    _fill_with_random(device, header)
    return write_header(device, header, material)


def write_header(
    device: BlockDevice, header: Header, material: Mapping[int, ReadableBuffer]
) -> Header:
    """Replace the header on a device, durably.

    Args:
        device: Holds the header that ``header`` was made from.
        header: What to write; `stale_copy` says which copy must go first.
        material: Byte offset to key material for new keyslots, in areas that
            the header on the device does not use.

    Returns:
        The header as it was written.

    Raises:
        DeviceError: A write or flush failed: the header is the old or the new one.
        LuksHeaderError: The metadata do not fit, or ``header`` breaks a rule.
    """
    pieces, written = (_luks1_pieces if header.version == luks1.VERSION else _luks2_pieces)(header)
    if material:
        for offset, data in material.items():
            device.write(offset, data)
        device.flush()
    for offset, piece in pieces:
        device.write(offset, piece)
        device.flush()
    return written


def _luks1_pieces(header: Header) -> tuple[list[tuple[int, bytes]], Header]:
    """Return what to write, in order, and the header that it amounts to.

    The header has 592 bytes, one sector and a bit. Only its first sector says
    that there is one, so that goes last.
    """
    data = luks1.encode(luks1.from_model(header))
    raw = luks1.decode(data)
    validate_luks1(raw)
    head, tail = data[:SECTOR_SIZE], data[SECTOR_SIZE:].ljust(SECTOR_SIZE, b"\0")
    return [(SECTOR_SIZE, tail), (0, head)], luks1.to_model(raw)


def _luks2_pieces(header: Header) -> tuple[list[tuple[int, bytes]], Header]:
    """Return what to write, in order, and the header that it amounts to.

    The copy that is damaged or old goes first: as long as it is being written,
    the other one is the header.
    """
    if header.seqid >= MAX_SEQID:
        raise LuksHeaderError("the counter of header writes is at its end", rule="L1")
    copies = luks2.encode(replace(header, seqid=header.seqid + 1))
    # Whatever is written is something we would read; this finds what is not.
    written = luks2.decode_copy(copies[PRIMARY], PRIMARY, 0)
    if written != replace(header, seqid=header.seqid + 1):
        raise LuksHeaderError("these metadata would be read otherwise", rule="L90")
    places = [(0, copies[PRIMARY]), (header.metadata_size, copies[SECONDARY])]
    return (places[::-1] if header.stale_copy == SECONDARY else places), written


def _erase_header(device: BlockDevice) -> None:
    """Make an old header invalid before anything it refers to is overwritten."""
    secondaries = secondary_offsets(device)
    start = read_exactly(device, 0, min(BINARY_SIZE, device.size))
    if not secondaries and start.count(0) == len(start):
        return
    for offset in (0, *secondaries):
        device.write(offset, bytes(min(BINARY_SIZE, device.size - offset)))
    device.flush()


def _fill_with_random(device: BlockDevice, header: Header) -> None:
    """Fill the keyslots area, so that nobody sees which part of it is in use."""
    end = header.keyslots_offset + header.keyslots_size
    for offset in range(header.keyslots_offset, end, _CHUNK):
        device.write(offset, os.urandom(min(_CHUNK, end - offset)))
