"""Disks of the model as images of the product, and what the product makes of them.

A block has 1,024 bytes, so that a head and a rest have 512 each.
"""

from __future__ import annotations

import hashlib
import zlib
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from blobstore.container.authentication import Authenticator
from blobstore.container.open_container import open_container
from blobstore.errors import CorruptBlobError
from formats.container import model as formats
from formats.container.decoder import Record as DecodedRecord
from formats.container.decoder import decode_header, decode_item, locate_check
from formats.container.encoder import encode_free, encode_header, record_frame
from formats.container.model import HEAD_SIZE
from formats.devices.device import MemoryDevice
from tests.model.directory import Special
from tests.model.disk import (
    Block,
    Body,
    Damaged,
    Free,
    Header,
    Member,
    Mendable,
    Record,
    Root,
    State,
)

if TYPE_CHECKING:
    from blobstore.container.open_container import OpenContainer
    from formats.devices.device import ReadableBuffer
    from tests.model.directory import View
    from tests.model.disk import Atom, Content, Disk, SectionId

BLOCK_SIZE = 2 * HEAD_SIZE
KEY = bytes(range(32))
STORE_ID = bytes(range(16))
NO_DIGEST = bytes(32)

_AUTHENTICATOR = Authenticator(formats.Authentication.HMAC_SHA256, KEY, STORE_ID)
_STATES = {state: formats.State[state.name] for state in State}

#: Names, what a record of each takes in bytes, and its blob, or that it is unwritten or corrupt.
Contents: TypeAlias = dict[str, tuple[int, bytes | Special]]
_CORRUPT: tuple[int, bytes | Special] = (0, Special.CORRUPT)


