"""Adding keys to a header in memory; `luks.writer` makes it durable."""

from __future__ import annotations

import os
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from luks import luks1
from luks.kdf import derive
from luks.keyslots import seal
from luks.layout import STRIPES, area_size
from luks.model import Area, Digest, Keyslot, Pbkdf2

if TYPE_CHECKING:
    from formats.device import ReadableBuffer
    from luks.model import Header, KdfCost

SALT_SIZE: Final = 32
#: Bytes of every LUKS1 digest; LUKS2's have the length of their hash.
LUKS1_DIGEST_SIZE: Final = 20


def new_digest(key: ReadableBuffer, kdf: Pbkdf2, size: int) -> Digest:
    """Make the digest that a volume key is verified against, for segment 0.

    Args:
        key: Not modified.
        kdf: Its hash and iterations.
        size: Bytes of the digest.
    """
    salt = os.urandom(SALT_SIZE)
    with derive(kdf, key, salt, size) as value:
        return Digest("pbkdf2", (), (0,), kdf, salt, bytes(value.view()))


def add_keyslot(
    header: Header,
    number: int,
    *,
    kdf: KdfCost,
    secret: ReadableBuffer,
    key: ReadableBuffer,
    hash_name: str,
) -> tuple[Header, dict[int, bytes]]:
    """Make keyslot ``number`` open ``key`` with ``secret``.

    Args:
        header: Not modified.
        number: A keyslot that is not active.
        kdf: Cost of its key derivation.
        secret: Not modified.
        key: The volume key. Not modified.
        hash_name: Hash of the AF diffuser; LUKS1 has its own.

    Returns:
        The new header, and its key material by byte offset; both are what
        `luks.writer.write_header` takes.

    Raises:
        ValueError: The keyslot is active, there is no room for its area, or
            the header has no digest.
    """
    if number in header.keyslots:
        raise ValueError(f"keyslot {number} is active")
    if header.version == luks1.VERSION:
        blank = luks1.blank_keyslot(header, number)
    else:
        blank = Keyslot(
            type="luks2",
            key_size=len(key),
            area=_free_area(header, len(key)),
            kdf=None,
            salt=b"",
            stripes=STRIPES,
            af_hash=hash_name,
        )
    keyslot = replace(blank, kdf=kdf, salt=os.urandom(SALT_SIZE))
    digest_number = header.volume_digest
    if digest_number is None:
        raise ValueError("this header has no digest for the volume key")
    digest = header.digests[digest_number]
    digest = replace(digest, keyslots=tuple(sorted({*digest.keyslots, number})))
    added = replace(
        header,
        keyslots=MappingProxyType({**header.keyslots, number: keyslot}),
        digests=MappingProxyType({**header.digests, digest_number: digest}),
    )
    return added, {keyslot.area.offset: seal(keyslot, secret, key)}


def _free_area(header: Header, key_size: int) -> Area:
    """Return the first free part of the keyslots area, for the payload's cipher."""
    size = area_size(key_size)
    offset = header.keyslots_offset
    for area in sorted((slot.area for slot in header.keyslots.values()), key=lambda a: a.offset):
        if offset + size <= area.offset:
            break
        offset = max(offset, area.end)
    if offset + size > header.keyslots_offset + header.keyslots_size:
        raise ValueError("the keyslots area has no room for another keyslot")
    return Area(offset, size, header.cipher, key_size)
