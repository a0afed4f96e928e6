"""Beginning, resuming, running and aborting a re-encryption: what users call."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError
from formats.frozen import replace
from luks.crypto.kdf import DEFAULT_LIMITS
from luks.errors import UnsupportedError
from luks.header.detection import is_same_place, opened
from luks.header.load import check_areas, read_header
from luks.header.luks2_binary import VERSION as LUKS2
from luks.header.policy import DEFAULT_POLICY
from luks.payload.creation import prepare
from luks.reencryption.interface import ReencryptionOptions
from luks.secret.secrets import view_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from formats.devices.device import BlockDevice
    from luks.crypto.kdf import KdfLimits
    from luks.header.detection import Place
    from luks.header.policy import Policy
    from luks.model import Header
    from luks.payload.options import FormatOptions
    from luks.reencryption.interface import Progress, Reencryption, ReencryptionStatus
    from luks.reencryption.luks2 import Places
    from luks.secret.secrets import Secret

DEFAULT_OPTIONS: Final = ReencryptionOptions()


def begin_reencryption(
    path_or_device: Place,
    secret: bytes | Secret,
    *,
    header: Place | None = None,
    others: Sequence[bytes | Secret] = (),
    options: ReencryptionOptions = DEFAULT_OPTIONS,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> Reencryption:
    """Begin to give a volume a new key, cipher or sector size, in place.

    After this call the header says that the volume is being re-encrypted, durably; nothing
    is moved yet.

    Args:
        path_or_device: Image with the payload; a path is opened and locked until the
            result is closed, a device stays the caller's.
        secret: Passphrase or content of a key file that opens the volume.
        header: Detached header, likewise.
        others: Secrets of further keyslots that are to open the volume afterwards, too.
        options: Cipher, sector size, resilience and so on.
        limits: What one key derivation may cost at most.
        policy: What the header must be.

    Raises:
        NoKeyslotMatchError, UnlockError: A secret opens no keyslot.
        PolicyError: A keyslot would be lost (``drop_keyslots``), or as `luks.open`.
        KeyslotsFullError: The keyslots area has no room for the new keyslots and the record
            of the re-encryption.
        UnfinishedReencryptionError: It is being re-encrypted already.
        UnsupportedError: As `luks.open`.
        ArgumentError: The options do not fit the volume.
        DeviceError, FormatError: As `luks.open`.
    """
    from luks.reencryption import luks2_begin  # noqa: PLC0415  beginning is rare

    with _opened_places(path_or_device, header) as places:
        access = luks2_begin.Access((secret, *others), limits, policy)
        if read_header(places.header).version != LUKS2:
            from luks.reencryption import luks1_begin  # noqa: PLC0415  only LUKS1 needs it

            journal = luks1_begin.journal_place(path_or_device, options.journal)
            return luks1_begin.begin_reencryption(places, access, options, journal)
        return luks2_begin.begin_reencryption(places, access, options)


def begin_encryption(
    path_or_device: Place,
    secret: bytes | Secret,
    *,
    header: Place | None = None,
    format_options: FormatOptions | None = None,
    options: ReencryptionOptions = DEFAULT_OPTIONS,
) -> Reencryption:
    """Begin to encrypt a plain image, in place.

    Args:
        path_or_device: The image; as in `begin_reencryption`.
        secret: Passphrase or content of a key file that is to open the volume.
        header: New file for a detached header. Without it the payload is moved towards the
            end of the image to make room for the header: the image grows, or its end
            must be unused (`ReencryptionOptions.grow`).
        format_options: Key derivation, label, sizes of the header and so on; its cipher,
            sector size and volume key are the new ones.
        options: Resilience and data shift; cipher, key and sector size must be None.

    Raises:
        LuksExistsError: There is a LUKS header already.
        UnfinishedReencryptionError: An encryption has begun already.
        DeviceFullError: There is no room for the header.
        ArgumentError: The options do not fit the image.
        DeviceError: It cannot be opened, read or written.
    """
    from luks.payload.options import FormatOptions  # noqa: PLC0415  beginning is rare
    from luks.reencryption import luks2_encrypt  # noqa: PLC0415

    if (options.cipher, options.key_size, options.sector_size, options.volume_key) != (None,) * 4:
        raise ArgumentError(
            "cipher, key_size, sector_size and volume_key of an image that is encrypted are those"
            " of its format_options"
        )
    made = format_options or FormatOptions(
        hash_name=options.hash_name, kdf=options.kdf, iter_time=options.iter_time
    )
    with _opened_places(path_or_device, None) as places:
        made = luks2_encrypt.with_sector_size(made, places.image, exact=header is not None)
        if header is None:
            return luks2_encrypt.begin_attached(places, secret, made, options)
        if is_same_place(path_or_device, header):
            raise ArgumentError("the image and its detached header are one and the same [L52]")
        size = 2 * made.metadata_size + made.keyslots_size
        # At the end of `names` a new file takes its name, or vanishes if something failed.
        with ExitStack() as failed, ExitStack() as names:
            device = prepare(names, failed, header, size, overwrite=False)
            both = places._replace(header=device)
            if isinstance(header, str | os.PathLike):
                both = both._replace(header_path=header, owned=(*places.owned, device))
            running = luks2_encrypt.begin_detached(both, secret, made, options)
            names.close()
            failed.pop_all()
        return running


def begin_decryption(
    path_or_device: Place,
    secret: bytes | Secret,
    *,
    header: Place | None = None,
    options: ReencryptionOptions = DEFAULT_OPTIONS,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> Reencryption:
    """Begin to decrypt a volume, in place, to a plain image.

    Args:
        path_or_device: The image; as in `begin_reencryption`.
        secret: Passphrase or content of a key file that opens the volume.
        header: Detached header. If there is no file of that name and the image has its
            header attached, the header is exported to it, and the payload is moved to the
            start of the image; the file is needed until the end.
        options: Resilience.
        limits: As in `begin_reencryption`.
        policy: As in `begin_reencryption`.

    Raises:
        ArgumentError: The header is attached and no file for it is given.
        NoKeyslotMatchError, UnlockError, PolicyError, UnsupportedError, FormatError,
        DeviceError: As `begin_reencryption`.
    """
    from luks.reencryption import luks2_begin, luks2_decrypt  # noqa: PLC0415

    if header is None:
        raise ArgumentError("to decrypt a volume with an attached header, name a file for it")
    is_new = isinstance(header, str | os.PathLike) and not Path(header).exists()
    if is_new:
        _export(path_or_device, header)
    with _opened_places(path_or_device, header) as places:
        loaded = read_header(places.header)
        _require_luks2(loaded)
        if is_new:
            options = replace(options, data_shift=loaded.data_offset)
        access = luks2_begin.Access((secret,), limits, policy)
        return luks2_decrypt.begin_decryption(places, access, options)


def _export(image: Place, header: Place) -> None:
    """Copy the header of an image to a new file, which opens the volume as well."""
    from luks.manage.backup import backup_header  # noqa: PLC0415  rarely needed

    assert isinstance(header, str | os.PathLike)
    loaded = backup_header(image, header)
    _require_luks2(loaded)


def resume_reencryption(
    path_or_device: Place,
    secret: bytes | Secret,
    *,
    header: Place | None = None,
    options: ReencryptionOptions = DEFAULT_OPTIONS,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> Reencryption:
    """Continue what was begun here or by cryptsetup; restore the piece a crash interrupted.

    Args:
        path_or_device: The image; as in `begin_reencryption`.
        secret: Opens the keyslots of the old and new key.
        header: Detached header.
        options: Only `hotzone_size`, `workers` and `journal` count; the rest is as it was begun.
        limits: As in `begin_reencryption`.
        policy: As in `begin_reencryption`.

    Raises:
        NoReencryptionError: Nothing is in progress.
        PolicyError: The metadata of the re-encryption are not those that its digest
            confirms: they were changed without the key.
        UnlockError: The secret does not open a keyslot of each key.
        UnsupportedError, FormatError, DeviceError: As `begin_reencryption`.
    """
    from luks.reencryption import luks1_begin, luks2_begin  # noqa: PLC0415  see `_opened_places`
    from luks.reencryption.headers import key_digests, read_plan  # noqa: PLC0415
    from luks.reencryption.luks2 import Luks2Reencryption  # noqa: PLC0415
    from luks.reencryption.placing import complete_placing  # noqa: PLC0415

    view_of(secret)
    access = luks2_begin.Access((secret,), limits, policy)
    with _opened_places(path_or_device, header) as places:
        if luks1_begin.is_luks1(places.header):
            journal = luks1_begin.journal_place(path_or_device, options.journal)
            return luks1_begin.resume(places, access, options, journal)
        if header is None:
            complete_placing(places.image)
        loaded = read_header(places.header)
        _require_luks2(loaded)
        policy.check_header(loaded)
        plan, progress = read_plan(loaded, places.image)
        check_areas(places.header, loaded)
        keys = luks2_begin.unlocked(places.header, loaded, plan, progress, access)
        return Luks2Reencryption(
            places,
            loaded,
            plan,
            progress,
            keys,
            key_digests(loaded),
            options,
        )


def reencryption_status(
    path_or_device: Place, *, header: Place | None = None, journal: Place | None = None
) -> ReencryptionStatus | None:
    """Return how far a re-encryption is, or None if none is in progress; needs no secret.

    Nothing is written. What it says is not authentic.

    Args:
        path_or_device: The image.
        header: Detached header.
        journal: As in `ReencryptionOptions`, of a LUKS1 volume.

    Raises:
        UnfinishedReencryptionError: The journal of a LUKS1 volume is missing.
        FormatError, UnsupportedError, DeviceError: As `luks.load_header`.
    """
    from luks.header.luks2_reencrypt_rules import reencrypt_record  # noqa: PLC0415
    from luks.reencryption import luks1_begin  # noqa: PLC0415
    from luks.reencryption.headers import read_plan  # noqa: PLC0415
    from luks.reencryption.luks2 import status_of  # noqa: PLC0415
    from luks.reencryption.placing import STAGED, read_marker, staged_header  # noqa: PLC0415

    with opened(path_or_device) as image, opened(image if header is None else header) as place:
        marker = read_marker(image) if header is None else None
        if marker is not None and marker.stage == STAGED:
            # The header is not in its place yet, or not known to be.
            loaded = staged_header(image, marker)
            return replace(status_of(*read_plan(loaded, image)), needs_recovery=True)
        if luks1_begin.is_luks1(place):
            return luks1_begin.status(image, place, path_or_device, journal)
        loaded = read_header(place)
        if loaded.version != LUKS2 or reencrypt_record(loaded) is None:
            return None
        return status_of(*read_plan(loaded, image))


def abort_reencryption(
    path_or_device: Place,
    secret: bytes | Secret,
    *,
    header: Place | None = None,
    options: ReencryptionOptions = DEFAULT_OPTIONS,
) -> None:
    """Take back what was begun and has not moved anything yet; the header is as before.

    Args:
        path_or_device: The image.
        secret: Opens the volume.
        header: Detached header.
        options: Only `ReencryptionOptions.journal` counts.

    Raises:
        UnfinishedReencryptionError: Something has been moved: it can only be resumed.
        NoReencryptionError: Nothing is in progress.
        UnlockError: The secret does not open the volume.
        UnsupportedError, FormatError, DeviceError: As `begin_reencryption`.
    """
    with resume_reencryption(path_or_device, secret, header=header, options=options) as running:
        running.take_back()


def _require_luks2(header: Header) -> None:
    if header.version != LUKS2:
        raise UnsupportedError(
            "LUKS1 cannot describe a payload that is in part plain [L215]",
            feature="encrypting to or decrypting from LUKS1",
            hint="convert the header to LUKS2 before a decryption, or to LUKS1 after an encryption",
        )


@contextmanager
def _opened_places(image: Place, header: Place | None) -> Iterator[Places]:
    """Yield image and header, open for writing; they are closed if the block fails."""
    from luks.reencryption.luks2 import Places  # noqa: PLC0415  a process that has none is quicker

    if header is image and not isinstance(header, str | os.PathLike):
        header = None
    if header is not None and is_same_place(image, header):
        raise ArgumentError("the image and its detached header are one and the same [L52]")
    with ExitStack() as failed:
        image_device, image_path = _opened(failed, image)
        header_device, header_path = image_device, image_path
        if header is not None:
            header_device, header_path = _opened(failed, header)
        owned = tuple(
            device
            for device, place in ((image_device, image), (header_device, header))
            if place is not None and device is not place
        )
        yield Places(image_device, header_device, header_path, owned)
        failed.pop_all()


def _opened(failed: ExitStack, place: Place) -> tuple[BlockDevice, str | os.PathLike[str] | None]:
    """Return a place as a device that can be written, and its path if it was opened here."""
    if not isinstance(place, str | os.PathLike):
        return place, None
    from formats.devices.file import FileDevice  # noqa: PLC0415  devices may come from elsewhere

    return failed.enter_context(FileDevice(place, read_only=False)), place


def reencrypt(
    path_or_device: Place,
    secret: bytes | Secret,
    *,
    header: Place | None = None,
    others: Sequence[bytes | Secret] = (),
    options: ReencryptionOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
) -> None:
    """Do `begin_reencryption` and run it to the end."""
    with begin_reencryption(
        path_or_device, secret, header=header, others=others, options=options
    ) as running:
        running.run(progress)


def encrypt(
    path_or_device: Place,
    secret: bytes | Secret,
    *,
    header: Place | None = None,
    format_options: FormatOptions | None = None,
    options: ReencryptionOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
) -> None:
    """Do `begin_encryption` and run it to the end."""
    with begin_encryption(
        path_or_device, secret, header=header, format_options=format_options, options=options
    ) as running:
        running.run(progress)


def decrypt(
    path_or_device: Place,
    secret: bytes | Secret,
    *,
    header: Place | None = None,
    options: ReencryptionOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
) -> None:
    """Do `begin_decryption` and run it to the end."""
    with begin_decryption(path_or_device, secret, header=header, options=options) as running:
        running.run(progress)
