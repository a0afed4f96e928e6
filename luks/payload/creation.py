"""Making LUKS volumes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Unpack
from uuid import UUID

from formats.devices.device import is_blank
from formats.devices.file import FileDevice
from formats.devices.new_file import new_file
from formats.errors import ArgumentError
from formats.frozen import replace
from luks.crypto.ciphers import has_equal_halves, sector_cipher
from luks.crypto.hashes import lookup
from luks.crypto.spec import parse
from luks.errors import DeviceFullError, ForeignImageError, LuksExistsError, UnsupportedError
from luks.header import luks1
from luks.header.detection import is_luks, is_same_place
from luks.header.policy import check_payload_place
from luks.header.text import normal_uuid
from luks.header.writer import create_header
from luks.keys.costs import digest_cost, keyslot_cost
from luks.keys.enroll import LUKS1_DIGEST_SIZE, enroll_key, new_digest
from luks.keys.keyslots import VolumeKey
from luks.model import SECTOR_SIZE
from luks.payload.options import FormatOptions, require_format_keywords
from luks.payload.volume import Volume
from luks.secret.randomness import source_or_system
from luks.secret.secrets import Secret, view_of

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from luks.header.detection import Place
    from luks.model import Header
    from luks.payload.options import FormatKeywords
    from luks.secret.randomness import RandomSource


def format(  # noqa: A001  it is luks.format
    path_or_device: Place,
    secret: bytes | Secret,
    options: FormatOptions | None = None,
    *,
    header: Place | None = None,
    size: int | None = None,
    overwrite: bool = False,
    **keywords: Unpack[FormatKeywords],
) -> Volume:
    """Make a LUKS1 or LUKS2 volume with one passphrase, and open it for writing.

    A crash at any instant leaves no header that opens, or the whole new one. A
    path that does not exist appears complete or not at all. The payload is not
    written: it reads as garbage until it is.

    Args:
        path_or_device: Where the volume goes. A path that does not exist
            becomes a new file; one that does is formatted in place, like a
            device, which stays the caller's to close.
        secret: Passphrase or content of a key file, for keyslot 0. Not modified.
        options: How the volume is made; the defaults of `luks.FormatOptions` if None.
        header: Where a detached header goes, likewise; the payload's device then
            stays as it is.
        size: Bytes of the payload, whole sectors. A new or empty file is made
            to fit; what has a size already must have room for it, and its
            payload is all that remains.
        overwrite: Permit to destroy what is there.
        keywords: Fields of `luks.FormatOptions`, which explains them all, instead of
            those in ``options``; such as ``version=1``, ``cipher="aes-xts-plain64"``,
            ``key_size=32``, ``kdf="argon2id"`` or ``label="machine"``.

    Raises:
        LuksExistsError: There is a LUKS header already.
        ForeignImageError: There is something else.
        DeviceFullError: There is not enough room.
        PolicyError, UnsupportedError: The cipher or hash must not be, or cannot
            be used.
        DeviceError: The image cannot be made, opened or written, or is in use.
        FileExistsError: A file of that name appeared meanwhile.
        LuksHeaderError: With a detached header, the payload would overlap another one of
            the same UUID (L52).
        ArgumentError: The arguments do not fit together.
        TypeError: There is no such option. Options are checked before anything is opened.
    """
    require_format_keywords("luks.format", keywords)
    options = replace(options or FormatOptions(), **keywords)
    view_of(secret)
    if header is not None and is_same_place(path_or_device, header):
        raise ArgumentError("the image and its detached header are one and the same [L52]")
    random = options.random
    uuid = new_uuid(random) if options.uuid is None else normal_uuid(options.uuid)
    blank = options.lay_out(uuid, detached=header is not None)
    if size is not None and (size <= 0 or size % blank.sector_size):
        raise ArgumentError(f"size is a positive multiple of {blank.sector_size} bytes, not {size}")
    if size is None and _is_new(path_or_device):
        raise ArgumentError("a new volume needs a size")
    # At the end of `names` new files take their names, or vanish if something failed. After
    # that `failed` closes what was opened; if nothing has failed, the volume keeps it.
    with ExitStack() as failed:
        key = new_volume_key(options)
        failed.callback(key.wipe)
        check_key(key, options.cipher)
        with ExitStack() as names:
            header_device = None
            header_size = blank.keyslots_offset + blank.keyslots_size
            if header is not None:
                header_device = prepare(names, failed, header, header_size, overwrite=overwrite)
            payload_end = blank.data_offset + (size or blank.sector_size)
            device = prepare(names, failed, path_or_device, payload_end, overwrite=overwrite)
            enrolled, material = enrol(blank, options, secret, key)
            check_payload_place(device, enrolled)
            written = create_header(header_device or device, enrolled, material, random)
            volume = Volume(
                device,
                written,
                VolumeKey(key, 0),
                read_only=False,
                owned=() if device is path_or_device else (device,),
            )
        failed.pop_all()
    if header_device is not None and header_device is not header:
        header_device.close()
    return volume


def new_volume_key(options: FormatOptions) -> Secret:
    """Return a copy of the key that is given, or a new one."""
    if options.volume_key is not None:
        return Secret(view_of(options.volume_key))
    return Secret(source_or_system(options.random)(options.volume_key_size))


def check_key(key: Secret, cipher: str) -> None:
    """Check a new volume key itself, before anything is written.

    Raises:
        UnsupportedError: It is weak, or the cipher cannot be used with it.
        PolicyError: The cipher encrypts nothing.
    """
    view = key.view()
    sector_cipher(cipher, view, SECTOR_SIZE)
    if parse(cipher).mode == "xts" and has_equal_halves(view):
        raise UnsupportedError(
            "an XTS key with two equal halves is weak: no volume is made with it",
            feature="XTS with equal keys",
        )


def enrol(
    blank: Header, options: FormatOptions, secret: bytes | Secret, key: Secret
) -> tuple[Header, dict[int, bytes]]:
    """Return the header with its digest and keyslot 0, and the key material of that.

    Args:
        blank: From `FormatOptions.lay_out`.
        options: The cost of the key derivation and so on.
        secret: Opens keyslot 0. Not modified.
        key: The volume key. Not modified.
    """
    hash_name = options.hash_name
    cost = keyslot_cost(
        options.kdf,
        version=options.version,
        hash_name=hash_name,
        key_size=options.volume_key_size,
        iter_time=options.iter_time,
    )
    size = LUKS1_DIGEST_SIZE if blank.version == luks1.VERSION else lookup(hash_name).digest_size
    digest = new_digest(key.view(), digest_cost(options.kdf, hash_name), size, options.random)
    return enroll_key(
        replace(blank, digests=MappingProxyType({0: digest})),
        0,
        kdf=cost,
        secret=view_of(secret),
        key=key.view(),
        hash_name=hash_name,
        cipher=options.keyslot_cipher,
        random=options.random,
    )


def new_uuid(random: RandomSource | None) -> str:
    """Return a random UUID in its usual form."""
    return str(UUID(bytes=source_or_system(random)(16), version=4))


def _is_new(place: Place) -> bool:
    """Say whether there is nothing yet: no file, or one of no bytes."""
    if isinstance(place, str | os.PathLike):
        path = Path(place)
        return not path.exists() or (path.is_file() and path.stat().st_size == 0)
    return place.size == 0


def prepare(
    names: ExitStack, failed: ExitStack, place: Place, end: int, *, overwrite: bool
) -> BlockDevice:
    """Open what is to be formatted and check that it may be, and has ``end`` bytes."""
    """Return what is to be formatted as a device, once it is clear that it may be.

    Args:
        names: Gives a new file its name at its end, or removes it after an error.
        failed: Closes what is opened here, unless it is emptied before its end.
        place: Path, of a file that may be missing, or device, which stays the caller's.
        end: Bytes that it must have; a new or empty file is made to have them.
        overwrite: Permit to destroy what is there.

    Raises:
        LuksExistsError, ForeignImageError: There is something already.
        DeviceFullError, DeviceError, FileExistsError: As `luks.format`.
    """
    if not isinstance(place, str | os.PathLike):
        device = place
    else:
        if Path(place).exists():
            device = FileDevice(place, read_only=False)
        else:
            device = names.enter_context(new_file(place, end))
        failed.push(device)
    if not overwrite:
        _check_blank(device)
    if device.size == 0:
        device.resize(end)
    if device.size < end:
        raise DeviceFullError(f"{end} bytes are needed, and there are only {device.size}")
    return device


def _check_blank(device: BlockDevice) -> None:
    if is_luks(device):
        raise LuksExistsError(
            "there is a LUKS header already, and formatting destroys its keys",
            hint="overwrite it only if nothing on the volume is needed any more",
        )
    if not is_blank(device):
        raise ForeignImageError(
            "there is something that is not LUKS",
            hint="overwrite it only if it is not needed any more",
        )
