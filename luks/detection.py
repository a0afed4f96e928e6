"""What looks like a LUKS header, without reading it: no more is imported than that takes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from formats.device import read_exactly
from luks.luks2_binary import METADATA_SIZES, PRIMARY_MAGIC, SECONDARY_MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.device import BlockDevice

    #: What the API takes: a path, or a device that is open already.
    Place = str | os.PathLike[str] | BlockDevice


def is_luks(path_or_device: Place) -> bool:
    """Say whether there is a LUKS header, attached or by itself, damaged perhaps.

    Args:
        path_or_device: As in `luks.load_header`.

    Raises:
        DeviceError: It cannot be read.
    """
    with opened(path_or_device) as device:
        start = read_at_most(device, 0, len(PRIMARY_MAGIC))
        return start == PRIMARY_MAGIC or bool(secondary_offsets(device))


@contextmanager
def opened(path_or_device: Place) -> Iterator[BlockDevice]:
    """Open a path for reading, without a lock, and close it again; pass a device on."""
    if not isinstance(path_or_device, str | os.PathLike):
        yield path_or_device
        return
    from formats.file import FileDevice  # noqa: PLC0415  devices may come from elsewhere

    with FileDevice(path_or_device, lock=False) as device:
        yield device


def secondary_offsets(device: BlockDevice) -> list[int]:
    """Return where secondary LUKS2 headers seem to begin."""
    return [
        offset
        for offset in METADATA_SIZES
        if read_at_most(device, offset, len(SECONDARY_MAGIC)) == SECONDARY_MAGIC
    ]


def read_at_most(device: BlockDevice, offset: int, size: int) -> bytes:
    """Return as many of ``size`` bytes as there are."""
    size = min(size, device.size - offset)
    return read_exactly(device, offset, size) if size > 0 else b""
