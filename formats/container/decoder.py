"""Decoder of the container: heads of items from bytes.

A reader locates the check of a head (`locate_check`), verifies it, and only
then decodes the head: a damaged head is never mistaken for an unknown feature.
"""

from __future__ import annotations

from typing import NamedTuple

from formats.container import der
from formats.container.encoder import RecordFrame
from formats.container.model import (
    BLOCK_SIZES,
    CHANGING_PROTECTION,
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
    ID_SIZE,
    IDENTIFIER,
    KEY_SIZE,
    MAX_NAME_SIZE,
    MAX_SECTION_SIZE,
    MAX_SIZE,
    MAX_TYPE_SIZE,
    RECORD_TAG,
    VERSION_FRAMINGS,
    VERSION_STRUCT,
    Authentication,
    ContainerHeader,
    Free,
    Identity,
    Kind,
    State,
    Version,
    record_length,
    validate_label,
)
from formats.errors import FormatError, UnsupportedError

_KNOWN_FEATURES = 0
_KINDS = {int(kind): kind for kind in Kind}
_STATES = {int(state): state for state in State}
_AUTHENTICATIONS = {int(algorithm): algorithm for algorithm in Authentication}


class Record(NamedTuple):
    """A head of a record.

    Attributes:
        identity: The constant part: which section it belongs to, and where.
        version: The part that the last commit wrote.
        length: Bytes of the whole item.
        frame: The constant bytes around the heads that later commits write.
    """

    identity: Identity
    version: Version
    length: int
    frame: RecordFrame


Item = Record | Free


def locate_check(head: bytes) -> int:
    """Return where in the head of a record or free item its check starts.

    The 32 bytes there are not read. Only the framing is examined.

    Args:
        head: The first 512 bytes of the item.

    Raises:
        FormatError: The framing is not that of a record or free item.
    """
    tag, start, _ = der.read_framing(head, 0)
    if tag == FREE_TAG:
        end = start + FREE_STRUCT.size
    elif tag == RECORD_TAG:
        tag, start, size = der.read_framing(head, start)
        end = start + size
        if (
            tag != der.SEQUENCE
            or size < VERSION_STRUCT.size + DIGESTS_STRUCT.size
            or end > HEAD_SIZE
        ):
            raise FormatError("Meta does not fit into the head", offset=start, rule="C5")
    else:
        raise FormatError(f"tag {tag:02x} is neither a record nor free", offset=0, rule="C3")
    return end - DIGEST_SIZE


def decode_item(head: bytes, block_size: int) -> Item:
    """Decode the head of a record or free item.

    Args:
        head: The first 512 bytes of the item, their check verified.
        block_size: B of the container, in bytes.

    Raises:
        FormatError: The head breaks a rule of layout.
        UnsupportedError: Its kind or state is unknown (C15).
    """
    tag, start, size = der.read_framing(head, 0)
    length = start + size
    if length % block_size:
        raise FormatError(f"an item of {length} bytes is not a whole number of blocks", rule="C4")
    if tag == FREE_TAG:
        return _decode_free(head, start, length)
    record = der.Reader(head, start)
    meta = record.enter(der.SEQUENCE)
    identity = _decode_identity(meta)
    frame = RecordFrame(head[: meta.position], head[meta.end :], start)
    version = _decode_version(head, meta)
    if record_length(identity.max_size, block_size) != length:
        raise FormatError(
            f"a record of {length} bytes is not the size of its section", offset=0, rule="C8"
        )
    _check_frame(record, length)
    if version.size > identity.max_size:
        raise FormatError("a blob is larger than its section", rule="C8")
    if version.state is State.IN_PLACE and identity.kind is not Kind.WINDOW:
        raise FormatError(
            "a section that is not a window is marked as written in place", rule="C11"
        )
    return Record(identity, version, length, frame)


class DecodedHeader(NamedTuple):
    """A header copy whose check is still to be verified."""

    header: ContainerHeader
    check_start: int
    outer_total: int | None


