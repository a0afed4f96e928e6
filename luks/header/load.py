"""Reading a header from a device: which format, which copy.

This module neither writes nor takes a lock: a program that writes a LUKS2 header keeps
one copy valid at every instant, so a concurrent reader finds one.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from formats.devices.device import is_blank, read_exactly
from formats.frozen import replace
from formats.logs import LateLogger
from luks.errors import (
    EmptyImageError,
    FormatError,
    LuksHeaderError,
    TruncatedImageError,
    UnfinishedReencryptionError,
    UnsupportedError,
)
from luks.header import luks2, luks2_binary
from luks.header.detection import MARKED_MAGIC, opened, read_at_most, secondary_offsets
from luks.header.luks2 import PRIMARY, SECONDARY
from luks.header.validate import validate_luks1
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice
    from luks.header.detection import Place
    from luks.model import Header

_log = LateLogger("luks")

_MAGIC_SIZE = 8  # magic and version


def load_header(path_or_device: Place) -> Header:
    """Read and validate the header of a LUKS1 or LUKS2 volume; nothing is written.

    Args:
        path_or_device: Image file, block device, or detached header. A path is
            opened without a lock, so that it works while the volume is in use.

    Raises:
        EmptyImageError: It has no bytes, or only zeros.
        ForeignImageError: It holds something else.
        TruncatedImageError: It ends inside the header.
        LuksHeaderError: The header is damaged, in LUKS2 both copies of it.
        UnsupportedError: It has an unknown version.
        UnfinishedReencryptionError: It is LUKS1, and being re-encrypted (L210).
        DeviceError: It cannot be read.
    """
    with opened(path_or_device) as device:
        return read_header(device)


@contextmanager
def open_header(path_or_device: Place) -> Iterator[tuple[BlockDevice, Header]]:
    """Yield a header's device, open for reading, and the header; for `luks.unlock`.

    Args:
        path_or_device: As in `load_header`, with the same errors.
    """
    with opened(path_or_device) as device:
        yield device, read_header(device)


@contextmanager
def opened_for_header(path_or_device: Place) -> Iterator[BlockDevice]:
    """Open a path to change its header, and keep other programs from changing it meanwhile.

    The image lock is not taken: the volume may be in use. A device is passed on.

    Raises:
        DeviceBusyError: Another program is changing the header, for too long.
        DeviceError: It cannot be opened for writing.
    """
    if not isinstance(path_or_device, str | os.PathLike):
        yield path_or_device
        return
    from formats.devices.file import FileDevice  # noqa: PLC0415  devices may come from elsewhere
    from luks.header.lock import exclusive  # noqa: PLC0415  reading needs none

    with (
        FileDevice(path_or_device, read_only=False, lock=False) as device,
        exclusive(path_or_device),
    ):
        device.require_name()  # or the change would be lost with a file that was replaced
        yield device


def read_header(device: BlockDevice) -> Header:
    """Read and validate the header on an open device; errors as `load_header`."""
    try:
        return _read_header(device)
    except (FormatError, UnsupportedError):
        # One copy may be half written now, and the other one by the time it is read.
        from formats.devices.steady import steadily  # noqa: PLC0415  rarely needed

        return steadily(device, lambda: _read_header(device))


def _read_header(device: BlockDevice) -> Header:
    start = read_at_most(device, 0, _MAGIC_SIZE)
    if start[:6] == luks2_binary.PRIMARY_MAGIC:  # LUKS1 has the same
        version = int.from_bytes(start[6:], "big")
        if version == 1:
            return _read_luks1(device)
        if version != luks2_binary.VERSION and (not secondary_offsets(device) or _is_whole(device)):
            raise UnsupportedError(f"LUKS version {version} is unknown", feature="LUKS version")
    elif start.startswith(MARKED_MAGIC):
        raise UnfinishedReencryptionError(
            "the LUKS1 volume is being re-encrypted [L210]",
            hint="resume that; its journal, a file beside the image, has the keys",
        )
    elif not secondary_offsets(device):
        if is_blank(device):
            raise EmptyImageError("the image is empty")
        from luks.header.other_signatures import foreign_image  # noqa: PLC0415  rarely needed

        raise foreign_image(device)
    return _read_luks2(device)


def check_areas(device: BlockDevice, header: Header) -> None:
    """Check that a device holds all of a header's keyslots area before it is changed (L97).

    Reading a header, or opening by a keyslot within the device, needs less.

    Raises:
        TruncatedImageError: The device ends earlier.
    """
    end = header.keyslots_offset + header.keyslots_size
    if header.version == 1:  # the padding of its last area may be missing
        raw = header.source
        end = max(slot.material_sector + raw.area_sectors(slot) for slot in raw.keyslots)
        end *= SECTOR_SIZE
    if end > device.size:
        raise TruncatedImageError(
            f"the image of {device.size} bytes ends inside the keyslots area, which ends at"
            f" byte {end}",
            rule="L97",
            hint="nothing was changed; restore the image, or extend it to its old size",
        )


def _is_whole(device: BlockDevice) -> bool:
    """Say whether a primary header has an unknown version, instead of being damaged."""
    size = luks2_binary.metadata_size_field(read_at_most(device, 0, luks2_binary.BINARY_SIZE))
    if size not in luks2_binary.METADATA_SIZES or size > device.size:
        return False
    return luks2_binary.is_whole(read_exactly(device, 0, size))


def _read_luks1(device: BlockDevice) -> Header:
    from luks.header import luks1  # noqa: PLC0415  most volumes are LUKS2

    if device.size < luks1.HEADER_SIZE:
        raise TruncatedImageError(f"a LUKS1 header in only {device.size} bytes", rule="L40")
    raw = luks1.decode(read_exactly(device, 0, luks1.HEADER_SIZE))
    validate_luks1(raw)
    header = luks1.to_model(raw)
    for number, keyslot in header.keyslots.items():
        if keyslot.area.end > device.size:
            raise TruncatedImageError(
                f"the image of {device.size} bytes ends before byte {keyslot.area.end}, where the"
                f" area of keyslot {number} ends",
                rule="L188",
                hint="restore the image, or its header from a backup",
            )
    return header


def _read_luks2(device: BlockDevice) -> Header:
    """Read both copies and return the newer sound one (L22)."""
    primary = _try_copy(device, PRIMARY, 0)
    if isinstance(primary, FormatError | UnsupportedError):
        for offset in secondary_offsets(device):
            secondary = _try_copy(device, SECONDARY, offset)
            if not isinstance(secondary, FormatError | UnsupportedError):
                _warn("primary", primary)
                return replace(secondary, stale_copy=PRIMARY)
        try:
            raise primary
        finally:
            # Its traceback refers to this frame, which refers to it: a cycle that would keep
            # the device and its memory alive until the garbage collector runs.
            del primary
    secondary = _try_copy(device, SECONDARY, primary.metadata_size)
    if isinstance(secondary, FormatError | UnsupportedError):
        _warn("secondary", secondary)
        return replace(primary, stale_copy=SECONDARY)
    if secondary.seqid > primary.seqid:
        _warn("primary", LuksHeaderError("it is older than the other"))
        return replace(secondary, stale_copy=PRIMARY)
    if secondary.seqid < primary.seqid:
        _warn("secondary", LuksHeaderError("it is older than the other"))
        return replace(primary, stale_copy=SECONDARY)
    return primary


def _try_copy(
    device: BlockDevice, which: int, offset: int
) -> Header | FormatError | UnsupportedError:
    try:
        block = read_at_most(device, offset, luks2_binary.BINARY_SIZE)
        size = luks2.metadata_size_of(block, which, offset)
        if offset + size > device.size:
            return TruncatedImageError(
                f"the image of {device.size} bytes ends inside a header copy of {size}",
                offset=offset,
                rule="L20",
            )
        return luks2.decode_copy(read_exactly(device, offset, size), which, offset)
    except (FormatError, UnsupportedError) as error:
        return error.with_traceback(None)


def _warn(copy: str, reason: Exception) -> None:
    _log.warning("the %s header copy is not used: %s", copy, reason)
