"""Beginning to decrypt a volume whose header is attached, with a file that gets the header."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import luks
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
    """Begin, as `luks.begin_decryption`; what fails leaves no file with a header behind.

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
