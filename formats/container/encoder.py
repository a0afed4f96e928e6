"""Encoder of the container: heads of items as bytes.

Every head has a check of zeros; the holder of the key fills in the real one
(`formats.container.decoder.locate_check`, C21).
"""

from __future__ import annotations

from typing import NamedTuple

from formats.container import der
from formats.container.model import (
    CONTAINER_TAG,
    COUNTER_FRAMING,
    DIGEST_FRAMING,
    DIGEST_SIZE,
    DIGESTS_STRUCT,
    FORMAT_VERSION,
    FREE_STRUCT,
    FREE_TAG,
    HEAD_SIZE,
    HEADER_TAG,
    IDENTIFIER,
    MAX_NAME_SIZE,
    MAX_SECTION_SIZE,
    MAX_TYPE_SIZE,
    RECORD_TAG,
    VERSION_FRAMINGS,
    VERSION_STRUCT,
    ContainerHeader,
    Free,
    Identity,
    Version,
    record_length,
    validate_label,
)


class RecordFrame(NamedTuple):
    """The constant pieces of one record's head.

    What a commit changes always takes the same bytes between them (C5), so a
    new head is packed, not encoded.

    Attributes:
        before: The head up to the record's version.
        after: The head after its check.
        meta_start: Where Meta starts in the head.
    """

    before: bytes
    after: bytes
    meta_start: int

    @property
    def check_start(self) -> int:
        """Where the check is in the head."""
        return HEAD_SIZE - len(self.after) - DIGEST_SIZE

    def mac_input(self, version: Version) -> bytes:
        """Return the part of the head that the mac covers (C22); it has no digests."""
        return self.before[self.meta_start :] + _pack_version(version)

    def head(self, version: Version) -> bytes:
        """Return the head with a check of zeros."""
        digests = DIGESTS_STRUCT.pack(
            DIGEST_FRAMING,
            version.mac,
            DIGEST_FRAMING,
            version.root,
            DIGEST_FRAMING,
            version.prev,
            DIGEST_FRAMING,
            b"",
        )
        return b"".join((self.before, _pack_version(version), digests, self.after))


def record_frame(identity: Identity, block_size: int) -> RecordFrame:
    """Return the constant pieces of the head of a record.

    Raises:
        ValueError: The identity breaks C8 or C9.
    """
    validate_label(identity.name, "name", lowest=1, highest=MAX_NAME_SIZE)
    validate_label(identity.type, "type", lowest=0, highest=MAX_TYPE_SIZE)
    if not 0 <= identity.max_size <= MAX_SECTION_SIZE:
        raise ValueError(f"a section cannot have {identity.max_size} bytes")
    length = record_length(identity.max_size, block_size)
    fixed = b"".join(
        (
            der.encode(der.OCTET_STRING, identity.section_id),
            der.encode_integer(identity.copy),
            der.encode_integer(identity.copies),
            der.encode(der.ENUMERATED, bytes((identity.kind,))),
            der.encode_integer(identity.max_size),
            der.encode(der.UTF8_STRING, identity.type.encode()),
            der.encode(der.UTF8_STRING, identity.name.encode()),
        )
    )
    changing = VERSION_STRUCT.size + DIGESTS_STRUCT.size
    item = der.framing_of_total(RECORD_TAG, length)
    before = item + der.framing(der.SEQUENCE, len(fixed) + changing) + fixed
    blob = der.framing(der.OCTET_STRING, length - HEAD_SIZE)
    padding = _padding(HEAD_SIZE - len(before) - changing - len(blob))
    return RecordFrame(before, padding + blob, len(item))


def encode_free(free: Free) -> bytes:
    """Return the head of a free item with a check of zeros."""
    item = der.framing_of_total(FREE_TAG, free.length)
    fields = FREE_STRUCT.pack(
        COUNTER_FRAMING, free.generation, DIGEST_FRAMING, free.root, DIGEST_FRAMING, b""
    )
    used = len(item) + len(fields)
    filler = der.framing_of_total(der.OCTET_STRING, free.length - used)
    return (item + fields + filler).ljust(HEAD_SIZE, b"\0")


def encode_header(header: ContainerHeader) -> bytes:
    """Return the head of a header copy with a check of zeros.

    That of copy 0 starts with the tag and length of the whole container.
    """
    outer = b"" if header.copy else der.framing_of_total(CONTAINER_TAG, header.total)
    item = der.framing_of_total(HEADER_TAG, header.block_size - len(outer))
    fields = b"".join(
        (
            der.encode(der.UTF8_STRING, IDENTIFIER.encode()),
            der.encode_integer(FORMAT_VERSION),
            der.encode_integer(header.copy),
            der.encode_integer(header.block_size),
            der.encode(der.OCTET_STRING, header.store_id),
            der.encode(der.BOOLEAN, b"\xff" if header.encrypted else b"\x00"),
            der.encode(der.ENUMERATED, bytes((header.authentication,))),
            der.encode(der.OCTET_STRING, header.key),
            *(
                COUNTER_FRAMING + number.to_bytes(8, "big")
                for number in (
                    header.incompatible,
                    header.read_only_compatible,
                    header.compatible,
                    header.sequence,
                    header.total,
                    header.durable_generation,
                )
            ),
            DIGEST_FRAMING + header.root,
            DIGEST_FRAMING + bytes(DIGEST_SIZE),
        )
    )
    used = len(outer) + len(item) + len(fields)
    padding = der.framing_of_total(der.OCTET_STRING, header.block_size - used)
    return (outer + item + fields + padding).ljust(HEAD_SIZE, b"\0")


def _pack_version(version: Version) -> bytes:
    state, generation, members, size, crc32 = VERSION_FRAMINGS
    return VERSION_STRUCT.pack(
        state,
        version.state,
        generation,
        version.generation,
        members,
        version.members,
        size,
        version.size,
        crc32,
        version.crc32,
    )


def _padding(room: int) -> bytes:
    """Return align (where C7 wants it) and padding that take ``room`` bytes."""
    align = b"\x05\x00" if room in (130, 259) else b""
    head = der.framing_of_total(der.OCTET_STRING, room - len(align))
    return align + head + bytes(room - len(align) - len(head))