def decode_header(head: bytes, copy: int) -> DecodedHeader:
    """Decode a header copy; its check must then be verified with its own key.

    Args:
        head: The first 512 bytes of the container, or of its second block.
        copy: Which copy is expected there.

    Returns:
        The header, where its check starts, and the container's length by the
        outer framing, in bytes (None in copy 1).

    Raises:
        FormatError: It is not a header.
        UnsupportedError: It is a header of an unknown version or with unknown features.
    """
    position, outer_total = 0, None
    if copy == 0:
        tag, position, size = der.read_framing(head, 0)
        if tag != CONTAINER_TAG:
            raise FormatError(f"tag {tag:02x} is not the container's", offset=0, rule="C1")
        outer_total = position + size
    tag, start, size = der.read_framing(head, position)
    if tag != HEADER_TAG:
        raise FormatError(f"tag {tag:02x} is not a header's", offset=position, rule="C3")
    reader = der.Reader(head, start)
    if reader.utf8() != IDENTIFIER:
        raise FormatError("the identifier is not the container's", offset=start, rule="C1")
    version = reader.integer(0, MAX_SIZE)
    if version != FORMAT_VERSION:
        raise UnsupportedError(
            f"the container has version {version}; only version {FORMAT_VERSION} can be read",
            feature=f"version {version}",
        )
    header = _decode_header_fields(reader)
    reader.position += 2 + DIGEST_SIZE
    _check_header_frame(header, copy, start + size, reader, outer_total)
    return DecodedHeader(header, reader.position - DIGEST_SIZE, outer_total)


def require_supported(header: ContainerHeader) -> bool:
    """Check the feature masks of a verified header by C15.

    Returns:
        Whether the container may be written.

    Raises:
        UnsupportedError: Reading it needs features that are unknown here.
    """
    if header.incompatible == CHANGING_PROTECTION:
        raise UnsupportedError(
            "the key and the encrypted flag of the store are being changed, which was cut short"
            " [O203]",
            feature="a store whose protection is being changed",
            hint="resume it: blobstore reencrypt --resume finishes this, too",
        )
    unknown = header.incompatible & ~_KNOWN_FEATURES
    if unknown:
        raise UnsupportedError(
            f"reading the container needs the unknown features {unknown:#x}",
            feature=f"incompatible features {unknown:#x}",
        )
    return not header.read_only_compatible & ~_KNOWN_FEATURES


def _decode_header_fields(reader: der.Reader) -> ContainerHeader:
    copy = reader.integer(0, 1)
    block_size = reader.integer(BLOCK_SIZES[0], BLOCK_SIZES[-1])
    store_id = reader.octets(ID_SIZE)
    encrypted = reader.boolean()
    algorithm = reader.integer(0, 127, tag=der.ENUMERATED)
    authentication = _AUTHENTICATIONS.get(algorithm)
    if authentication is None:
        raise UnsupportedError(
            f"the container is authenticated by algorithm {algorithm}",
            feature=f"authentication {algorithm}",
        )
    key = reader.octets(KEY_SIZE if authentication is Authentication.HMAC_SHA256 else 0)
    incompatible, read_only_compatible, compatible, sequence, total, durable = (
        int.from_bytes(reader.octets(8), "big") for _ in range(6)
    )
    return ContainerHeader(
        copy=copy,
        block_size=block_size,
        store_id=store_id,
        encrypted=encrypted,
        authentication=authentication,
        key=key,
        sequence=sequence,
        total=total,
        durable_generation=durable,
        root=reader.octets(DIGEST_SIZE),
        incompatible=incompatible,
        read_only_compatible=read_only_compatible,
        compatible=compatible,
    )


