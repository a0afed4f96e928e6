"""LUKS1 headers: bytes to model and back.

Source: LUKS1 On-Disk Format Specification 1.2.3, section 6 and appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from construct import Array, Bytes, ConstructError, Int16ub, Int32ub, Struct

from luks.errors import LuksHeaderError
from luks.model import SECTOR_SIZE, Area, Digest, Header, Keyslot, Pbkdf2, Segment
from luks.text import decode_field, encode_field

MAGIC: Final = b"LUKS\xba\xbe"
VERSION: Final = 1
KEYSLOT_COUNT: Final = 8
#: What cryptsetup and QEMU align keyslot areas to, in bytes; the format does not.
AREA_ALIGNMENT: Final = 4096
#: AF stripes of every keyslot we make; QEMU takes no other number.
STRIPES: Final = 4000

_ACTIVE: Final = 0x00AC71F3
_INACTIVE: Final = 0x0000DEAD

_KEYSLOT = Struct(
    "state" / Int32ub,
    "iterations" / Int32ub,
    "salt" / Bytes(32),
    "material_sector" / Int32ub,
    "stripes" / Int32ub,
)
_HEADER = Struct(
    "magic" / Bytes(6),
    "version" / Int16ub,
    "cipher_name" / Bytes(32),
    "cipher_mode" / Bytes(32),
    "hash_spec" / Bytes(32),
    "payload_sector" / Int32ub,
    "key_bytes" / Int32ub,
    "mk_digest" / Bytes(20),
    "mk_digest_salt" / Bytes(32),
    "mk_digest_iterations" / Int32ub,
    "uuid" / Bytes(40),
    "keyslots" / Array(KEYSLOT_COUNT, _KEYSLOT),
)
#: Bytes of the header, without its keyslot areas.
HEADER_SIZE: Final[int] = _HEADER.sizeof()


@dataclass(frozen=True, slots=True)
class RawKeyslot:
    """One of the eight keyslots, active or not; sectors are of 512 bytes."""

    active: bool
    iterations: int
    salt: bytes
    material_sector: int
    stripes: int


@dataclass(frozen=True, slots=True)
class RawHeader:
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
    try:
        fields = _HEADER.parse(data)
    except ConstructError as error:
        raise LuksHeaderError(f"{len(data)} bytes are no LUKS1 header", rule="L40") from error
    if fields.magic != MAGIC or fields.version != VERSION:
        raise LuksHeaderError("not a LUKS1 header", offset=0, rule="L40")
    return RawHeader(
        cipher_name=_name(fields.cipher_name, "cipher name"),
        cipher_mode=_name(fields.cipher_mode, "cipher mode"),
        hash_spec=_name(fields.hash_spec, "hash name"),
        payload_sector=fields.payload_sector,
        key_bytes=fields.key_bytes,
        mk_digest=fields.mk_digest,
        mk_digest_salt=fields.mk_digest_salt,
        mk_digest_iterations=fields.mk_digest_iterations,
        uuid=fields.uuid,
        keyslots=tuple(
            RawKeyslot(
                active=_is_active(number, slot.state),
                iterations=slot.iterations,
                salt=slot.salt,
                material_sector=slot.material_sector,
                stripes=slot.stripes,
            )
            for number, slot in enumerate(fields.keyslots)
        ),
    )


def encode(raw: RawHeader) -> bytes:
    """Encode a header; inverse of `decode`.

    Raises:
        ValueError: A field does not fit.
    """
    try:
        data: bytes = _HEADER.build(
            {
                "magic": MAGIC,
                "version": VERSION,
                "cipher_name": encode_field(raw.cipher_name, 32),
                "cipher_mode": encode_field(raw.cipher_mode, 32),
                "hash_spec": encode_field(raw.hash_spec, 32),
                "payload_sector": raw.payload_sector,
                "key_bytes": raw.key_bytes,
                "mk_digest": raw.mk_digest,
                "mk_digest_salt": raw.mk_digest_salt,
                "mk_digest_iterations": raw.mk_digest_iterations,
                "uuid": raw.uuid,
                "keyslots": [
                    {
                        "state": _ACTIVE if slot.active else _INACTIVE,
                        "iterations": slot.iterations,
                        "salt": slot.salt,
                        "material_sector": slot.material_sector,
                        "stripes": slot.stripes,
                    }
                    for slot in raw.keyslots
                ],
            }
        )
    except ConstructError as error:
        raise ValueError(f"no LUKS1 header can hold this: {error}") from error
    return data


def to_model(raw: RawHeader) -> Header:
    """Express a validated LUKS1 header in the model that LUKS2 shares."""
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
    """Return the end of the last area in bytes, the padding behind it included."""
    end = max(slot.material_sector + raw.area_sectors(slot) for slot in raw.keyslots) * SECTOR_SIZE
    padded = end + -end % AREA_ALIGNMENT
    return min(padded, raw.payload_sector * SECTOR_SIZE) if raw.payload_sector else padded


def from_model(header: Header) -> RawHeader:
    """Express a header, made by `to_model` and then changed, as LUKS1 again.

    Only keyslots, the digest and the UUID may have changed; a keyslot keeps its
    area, and one that became inactive loses its salt.

    Raises:
        ValueError: Something else is asked of it than LUKS1 can store.
    """
    raw = header.source
    if not isinstance(raw, RawHeader):
        raise TypeError("this header was not decoded from LUKS1")
    digest = header.digests[0]
    if digest.kdf is None or len(digest.value) != len(raw.mk_digest):
        raise ValueError("a LUKS1 digest is PBKDF2 of 20 bytes")
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
    """Return keyslot ``number`` as it would be, if it were active, without KDF and salt."""
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
    if _keyslot_to_model(raw, new) != keyslot:  # Argon2 included
        raise ValueError("LUKS1 knows only PBKDF2, and one cipher, hash and area for a keyslot")
    return new


def _name(field: bytes, what: str) -> str:
    if b"\0" not in field:
        raise LuksHeaderError(f"the {what} has no end", rule="L41")
    try:
        return field.partition(b"\0")[0].decode("ascii")
    except UnicodeDecodeError as error:
        raise LuksHeaderError(f"the {what} is no ASCII", rule="L41") from error


def _is_active(number: int, state: int) -> bool:
    if state not in {_ACTIVE, _INACTIVE}:
        raise LuksHeaderError(
            f"keyslot {number} is neither active nor inactive but {state:#010x}", rule="L42"
        )
    return state == _ACTIVE
