"""Backups of headers with their key material, and putting one back.

A backup file is what ``cryptsetup luksHeaderBackup`` makes, and serves as a detached
header. It opens the volume with the passphrases of its day: removing a keyslot does
not remove it from backups.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

from formats.devices.device import MemoryDevice, is_blank, read_exactly
from formats.devices.identity import is_same_file
from formats.devices.new_file import new_file
from formats.errors import ArgumentError
from formats.frozen import replace
from luks.errors import (
    DeviceBusyError,
    EmptyImageError,
    ForeignImageError,
    HeaderMismatchError,
    LuksHeaderError,
    TruncatedImageError,
    UnfinishedReencryptionError,
)
from luks.header import luks1
from luks.header.detection import is_luks, opened
from luks.header.key_digests import is_reencrypted, volume_key_sizes
from luks.header.load import check_areas, opened_for_header, read_header
from luks.header.lock import exclusive
from luks.header.other_signatures import check_place
from luks.header.policy import check_requirements
from luks.header.writer import repair_header, replace_header
from luks.manage.restore import restore_luks1, restore_luks2

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from luks.header.detection import Place
    from luks.model import Header


def backup_header(
    path_or_device: Place, backup: str | os.PathLike[str], *, overwrite: bool = False
) -> Header:
    """Copy a header with all its key material to a file, which only its owner can read.

    Args:
        path_or_device: Image file, block device, or detached header.
        backup: The file to make; it appears whole or not at all.
        overwrite: Replace an existing one.

    Returns:
        The header in the backup, of which both copies are sound.

    Raises:
        FileExistsError: There is such a file.
        ValueError: It is the image itself.
        TruncatedImageError: The image ends inside the keyslots area.
        DeviceBusyError: Another program is changing the header.
        StorageError: As `luks.load_header`, and for the file as for any.
    """
    check_other(path_or_device, backup)
    with opened(path_or_device) as device, _unchanged(path_or_device):
        memory = copy_header(device)
    with new_file(backup, memory.size, overwrite=overwrite) as file:
        file.write(0, memory.content)
    file.close()
    return read_header(memory)


def restore_header(path_or_device: Place, backup: Place, *, force: bool = False) -> Header:
    """Put a header back as a backup has it, with its passphrases and no others.

    In LUKS2 a crash leaves the header that is there or the one of the backup, each
    with its passphrases (L112). In LUKS1, where each keyslot has its place, see L113.

    Args:
        path_or_device: Image file, block device, or detached header.
        backup: File from `backup_header` or ``cryptsetup luksHeaderBackup``, or a
            detached header.
        force: Restore it though nothing shows that it belongs to this volume:
            there is no sound header, or another one.

    Returns:
        The header as it is then.

    Raises:
        HeaderMismatchError: It belongs to another volume, or to this one before it
            was re-encrypted; or there is nothing to tell.
        KeyslotsFullError: There is no room for the backup's key material beside the
            one in use.
        UnfinishedReencryptionError: The backup was made in the middle of a re-encryption, or
            the volume is in the middle of one.
        TruncatedImageError: The backup, or the image, is not whole.
        StorageError: As `luks.edit`.
    """
    with ExitStack() as stack:
        source = stack.enter_context(opened(backup))
        new = read_header(source)
        if is_reencrypted(new):
            raise UnfinishedReencryptionError(
                "the backup was made in the middle of a re-encryption, which may have moved more"
                " of the payload since then: with it, that would be lost [L187]",
                hint="a backup from before it, or after it, can be restored",
            )
        check_requirements(new)
        material = material_of(source, new)
        device = stack.enter_context(opened_for_header(path_or_device))
        old = _header_there(device)
        if old is not None and not force:
            check_requirements(old)
        difference = _difference(old, new)
        if difference and not force:
            raise HeaderMismatchError(
                f"the backup does not belong to this volume: {difference} [L111]",
                hint="restore it with force only if you know that it does: otherwise all is lost",
            )
        if old is None or difference:
            _check_destination(device, old, new)
            check_areas(device, new)
            if not force:
                check_place(device, 0)
            return replace_header(device, new, material)
        check_requirements(old)
        check_areas(device, old)
        restore = restore_luks1 if new.version == luks1.VERSION else restore_luks2
        return restore(device, old, new, material)


def check_other(path_or_device: Place, file: str | os.PathLike[str]) -> None:
    """Check that a file to be made is not the image, which it would replace.

    Raises:
        ValueError: It is.
    """
    if isinstance(path_or_device, str | os.PathLike) and is_same_file(path_or_device, file):
        raise ArgumentError(f"{os.fspath(file)} is the image itself")


def copy_header(device: BlockDevice) -> MemoryDevice:
    """Return a header with its keyslots area in memory, both copies sound.

    Raises:
        TruncatedImageError: The device ends inside the keyslots area.
        DeviceBusyError: It changed meanwhile.
    """
    header = read_header(device)
    end = header.keyslots_offset + header.keyslots_size
    if end > device.size:
        raise TruncatedImageError(f"the image of {device.size} bytes ends inside the keyslots area")
    memory = MemoryDevice(read_exactly(device, 0, end))
    if read_header(memory) != header or read_header(device) != header:
        raise DeviceBusyError("another program has changed the header meanwhile")
    repair_header(memory, read_header(memory))
    return memory


def material_of(source: BlockDevice, header: Header) -> dict[int, bytes]:
    """Return the content of all areas of active keyslots, by their offsets.

    Raises:
        TruncatedImageError: The source ends inside one of them.
    """
    material = {}
    for number, keyslot in header.keyslots.items():
        area = keyslot.area
        if area.end > source.size:
            raise TruncatedImageError(f"the header's file ends inside keyslot {number}")
        material[area.offset] = read_exactly(source, area.offset, area.size)
    return material


def _difference(old: Header | None, new: Header) -> str:
    """Return what keeps a header from being put in another one's place, or ""."""
    if old is None:
        return "there is no sound header to compare it with"
    if old.version != new.version:
        return f"it is LUKS{new.version}, and the volume LUKS{old.version}"
    if old.uuid != new.uuid:
        return "the UUIDs differ"
    digests = [
        replace(header.digests[number], keyslots=())
        for header in (old, new)
        if (number := header.volume_digest) is not None
    ]
    if len(digests) < 2 or digests[0] != digests[1]:
        return "the digests of the volume key differ"
    sizes = [_key_sizes(header) for header in (old, new)]
    if sizes[0] and not sizes[0] >= sizes[1]:
        return "the volume keys differ in length"
    if old.segments != new.segments:
        return "the payload is described otherwise"
    places = [(h.metadata_size, h.keyslots_offset, h.keyslots_size) for h in (old, new)]
    if places[0] != places[1]:
        return "the header is laid out otherwise"
    return ""


