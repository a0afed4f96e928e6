"""Putting a header where a plain payload begins, without an instant at which both are lost (L165).

The first bytes of the payload make room for the header, and a header is larger than what
a disk writes at once. So the header is staged first, with a *marker* at the end of the
image, in its last 4096 bytes, that says where. Before that the payload is whole; afterwards
`complete_placing` puts the header in its place, however often that is interrupted. The
marker also says whether the image was made larger, so that it can be cut to what it needs.

    [ first bytes ][ rest of the payload ][ staged header ][ copy of first bytes ][ marker ]
    0              shift                  base             base + shift           base + 2 shift
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final

from formats.devices.device import SliceDevice, read_exactly
from formats.frozen import Frozen
from luks.errors import FormatError, LuksHeaderError, UnsupportedError
from luks.header.load import read_header
from luks.secret.randomness import source_or_system

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from luks.model import Header

#: Bytes at the end of the image that the marker takes.
MARKER_SIZE: Final = 4096
_MAGIC: Final = b"blobstore encryption in place\0\0\0"
# Magic, version, stage, whether the image grew; size, shift, header size, offset of the
# staged header; its SHA-256. A SHA-256 of all that follows.
_LAYOUT: Final = struct.Struct(">32sHBBQQQQ32s")
_VERSION: Final = 1
_CHUNK: Final = 1 << 20

# Stages: the payload is whole; the header is staged; the header is placed.
BEGUN, STAGED, PLACED = range(3)


class Marker(Frozen):
    """What the last block of an image says while it is encrypted in place.

    Attributes:
        stage: `BEGUN`, `STAGED` or `PLACED`.
        has_grown: Whether the image was made larger for it.
        plain_size: Bytes of the plain image before.
        shift: Bytes by which the payload moves; the room of the header.
        header_size: Bytes of the staged header.
        staged_offset: Byte offset at which it is staged.
        header_digest: Its SHA-256.
    """

    stage: int
    has_grown: bool
    plain_size: int
    shift: int
    header_size: int = 0
    staged_offset: int = 0
    header_digest: bytes = bytes(32)


def read_marker(device: BlockDevice) -> Marker | None:
    """Return the marker of an image, or None if it has none that is whole.

    Raises:
        UnsupportedError: It is of a version that is unknown here.
    """
    if device.size < 2 * MARKER_SIZE:
        return None
    block = read_exactly(device, device.size - MARKER_SIZE, _LAYOUT.size + 32)
    if not block.startswith(_MAGIC):
        return None
    body, digest = block[: _LAYOUT.size], block[_LAYOUT.size :]
    if hashlib.sha256(body).digest() != digest:
        return None
    _, version, stage, grown, plain, shift, size, staged, header_digest = _LAYOUT.unpack(body)
    if version != _VERSION or stage > PLACED:
        raise UnsupportedError(
            f"the encryption in place was begun in a way that is unknown here ({version})",
            feature="encryption in place",
        )
    return Marker(stage, bool(grown), plain, shift, size, staged, header_digest)


def write_marker(device: BlockDevice, marker: Marker) -> None:
    """Durably write the marker into the last block; it is one sector, so it is never torn."""
    body = _LAYOUT.pack(
        _MAGIC,
        _VERSION,
        marker.stage,
        marker.has_grown,
        marker.plain_size,
        marker.shift,
        marker.header_size,
        marker.staged_offset,
        marker.header_digest,
    )
    sector = (body + hashlib.sha256(body).digest()).ljust(512, b"\0")
    device.write(device.size - MARKER_SIZE, sector)
    device.flush()


def copy_first_bytes(device: BlockDevice, source: int, target: int, size: int) -> None:
    """Durably copy a range of the device to another place of it, which it does not overlap."""
    for at in range(0, size, _CHUNK):
        piece = read_exactly(device, source + at, min(_CHUNK, size - at))
        device.write(target + at, piece)
    device.flush()


def place_header(device: BlockDevice, marker: Marker, metadata_size: int) -> None:
    """Durably put the staged header over the first bytes of the image.

    A header copy is written only after everything that it refers to is durable, and the
    primary one last. Repeating it is harmless until something has been moved.

    Args:
        device: The image.
        marker: Of stage `STAGED`.
        metadata_size: Bytes of one header copy.

    Raises:
        LuksHeaderError: The staged header is damaged.
        DeviceError: A read, write or flush failed; do it again.
    """
    staged = read_exactly(device, marker.staged_offset, marker.header_size)
    if hashlib.sha256(staged).digest() != marker.header_digest:
        raise LuksHeaderError(
            "the header that encryption in place has staged is damaged",
            offset=marker.staged_offset,
            rule="L165",
        )
    device.write(2 * metadata_size, staged[2 * metadata_size :])
    # No plain byte stays between the header and the payload.
    for at in range(marker.header_size, marker.shift, _CHUNK):
        device.write(at, source_or_system(None)(min(_CHUNK, marker.shift - at)))
    device.flush()
    for start in (metadata_size, 0):
        device.write(start, staged[start : start + metadata_size])
        device.flush()


def complete_placing(device: BlockDevice) -> None:
    """Put a staged header in its place, if a crash came while that was done.

    Raises:
        LuksHeaderError: The staged header is damaged.
        DeviceError: A read, write or flush failed; do it again.
    """
    marker = read_marker(device)
    if marker is None or marker.stage != STAGED:
        return
    staged = staged_header(device, marker)
    try:
        there: Header | None = read_header(device)
    except FormatError:
        there = None
    if there is None or there.uuid != staged.uuid:
        place_header(device, marker, staged.metadata_size)
    write_marker(device, _placed(marker))


def staged_header(device: BlockDevice, marker: Marker) -> Header:
    """Return the header that is staged.

    Raises:
        FormatError: It is damaged.
    """
    return read_header(SliceDevice(device, marker.staged_offset, marker.header_size))


def _placed(marker: Marker) -> Marker:
    return Marker(PLACED, marker.has_grown, marker.plain_size, marker.shift)
