"""Beginning to decrypt a volume whose header is attached, with a file that gets the header."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import luks
from blobstore.reencryption.running import require_sound
from formats.frozen import replace as replace_fields
from luks.header.detection import opened

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice


def begin_decryption(
    device: luks.Place,
    secret: bytes | luks.Secret,
    *,
    header: luks.Place | None,
    options: luks.ReencryptionOptions,
    limits: luks.KdfLimits | None = None,
) -> luks.Reencryption:
    """Begin, as `luks.begin_decryption`; what fails leaves no file with a header.

    A file that an earlier attempt left, before it was killed, is one with the attached header:
    then the payload moves to the start of the image, as it would have then.

    Raises:
        StorageError, ArgumentError: As there.
    """
    with opened(device) as image:
        shift = _shift(image, header)
    if shift is not None:
        options = replace_fields(options, data_shift=shift)
    made = _new_file(header)
    try:
        return luks.begin_decryption(
            device, secret, header=header, options=options, limits=limits or luks.KdfLimits()
        )
    except BaseException:
        # It is a copy of the header in the image, unless more has happened.
        if made is not None and made.exists():
            with opened(device) as image:
                if luks.reencryption_status(image, header=made) is None:
                    made.unlink()
        raise


def require_sound_store(
    device: luks.Place,
    secret: bytes | luks.Secret,
    *,
    header: luks.Place | None,
    limits: luks.KdfLimits | None,
    as_bytes: bool,
) -> None:
    """Refuse to decrypt a volume with a store that would keep that from ending (O207).

    Args:
        device: Holds the payload.
        secret: Opens the volume.
        header: Its detached header, or the file that the attached one is to be exported to.
        limits: What one key derivation may cost at most.
        as_bytes: Whether the store stays as it is.

    Raises:
        StorageError: As `require_sound`, and as `luks.open`.
    """
    with opened(device) as image:
        exported = _new_file(header) is not None or _shift(image, header) is not None
    found = None if exported else header
    with luks.open(device, secret, header=found, limits=limits or luks.KdfLimits()) as volume:
        require_sound(volume, volume.header.sector_size, as_bytes=as_bytes)


def _new_file(header: luks.Place | None) -> Path | None:
    """Return the file that a header is exported to; None if there is one, or it is a device."""
    if not isinstance(header, str | os.PathLike) or Path(header).exists():
        return None
    return Path(header)


def _shift(image: BlockDevice, header: luks.Place | None) -> int | None:
    """Return where the payload begins if a file has a copy of the attached header."""
    if not isinstance(header, str | os.PathLike) or not Path(header).exists():
        return None
    try:
        attached, apart = luks.load_header(image), luks.load_header(header)
    except luks.FormatError:
        return None  # it is a detached header
    same = (attached.uuid, attached.data_offset) == (apart.uuid, apart.data_offset)
    return apart.data_offset if same and apart.data_offset else None
