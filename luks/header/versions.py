"""The same volume as LUKS1 and as LUKS2: one header made from the other, in memory.

Cipher, volume key, passphrases, digest and UUID stay; so does the payload's place. The values
are those of ``cryptsetup convert``. Where key material must lie is decided by the caller.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from formats.frozen import replace
from luks.crypto.spec import parse
from luks.errors import PolicyError, UnsupportedError
from luks.header import luks1, luks2
from luks.header.luks1 import RawHeader, RawKeyslot
from luks.header.luks2_binary import METADATA_SIZES
from luks.header.luks2_binary import VERSION as LUKS2
from luks.header.policy import check_requirements
from luks.header.text import encode_field
from luks.header.validate import AREA_ALIGNMENT, MAX_KEYSLOTS_SIZE
from luks.model import PRIORITY_NORMAL, SECTOR_SIZE, Header, Pbkdf2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Bytes of both copies of a LUKS2 header that replaces one of LUKS1.
COPIES_SIZE: Final = 2 * METADATA_SIZES[0]
_DIGEST_SIZE: Final = 20
_SALT_SIZE: Final = 32
_NAME_SIZE: Final = 32
_MAX_PAYLOAD_SECTOR: Final = 2**32 - 1


def keyslots_size(header: Header, area_size: int) -> int:
    """Return the bytes for keyslot areas in LUKS2: up to the payload, as cryptsetup has them."""
    if header.data_offset == 0:  # detached: room for all eight keyslots
        return luks1.KEYSLOT_COUNT * area_size
    space = header.data_offset - COPIES_SIZE
    return min(space - space % AREA_ALIGNMENT, MAX_KEYSLOTS_SIZE)


def as_luks2(
    header: Header, numbers: Mapping[int, int], *, area_size: int, area_sizes: int
) -> Header:
    """Return the LUKS2 header with the keyslots of a LUKS1 header, in their present places.

    Args:
        header: The LUKS1 header.
        numbers: Number in LUKS2 of each active keyslot that changes its number.
        area_size: Bytes of each keyslot area.
        area_sizes: Bytes of the keyslots area.
    """
    raw: RawHeader = header.source
    keyslots = {
        numbers.get(number, number): replace(
            keyslot, type="luks2", area=replace(keyslot.area, size=area_size)
        )
        for number, keyslot in header.keyslots.items()
    }
    keyslots = dict(sorted(keyslots.items()))
    return Header(
        version=LUKS2,
        uuid=header.uuid,
        keyslots=MappingProxyType(keyslots),
        digests=MappingProxyType({0: replace(header.digests[0], keyslots=tuple(keyslots))}),
        segments=header.segments,
        seqid=1,
        metadata_size=COPIES_SIZE // 2,
        keyslots_offset=COPIES_SIZE,
        keyslots_size=area_sizes,
        source=luks2.new_source(raw.uuid),
    )


def check_luks1(header: Header, *, force: bool) -> None:
    """Check that LUKS1 can express a LUKS2 header.

    Args:
        header: The LUKS2 header.
        force: Whether labels, flags, priorities and tokens may be lost.

    Raises:
        UnsupportedError: It cannot; the message says why.
        PolicyError: Something would be lost.
    """
    check_requirements(header)
    for reason in _obstacles(header):
        raise UnsupportedError(f"LUKS1 cannot store this header: {reason} [L204]", feature="LUKS1")
    lost = list(_lost(header))
    if lost and not force:
        raise PolicyError(
            f"LUKS1 has no place for {', '.join(lost)} [L205]",
            hint="force the conversion if they may be lost",
        )


def as_luks1(header: Header, places: Mapping[int, int]) -> Header:
    """Return the LUKS1 header for a LUKS2 header that `check_luks1` accepts.

    Args:
        header: The LUKS2 header.
        places: Offset of the key material of each of the eight keyslots, active or not.
    """
    (digest,) = header.digests.values()
    kdf = digest.kdf
    if kdf is None:
        raise ValueError("LUKS1 has digests of PBKDF2 only")
    some = next(iter(header.keyslots.values()))
    name, _, mode = (header.cipher or "").partition("-")
    keyslots = []
    for number in range(luks1.KEYSLOT_COUNT):
        slot = header.keyslots.get(number)
        cost = None if slot is None else slot.kdf
        keyslots.append(
            RawKeyslot(
                active=slot is not None,
                iterations=cost.iterations if isinstance(cost, Pbkdf2) else 0,
                salt=bytes(32) if slot is None else slot.salt,
                material_sector=places[number] // SECTOR_SIZE,
                stripes=some.stripes,
            )
        )
    raw = RawHeader(
        cipher_name=name,
        cipher_mode=mode,
        hash_spec=kdf.hash_name,
        payload_sector=header.data_offset // SECTOR_SIZE,
        key_bytes=some.key_size,
        # The output of PBKDF2 does not depend on its length, except where it ends.
        mk_digest=digest.value[:_DIGEST_SIZE],
        mk_digest_salt=digest.salt,
        mk_digest_iterations=kdf.iterations,
        uuid=encode_field(header.uuid, 40, unchanged=luks2.uuid_field(header)),
        keyslots=tuple(keyslots),
    )
    return luks1.to_model(raw)


def _obstacles(header: Header) -> Iterator[str]:
    """Say why LUKS1 cannot express a header."""
    if len(header.segments) != 1:
        yield "it has several segments"
    segment = header.segments[0]
    if segment.type != "crypt" or segment.cipher is None or segment.integrity or segment.flags:
        yield "its payload is not simply encrypted"
    elif segment.size is not None or segment.iv_tweak:
        yield "its payload has a fixed size or an iv_tweak"
    elif segment.sector_size != SECTOR_SIZE:
        yield f"its sectors have {segment.sector_size} bytes instead of {SECTOR_SIZE}"
    elif segment.offset // SECTOR_SIZE > _MAX_PAYLOAD_SECTOR:
        yield "its payload begins too far away"
    if len(header.digests) != 1:
        yield "it has keys that are not the payload's"
        return
    (digest,) = header.digests.values()
    if digest.kdf is None or digest.problem:
        yield "its digest is not PBKDF2"
        return
    if len(digest.value) < _DIGEST_SIZE or len(digest.salt) != _SALT_SIZE:
        yield "its digest or the salt of that is too short"
    if not header.keyslots:
        yield "it has no keyslots, and so no size of the volume key"
    yield from _keyslot_obstacles(header, digest.kdf, segment.cipher or "")


def _keyslot_obstacles(header: Header, kdf: Pbkdf2, cipher: str) -> Iterator[str]:
    some = next(iter(header.keyslots.values()), None)
    for number, slot in header.keyslots.items():
        what = f"keyslot {number}"
        if number >= luks1.KEYSLOT_COUNT:
            yield f"{what} is beyond the eighth"
        if slot.type != "luks2" or slot.problem or not isinstance(slot.kdf, Pbkdf2):
            yield f"{what} is not PBKDF2"
            continue
        if {slot.kdf.hash_name, slot.af_hash} != {kdf.hash_name}:
            yield f"{what} and the digest have different hashes"
        if slot.area.cipher != cipher or slot.area.key_size != slot.key_size:
            yield f"{what} has a cipher of its own"
        if some is not None and (slot.key_size, slot.stripes) != (some.key_size, some.stripes):
            yield "the keyslots differ in key size or stripes"
        if len(slot.salt) != _SALT_SIZE:
            yield f"the salt of {what} has {len(slot.salt)} bytes"
    names = (kdf.hash_name, *cipher.partition("-")[::2])
    if any(not name.isascii() or len(name) >= _NAME_SIZE for name in names):
        yield "the name of a cipher or hash is too long"
    if parse(cipher).cipher == "capi":
        yield "its cipher is named as the kernel names it"


def _lost(header: Header) -> Iterator[str]:
    """Name what LUKS1 has no place for, but what opens the volume does not need."""
    if header.tokens:
        yield "its tokens"
    if header.label:
        yield "its label"
    if header.subsystem:
        yield "its subsystem"
    if header.flags:
        yield "its activation flags"
    if any(slot.priority != PRIORITY_NORMAL for slot in header.keyslots.values()):
        yield "priorities of keyslots"
