"""The container's model: the content of the heads of its items, and their sizes.

Rules C1 to C16 of `spec/container.md`; syntax in `spec/container.asn1`.
`formats.container.encoder` and `formats.container.decoder` turn the model into
bytes and back. No I/O and no authentication happens in any of them.

A record's `Meta` has two parts, and so has the model: `Identity` stays as long
as the record has its place and name, `Version` is what each commit writes.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from formats.errors import ArgumentError

#: Bytes of an item that are written at once: its framing and all changing fields.
HEAD_SIZE = 512
DEFAULT_BLOCK_SIZE = 4096
BLOCK_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
MAX_NAME_SIZE = 200
MAX_TYPE_SIZE = 32
#: Largest container and largest blob, in bytes: both copies must fit (C2).
MAX_SIZE = (1 << 63) - 1
MAX_SECTION_SIZE = (1 << 61) - 1
MAX_GENERATION = (1 << 64) - 1
DIGEST_SIZE = 32
ID_SIZE = 16
KEY_SIZE = 32

CONTAINER_TAG = 0x73
HEADER_TAG, RECORD_TAG, FREE_TAG = 0xA0, 0xA1, 0xA2

#: A bit of `ContainerHeader.incompatible`: key and flag are being changed in place (O203).
CHANGING_PROTECTION = 1

IDENTIFIER = "blobstore"
FORMAT_VERSION = 1

COUNTER_FRAMING, DIGEST_FRAMING = b"\x04\x08", b"\x04\x20"
# What changes in place always has the same bytes around it (C5), so it is
# packed and unpacked as a whole: state to crc32; mac, root, prev and check; the
# fields of a free item.
VERSION_STRUCT = struct.Struct(">2sB2sQ2sI2sQ2sI")
VERSION_FRAMINGS = (b"\x0a\x01", COUNTER_FRAMING, b"\x04\x04", COUNTER_FRAMING, b"\x04\x04")
DIGESTS_STRUCT = struct.Struct(">2s32s2s32s2s32s2s32s")
FREE_STRUCT = struct.Struct(">2sQ2s32s2s32s")

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


class Kind(enum.IntEnum):
    """How a section is written: as a whole, or like a disk (C62)."""

    BLOB = 0
    WINDOW = 1


class State(enum.IntEnum):
    """The state of a record (C11, C42)."""

    VOID = 0
    UNWRITTEN = 1
    LIVE = 2
    TOMBSTONE = 3
    IN_PLACE = 4


class Authentication(enum.IntEnum):
    """The algorithm of checks and macs (C20)."""

    SHA256 = 0
    HMAC_SHA256 = 1


@dataclass(frozen=True, slots=True)
class ContainerHeader:
    """One copy of the container's header. All sizes in bytes."""

    copy: int
    block_size: int
    store_id: bytes
    encrypted: bool
    authentication: Authentication
    key: bytes = field(repr=False)
    sequence: int
    total: int
    durable_generation: int
    root: bytes
    incompatible: int = 0
    read_only_compatible: int = 0
    compatible: int = 0


class Identity(NamedTuple):
    """The part of a record that stays as long as it has its place and name."""

    section_id: bytes
    copy: int
    copies: int
    kind: Kind
    max_size: int
    type: str
    name: str


class Version(NamedTuple):
    """The part of a record that a commit writes. ``size`` in bytes."""

    state: State
    generation: int
    members: int
    size: int
    crc32: int
    mac: bytes
    root: bytes
    prev: bytes


#: The copy of a section to which nothing was ever written (C52).
NEVER_WRITTEN = Version(State.VOID, 0, 0, 0, 0, bytes(32), bytes(32), bytes(32))


class Free(NamedTuple):
    """A head of a free item; ``length`` is that of the whole item, in bytes."""

    generation: int
    root: bytes
    length: int


def record_length(max_size: int, block_size: int) -> int:
    """Return the bytes that a record of ``max_size`` bytes of blob takes (C8)."""
    return -(-(HEAD_SIZE + max_size) // block_size) * block_size


def validate_label(text: str, what: str, *, lowest: int, highest: int) -> None:
    """Check a name or type by C9.

    Raises:
        ArgumentError: It does not have ``lowest`` to ``highest`` bytes of UTF-8, or
            contains a control character.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ArgumentError(f"a {what} must be valid Unicode text") from None
    if not lowest <= size <= highest:
        raise ArgumentError(f"a {what} must have {lowest} to {highest} bytes of UTF-8, not {size}")
    if _CONTROLS.search(text):
        raise ArgumentError(f"a {what} must not contain control characters: {text!r}")