class RecordingDevice(MemoryDevice):
    """Memory that notes which blocks are written between one flush and the next, and what is."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content, block_size=BLOCK_SIZE)
        self.epochs: list[dict[int, bytes]] = []
        self._unflushed: set[int] = set()

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        super().write(offset, data)
        last = offset + len(data) - 1
        self._unflushed.update(range(offset // BLOCK_SIZE, last // BLOCK_SIZE + 1))

    def flush(self) -> None:
        super().flush()
        self.epochs.append({position: self._block(position) for position in self._unflushed})
        self._unflushed = set()

    def _block(self, position: int) -> bytes:
        return bytes(self.content[position * BLOCK_SIZE :][:BLOCK_SIZE])


def image(disk: Disk) -> bytes:
    """Return a disk of the model as bytes."""
    return b"".join(block_bytes(position, block) for position, block in enumerate(disk))


def contents(view: View) -> Contents:
    """Return what the model sees in terms of the product."""
    return {
        name: (
            seen.blocks * BLOCK_SIZE,
            seen.value if isinstance(seen.value, Special) else blob_bytes(seen.value),
        )
        for name, seen in view
    }


def opened(disk: Disk) -> tuple[RecordingDevice, OpenContainer]:
    """Open an image of a disk with the product.

    Raises:
        StorageError: The product refuses it.
    """
    device = RecordingDevice(image(disk))
    return device, open_container(device)


def contents_of(container: OpenContainer) -> Contents:
    """Return what the product sees."""
    found: Contents = {}
    for name, section in container.directory.sections.items():
        newest = section.newest
        if section.damage:
            found[name] = _CORRUPT
        elif newest.version.state is formats.State.UNWRITTEN:
            found[name] = newest.length, Special.UNWRITTEN
        else:
            try:
                found[name] = newest.length, container.blobs.read(newest)
            except CorruptBlobError:
                found[name] = _CORRUPT
    return found


def meaning(position: int, block: Block, found: bytes) -> tuple[object, object]:
    """Return what a block is to say, and what it says, without what has no meaning.

    That is everything except the head of an item without a blob, and of a void record most fields.
    """
    wanted = block_bytes(position, block)
    head = block.head
    if isinstance(head, Body) or (isinstance(head, Record) and head.state is State.LIVE):
        return wanted, found
    wanted, found = wanted[:HEAD_SIZE], found[:HEAD_SIZE]
    if not isinstance(head, Record) or head.state is not State.VOID:
        return wanted, found
    return _void_meaning(position, wanted), _void_meaning(position, found)


def _void_meaning(position: int, head: bytes) -> tuple[object, ...]:
    record = decode_item(head, BLOCK_SIZE)
    assert isinstance(record, DecodedRecord)
    version = record.version
    sound = _AUTHENTICATOR.is_sound(position * BLOCK_SIZE, head, locate_check(head))
    prev = version.prev if version.generation else None
    return sound, record.identity, version.state, version.generation, prev


# --------------------------------------------------------------------- bytes


@cache
def _body(atom: Atom) -> bytes:
    if not isinstance(atom, Body):
        return bytes(HEAD_SIZE)
    return hashlib.shake_256(repr((atom.piece, atom.half)).encode()).digest(HEAD_SIZE)


def section_id(identifier: SectionId) -> bytes:
    """Return a section id as the product has it."""
    return hashlib.sha256(repr(identifier).encode()).digest()[:16]


@cache
def blob_bytes(content: Content) -> bytes:
    """Return a blob; of its first block it has only the rest."""
    halves = [Body(piece, half) for piece in content for half in (0, 1)]
    return b"".join(map(_body, halves[1:]))


@cache
def block_bytes(position: int, block: Block) -> bytes:
    """Return a block as bytes, the check of its head included."""
    return _head(position, block.head) + _body(block.rest)


@cache
def _head(position: int, atom: Atom) -> bytes:
    offset = position * BLOCK_SIZE
    if isinstance(atom, Header):
        header = formats.ContainerHeader(
            copy=position,
            block_size=BLOCK_SIZE,
            store_id=STORE_ID,
            encrypted=True,
            authentication=formats.Authentication.HMAC_SHA256,
            key=KEY,
            sequence=atom.sequence,
            total=atom.total * BLOCK_SIZE,
            durable_generation=atom.durable,
            root=_root(atom.root),
        )
        head = encode_header(header)
        return _AUTHENTICATOR.with_check(offset, head, decode_header(head, position).check_start)
    if isinstance(atom, Free):
        free = formats.Free(atom.generation, _root(atom.root), atom.blocks * BLOCK_SIZE)
        return _AUTHENTICATOR.free_head(offset, free)
    if isinstance(atom, Record):
        frame = record_frame(_identity(atom.member), BLOCK_SIZE)
        version = _version(atom.member, _root(atom.root), _root(atom.prev))
        return _AUTHENTICATOR.record_head(offset, frame, version)
    if isinstance(atom, Mendable):
        return _with_a_bit_flipped(_head(position, atom.original), position)
    if isinstance(atom, Damaged):  # its check is that of nothing
        return encode_free(formats.Free(0, NO_DIGEST, atom.blocks * BLOCK_SIZE))
    return _body(atom)


def _with_a_bit_flipped(head: bytes, seed: int) -> bytes:
    """Return a head with one bit flipped, now here, now there, in all that its check covers."""
    digest = hashlib.sha256(head + bytes([seed])).digest()
    bit = int.from_bytes(digest[:2], "big") % (8 * HEAD_SIZE)
    return (int.from_bytes(head, "big") ^ 1 << bit).to_bytes(HEAD_SIZE, "big")


def _identity(member: Member) -> formats.Identity:
    return formats.Identity(
        section_id=section_id(member.section),
        copy=member.copy,
        copies=member.copies,
        kind=formats.Kind.BLOB,
        max_size=member.blocks * BLOCK_SIZE - HEAD_SIZE,
        type="",
        name=member.name,
    )


def _version(member: Member, root: bytes, prev: bytes) -> formats.Version:
    blob = blob_bytes(member.content) if member.content else b""
    return formats.Version(
        state=_STATES[member.state],
        generation=member.generation,
        members=member.members,
        size=len(blob),
        crc32=zlib.crc32(blob),
        mac=_mac(member),
        root=root,
        prev=prev,
    )


@cache
def _mac(member: Member) -> bytes:
    if member.state is State.VOID:
        return NO_DIGEST  # whatever it had means nothing
    blob = blob_bytes(member.content) if member.content else b""
    version = formats.Version(
        _STATES[member.state],
        member.generation,
        member.members,
        len(blob),
        zlib.crc32(blob),
        NO_DIGEST,
        NO_DIGEST,
        NO_DIGEST,
    )
    frame = record_frame(_identity(member), BLOCK_SIZE)
    return _AUTHENTICATOR.mac(frame.mac_input(version), (blob,))


@cache
def _root(root: Root | None) -> bytes:
    if root is None:
        return NO_DIGEST
    return _AUTHENTICATOR.root(sum(map(_number, root.members)))


@cache
def _number(member: Member) -> int:
    frame = record_frame(_identity(member), BLOCK_SIZE)
    meta = frame.mac_input(_version(member, NO_DIGEST, NO_DIGEST))
    return _AUTHENTICATOR.member(meta, _mac(member))
