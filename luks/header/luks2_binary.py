"""LUKS2's binary header, 4096 bytes before each copy of the JSON metadata.

Source: LUKS2 On-Disk Format Specification 1.1, section 2.1.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from luks.crypto.hashes import lookup
from luks.errors import LuksHeaderError, UnsupportedError

PRIMARY_MAGIC: Final = b"LUKS\xba\xbe"
SECONDARY_MAGIC: Final = b"SKUL\xba\xbe"
VERSION: Final = 2
#: Bytes of the binary header.
BINARY_SIZE: Final = 4096
#: Possible sizes of one copy, binary header and JSON area, in bytes. The secondary
#: copy follows the primary one, so these are also the offsets where it is searched.
METADATA_SIZES: Final = tuple(1 << shift for shift in range(14, 23))
#: Hash of the header checksums that are written here.
CHECKSUM_HASH: Final = "sha256"
#: Where the counter of header writes ends.
MAX_SEQID: Final = 2**64 - 1
SALT_SIZE: Final = 64
LABEL_SIZE: Final = 48
UUID_SIZE: Final = 40

_CHECKSUM_SIZE: Final = 64
_PADDING_OFFSET: Final = 512

# As in LUKS1 the construct library is not used: importing it takes longer than
# everything else in opening a volume.
_LAYOUT: Final = struct.Struct(
    f">6sHQQ{LABEL_SIZE}s32s{SALT_SIZE}s{UUID_SIZE}s{LABEL_SIZE}sQ184x"
    f"{_CHECKSUM_SIZE}s{BINARY_SIZE - _PADDING_OFFSET}x"
)
_CHECKSUM_OFFSET: Final = _PADDING_OFFSET - _CHECKSUM_SIZE


class _Fields(NamedTuple):
    """The fields of `_LAYOUT` in order; then come 184 zero bytes, and the checksum at 448."""

    magic: bytes
    version: int
    metadata_size: int
    seqid: int
    label: bytes
    checksum_hash: bytes
    salt: bytes
    uuid: bytes
    subsystem: bytes
    offset: int
    checksum: bytes


class BinaryHeader(NamedTuple):
    """The fields of a binary header; its checksum belongs to the bytes.

    Attributes:
        magic: `PRIMARY_MAGIC` or `SECONDARY_MAGIC`.
        metadata_size: Bytes of this copy, JSON area included.
        seqid: Counter of header writes.
        label: Text of 48 bytes.
        checksum_hash: Hash of the checksum, in LUKS spelling.
        salt: New random bytes at each write, without another use.
        uuid: Text of 40 bytes.
        subsystem: Text of 48 bytes.
        offset: Where this copy starts.
    """

    magic: bytes
    metadata_size: int
    seqid: int
    label: bytes
    checksum_hash: str
    salt: bytes
    uuid: bytes
    subsystem: bytes
    offset: int


def decode_binary(block: bytes, *, magic: bytes, offset: int) -> BinaryHeader:
    """Decode the binary header of one copy; its checksum is not verified.

    Args:
        block: `BINARY_SIZE` bytes.
        magic: The bytes that it must begin with.
        offset: Where the copy was found.

    Raises:
        LuksHeaderError: It is not a binary header, or belongs elsewhere.
    """
    try:
        fields = _fields(block)
    except struct.error as error:
        raise LuksHeaderError(
            f"{len(block)} bytes are too few for a LUKS2 header", offset=offset, rule="L20"
        ) from error
    if fields.magic != magic or fields.version != VERSION:
        raise LuksHeaderError("the header copy is not LUKS2", offset=offset, rule="L20")
    if fields.metadata_size not in METADATA_SIZES or offset not in {0, fields.metadata_size}:
        raise LuksHeaderError(
            f"a header copy cannot have {fields.metadata_size} bytes", offset=offset, rule="L20"
        )
    if fields.offset != offset:
        raise LuksHeaderError(
            f"the header copy belongs to byte {fields.offset}", offset=offset, rule="L20"
        )
    return BinaryHeader(
        magic=fields.magic,
        metadata_size=fields.metadata_size,
        seqid=fields.seqid,
        label=fields.label,
        checksum_hash=fields.checksum_hash.partition(b"\0")[0].decode("ascii", "replace"),
        salt=fields.salt,
        uuid=fields.uuid,
        subsystem=fields.subsystem,
        offset=fields.offset,
    )


def check_checksum(binary: BinaryHeader, copy: bytes) -> None:
    """Check the checksum of a whole copy.

    Raises:
        LuksHeaderError: It is wrong.
        UnsupportedError: Its hash is not available.
    """
    expected = _checksum(binary.checksum_hash, copy)
    stored = copy[_CHECKSUM_OFFSET:][:_CHECKSUM_SIZE]
    if stored[: len(expected)] != expected:
        raise LuksHeaderError("the header checksum is wrong", offset=binary.offset, rule="L21")


def metadata_size_field(block: bytes) -> int:
    """Return the size field of a binary header, without checking anything else."""
    return int.from_bytes(block[8:16], "big")


def is_whole(copy: bytes) -> bool:
    """Say whether the checksum of a copy is right, regardless of magic and version."""
    fields = _fields(copy[:BINARY_SIZE])
    name = fields.checksum_hash.partition(b"\0")[0].decode("ascii", "replace")
    try:
        expected = _checksum(name, copy)
    except UnsupportedError:
        return False
    return copy[_CHECKSUM_OFFSET:].startswith(expected)


def encode_copy(binary: BinaryHeader, json_area: bytes) -> bytes:
    """Encode a whole copy, checksum included.

    Args:
        binary: Its fields.
        json_area: The JSON area with all its padding.

    Raises:
        ValueError: A field does not fit.
    """
    fields = _Fields(
        magic=binary.magic,
        version=VERSION,
        metadata_size=binary.metadata_size,
        seqid=binary.seqid,
        label=_exactly(binary.label, LABEL_SIZE),
        checksum_hash=_exactly(binary.checksum_hash.encode("ascii").ljust(32, b"\0"), 32),
        salt=_exactly(binary.salt, SALT_SIZE),
        uuid=_exactly(binary.uuid, UUID_SIZE),
        subsystem=_exactly(binary.subsystem, LABEL_SIZE),
        offset=binary.offset,
        checksum=b"",
    )
    try:
        block = _LAYOUT.pack(*fields)
    except struct.error as error:
        raise ValueError(f"a LUKS2 header cannot hold these fields: {error}") from error
    copy = bytearray(block + json_area)
    checksum = _checksum(binary.checksum_hash, bytes(copy))
    copy[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + len(checksum)] = checksum
    return bytes(copy)


def with_padding(copy: bytes, padding: bytes) -> bytes:
    """Return a copy with other bytes at the start of its padding, and the checksum to match.

    Args:
        copy: A whole copy, whose checksum has the hash `CHECKSUM_HASH`.
        padding: The bytes, which mean nothing to programs that read LUKS2 (L21).
    """
    changed = bytearray(copy)
    changed[_PADDING_OFFSET : _PADDING_OFFSET + len(padding)] = padding
    checksum = _checksum(CHECKSUM_HASH, bytes(changed))
    changed[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + len(checksum)] = checksum
    return bytes(changed)


def _checksum(hash_name: str, copy: bytes) -> bytes:
    """Hash a copy as if its checksum field were zero."""
    hash_ = lookup(hash_name).new(copy[:_CHECKSUM_OFFSET])
    hash_.update(bytes(_CHECKSUM_SIZE))
    hash_.update(memoryview(copy)[_PADDING_OFFSET:])
    return hash_.digest()


def _fields(block: bytes) -> _Fields:
    return _Fields._make(_LAYOUT.unpack(block))


def _exactly(field: bytes, size: int) -> bytes:
    """Return a field of exactly ``size`` bytes, which `struct` would otherwise cut or pad."""
    if len(field) != size:
        raise ValueError(f"a field of {size} bytes of a LUKS2 header cannot hold {len(field)}")
    return field
