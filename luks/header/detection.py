"""Detecting LUKS headers without decoding them, with as few imports as possible."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from formats.devices.device import read_exactly
from luks.header.luks2_binary import METADATA_SIZES, PRIMARY_MAGIC, SECONDARY_MAGIC, UUID_SIZE
from luks.header.text import decode_field

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice

#: A place that the API accepts: a path, or an open device.
Place: TypeAlias = "str | os.PathLike[str] | BlockDevice"

#: Begins a LUKS1 header while its journal counts instead of it (L210); cryptsetup's old
#: program for re-encryption of LUKS1 marked headers so, too.
MARKED_MAGIC: Final = b"LUKS\xde\xad"

_UUID_OFFSET: Final = 168  # in LUKS1, and in both copies of LUKS2


def is_luks(path_or_device: Place) -> bool:
    """Say whether there is a LUKS header, attached or detached, even if it is damaged.

    Args:
        path_or_device: As in `luks.load_header`.

    Raises:
        DeviceError: It cannot be read.
    """
    with opened(path_or_device) as device:
        start = read_at_most(device, 0, len(PRIMARY_MAGIC))
        return start in (PRIMARY_MAGIC, MARKED_MAGIC) or bool(secondary_offsets(device))


@contextmanager
def opened(path_or_device: Place) -> Iterator[BlockDevice]:
    """Open a path for reading, without a lock, and close it again; pass a device on."""
    if not isinstance(path_or_device, str | os.PathLike):
        yield path_or_device
        return
    from formats.devices.file import FileDevice  # noqa: PLC0415  devices may come from elsewhere

    with FileDevice(path_or_device, lock=False) as device:
        yield device


def secondary_offsets(device: BlockDevice) -> list[int]:
    """Return the offsets at which secondary LUKS2 headers seem to begin."""
    return [
        offset
        for offset in METADATA_SIZES
        if read_at_most(device, offset, len(SECONDARY_MAGIC)) == SECONDARY_MAGIC
    ]


def header_uuids(device: BlockDevice) -> set[str]:
    """Return the UUIDs of apparent LUKS headers on a device, damaged or not."""
    offsets = secondary_offsets(device)
    if read_at_most(device, 0, len(PRIMARY_MAGIC)) == PRIMARY_MAGIC:
        offsets.append(0)
    return {uuid_at(device, offset) for offset in offsets}


def uuid_at(device: BlockDevice, offset: int) -> str:
    """Return the UUID in what seems to be a header, or a copy of one."""
    return decode_field(read_at_most(device, offset + _UUID_OFFSET, UUID_SIZE))


def is_same_place(one: Place, other: Place) -> bool:
    """Say whether both are one device, or one file under any names."""
    if one is other:
        return True
    paths = [
        place if isinstance(place, str | os.PathLike) else getattr(place, "path", None)
        for place in (one, other)
    ]
    if paths[0] is None or paths[1] is None:
        return False
    from formats.devices.identity import is_same_file  # noqa: PLC0415  opening needs none

    return is_same_file(paths[0], paths[1])


def read_at_most(device: BlockDevice, offset: int, size: int) -> bytes:
    """Return up to ``size`` bytes, fewer at the end of the device."""
    size = min(size, device.size - offset)
    return read_exactly(device, offset, size) if size > 0 else b""
