"""What is done to an image when all of its payload has been moved (L167)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from luks.errors import UnsupportedError
from luks.reencryption.placing import MARKER_SIZE, read_marker
from luks.reencryption.plan import ShiftedDecryption, ShiftedEncryption
from luks.secret.randomness import source_or_system

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from luks.reencryption.plan import Plan

_CHUNK: Final = 1 << 20


def tidy(image: BlockDevice, plan: Plan) -> None:
    """Erase the copies that a move of the payload has left; cut the image to its size.

    Where the image cannot be cut, or was not made larger here, the room at its end stays,
    with random content. Repeating it is harmless.

    Args:
        image: Holds the payload.
        plan: Of the re-encryption, which has ended.

    Raises:
        DeviceError: A write, flush or change of size failed; do it again.
    """
    if isinstance(plan, ShiftedEncryption):
        marker = read_marker(image)
        if marker is not None and marker.has_grown:
            _cut(image, plan.new.offset + plan.size)
            return
        _erase(image, plan.moved.offset, plan.moved.offset + plan.moved_size)
        if marker is not None:
            _erase(image, image.size - MARKER_SIZE, image.size)
        image.flush()
    elif isinstance(plan, ShiftedDecryption):
        _cut(image, plan.size)


def _cut(image: BlockDevice, size: int) -> None:
    """Erase what lies after ``size`` bytes, and cut the image there if it can be cut."""
    if image.size <= size:
        return
    _erase(image, size, image.size)
    image.flush()
    try:
        image.resize(size)
    except UnsupportedError:
        return  # such as a block device
    image.flush()


def _erase(image: BlockDevice, start: int, end: int) -> None:
    for at in range(start, min(end, image.size), _CHUNK):
        image.write(at, source_or_system(None)(min(_CHUNK, min(end, image.size) - at)))
