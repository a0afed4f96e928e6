"""Writing headers: the only module that does.

A crash at any instant, with unflushed sectors landing in any order and torn,
leaves the old header or the new one, with its key material complete: key material
is durable before the header that refers to it, and a LUKS2 header copy is written
only while the other one is valid (spec/luks.md, L10 to L14, L91, L92, L94).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.devices.device import read_exactly
from formats.frozen import replace
from luks.errors import LuksHeaderError
from luks.header import luks1, luks2
from luks.header.detection import secondary_offsets
from luks.header.luks2 import PRIMARY, SECONDARY
from luks.header.luks2_binary import BINARY_SIZE, MAX_SEQID
from luks.header.other_signatures import check_place
from luks.header.policy import check_requirements
from luks.header.validate import validate_luks1
from luks.model import SECTOR_SIZE
from luks.secret.randomness import source_or_system

if TYPE_CHECKING:
    from collections.abc import Mapping

    from formats.devices.device import BlockDevice, ReadableBuffer
    from luks.header.luks1 import RawKeyslot
    from luks.model import Header
    from luks.secret.randomness import RandomSource

_CHUNK: Final = 1 << 20


def create_header(
    device: BlockDevice,
    header: Header,
    material: Mapping[int, ReadableBuffer],
    random: RandomSource | None = None,
) -> Header:
    """Durably write the first header of a volume over the old content.

    Args:
        device: Large enough for the header and its keyslots area.
        header: The header to write, with `seqid` 0.
        material: Byte offset to key material, inside the keyslots area.
        random: Source of the header's salts, and of the unused part of the area.

    Returns:
        The header as it was written.

    Raises:
        DeviceError: Writing failed; the device holds no header, one that does not
            open, or the complete new one.
        LuksHeaderError: The metadata do not fit.
    """
    _erase_header(device)
    end = header.keyslots_offset + header.keyslots_size
    _fill_with_random(device, header.keyslots_offset, end, random)
    return _write(device, header, material, new=True, random=random)


def replace_header(
    device: BlockDevice, header: Header, material: Mapping[int, ReadableBuffer]
) -> Header:
    """Write a header from elsewhere, where there is none or an obsolete one.

    A crash leaves no header, or the complete new one. Space that no keyslot refers to
    is erased.

    Args:
        device: Large enough for the header and its keyslots area.
        header: As it was read elsewhere.
        material: Byte offset to the content of each keyslot's area.

    Raises:
        DeviceError: As `create_header`.
        LuksHeaderError: The metadata do not fit.
    """
    _erase_header(device)
    written = _write(device, header, material, new=True)
    erase_unused(device, written)
    return written


def wipe_header(device: BlockDevice, header: Header) -> None:
    """Durably overwrite a header and its keyslots area with random bytes.

    Raises:
        DeviceError: A write or flush failed: the remains open nothing, or the header
            is still complete.
    """
    _erase_header(device)
    end = min(header.keyslots_offset + header.keyslots_size, device.size)
    _fill_with_random(device, 0, end)
    device.flush()


def write_header(
    device: BlockDevice, header: Header, material: Mapping[int, ReadableBuffer]
) -> Header:
    """Durably replace the header on a device, and erase the space that it no longer uses.

    Args:
        device: Holds the header that ``header`` was made from.
        header: The header to write; `stale_copy` says which copy must be written first.
        material: Byte offset to key material for new keyslots, in areas that
            the header on the device does not use.

    Returns:
        The header as it was written.

    Raises:
        DeviceError: A write or flush failed: the header is the old or the new one.
        LuksHeaderError: The metadata do not fit, or ``header`` breaks a rule.
        UnsupportedError: The header has requirements that are not implemented.
        ForeignImageError: Other data lies where a copy was.
    """
    check_requirements(header)
    if header.stale_copy == PRIMARY:
        check_place(device, 0)
    written = _write(device, header, material, new=False)
    erase_unused(device, written)
    return written


def rewrite_header(
    device: BlockDevice, header: Header, material: Mapping[int, ReadableBuffer] | None = None
) -> Header:
    """Durably replace the header on a device; space that it no longer uses is not erased.

    For re-encryptions, which write headers often, and with requirements: the caller knows
    them. Arguments, result and errors are otherwise those of `write_header`.
    """
    if header.stale_copy == PRIMARY:
        check_place(device, 0)
    return _write(device, header, material or {}, new=False)


def next_header(header: Header) -> Header:
    """Return a header as it will be after writing: LUKS2 counts writes (L1)."""
    return header if header.version == luks1.VERSION else replace(header, seqid=header.seqid + 1)


def repair_header(device: BlockDevice, header: Header) -> Header:
    """Rewrite the damaged or old copy of a LUKS2 header from the other one.

    The other copy is not written, and the two are equal afterwards.

    Args:
        device: Holds the header.
        header: As it was loaded from there; it says whether a copy must be rewritten.

    Raises:
        DeviceError: A write or flush failed; the other copy is unchanged.
        ForeignImageError: Other data lies where the copy was.
    """
    which = header.stale_copy
    if which is None:
        return header
    check_place(device, which * header.metadata_size)
    device.write(which * header.metadata_size, luks2.encode(header)[which])
    device.flush()
    return replace(header, stale_copy=None)


def erase_unused(device: BlockDevice, header: Header, end: int = 0) -> None:
    """Durably overwrite every part of the keyslots area that no keyslot refers to.

    Erased parts are random, so they cannot be recognised and are overwritten again.

    Args:
        device: Holds the header.
        header: That header.
        end: Where to stop; by default, and at the least, at the end of the keyslots area.

    Raises:
        DeviceError: A write or flush failed; the used parts are unchanged.
    """
    position = header.keyslots_offset
    end = min(max(end, header.keyslots_offset + header.keyslots_size), device.size)
    areas = sorted((slot.area for slot in header.keyslots.values()), key=lambda area: area.offset)
    for area in areas:
        _fill_with_random(device, position, min(area.offset, end))
        position = max(position, area.end)
    _fill_with_random(device, position, end)
    device.flush()


def _write(
    device: BlockDevice,
    header: Header,
    material: Mapping[int, ReadableBuffer],
    *,
    new: bool,
    random: RandomSource | None = None,
) -> Header:
    if header.version == luks1.VERSION:
        pieces, written = _luks1_pieces(header, new=new)
    else:
        pieces, written = _luks2_pieces(header, random)
    if material:
        for offset, data in material.items():
            device.write(offset, data)
        device.flush()
    for offset, piece in pieces:
        device.write(offset, piece)
        device.flush()
    return written


def _luks1_pieces(header: Header, *, new: bool) -> tuple[list[tuple[int, bytes]], Header]:
    """Return the pieces to write, in order, and the resulting header.

    The header has 592 bytes: one sector, with the first keyslots and the state of
    slot 6, and 80 bytes more, with the rest of slot 6 and slot 7. Each sector is
    written completely or not at all, so keyslots that become active are written
    before any that become inactive (L92).
    """
    raw = luks1.from_model(header)
    data = luks1.encode(raw)
    written = luks1.decode(data)
    validate_luks1(written)
    head, tail = data[:SECTOR_SIZE], data[SECTOR_SIZE:]
    if new:
        old_head, old_tail, between = b"", b"", tail
    else:
        before = luks1.encode(header.source)
        old_head, old_tail = before[:SECTOR_SIZE], before[SECTOR_SIZE:]
        slots = _luks1_between(header.source.keyslots, raw.keyslots)
        between = luks1.encode(replace(raw, keyslots=slots))[SECTOR_SIZE:]
    steps = (
        (SECTOR_SIZE, between, old_tail),
        (0, head, old_head),
        (SECTOR_SIZE, tail, between),
    )
    pieces = [
        (offset, piece.ljust(SECTOR_SIZE, b"\0"))
        for offset, piece, there in steps
        if piece != there
    ]
    return pieces, luks1.to_model(written)


def _luks1_between(
    old: tuple[RawKeyslot, ...], new: tuple[RawKeyslot, ...]
) -> tuple[RawKeyslot, ...]:
    """Return the keyslots for the case that the second sector is written first."""
    *first, sixth, seventh = new
    if old[6].active:
        if sixth.active and sixth != old[6]:
            raise ValueError("keyslot 6 of LUKS1 lies in two sectors: it cannot be replaced")
        sixth = old[6]
    return (*first, sixth, seventh if seventh.active else old[7])


def _luks2_pieces(
    header: Header, random: RandomSource | None
) -> tuple[list[tuple[int, bytes]], Header]:
    """Return the pieces to write, in order, and the resulting header.

    The damaged or old copy is written first: meanwhile the other one is the header.
    """
    if header.seqid >= MAX_SEQID:
        raise LuksHeaderError("the counter of header writes has reached its limit", rule="L1")
    copies = luks2.encode(next_header(header), random)
    # Check that the written header will be read as it is meant.
    written = luks2.decode_copy(copies[PRIMARY], PRIMARY, 0)
    if written != next_header(header):
        raise LuksHeaderError(
            "the metadata would be read differently than they were given", rule="L90"
        )
    places = [(0, copies[PRIMARY]), (header.metadata_size, copies[SECONDARY])]
    return (places[::-1] if header.stale_copy == SECONDARY else places), written


def _erase_header(device: BlockDevice) -> None:
    """Invalidate an old header before anything that it refers to is overwritten."""
    secondaries = secondary_offsets(device)
    start = read_exactly(device, 0, min(BINARY_SIZE, device.size))
    if not secondaries and start.count(0) == len(start):
        return
    for offset in (0, *secondaries):
        device.write(offset, bytes(min(BINARY_SIZE, device.size - offset)))
    device.flush()


def _fill_with_random(
    device: BlockDevice, start: int, end: int, random: RandomSource | None = None
) -> None:
    """Fill a part of the keyslots area, to hide its old content and which parts are in use."""
    for offset in range(start, end, _CHUNK):
        device.write(offset, source_or_system(random)(min(_CHUNK, end - offset)))
