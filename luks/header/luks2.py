"""LUKS2 headers: the bytes of one copy to model and back.

A copy is a binary header and a JSON area. The two copies of a header differ only
in magic, offset, salt and checksum.

Source: LUKS2 On-Disk Format Specification 1.1, section 2.
"""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from formats.frozen import replace
from luks.header import luks2_objects
from luks.header.luks2_binary import (
    BINARY_SIZE,
    CHECKSUM_HASH,
    LABEL_SIZE,
    PRIMARY_MAGIC,
    SALT_SIZE,
    SECONDARY_MAGIC,
    UUID_SIZE,
    VERSION,
    BinaryHeader,
    check_checksum,
    decode_binary,
    encode_copy,
)
from luks.header.luks2_json import Node, format_area, parse_area
from luks.header.text import decode_field, encode_field
from luks.header.validate import validate_luks2
from luks.model import Header

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luks.secret.randomness import RandomSource

#: Names of the copies: the primary one, and the one after it.
PRIMARY, SECONDARY = 0, 1

_MAGICS: Final = (PRIMARY_MAGIC, SECONDARY_MAGIC)


class _Source(NamedTuple):
    """The data that `decode_copy` keeps in `Header.source` for `encode`."""

    root: Mapping[str, Any]
    label: bytes | None = None
    subsystem: bytes | None = None
    uuid: bytes | None = None


_NEW: Final = _Source(MappingProxyType({}))


def new_source(uuid: bytes) -> object:
    """Return the `Header.source` of a new header that keeps the bytes of a UUID as they are."""
    return _NEW._replace(uuid=uuid)


def uuid_field(header: Header) -> bytes | None:
    """Return the bytes of the UUID that `decode_copy` has read, or None if it read none."""
    return header.source.uuid if isinstance(header.source, _Source) else None


def metadata_size_of(block: bytes, which: int, offset: int) -> int:
    """Return the size in bytes of the copy that begins with ``block``.

    Args:
        block: Its first `BINARY_SIZE` bytes.
        which: `PRIMARY` or `SECONDARY`.
        offset: Where it was found.

    Raises:
        LuksHeaderError: It is not the beginning of a copy.
    """
    return decode_binary(block, magic=_MAGICS[which], offset=offset).metadata_size


def decode_copy(copy: bytes, which: int, offset: int) -> Header:
    """Decode and validate one whole copy.

    Args:
        copy: As many bytes as `metadata_size_of` returned.
        which: `PRIMARY` or `SECONDARY`.
        offset: Where it was found.

    Raises:
        LuksHeaderError: It is damaged or breaks a rule of the format.
        UnsupportedError: The hash of its checksum is not available.
    """
    binary = decode_binary(copy[:BINARY_SIZE], magic=_MAGICS[which], offset=offset)
    check_checksum(binary, copy)
    root = parse_area(copy[BINARY_SIZE:])
    metadata = luks2_objects.decode(root)
    header = Header(
        version=VERSION,
        uuid=decode_field(binary.uuid),
        keyslots=MappingProxyType(metadata.keyslots),
        digests=MappingProxyType(metadata.digests),
        segments=MappingProxyType(metadata.segments),
        tokens=MappingProxyType(metadata.tokens),
        label=decode_field(binary.label),
        subsystem=decode_field(binary.subsystem),
        seqid=binary.seqid,
        flags=metadata.flags,
        requirements=metadata.requirements,
        metadata_size=binary.metadata_size,
        keyslots_offset=2 * binary.metadata_size,
        keyslots_size=metadata.keyslots_size,
        source=_Source(root, binary.label, binary.subsystem, binary.uuid),
    )
    validate_luks2(header, json_size=metadata.json_size)
    return header


def with_keyslot(header: Header, number: int, body: dict[str, Any]) -> Header:
    """Return a header with one more keyslot, which is given as its JSON object.

    For keyslots that hold no key: the model does not say everything about them, and
    `encode` can only keep them.

    Args:
        header: The header; not modified.
        number: A keyslot that is not active.
        body: The object, which is not to be modified any more.

    Raises:
        LuksHeaderError: A member is missing or impossible.
    """
    source = header.source if isinstance(header.source, _Source) else _NEW
    keyslots = {**source.root.get("keyslots", {}), str(number): body}
    keyslot = luks2_objects.decode_keyslot(Node(body, f"keyslot {number}"))
    return replace(
        header,
        keyslots=MappingProxyType({**header.keyslots, number: keyslot}),
        source=source._replace(root={**source.root, "keyslots": keyslots}),
    )


def encode(header: Header, random: RandomSource | None = None) -> tuple[bytes, bytes]:
    """Encode both copies, each with a fresh salt.

    Args:
        header: The header to encode.
        random: Source of the salts.

    Raises:
        LuksHeaderError: The metadata do not fit into the JSON area.
        ValueError: A field does not fit, or an object of an unknown type was
            changed.
    """
    old = header.source if isinstance(header.source, _Source) else _NEW
    json_size = header.metadata_size - BINARY_SIZE
    area = format_area(luks2_objects.encode(header, old.root, json_size), json_size)
    primary, secondary = (
        encode_copy(
            BinaryHeader(
                magic=magic,
                metadata_size=header.metadata_size,
                seqid=header.seqid,
                label=encode_field(header.label, LABEL_SIZE, unchanged=old.label),
                checksum_hash=CHECKSUM_HASH,
                salt=(random or os.urandom)(SALT_SIZE),
                uuid=encode_field(header.uuid, UUID_SIZE, unchanged=old.uuid),
                subsystem=encode_field(header.subsystem, LABEL_SIZE, unchanged=old.subsystem),
                offset=offset,
            ),
            area,
        )
        for magic, offset in zip(_MAGICS, (0, header.metadata_size), strict=True)
    )
    return primary, secondary