def _key_sizes(header: Header) -> set[int]:
    number = header.volume_digest
    return set() if number is None else {*volume_key_sizes(header, header.digests[number])}


def _header_there(device: BlockDevice) -> Header | None:
    try:
        return read_header(device)
    except (EmptyImageError, ForeignImageError, LuksHeaderError, TruncatedImageError):
        return None


def _check_destination(device: BlockDevice, old: Header | None, new: Header) -> None:
    """Check that a detached header does not overwrite a payload, even if it is forced (L111).

    Raises:
        HeaderMismatchError: It would: it goes where a detached one is or was, or to a
            blank place.
    """
    end = new.keyslots_offset + new.keyslots_size
    if new.data_offset >= end:
        return
    if old is not None:
        detached = old.data_offset < old.keyslots_offset + old.keyslots_size
    else:
        detached = is_luks(device) or device.size <= end or is_blank(device)
    if not detached:
        raise HeaderMismatchError(
            "the backup is of a detached header, and would overwrite the payload [L111]",
            hint="a detached header is a file of its own: copy the backup there",
        )


def _unchanged(place: Place) -> ExitStack | nullcontext[None]:
    """Keep others from changing the header of a path meanwhile."""
    if not isinstance(place, str | os.PathLike):
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(exclusive(place))
    return stack
