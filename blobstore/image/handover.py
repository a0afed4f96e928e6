"""What is asked of the layers of an image that another process had meanwhile (C65)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import luks
from blobstore.image.place import for_luks, is_there
from formats.errors import CorruptImageError
from formats.qcow2.features import CORRUPT, DIRTY
from luks.errors import PolicyError

if TYPE_CHECKING:
    from blobstore.image.layers import Layers


_ANEW = "close it and open the image again, if what it is now is what is wanted"


def require_same_encryption(layers: Layers) -> None:
    """Check that the image is still encrypted as it was when it was opened.

    Keyslots and tokens may be others. A detached header that is not there any more
    says nothing; what its key opens will show.

    Raises:
        PolicyError: It has another volume key by now, or another payload.
        FormatError, UnsupportedError, DeviceError: It has no sound header by now.
    """
    if layers.volume is not None:
        if layers.header_path is None or is_there(layers.header_path):
            require_same(layers.volume.header, load_header(layers))
    elif layers.own_luks is not None:
        from formats.qcow2.opening import luks_area  # noqa: PLC0415  not for raw images

        require_same(layers.own_luks, luks.load_header(luks_area(layers.file)))


def load_header(layers: Layers) -> luks.Header:
    """Read the header of the LUKS volume in an image again; errors as `luks.load_header`."""
    if layers.header_path is None:
        return luks.load_header(layers.device)
    with for_luks(layers.header_path) as place:
        return luks.load_header(place)


def require_closed(layers: Layers) -> None:
    """Check that a qcow2 image may be written as it is.

    Raises:
        CorruptImageError: Its last writer did not close it, or marked it as corrupt.
    """
    if layers.disk is not None and layers.disk.header.incompatible & (DIRTY | CORRUPT):
        raise CorruptImageError(
            "the qcow2 image was not closed by its last writer, or is marked as corrupt [Q5]",
            hint="close it and open the image again, which repairs what may be repaired",
        )


def require_same(known: luks.Header, found: luks.Header) -> None:
    """Check that two headers describe one encryption; keyslots and tokens may be others.

    Raises:
        PolicyError: They do not.
    """
    if _encryption(known) != _encryption(found):
        raise PolicyError(
            "the image is encrypted in another way than when it was opened [C65]", hint=_ANEW
        )


def _encryption(header: luks.Header) -> tuple[object, ...]:
    # Two keys in the middle of a re-encryption.
    digests = [header.digests[number] for number in header.payload_digests]
    confirmed = [(digest.type, digest.kdf, digest.salt, digest.value) for digest in digests]
    return header.uuid, header.data_segments, confirmed
