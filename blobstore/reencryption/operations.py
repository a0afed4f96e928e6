"""Re-encrypting, encrypting and decrypting images in place: what users call."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import luks
from blobstore.container.open_container import open_container
from blobstore.container.scan import looks_like_container
from blobstore.image.layers import is_encrypted, open_layers
from blobstore.image.place import owner_named
from blobstore.reencryption import decrypting
from blobstore.reencryption.devices import Ends, open_ends
from blobstore.reencryption.running import (
    ImageReencryption,
    protect_store,
    require_sound,
    zone_size,
)
from formats.frozen import replace as replace_fields
from luks.header.detection import opened
from luks.payload.options import FormatOptions
from luks.reencryption.operations import DEFAULT_OPTIONS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    AnyPath = str | os.PathLike[str]
    AnySecret = bytes | luks.Secret
    Progress = Callable[[luks.ReencryptionStatus], object]


def begin_reencryption(
    path: AnyPath,
    secret: AnySecret,
    *,
    header: AnyPath | None = None,
    others: Sequence[AnySecret] = (),
    options: luks.ReencryptionOptions = DEFAULT_OPTIONS,
    as_bytes: bool = False,
    limits: luks.KdfLimits | None = None,
) -> ImageReencryption:
    """Begin to give an image a new volume key, cipher or sector size, in place.

    After this call the LUKS header says so, durably; nothing is moved yet. A store in it gets a
    new key that authenticates it before the last piece is moved, so its digest is another one.

    Args:
        path: Place of the image; it is locked until the result is closed.
        secret: Opens the volume.
        header: Place of its detached header.
        others: Secrets of further keyslots that are to open the volume afterwards, too.
        options: Cipher, sector size, resilience and so on.
        as_bytes: Leave a store as it is, with the key that it has.
        limits: What one key derivation may cost at most.

    Raises:
        NoSpaceError, CorruptBlobError, DamagedHeadError: The store cannot get another key;
            nothing was begun.
        ArgumentError: Sectors would be larger than the store's blocks, or the options do not
            fit the volume.
        StorageError: As `luks.begin_reencryption`.
    """
    with ExitStack() as resources, owner_named(path):
        ends = open_ends(resources, path, header)
        zone, chosen = _zoned(ends, options)
        moving = luks.begin_reencryption(
            ends.device,
            secret,
            header=ends.header,
            others=others,
            options=chosen,
            limits=limits or luks.KdfLimits(),
        )
        return _begun(resources, moving, zone=zone, as_bytes=as_bytes)


def begin_encryption(
    path: AnyPath,
    secret: AnySecret,
    *,
    header: AnyPath | None = None,
    format_options: luks.FormatOptions | None = None,
    options: luks.ReencryptionOptions = DEFAULT_OPTIONS,
    as_bytes: bool = False,
) -> ImageReencryption:
    """Begin to encrypt an image that is in the clear, in place.

    A store in it gets a key, and its flag is set, before the last piece is moved (C25).

    Args:
        path: Place of the image; it is locked until the result is closed.
        secret: Is to open the volume.
        header: Place of the detached header, which is made. Without it the payload is moved to
            make room for the header.
        format_options: As for `luks.begin_encryption`. Sectors are by default not larger than
            a store's blocks.
        options: Resilience and so on.
        as_bytes: Leave a store as it is: it is less protected than it should be.

    Raises:
        NoSpaceError, CorruptBlobError, DamagedHeadError: The store cannot get a key; nothing
            was begun.
        ArgumentError: Sectors would be larger than the store's blocks, or the options do not
            fit the image.
        StorageError: As `luks.begin_encryption`.
    """
    with ExitStack() as resources, owner_named(path):
        ends = open_ends(resources, path, header)
        wanted = _format_options(ends, format_options or FormatOptions(), as_bytes=as_bytes)
        zone, chosen = _zoned(ends, options)
        moving = luks.begin_encryption(
            ends.device, secret, header=ends.header, format_options=wanted, options=chosen
        )
        return _carried_on(resources, moving, zone=zone, as_bytes=as_bytes)


def begin_decryption(
    path: AnyPath,
    secret: AnySecret,
    *,
    header: AnyPath | None = None,
    options: luks.ReencryptionOptions = DEFAULT_OPTIONS,
    as_bytes: bool = False,
    limits: luks.KdfLimits | None = None,
) -> ImageReencryption:
    """Begin to decrypt an image, in place.

    A store in it loses its key, and its flag is set, before the last piece is moved (C25).

    Args:
        path: Place of the image; it is locked until the result is closed.
        secret: Opens the volume.
        header: Place of the detached header. If there is no such file, the attached header is
            exported to it; it is needed until the end.
        options: Resilience and so on.
        as_bytes: Leave a store as it is: it opens only with ``allow_unprotected`` then.
        limits: What one key derivation may cost at most.

    Raises:
        NoSpaceError, CorruptBlobError, DamagedHeadError: The store cannot be changed; nothing
            was begun.
        StorageError, ArgumentError: As `luks.begin_decryption`.
    """
    with ExitStack() as resources, owner_named(path):
        ends = open_ends(resources, path, header)
        zone, chosen = _zoned(ends, options)
        # What is shifted when it begins is not taken back (L163), so this comes before.
        decrypting.require_sound_store(
            ends.device, secret, header=ends.header, limits=limits, as_bytes=as_bytes
        )
        moving = decrypting.begin_decryption(
            ends.device, secret, header=ends.header, options=chosen, limits=limits
        )
        return _carried_on(resources, moving, zone=zone, as_bytes=as_bytes)


def resume_reencryption(
    path: AnyPath,
    secret: AnySecret,
    *,
    header: AnyPath | None = None,
    options: luks.ReencryptionOptions = DEFAULT_OPTIONS,
    as_bytes: bool = False,
    limits: luks.KdfLimits | None = None,
) -> ImageReencryption | None:
    """Continue a re-encryption, encryption or decryption, begun here or by another program.

    Where cryptsetup has finished it, a store in the image still has its old flag, or was in the
    middle of getting its new one: that is put right.

    Args:
        path: Place of the image; it is locked until the result is closed.
        secret: Opens the volume.
        header: Place of its detached header.
        options: As for `luks.resume_reencryption`.
        as_bytes: As in what began it.
        limits: What one key derivation may cost at most.

    Returns:
        What is in progress; None if only the store had to be put right, which is done.

    Raises:
        NoReencryptionError: Nothing is in progress.
        StorageError: As `luks.resume_reencryption`.
    """
    with ExitStack() as resources, owner_named(path):
        ends = open_ends(resources, path, header)
        if _status(ends) is None:
            resources.close()
            if not as_bytes and _settled(path, secret, header, limits):
                return None
            raise luks.NoReencryptionError(f"{path}: no re-encryption is in progress [O209]")
        zone, chosen = _zoned(ends, options)
        moving = luks.resume_reencryption(
            ends.device,
            secret,
            header=ends.header,
            options=chosen,
            limits=limits or luks.KdfLimits(),
        )
        return _carried_on(resources, moving, zone=zone, as_bytes=as_bytes)


def reencryption_status(
    path: AnyPath, *, header: AnyPath | None = None
) -> luks.ReencryptionStatus | None:
    """Return how far a re-encryption of an image is, or None; needs no secret.

    What it says is not authentic.

    Args:
        path: Place of the image, which others may use.
        header: Place of its detached header.

    Raises:
        StorageError: As `luks.reencryption_status`.
    """
    with ExitStack() as resources:
        return _status(open_ends(resources, path, header, write=False))


def abort_reencryption(path: AnyPath, secret: AnySecret, *, header: AnyPath | None = None) -> None:
    """Take back what was begun and has not moved anything yet.

    Args:
        path: Place of the image.
        secret: Opens the volume.
        header: Place of its detached header.

    Raises:
        StorageError: As `luks.abort_reencryption`.
    """
    with ExitStack() as resources, owner_named(path):
        ends = open_ends(resources, path, header)
        luks.abort_reencryption(ends.device, secret, header=ends.header)


def reencrypt(
    path: AnyPath,
    secret: AnySecret,
    *,
    header: AnyPath | None = None,
    others: Sequence[AnySecret] = (),
    options: luks.ReencryptionOptions = DEFAULT_OPTIONS,
    as_bytes: bool = False,
    limits: luks.KdfLimits | None = None,
    progress: Progress | None = None,
) -> None:
    """Do `begin_reencryption` and run it to the end; errors and arguments as there."""
    with begin_reencryption(
        path,
        secret,
        header=header,
        others=others,
        options=options,
        as_bytes=as_bytes,
        limits=limits,
    ) as running:
        running.run(progress)


def encrypt(
    path: AnyPath,
    secret: AnySecret,
    *,
    header: AnyPath | None = None,
    format_options: luks.FormatOptions | None = None,
    options: luks.ReencryptionOptions = DEFAULT_OPTIONS,
    as_bytes: bool = False,
    progress: Progress | None = None,
) -> None:
    """Do `begin_encryption` and run it to the end; errors and arguments as there."""
    with begin_encryption(
        path,
        secret,
        header=header,
        format_options=format_options,
        options=options,
        as_bytes=as_bytes,
    ) as running:
        running.run(progress)


def decrypt(
    path: AnyPath,
    secret: AnySecret,
    *,
    header: AnyPath | None = None,
    options: luks.ReencryptionOptions = DEFAULT_OPTIONS,
    as_bytes: bool = False,
    limits: luks.KdfLimits | None = None,
    progress: Progress | None = None,
) -> None:
    """Do `begin_decryption` and run it to the end; errors and arguments as there."""
    with begin_decryption(
        path, secret, header=header, options=options, as_bytes=as_bytes, limits=limits
    ) as running:
        running.run(progress)


def _status(ends: Ends) -> luks.ReencryptionStatus | None:
    """Return how far a re-encryption is; an image in the clear has none."""
    try:
        return luks.reencryption_status(ends.device, header=ends.header)
    except (luks.ForeignImageError, luks.EmptyImageError):
        return None


def _zoned(ends: Ends, options: luks.ReencryptionOptions) -> tuple[int, luks.ReencryptionOptions]:
    """Return how much a step moves at most, and options that say so."""
    with opened(ends.device) as device:
        zone = zone_size(options.hotzone_size, device.size)
    return zone, replace_fields(options, hotzone_size=zone)


def _format_options(ends: Ends, wanted: FormatOptions, *, as_bytes: bool) -> FormatOptions:
    """Return options whose sectors fit a store in the clear, which can be changed."""
    with opened(ends.device) as plain:
        if not looks_like_container(plain):
            return wanted
        block_size = open_container(plain).block_size
        if wanted.version == 2 and wanted.sector_size is None:
            wanted = replace_fields(wanted, sector_size=min(4096, block_size))
        require_sound(plain, wanted.sector_size or block_size, as_bytes=as_bytes)
    return wanted


def _begun(
    resources: ExitStack, moving: luks.Reencryption, *, zone: int, as_bytes: bool
) -> ImageReencryption:
    """Carry on with what was just begun, or take it back if the store is not fit for it."""
    try:
        require_sound(moving.volume, moving.status.new_sector_size, as_bytes=as_bytes)
    except BaseException:
        with moving:
            moving.take_back()
        raise
    return _carried_on(resources, moving, zone=zone, as_bytes=as_bytes)


def _carried_on(
    resources: ExitStack, moving: luks.Reencryption, *, zone: int, as_bytes: bool
) -> ImageReencryption:
    resources.callback(moving.close)
    mode = moving.status.mode

    def protect() -> None:
        protect_store(moving.volume, encrypted=mode != "decrypt", new_key=mode == "reencrypt")

    return ImageReencryption(
        moving, resources.pop_all(), zone=zone, protect=None if as_bytes else protect
    )


def _settled(
    path: AnyPath, secret: AnySecret, header: AnyPath | None, limits: luks.KdfLimits | None
) -> bool:
    """Give a store the key and flag that it should have, if it has others."""
    with ExitStack() as resources:
        encrypted = header is not None or is_encrypted(path)
        layers = open_layers(
            resources,
            path,
            secret if encrypted else None,
            header=header,
            read_only=False,
            limits=limits,
        )
        return protect_store(layers.payload, encrypted=layers.encrypted, new_key=False)
