"""Making both copies of a LUKS2 header whole again, from the one that is."""

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
    """Write a damaged or old header copy anew, and erase what nothing refers to.

    A LUKS1 header has no second copy; there only the space of inactive keyslots
    is erased. Opening a volume for writing does the former by itself.

    Args:
        path_or_device: Image file, block device, or detached header.

    Returns:
        The header, of which both copies are sound.

    Raises:
        ForeignImageError: Something else lies where the copy was, or there is
            no LUKS header at all.
        LuksHeaderError: No copy is sound.
        TruncatedImageError: The image ends inside the keyslots area (L97).
        StorageError: As `luks.edit`.
    """
    with opened_for_header(path_or_device) as device:
        header = read_header(device)
        check_areas(device, header)
        header = repair_header(device, header)
        if not header.requirements:  # who knows what those need
            erase_unused(device, header)
        return header


def restore_copy(place: Place, header: Header) -> Header:
    """Write the bad copy of a header anew because its volume is opened for writing.

    What stands against it is logged: the volume can be used as it is.

    Args:
        place: Where the header is; a path is opened for writing.
        header: As it was read from there.

    Returns:
        The header as it is then.

    Raises:
        DeviceError: A write failed; the other copy is as it was.
    """
    try:
        with _exclusive(place) as device:
            current = read_header(device)
            if current != header:
                return header  # somebody else has changed it, and both copies with it
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
