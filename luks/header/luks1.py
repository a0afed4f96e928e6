"""LUKS1 headers: bytes to model and back.

Source: LUKS1 On-Disk Format Specification 1.2.3, section 6 and appendix A.
"""

from __future__ import annotations

import struct
from types import MappingProxyType
from typing import Final

from formats.frozen import Frozen, replace
from luks.errors import LuksHeaderError
from luks.header.text import decode_field, encode_field
from luks.model import SECTOR_SIZE, Area, Digest, Header, Keyslot, Pbkdf2, Segment

MAGIC: Final = b"LUKS\xba\xbe"
VERSION: Final = 1
KEYSLOT_COUNT: Final = 8
#: Alignment of keyslot areas in cryptsetup and QEMU, in bytes; the format has none.
AREA_ALIGNMENT: Final = 4096
#: AF stripes of every keyslot that is made here; QEMU accepts no other number.
STRIPES: Final = 4000

_ACTIVE: Final = 0x00AC71F3
_INACTIVE: Final = 0x0000DEAD

# The construct library is not used: importing it takes longer than everything else. In order:
# magic, version, cipher name, cipher mode, hash, payload sector, key bytes; digest, its
# salt and iterations; UUID. Then the keyslots: state, iterations, salt, sector, stripes.
_HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
_KEYSLOT = struct.Struct(">II32sII")
#: Bytes of the header, without its keyslot areas.
HEADER_SIZE: Final = _HEADER.size + KEYSLOT_COUNT * _KEYSLOT.size


class RawKeyslot(Frozen):
    """One of the eight keyslots, active or not; sectors are of 512 bytes."""

    active: bool
    iterations: int
    salt: bytes
    material_sector: int
    stripes: int


class RawHeader(Frozen):
    """A LUKS1 header, field by field; `payload_sector` is 0 in a detached one."""

    cipher_name: str
    cipher_mode: str
    hash_spec: str
    payload_sector: int
    key_bytes: int
    mk_digest: bytes
    mk_digest_salt: bytes
    mk_digest_iterations: int
    uuid: bytes
    keyslots: tuple[RawKeyslot, ...]

    @property
    def cipher(self) -> str:
        """dm-crypt's cipher string."""
        return f"{self.cipher_name}-{self.cipher_mode}"

    def area_sectors(self, keyslot: RawKeyslot) -> int:
        """Sectors that a keyslot's material takes."""
        return -(-self.key_bytes * keyslot.stripes // SECTOR_SIZE)


def decode(data: bytes) -> RawHeader:
    """Decode the first `HEADER_SIZE` bytes of a LUKS1 device.

    Raises:
        LuksHeaderError: Magic, version, or a name or keyslot state is wrong.
    """
    if len(data) < HEADER_SIZE:
        raise LuksHeaderError(f"{len(data)} bytes are too few for a LUKS1 header", rule="L40")
    (
        magic,
        version,
        cipher_name,
        cipher_mode,
        hash_spec,
        payload_sector,
        key_bytes,
        mk_digest,
        mk_digest_salt,
        mk_digest_iterations,
        uuid,
    ) = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise LuksHeaderError("the header is not LUKS1", offset=0, rule="L40")
    slots = _KEYSLOT.iter_unpack(data[_HEADER.size : HEADER_SIZE])
    return RawHeader(
        cipher_name=_name(cipher_name, "cipher name"),
        cipher_mode=_name(cipher_mode, "cipher mode"),
        hash_spec=_name(hash_spec, "hash name"),
        payload_sector=payload_sector,
        key_bytes=key_bytes,
        mk_digest=mk_digest,
        mk_digest_salt=mk_digest_salt,
        mk_digest_iterations=mk_digest_iterations,
        uuid=uuid,
        keyslots=tuple(
            RawKeyslot(_is_active(number, state), *rest)
            for number, (state, *rest) in enumerate(slots)
        ),
    )


def encode(raw: RawHeader) -> bytes:
    """Encode a header; inverse of `decode`.

    Raises:
        ValueError: A field does not fit.
    """
    try:
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            encode_field(raw.cipher_name, 32),
            encode_field(raw.cipher_mode, 32),
            encode_field(raw.hash_spec, 32),
            raw.payload_sector,
            raw.key_bytes,
            _exactly(20, raw.mk_digest),
            _exactly(32, raw.mk_digest_salt),
            raw.mk_digest_iterations,
            _exactly(40, raw.uuid),
        )
        slots = [
            _KEYSLOT.pack(
                _ACTIVE if slot.active else _INACTIVE,
                slot.iterations,
                _exactly(32, slot.salt),
                slot.material_sector,
                slot.stripes,
            )
            for slot in raw.keyslots
        ]
    except struct.error as error:
        raise ValueError(f"a LUKS1 header cannot hold these fields: {error}") from error
    if len(slots) != KEYSLOT_COUNT:
        raise ValueError(f"a LUKS1 header must have {KEYSLOT_COUNT} keyslots, not {len(slots)}")
    return b"".join((header, *slots))


