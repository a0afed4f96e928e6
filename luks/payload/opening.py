"""Opening: from a path or device and a secret to an unlocked volume."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from formats.errors import ArgumentError
from luks.crypto.kdf import DEFAULT_LIMITS
from luks.header.detection import is_same_place, opened
from luks.header.load import read_header
from luks.header.policy import DEFAULT_POLICY, check_openable, check_payload_place
from luks.keys.keyslots import VolumeKey
from luks.keys.reencryption import VolumeKeys, unlock_all, verify_keys
from luks.payload.volume import Volume

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from luks.crypto.kdf import KdfLimits
    from luks.header.detection import Place
    from luks.header.policy import Policy
    from luks.model import Header
    from luks.secret.secrets import Secret


def open(  # noqa: A001  it is luks.open
    path_or_device: Place,
    secret: bytes | Secret | VolumeKey | VolumeKeys,
    *,
    header: Place | None = None,
    keyslot: int | None = None,
    read_only: bool = True,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> Volume:
    """Unlock a LUKS1 or LUKS2 volume.

    The header is read once, validated, and opened from that very copy. If one
    copy of a LUKS2 header is damaged or old, opening for writing restores it.

    A volume in the middle of a re-encryption is read and written segment by segment, each
    with its own key (L180); opening does not continue the re-encryption. It is refused while
    a segment must be restored first, which `luks.resume_reencryption` does (L183), and so
    is, by default, a payload that is in part not encrypted yet, or any more (L62).

    Args:
        path_or_device: Image file, block device or open device with the
            payload. A path is opened, and locked against other processes and
            QEMU, until the volume is closed; a device stays the caller's.
        secret: Passphrase or content of a key file; or the volume key itself, from
            `luks.verify_volume_key`, which is verified once more; or all keys of a volume
            that is being re-encrypted, from `luks.unlock_all`, likewise. Not modified.
        header: Detached header, likewise; it is not used after this call. One and the
            same device object as the image means that the header is attached.
        keyslot: Try only this keyslot, whatever its priority.
        read_only: Permit no writing.
        limits: What the key derivation may cost at most.
        policy: What the header must be, before the secret is used.

    Raises:
        NoKeyslotMatchError: The secret opens no keyslot.
        UnlockError: There is no keyslot to try, or the secret is not the volume key.
        PolicyError: The volume is not encrypted, or asks for too much; or the record of a
            re-encryption is not the one that its digest confirms (L182).
        UnsupportedError: It needs something that is not implemented.
        UnfinishedReencryptionError: A re-encryption must be resumed before anything is
            read (L183).
        EmptyImageError, ForeignImageError, TruncatedImageError,
        LuksHeaderError: There is no sound LUKS header, or the payload overlaps it: a
            detached header is given as the image (L52).
        ArgumentError: ``header`` is the image itself.
        DeviceError: The image cannot be opened or read, or is in use.
    """
    with ExitStack() as stack:
        if header is path_or_device and not isinstance(header, str | os.PathLike):
            header = None
        if isinstance(path_or_device, str | os.PathLike):
            from formats.devices.file import FileDevice  # noqa: PLC0415  not to open a device that is given

            device: BlockDevice = stack.enter_context(
                FileDevice(path_or_device, read_only=read_only)
            )
            owned: tuple[BlockDevice, ...] = (device,)
        else:
            device, owned = path_or_device, ()
        with opened(device if header is None else header) as header_device:
            loaded = read_header(header_device)
            check_openable(loaded, allow_unencrypted=policy.allow_unencrypted)
            check_payload_place(device, loaded)
            if header is not None and is_same_place(path_or_device, header):
                raise ArgumentError("the image and its detached header are one and the same [L52]")
            keys = _keys(
                header_device, loaded, secret, keyslot=keyslot, limits=limits, policy=policy
            )
        stack.callback(keys.wipe)
        if loaded.stale_copy is not None and not read_only:
            from luks.header.repair_copy import restore_copy  # noqa: PLC0415  only for a damaged copy

            loaded = restore_copy(device if header is None else header, loaded)
        volume = Volume(device, loaded, keys, read_only=read_only, policy=policy, owned=owned)
        stack.pop_all()
    return volume


def _keys(
    device: BlockDevice,
    header: Header,
    secret: bytes | Secret | VolumeKey | VolumeKeys,
    *,
    keyslot: int | None,
    limits: KdfLimits,
    policy: Policy,
) -> VolumeKeys:
    """Return the keys of a volume; they are the caller's to wipe."""
    if isinstance(secret, VolumeKey):
        secret = VolumeKeys.only(header, secret)
    if isinstance(secret, VolumeKeys):
        return verify_keys(header, secret, limits=limits, policy=policy)
    return unlock_all(device, header, secret, keyslot=keyslot, limits=limits, policy=policy)
