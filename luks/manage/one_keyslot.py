"""Adding, changing and removing one keyslot: each a `luks.edit` of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luks.crypto.kdf import DEFAULT_LIMITS
from luks.errors import SecretRequiredError
from luks.manage.editing import edit
from luks.model import PRIORITY_NORMAL

if TYPE_CHECKING:
    from luks.crypto.kdf import KdfLimits
    from luks.header.detection import Place
    from luks.keys.keyslots import VolumeKey
    from luks.model import KdfCost
    from luks.secret.secrets import Secret


def add_keyslot(
    path_or_device: Place,
    secret: bytes | Secret | VolumeKey,
    new_secret: bytes | Secret,
    *,
    keyslot: int | None = None,
    kdf: KdfCost | str | None = None,
    iter_time: int = 2000,
    limits: KdfLimits = DEFAULT_LIMITS,
    hash_name: str | None = None,
    cipher: tuple[str, int] | None = None,
    priority: int = PRIORITY_NORMAL,
    unbound_key: bytes | Secret | None = None,
) -> int:
    """Let ``new_secret`` open the volume, too.

    Args:
        path_or_device: Image file, block device, or detached header.
        secret: What opens it now, or the verified volume key.
        new_secret: Passphrase or content of a key file. Not modified.
        keyslot: Number of the new keyslot; by default the first that is free.
        kdf: Cost of its key derivation, or its kind, to be measured.
        iter_time: Milliseconds that a measured one is to take.
        limits: What it may cost to use ``secret``.
        hash_name: Hash of PBKDF2 and AF; sha256 by default, in LUKS1 the header's.
        cipher: Cipher string and key size in bytes for the key material; by default
            the payload's. LUKS2 only.
        priority: When it is tried: 0 only by its number, 1 normally, 2 first. LUKS2
            only.
        unbound_key: Key to store that is not the volume's. LUKS2 only.

    Returns:
        Number of the new keyslot.

    Raises:
        NoKeyslotMatchError: ``secret`` opens no keyslot.
        KeyslotsFullError: There is no free keyslot, or no room.
        StorageError: As `luks.edit`.
    """
    with edit(path_or_device, limits=limits) as header:
        header.unlock(secret)
        return header.add_keyslot(
            new_secret,
            keyslot=keyslot,
            kdf=kdf,
            iter_time=iter_time,
            hash_name=hash_name,
            cipher=cipher,
            priority=priority,
            unbound_key=unbound_key,
        )


def change_keyslot(
    path_or_device: Place,
    secret: bytes | Secret,
    new_secret: bytes | Secret,
    *,
    keyslot: int | None = None,
    kdf: KdfCost | str | None = None,
    iter_time: int = 2000,
    hash_name: str | None = None,
    limits: KdfLimits = DEFAULT_LIMITS,
) -> int:
    """Let ``new_secret`` open the volume instead of ``secret``.

    Args:
        path_or_device: Image file, block device, or detached header.
        secret: What opens it now.
        new_secret: Passphrase or content of a key file. Not modified.
        keyslot: Keyslot that ``secret`` opens; by default the first that it does.
        kdf: As in `add_keyslot`.
        iter_time: As in `add_keyslot`.
        hash_name: Hash of PBKDF2 and AF; by default the one that the keyslot has.
        limits: As in `add_keyslot`.

    Returns:
        Number of the keyslot that ``new_secret`` opens: in LUKS2 the same, in
        LUKS1 another one.

    Raises:
        NoKeyslotMatchError: ``secret`` opens no keyslot.
        KeyslotsFullError: There is no room for both at once.
        StorageError: As `luks.edit`.
    """
    with edit(path_or_device, limits=limits) as header:
        number = header.unlock(secret, keyslot=keyslot)
        return header.change_keyslot(
            number, new_secret, kdf=kdf, iter_time=iter_time, hash_name=hash_name
        )


def remove_keyslot(
    path_or_device: Place,
    keyslot: int | None = None,
    *,
    secret: bytes | Secret | None = None,
    force: bool = False,
    limits: KdfLimits = DEFAULT_LIMITS,
) -> int:
    """Remove a keyslot and erase its key material.

    Args:
        path_or_device: Image file, block device, or detached header.
        keyslot: Its number; or give ``secret``.
        secret: What opens it.
        force: Remove it even if no other keyslot opens the volume.
        limits: What it may cost to use ``secret``.

    Returns:
        Its number.

    Raises:
        PolicyError: It is the last one, and ``force`` is not set.
        NoKeyslotMatchError: ``secret`` opens no keyslot.
        SecretRequiredError: Neither ``keyslot`` nor ``secret`` is given.
        StorageError: As `luks.edit`.
    """
    with edit(path_or_device, limits=limits) as header:
        if secret is not None:
            keyslot = header.unlock(secret, keyslot=keyslot)
        elif keyslot is None:
            raise SecretRequiredError(
                "a keyslot is named by its number, or by a secret that opens it"
            )
        header.remove_keyslot(keyslot, force=force)
        return keyslot