def _check_header_frame(
    header: ContainerHeader, copy: int, end: int, reader: der.Reader, outer_total: int | None
) -> None:
    size = header.block_size
    if header.copy != copy:
        raise FormatError(f"header copy {header.copy} is in the place of copy {copy}", rule="C3")
    if size not in BLOCK_SIZES or end != size:
        raise FormatError(f"a header does not fill a block of {size} bytes", rule="C3")
    if header.total % size or not 2 * size <= header.total <= MAX_SIZE:
        raise FormatError(f"a container cannot have {header.total} bytes", rule="C2")
    if outer_total is not None and outer_total != header.total:
        raise FormatError("the outer length and the total differ", rule="C21")
    tag, start, length = der.read_framing(reader.data, reader.position)
    if tag != der.OCTET_STRING or start + length != end:
        raise FormatError("the padding does not fill the header", offset=start, rule="C3")


def _decode_identity(meta: der.Reader) -> Identity:
    section_id = meta.octets(ID_SIZE)
    copy = meta.integer(0, 1)
    copies = meta.integer(copy + 1, 2)
    kind_number = meta.integer(0, 127, tag=der.ENUMERATED)
    max_size = meta.integer(0, MAX_SECTION_SIZE)
    type_, name = meta.utf8(), meta.utf8()
    try:
        validate_label(name, "name", lowest=1, highest=MAX_NAME_SIZE)
        validate_label(type_, "type", lowest=0, highest=MAX_TYPE_SIZE)
    except ValueError as error:
        raise FormatError(str(error), offset=meta.position, rule="C9") from None
    kind = _KINDS.get(kind_number)
    if kind is None:
        raise UnsupportedError(
            f"section {name!r} is of kind {kind_number}", feature=f"kind {kind_number}"
        )
    return Identity(section_id, copy, copies, kind, max_size, type_, name)


def _decode_version(head: bytes, meta: der.Reader) -> Version:
    if meta.end - meta.position != VERSION_STRUCT.size + DIGESTS_STRUCT.size:
        raise FormatError("the changing part of Meta has a wrong size", rule="C5")
    fields = VERSION_STRUCT.unpack_from(head, meta.position)
    digests = DIGESTS_STRUCT.unpack_from(head, meta.position + VERSION_STRUCT.size)
    if fields[::2] != VERSION_FRAMINGS or set(digests[::2]) != {DIGEST_FRAMING}:
        raise FormatError("the changing part of Meta has wrong fields", rule="C5")
    number, generation, members, size, crc32 = fields[1::2]
    state = _STATES.get(number)
    if state is None:
        if number > 127:
            raise FormatError("a state is negative", rule="C1")
        raise UnsupportedError(f"a record has state {number}", feature=f"state {number}")
    if state in (State.UNWRITTEN, State.TOMBSTONE) and (size or crc32):
        raise FormatError("a record without a blob has a size", rule="C11")
    if state is not State.VOID and not generation:
        raise FormatError("a record has generation 0 and is not void", rule="C11")
    mac, root, prev = digests[1:7:2]
    return Version(state, generation, members, size, crc32, mac, root, prev)


def _check_frame(record: der.Reader, length: int) -> None:
    """Check align, padding and blob of a record (C6, C7)."""
    before = record.position
    if record.next_tag() == der.NULL:
        record.enter(der.NULL).finish()
    record.content(der.OCTET_STRING)
    start = record.position
    tag, position, size = der.read_framing(record.data, start)
    if tag != der.OCTET_STRING or position != HEAD_SIZE or position + size != length:
        raise FormatError("the blob does not fill its record", offset=start, rule="C6")
    aligned = record.data[before] == der.NULL
    if aligned != (start - before in (130, 259)):
        raise FormatError(
            "align is present where it must be absent, or absent where it is required", rule="C7"
        )


def _decode_free(head: bytes, start: int, length: int) -> Free:
    tag1, generation, tag2, root, tag3, _ = FREE_STRUCT.unpack_from(head, start)
    if (tag1, tag2, tag3) != (COUNTER_FRAMING, DIGEST_FRAMING, DIGEST_FRAMING):
        raise FormatError("a free item has wrong fields", offset=start, rule="C1")
    tag, position, size = der.read_framing(head, start + FREE_STRUCT.size)
    if tag != der.OCTET_STRING or position + size != length:
        raise FormatError("the filler does not fill the free item", offset=position, rule="C14")
    return Free(generation, root, length)
