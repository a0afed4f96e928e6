"""Beginning, resuming, running and aborting a re-encryption: what users call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from luks.crypto.kdf import DEFAULT_LIMITS
from luks.header.policy import DEFAULT_POLICY
from luks.reencryption.interface import ReencryptionOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luks.crypto.kdf import KdfLimits
    from luks.header.detection import Place
    from luks.header.policy import Policy
    from luks.payload.options import FormatOptions
    from luks.reencryption.interface import Progress, Reencryption, ReencryptionStatus
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
        UnsupportedError: It is being re-encrypted already, or as `luks.open`.
        ArgumentError: The options do not fit the volume.
        DeviceError, FormatError: As `luks.open`.
    """
    raise NotImplementedError


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
        DeviceFullError: There is no room for the header.
        ArgumentError: The options do not fit the image.
        DeviceError: It cannot be opened, read or written.
    """
    raise NotImplementedError


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
    raise NotImplementedError


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
        options: Only `hotzone_size`, `workers` and `resilience` count; the last only if it
            is not the default.
        limits: As in `begin_reencryption`.
        policy: As in `begin_reencryption`.

    Raises:
        PolicyError: The metadata of the re-encryption are not those that its digest
            confirms: they were changed without the key.
        UnlockError: Nothing is in progress, or a secret opens no keyslot.
        UnsupportedError, FormatError, DeviceError: As `begin_reencryption`.
    """
    raise NotImplementedError


def reencryption_status(
    path_or_device: Place, *, header: Place | None = None
) -> ReencryptionStatus | None:
    """Return how far a re-encryption is, or None if none is in progress; needs no secret.

    Nothing is written. What it says is not authentic.

    Raises:
        FormatError, UnsupportedError, DeviceError: As `luks.load_header`.
    """
    raise NotImplementedError


def abort_reencryption(
    path_or_device: Place, secret: bytes | Secret, *, header: Place | None = None
) -> None:
    """Take back what was begun and has not moved anything yet; the header is as before.

    Raises:
        PolicyError: Something has been moved: it can only be resumed.
        UnlockError: Nothing is in progress, or the secret does not open the volume.
        UnsupportedError, FormatError, DeviceError: As `begin_reencryption`.
    """
    raise NotImplementedError


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
