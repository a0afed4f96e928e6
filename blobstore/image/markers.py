"""What stands at the beginning of an image that must not be opened (P41, P46).

A copy that is not complete has a *copy marker*, one sector, until everything else of it is
durable. An image that was moved away has a *move marker* in place of its first bytes. Neither
is the beginning of a store, of a LUKS header or of a qcow2 image, so no program opens the
image; those here say why.

While an image is being moved, both have one id, and the copy has the bytes that the move
marker replaced. So a hand-over that was interrupted is completed from what is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from blobstore.errors import MovedImageError, UnfinishedCopyError

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice

#: What a disk writes as a whole (`BlockDevice`).
SECTOR: Final = 512
#: How long a move marker is, and how many bytes an image needs to be told apart.
MARK_SIZE: Final = 16

#: How the last block of an image begins that is being encrypted (L165), and its bytes.
_BEING_ENCRYPTED: Final = b"blobstore encryption in place\0\0\0"
_BEING_ENCRYPTED_SIZE: Final = 4096

_COPY: Final = b"\xb1obcopy\n"
_MOVE: Final = b"\xb1obmove\n"
_TEXT: Final = b"\nA copy that is not complete. `blobstore copy` again, from the same image.\n"
_DOUBTED, _HANDED = 1, 2


@dataclass(frozen=True, slots=True)
class CopyMarker:
    """The first sector of a copy that is not complete.

    Attributes:
        id: Of the copy, 8 bytes.
        doubted: Whether something could not be written, so what reads as it should may
            not be durable all the same.
        first: The first `MARK_SIZE` bytes of the image, when it is being handed over: they
            may not be in the source any more.
        origin: What `digest_of` says of the image's first sector then.
    """

    id: bytes
    doubted: bool = False
    first: bytes | None = None
    origin: bytes = bytes(MARK_SIZE)

    def handing_over(self, sector: bytes) -> Self:
        """Return the marker of a copy that becomes the image with this first sector."""
        return replace(self, first=sector[:MARK_SIZE], origin=digest_of(sector))

    def keeps_from(self, sector: bytes) -> bool:
        """Say whether an image with another first sector than this is being handed over."""
        return self.first is not None and self.origin != digest_of(sector)

    def encode(self) -> bytes:
        """Return it as a sector."""
        flags = _DOUBTED * self.doubted | _HANDED * (self.first is not None)
        first = self.first or bytes(MARK_SIZE)
        data = _COPY + self.id + bytes([flags]) + first + self.origin + _TEXT
        return data.ljust(SECTOR, b"\0")

    @classmethod
    def decode(cls, sector: bytes) -> Self | None:
        """Return the marker that a sector is, or None if it is none."""
        if not sector.startswith(_COPY) or len(sector) < SECTOR:
            return None
        flags = sector[MARK_SIZE]
        rest = sector[MARK_SIZE + 1 :]
        first = rest[:MARK_SIZE] if flags & _HANDED else None
        origin = rest[MARK_SIZE : 2 * MARK_SIZE]
        return cls(sector[len(_COPY) : MARK_SIZE], bool(flags & _DOUBTED), first, origin)


def digest_of(sector: bytes) -> bytes:
    """Return what tells the first sector of one image from that of another."""
    from hashlib import sha256  # noqa: PLC0415  only images that are moved need it

    return sha256(sector).digest()[:MARK_SIZE]


def move_marker(copy: CopyMarker) -> bytes:
    """Return the first bytes of an image that was handed over to this copy."""
    return _MOVE + copy.id


def moved_to(first: bytes) -> bytes | None:
    """Return the id of the copy that an image was handed over to, from its first bytes."""
    return first[len(_MOVE) : MARK_SIZE] if first.startswith(_MOVE) else None


def first_bytes(device: BlockDevice, size: int = SECTOR) -> bytes:
    """Return the first bytes of a device, at most ``size``."""
    found = bytearray(min(size, device.size))
    device.read_into(0, found)
    return bytes(found)


def require_unmarked(first: bytes) -> None:
    """Refuse an image with such first bytes if it must not be opened.

    Raises:
        UnfinishedCopyError: It is a copy that is not complete.
        MovedImageError: It was handed over to a copy.
    """
    if first.startswith(_COPY):
        raise UnfinishedCopyError(
            "the image is a copy that is not complete [P41]",
            hint="run `blobstore copy` with the same source again",
        )
    if first.startswith(_MOVE):
        raise MovedImageError(
            "the image was handed over to a copy of it, which is in use instead [P46]",
            hint="open the copy; if handing over was interrupted, run `blobstore copy --hand-over`"
            " again",
        )


def require_not_being_encrypted(device: BlockDevice) -> None:
    """Refuse an image in the clear whose encryption in place is to be resumed (O208).

    What is put into it now would be lost with the next step of that.

    Raises:
        UnfinishedReencryptionError: It is one.
        DeviceError: It cannot be read.
    """
    if device.size < 2 * _BEING_ENCRYPTED_SIZE:
        return
    last = bytearray(len(_BEING_ENCRYPTED))
    device.read_into(device.size - _BEING_ENCRYPTED_SIZE, last)
    if last != _BEING_ENCRYPTED:
        return
    import luks  # noqa: PLC0415  few images are being encrypted

    try:
        status = luks.reencryption_status(device)
    except luks.ForeignImageError:
        return  # what was begun has changed nothing yet
    if status is not None:
        raise luks.UnfinishedReencryptionError(
            "the image is in the middle of being encrypted in place [O208]",
            hint="resume it: blobstore encrypt --resume",
        )
