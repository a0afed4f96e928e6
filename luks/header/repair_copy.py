"""Restoring a damaged copy of a LUKS2 header from the sound one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from formats.devices.file import FileDevice
from formats.logs import LateLogger
from luks.errors import DeviceBusyError, ForeignImageError, ReadOnlyError
from luks.header.load import check_areas, opened_for_header, read_header
from luks.header.lock import exclusive
from luks.header.writer import erase_unused, repair_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice
    from luks.header.detection import Place
    from luks.model import Header

_log = LateLogger("luks")


def repair(path_or_device: Place) -> Header:
    """Rewrite a damaged or old header copy, and erase the space of inactive keyslots.

    A LUKS1 header has no second copy; there only that space is erased. Opening a
    volume for writing rewrites the copy automatically.

    Args:
        path_or_device: Image file, block device, or detached header.

    Returns:
        The header, with both copies sound.

    Raises:
        ForeignImageError: Other data lies where the copy was, or the image has no
            LUKS header.
        LuksHeaderError: No copy is sound.
        TruncatedImageError: The image ends inside the keyslots area (L97).
        StorageError: As `luks.edit`.
    """
    with opened_for_header(path_or_device) as device:
        header = read_header(device)
        check_areas(device, header)
        header = repair_header(device, header)
        if not header.requirements:  # unknown requirements may need that space
            erase_unused(device, header)
        return header


def restore_copy(place: Place, header: Header) -> Header:
    """Rewrite the bad copy of a header because its volume is opened for writing.

    A reason against it is logged: the volume can be used as it is.

    Args:
        place: Where the header is; a path is opened for writing.
        header: As it was read from there.

    Returns:
        The header afterwards.

    Raises:
        DeviceError: A write failed; the other copy is unchanged.
    """
    try:
        with _exclusive(place) as device:
            current = read_header(device)
            if current != header:
                return header  # another program has changed it, and both copies with it
            return repair_header(device, current)
    except (ForeignImageError, ReadOnlyError, DeviceBusyError) as error:
        _log.warning("the header copy is left as it is: %s", error)
        return header


@contextmanager
def _exclusive(place: Place) -> Iterator[BlockDevice]:
    if not isinstance(place, FileDevice):
        with opened_for_header(place) as device:
            yield device
        return
    with exclusive(place.path):
        place.require_name()
        yield place
