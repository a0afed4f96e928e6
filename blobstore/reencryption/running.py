"""A re-encryption of an image that is in progress, and the store in it (O206)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blobstore.container.open_container import open_container
from blobstore.container.protection import change_protection, finish_change, require_changeable
from blobstore.container.scan import looks_like_container
from blobstore.store.session import Closing
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    import luks
    from formats.devices.device import BlockDevice

#: Bytes that a step moves at most, unless the caller says otherwise; and what they are a
#: multiple of.
DEFAULT_ZONE: Final = 16 << 20
_ALIGNED: Final = 64 << 10
#: As many steps are taken at least, so that the key changes when most is encrypted.
_STEPS: Final = 8


def zone_size(wanted: int | None, size: int) -> int:
    """Return how many bytes a step is to move at most.

    Args:
        wanted: What the caller asks for.
        size: Bytes of the image.
    """
    if wanted is not None:
        return wanted
    return max(min(DEFAULT_ZONE, size // _STEPS) // _ALIGNED * _ALIGNED, _ALIGNED)


def may_be_last(status: luks.ReencryptionStatus, zone: int) -> bool:
    """Say whether the next step may move all that is left.

    With data shift any may be, because what is shifted first is one piece.

    Args:
        status: How far it is.
        zone: Bytes that a step moves at most otherwise.
    """
    return status.resilience.startswith("datashift") or status.size - status.position <= zone


class ImageReencryption(Closing):
    """A re-encryption, encryption or decryption of an image, with the store in it.

    `blobstore.begin_reencryption` and its like make it. What is not moved when it is closed is
    resumed later, here or by cryptsetup.
    """

    def __init__(
        self,
        moving: luks.Reencryption,
        resources: ExitStack,
        *,
        zone: int,
        protect: Callable[[], object] | None,
    ) -> None:
        """Carry on with what was begun.

        Args:
            moving: What moves the payload.
            resources: Closed with this.
            zone: Bytes that a step moves at most.
            protect: Called once, before what may be the last step; gives the store its key and
                flag. None leaves the store as it is.
        """
        self._moving = moving
        self._resources = resources
        self._zone = zone
        self._protect = protect

    @property
    def status(self) -> luks.ReencryptionStatus:
        """How far it is, by what is durable."""
        return self._moving.status

    @property
    def volume(self) -> BlockDevice:
        """The plaintext payload, to be read and written between two steps."""
        return self._moving.volume

    def step(self) -> bool:
        """Move the next piece, durably; before the last one, change the store's key and flag.

        Returns:
            False if nothing was left: then the image is what it was to become.

        Raises:
            CorruptBlobError, NoSpaceError: The store cannot get its new key: repair it, or
                make room, and resume.
            DeviceError: A read, write or flush failed; nothing is lost. Call it again, or close
                this and resume.
        """
        if self._protect is not None and may_be_last(self._moving.status, self._zone):
            self._protect()
            self._protect = None
        return self._moving.step()

    def run(self, progress: Callable[[luks.ReencryptionStatus], object] | None = None) -> None:
        """Take steps until nothing is left.

        Args:
            progress: Called with the status before the first step and after each; what it
                raises ends the run between two steps.

        Raises:
            StorageError: As `step`.
        """
        while True:
            if progress is not None:
                progress(self.status)
            if not self.step():
                return

    def close(self) -> None:
        """Wipe the keys and close the image; twice is fine."""
        self._resources.close()


def protect_store(payload: BlockDevice, *, encrypted: bool, new_key: bool) -> bool:
    """Give the store in a payload the key and flag that it is to have, if there is one.

    Args:
        payload: Without users; decrypted.
        encrypted: Whether it is, in the end.
        new_key: Whether the key is replaced even if the flag is right.

    Returns:
        Whether anything had to be changed.

    Raises:
        StorageError: As `change_protection` and `finish_change`.
    """
    if not looks_like_container(payload):
        return False
    if finish_change(payload):
        return True
    container = open_container(payload)
    if not new_key and container.header.encrypted is encrypted:
        return False
    change_protection(container, encrypted=encrypted)
    return True


def require_sound(payload: BlockDevice, sector_size: int, *, as_bytes: bool) -> None:
    """Refuse to re-encrypt below a store that would keep that from ending (O207).

    Args:
        payload: Of the image, decrypted.
        sector_size: Bytes that its sectors will have.
        as_bytes: Whether the store stays as it is.

    Raises:
        ArgumentError: Its blocks are smaller than the sectors would be.
        NoSpaceError, CorruptBlobError, DamagedHeadError, FormatError: The store cannot get
            another key.
    """
    if not looks_like_container(payload):
        return
    container = open_container(payload)
    require_block_size(container.block_size, sector_size)
    if not as_bytes:
        require_changeable(container)


def require_block_size(block_size: int, sector_size: int) -> None:
    """Refuse sectors that are larger than a store's blocks: a torn one would damage two (O207).

    Raises:
        ArgumentError: They are.
    """
    if sector_size > block_size:
        raise ArgumentError(
            f"sectors of {sector_size} bytes are larger than the {block_size} bytes of the store's"
            " blocks [O207]: choose a smaller sector size"
        )
