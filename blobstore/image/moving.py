"""A payload that is re-encrypted, encrypted or decrypted while it is in use (O210).

What moves it is `luks`; here it is with all that has to be known to go on afterwards: where its
header is, and the secret, because the volume is opened once more when nothing is left to move.
The secret is wiped with the rest.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Final

import luks
from blobstore.container.protection import finish_change
from blobstore.container.scan import looks_like_container
from blobstore.image.place import for_luks
from formats.errors import UnsupportedError
from luks.secret.secrets import view_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.image.place import Place
    from formats.devices.device import BlockDevice

#: Bytes that a step moves at most while others use the image: they wait for one.
SERVED_ZONE: Final = 4 << 20


class MovingPayload:
    """A re-encryption that this process carries on, and what is known of its image.

    Attributes:
        reencryption: What moves the payload.
        device: What the payload lies on; stays the caller's.
        header_path: Place of a detached header, or None.
    """

    def __init__(
        self,
        begin: Callable[[BlockDevice, luks.Place | None], luks.Reencryption],
        device: BlockDevice,
        secret: bytes | luks.Secret,
        header_path: Place | None = None,
    ) -> None:
        """Begin, or resume.

        Args:
            begin: Called with the image, and with its detached header if it has one.
            device: Holds the payload.
            secret: Opens the volume when it is finished; a copy is kept until `close`.
            header_path: Place of the detached header.

        Raises:
            StorageError, ArgumentError: As ``begin``, and as `for_luks`.
        """
        self.device, self.header_path = device, header_path
        with ExitStack() as resources:
            self._secret = luks.Secret(view_of(secret))
            resources.callback(self._secret.wipe)
            header = None
            if header_path is not None:
                header = resources.enter_context(for_luks(header_path, write=True))
            self.reencryption = begin(device, header)
            resources.callback(self.reencryption.close)
            self._resources = resources.pop_all()

    @property
    def status(self) -> luks.ReencryptionStatus:
        """How far it is."""
        return self.reencryption.status

    @property
    def payload(self) -> BlockDevice:
        """The plaintext, which may be read and written at any time."""
        return self.reencryption.volume

    @property
    def becomes_encrypted(self) -> bool:
        """Whether the payload is encrypted in the end."""
        return self.status.mode != "decrypt"

    def reopen(self) -> luks.Volume | None:
        """Open the volume as the header describes it now, beside this; None if it was decrypted.

        Raises:
            StorageError: As `luks.open`.
        """
        if self.status.is_finished and not self.becomes_encrypted:
            return None
        if self.header_path is None:
            return luks.open(self.device, self._secret, read_only=False)
        with for_luks(self.header_path) as header:
            return luks.open(self.device, self._secret, header=header, read_only=False)

    def close(self) -> None:
        """Wipe keys and secret, and let go of the header; what is not moved is resumed later."""
        self._resources.close()


def resumed(
    resources: ExitStack,
    device: BlockDevice,
    secret: bytes | luks.Secret | luks.VolumeKey,
    header_path: Place | None,
    limits: luks.KdfLimits,
) -> MovingPayload | None:
    """Resume the re-encryption of an image, or return None if none is in progress.

    A store in it whose key was being changed gets it.

    Args:
        resources: Closes it.
        device: Holds the payload; stays the caller's.
        secret: Opens the volume.
        header_path: Place of the detached header.
        limits: What one key derivation may cost at most.

    Raises:
        UnsupportedError: The secret is a volume key: there are two.
        StorageError: As `luks.resume_reencryption`.
    """
    with nullcontext() if header_path is None else for_luks(header_path) as header:
        if luks.reencryption_status(device, header=header) is None:
            return None
    if isinstance(secret, luks.VolumeKey):
        raise UnsupportedError(
            "a volume that is being re-encrypted has two keys: it is resumed with a passphrase",
            feature="resuming with a volume key",
        )

    def begin(image: BlockDevice, place: luks.Place | None) -> luks.Reencryption:
        options = luks.ReencryptionOptions(hotzone_size=SERVED_ZONE)
        return luks.resume_reencryption(image, secret, header=place, options=options, limits=limits)

    moving = MovingPayload(begin, device, secret, header_path)
    resources.callback(moving.close)
    if looks_like_container(moving.payload):
        finish_change(moving.payload)
    return moving
