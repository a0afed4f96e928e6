"""Adding keys to a header in memory; `luks.header.writer` makes it durable."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError
from formats.frozen import replace
from luks.crypto.ciphers import check_usable
from luks.crypto.kdf import derive
from luks.crypto.spec import DEFAULT_CIPHER
from luks.errors import KeyslotsFullError, PolicyError, UnsupportedError
from luks.header import luks1
from luks.header.layout import STRIPES, area_size
from luks.header.validate import AREA_ALIGNMENT, MAX_OBJECTS
from luks.keys.keyslots import seal
from luks.model import Area, Digest, Keyslot, Pbkdf2
from luks.secret.randomness import source_or_system

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.devices.device import ReadableBuffer
    from luks.model import Header, KdfCost
    from luks.secret.randomness import RandomSource

SALT_SIZE: Final = 32
_DEFAULT_KEY_SIZE: Final = 64  # of DEFAULT_CIPHER, in bytes
#: Bytes of every LUKS1 digest; a LUKS2 digest has the length of its hash.
LUKS1_DIGEST_SIZE: Final = 20


def new_digest(
    key: ReadableBuffer, kdf: Pbkdf2, size: int, random: RandomSource | None = None
) -> Digest:
    """Make the digest that verifies the volume key of segment 0.

    Args:
        key: Not modified.
        kdf: Its hash and iterations.
        size: Bytes of the digest.
        random: Source of its salt.
    """
    salt = source_or_system(random)(SALT_SIZE)
    with derive(kdf, key, salt, size) as value:
        return Digest("pbkdf2", (), (0,), kdf, salt, bytes(value.view()))


def enroll_key(
    header: Header,
    number: int,
    *,
    kdf: KdfCost,
    secret: ReadableBuffer,
    key: ReadableBuffer,
    hash_name: str,
    digest_number: int | None = None,
    in_use: Iterable[Area] = (),
    cipher: tuple[str, int] | None = None,
    random: RandomSource | None = None,
) -> tuple[Header, dict[int, bytes]]:
    """Make keyslot ``number`` open ``key`` with ``secret``.

    Args:
        header: Not modified.
        number: A keyslot that is not active.
        kdf: Cost of its key derivation.
        secret: Not modified.
        key: The volume key. Not modified.
        hash_name: Hash of the AF diffuser; LUKS1 has its own.
        digest_number: Digest that confirms the key; by default the volume's.
        in_use: Areas that it must not use, besides those of ``header``.
        cipher: Cipher string and key size for the key material, in LUKS2 only;
            by default the payload's cipher with a key of the same size, or
            AES-256-XTS if that is not available here.
        random: Source of its salt and its stripes.

    Returns:
        The new header, and its key material by byte offset, as
        `luks.header.writer.write_header` takes them.

    Raises:
        KeyslotsFullError: No room is left for its area.
        ValueError: The keyslot is active, or the header has no digest.
    """
    if number in header.keyslots:
        raise ArgumentError(f"keyslot {number} is active already")
    if header.version == luks1.VERSION:
        blank = luks1.blank_keyslot(header, number)
        if any(area.offset == blank.area.offset for area in in_use):
            raise KeyslotsFullError(f"the area of keyslot {number} is still in use")
    else:
        name, area_key_size = cipher or _area_cipher(header, len(key))
        blank = Keyslot(
            type="luks2",
            key_size=len(key),
            area=replace(_free_area(header, len(key), in_use), cipher=name, key_size=area_key_size),
            kdf=None,
            salt=b"",
            stripes=STRIPES,
            af_hash=hash_name,
        )
    keyslot = replace(blank, kdf=kdf, salt=source_or_system(random)(SALT_SIZE))
    if digest_number is None:
        digest_number = header.volume_digest
    if digest_number is None:
        raise ArgumentError("this header has no digest for the volume key")
    digest = header.digests[digest_number]
    digest = replace(digest, keyslots=tuple(sorted({*digest.keyslots, number})))
    added = replace(
        header,
        keyslots=MappingProxyType({**header.keyslots, number: keyslot}),
        digests=MappingProxyType({**header.digests, digest_number: digest}),
    )
    return added, {keyslot.area.offset: seal(keyslot, secret, key, random)}


def _area_cipher(header: Header, key_size: int) -> tuple[str, int]:
    name = header.cipher or ""
    try:
        check_usable(name, key_size)
    except (UnsupportedError, PolicyError):  # unknown, with a key for integrity too, or null
        return DEFAULT_CIPHER, _DEFAULT_KEY_SIZE
    return name, key_size


def choose_keyslot(header: Header, keyslot: int | None, in_use: Iterable[int] = ()) -> int:
    """Return the number of a keyslot that can be added.

    Args:
        header: Header to add it to.
        keyslot: The requested one; by default the first that is free.
        in_use: Further keyslots that are not free.

    Raises:
        KeyslotsFullError: None is free.
        ArgumentError: It is active, or its number is out of range.
    """
    if keyslot is not None:
        check_number(header, keyslot)
        if keyslot in header.keyslots:
            raise ArgumentError(f"keyslot {keyslot} is active already")
        return keyslot
    count = keyslot_count(header)
    taken = {*header.keyslots, *in_use}
    for number in range(count):
        if number not in taken:
            return number
    raise KeyslotsFullError(f"all {count} keyslots are in use", hint="remove one of them first")


def keyslot_count(header: Header) -> int:
    """Return how many keyslots the format has."""
    return luks1.KEYSLOT_COUNT if header.version == luks1.VERSION else MAX_OBJECTS


def check_number(header: Header, keyslot: int) -> None:
    """Check that the format has a keyslot of this number.

    Raises:
        ArgumentError: It does not.
    """
    count = keyslot_count(header)
    if not 0 <= keyslot < count:
        raise ArgumentError(f"keyslots are numbered from 0 to {count - 1}")


def find_space(header: Header, size: int, in_use: Iterable[Area]) -> int | None:
    """Return the offset of the first part of the keyslots area that is free, or None.

    Args:
        header: Says where the keyslots area is.
        size: Bytes.
        in_use: Areas that it must not overlap.
    """
    offset = header.keyslots_offset
    for area in sorted(in_use, key=lambda area: area.offset):
        if offset + size <= area.offset:
            break
        offset = max(offset, area.end + -area.end % AREA_ALIGNMENT)
    return offset if offset + size <= header.keyslots_offset + header.keyslots_size else None


def _free_area(header: Header, key_size: int, in_use: Iterable[Area]) -> Area:
    """Return the first free part of the keyslots area, without a cipher yet."""
    size = area_size(key_size)
    offset = find_space(header, size, [*(s.area for s in header.keyslots.values()), *in_use])
    if offset is None:
        raise KeyslotsFullError(
            "the keyslots area has no room for another keyslot",
            hint="remove a keyslot first; new key material never overwrites old that is in use",
        )
    return Area(offset, size, cipher=None, key_size=0)