def _exactly(size: int, value: bytes) -> bytes:
    """Return a value of exactly ``size`` bytes, which `struct` would otherwise cut or pad."""
    if len(value) != size:
        raise ValueError(f"a field of {size} bytes of a LUKS1 header cannot hold {len(value)}")
    return value


def to_model(raw: RawHeader) -> Header:
    """Convert a validated LUKS1 header to the model that it shares with LUKS2."""
    active = {n: slot for n, slot in enumerate(raw.keyslots) if slot.active}
    start = min(slot.material_sector for slot in raw.keyslots) * SECTOR_SIZE
    digest = Digest(
        type="pbkdf2",
        keyslots=tuple(active),
        segments=(0,),
        kdf=Pbkdf2(raw.hash_spec, raw.mk_digest_iterations),
        salt=raw.mk_digest_salt,
        value=raw.mk_digest,
    )
    segment = Segment(
        type="crypt", offset=raw.payload_sector * SECTOR_SIZE, size=None, cipher=raw.cipher
    )
    return Header(
        version=VERSION,
        uuid=decode_field(raw.uuid),
        keyslots=MappingProxyType({n: _keyslot_to_model(raw, s) for n, s in active.items()}),
        digests=MappingProxyType({0: digest}),
        segments=MappingProxyType({0: segment}),
        metadata_size=HEADER_SIZE,
        keyslots_offset=start,
        keyslots_size=_keyslots_end(raw) - start,
        source=raw,
    )


def _keyslots_end(raw: RawHeader) -> int:
    """Return the end of the last area in bytes, including the padding after it."""
    end = max(slot.material_sector + raw.area_sectors(slot) for slot in raw.keyslots) * SECTOR_SIZE
    padded = end + -end % AREA_ALIGNMENT
    return min(padded, raw.payload_sector * SECTOR_SIZE) if raw.payload_sector else padded


def from_model(header: Header) -> RawHeader:
    """Convert a header, made by `to_model` and then changed, back to LUKS1.

    Only keyslots, the digest and the UUID may have changed; a keyslot keeps its
    area, and one that became inactive loses its salt.

    Raises:
        ValueError: It has values that LUKS1 cannot store.
    """
    raw = header.source
    if not isinstance(raw, RawHeader):
        raise TypeError("this header was not decoded from LUKS1")
    digest = header.digests[0]
    if digest.kdf is None or len(digest.value) != len(raw.mk_digest):
        raise ValueError("a LUKS1 digest must be PBKDF2 of 20 bytes")
    return replace(
        raw,
        uuid=encode_field(header.uuid, 40, unchanged=raw.uuid),
        mk_digest=digest.value,
        mk_digest_salt=digest.salt,
        mk_digest_iterations=digest.kdf.iterations,
        keyslots=tuple(
            _keyslot_from_model(raw, slot, header.keyslots.get(n))
            for n, slot in enumerate(raw.keyslots)
        ),
    )


def blank_keyslot(header: Header, number: int) -> Keyslot:
    """Return inactive keyslot ``number`` as if it were active, without KDF and salt."""
    raw = header.source
    if not isinstance(raw, RawHeader):
        raise TypeError("this header was not decoded from LUKS1")
    return replace(_keyslot_to_model(raw, raw.keyslots[number]), kdf=None, salt=b"")


def _keyslot_to_model(raw: RawHeader, slot: RawKeyslot) -> Keyslot:
    return Keyslot(
        type="luks1",
        key_size=raw.key_bytes,
        area=Area(
            offset=slot.material_sector * SECTOR_SIZE,
            size=raw.area_sectors(slot) * SECTOR_SIZE,
            cipher=raw.cipher,
            key_size=raw.key_bytes,
        ),
        kdf=Pbkdf2(raw.hash_spec, slot.iterations),
        salt=slot.salt,
        stripes=slot.stripes,
        af_hash=raw.hash_spec,
    )


def _keyslot_from_model(raw: RawHeader, old: RawKeyslot, keyslot: Keyslot | None) -> RawKeyslot:
    if keyslot is None:
        return replace(old, active=False, iterations=0, salt=bytes(32))
    iterations = keyslot.kdf.iterations if isinstance(keyslot.kdf, Pbkdf2) else 0
    new = replace(old, active=True, iterations=iterations, salt=keyslot.salt)
    if _keyslot_to_model(raw, new) != keyslot:  # for example Argon2
        raise ValueError("a LUKS1 keyslot has PBKDF2, and the cipher, hash and area of the header")
    return new


def _name(field: bytes, what: str) -> str:
    if b"\0" not in field:
        raise LuksHeaderError(f"the {what} has no NUL at its end", rule="L41")
    try:
        return field.partition(b"\0")[0].decode("ascii")
    except UnicodeDecodeError as error:
        raise LuksHeaderError(f"the {what} is not ASCII", rule="L41") from error


def _is_active(number: int, state: int) -> bool:
    if state not in {_ACTIVE, _INACTIVE}:
        raise LuksHeaderError(
            f"keyslot {number} is neither active nor inactive but {state:#010x}", rule="L42"
        )
    return state == _ACTIVE
