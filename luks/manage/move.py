"""Moving a volume's header to a file of its own, and back; and destroying its keys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from formats.devices.device import read_exactly
from formats.devices.new_file import new_file
from luks.errors import (
    DeviceError,
    LuksExistsError,
    TruncatedImageError,
    UnsupportedError,
)
from luks.header.detection import is_luks, opened
from luks.header.key_digests import is_reencrypted
from luks.header.load import check_areas, opened_for_header, read_header
from luks.header.luks2_reencrypt_rules import REENCRYPT
from luks.header.other_signatures import check_place
from luks.header.policy import check_requirements
from luks.header.writer import erase_unused, replace_header, rewrite_header, wipe_header
from luks.manage.backup import check_other, copy_header, material_of
from luks.manage.changes import without_keyslot
from luks.manage.editing import edit

if TYPE_CHECKING:
    from luks.header.detection import Place
    from luks.model import Header


def detach_header(
    path_or_device: Place, to: str | os.PathLike[str], *, overwrite: bool = False
) -> Header:
    """Move the header of a volume to a file of its own; random bytes take its place.

    The file is durable, and was read back, before anything is overwritten: a crash
    leaves the volume with its header, the detached one, or both (L120). The payload
    stays where it is. The volume may be in use meanwhile.

    Args:
        path_or_device: Image file or block device.
        to: The file to make.
        overwrite: Replace an existing one.

    Returns:
        The header, as it is in the file.

    Raises:
        FileExistsError: There is such a file.
        ValueError: It is the image itself.
        UnfinishedReencryptionError: The volume is being re-encrypted.
        StorageError: As `luks.edit`, and for the file as for any.
    """
    check_other(path_or_device, to)
    with opened_for_header(path_or_device) as device:
        header = read_header(device)
        check_requirements(header)
        memory = copy_header(device)
        with new_file(to, memory.size, overwrite=overwrite) as file:
            file.write(0, memory.content)
        file.close()
        with opened(to) as copy:
            if read_exactly(copy, 0, copy.size) != bytes(memory.content):
                raise DeviceError(f"{os.fspath(to)} does not hold what was written to it")
            moved = read_header(copy)
        wipe_header(device, header)
    return moved


def attach_header(path_or_device: Place, header: Place) -> Header:
    """Write a detached header to the start of its volume, where there is room for it.

    The detached one is left as it is. A crash leaves the volume without a header
    there, or with the whole one (L121).

    Args:
        path_or_device: Image file or block device with the payload.
        header: Its detached header.

    Returns:
        The header as it is at its new place.

    Raises:
        UnsupportedError: The payload begins where the header would be: there was
            never one; or the header belongs to a re-encryption.
        LuksExistsError: There is a header already.
        ForeignImageError: There is something else.
        TruncatedImageError: The image ends before its payload begins.
        StorageError: As `luks.edit`.
    """
    with opened(header) as source, opened_for_header(path_or_device) as device:
        detached = read_header(source)
        check_requirements(detached)
        end = detached.keyslots_offset + detached.keyslots_size
        if detached.data_offset < end:
            raise UnsupportedError(
                f"the payload begins at byte {detached.data_offset}: there is no room for a header"
                f" of {end} bytes [L121]",
                feature="attaching a header",
            )
        if device.size < detached.data_offset:
            raise TruncatedImageError(f"the image of {device.size} bytes ends before its payload")
        if is_luks(device):
            raise LuksExistsError("there is a LUKS header already", hint="restore replaces it")
        check_place(device, 0)
        return replace_header(device, detached, material_of(source, detached))


def destroy_keys(path_or_device: Place) -> Header:
    """Remove all keyslots and erase their key material: the volume cannot be opened again.

    Only a backup of the header, or of the volume key, brings it back. The record of a
    re-encryption stays (L187): it is not a secret, and says what the payload was.

    Args:
        path_or_device: Image file, block device, or detached header.

    Returns:
        The header, without keyslots.

    Raises:
        StorageError: As `luks.edit`.
    """
    with opened_for_header(path_or_device) as device:
        there = read_header(device)
        if is_reencrypted(there):
            check_areas(device, there)
            for number, keyslot in there.keyslots.items():
                if keyslot.type != REENCRYPT:
                    there = without_keyslot(there, number)
            there = rewrite_header(device, there)
            erase_unused(device, there)
            return there
    with edit(path_or_device) as header:
        for number in header.header.keyslots:
            header.remove_keyslot(number, force=True)
    return header.header
