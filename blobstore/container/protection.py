"""Changing how a store is protected, where it lies: its key and its flag (O200 to O205).

When an image is encrypted or decrypted in place, or gets a new volume key, the store in it
needs another flag, or another key (C25). Everything that the key goes into changes then: the
head of each item, and both header copies. No order of writes makes that atomic, so it is
written to free space first: the *record of the change*, with the first block of each item as
it is to be. A whole block, because a torn sector of a volume garbles what follows the head
in it.

    1  the record, where nothing lives, and a flush
    2  both header copies say that it is there: bit 0 of ``incompatible``
    3  the blocks, from the record
    4  both header copies with the new key and flag, still with the bit
    5  both without it; then zeros over the record

Until 2 the store is what it was, and after 5 what it is to be. In between a reader refuses it
as unsupported, also one that does not know of this (C15), and `finish_change` goes on: it
finds the record by its check, under the key of the header that counts. To do 3 twice is to do
it once. The sequence number says which of 2, 4 and 5 a header copy is of, and which record
belongs to it, for older ones may lie in free space.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from blobstore.container.authentication import Authenticator
from blobstore.container.durable import DurableWriter, Span
from blobstore.container.headers import header_span, write_state
from blobstore.container.open_container import open_container
from blobstore.container.reauthentication import Reauthentication
from blobstore.container.recovery import close, recover
from blobstore.container.scan import read_header_copies
from blobstore.errors import CorruptStoreError, DamagedHeadError, NoSpaceError
from formats.container.decoder import decode_header
from formats.container.model import CHANGING_PROTECTION, DIGEST_SIZE, HEAD_SIZE
from formats.devices.device import read_exactly
from formats.errors import FormatError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.container.authentication import RunningMac
    from blobstore.container.open_container import OpenContainer
    from formats.container.model import ContainerHeader
    from formats.devices.device import BlockDevice

    Progress = Callable[[int, int], None]

_log = LateLogger(__name__)

_MAGIC: Final = b"blobstore change"
#: Magic, sequence number before the change, number of blocks; then the check under the old
#: key, the one under the new key, and the byte offset of each block.
_START: Final = struct.Struct(">16sQQ")
_OFFSET: Final = struct.Struct(">Q")
_FIXED_SIZE: Final = _START.size + 2 * DIGEST_SIZE
#: Bytes that are written before the next flush, and that are searched at once.
_BATCH_SIZE: Final = 1 << 20


def require_changeable(container: OpenContainer) -> None:
    """Check that a change of protection would not fail because of the store: it reads all blobs.

    Raises:
        NoSpaceError: It would not find the free space that it needs (O202).
        CorruptBlobError, DamagedHeadError, UnsupportedError, DeviceError: As
            `Reauthentication`.
    """
    under = Reauthentication(container, encrypted=container.header.encrypted)
    _place(container)
    under.heads(_ignore)


def change_protection(
    container: OpenContainer, *, encrypted: bool, progress: Progress | None = None
) -> None:
    """Give a store a new key, or none, and set its `encrypted` flag, in place (O200).

    A crash at any instant leaves the store as it was, or one that `finish_change` finishes.
    Generations and blobs stay. Roots do not, as in C80: the store has another digest.

    Args:
        container: Follows, also if windows are open. If this raises once the change has begun,
            nothing more is written by it: open it again after `finish_change`.
        encrypted: Whether it lies in something that is encrypted, or will at the next open.
        progress: Called with bytes of blobs done and in all.

    Raises:
        NoSpaceError: There is no free space for the record of the change; nothing changed.
        CorruptBlobError, DamagedHeadError, UnsupportedError: As `Reauthentication`; nothing
            changed.
        DeviceError, PoisonedStoreError: Reading or writing failed.
    """
    recover(container)
    close(container)
    under = Reauthentication(container, encrypted=encrypted)
    place = _place(container)
    # So that no other record is of this sequence number.
    write_state(container, container.directory.generation, container.header.root)
    done = 0

    def advance(_offset: int, piece: memoryview) -> None:
        nonlocal done
        done += len(piece)
        if progress is not None:
            progress(done, under.size)

    root, heads = under.heads(advance)
    before = container.header.sequence
    header = replace(under.header, root=root, sequence=before + 2, incompatible=CHANGING_PROTECTION)
    blocks = [(head.offset, head.content) for head in heads]
    blocks += [
        (span.offset, b"".join(span.parts)[:HEAD_SIZE])
        for span in (header_span(under.authenticator, replace(header, copy=n)) for n in (0, 1))
    ]
    _write_record(container, place, before, blocks, under.authenticator)
    finish_from = replace(container.header, sequence=before + 1, incompatible=CHANGING_PROTECTION)
    container.writer.give_up()
    _write_copies(
        DurableWriter(container.device),
        container.authenticator,
        finish_from,
        container.header_copies,
    )
    finish_change(container.device)
    found = open_container(container.device)
    if found.directory.root is None:
        offset, _ = found.directory.damaged[0]
        raise DamagedHeadError(
            f"the head at byte {offset} cannot be read after the key was changed",
            offset=offset,
            hint="try again",
        )
    container.follow(found)


def finish_change(device: BlockDevice) -> bool:
    """Finish a change of protection that was cut short, if one was (O204).

    It may be interrupted anywhere, and done again.

    Args:
        device: Of the container.

    Returns:
        Whether there was one. Then the store is closed, with the new key and flag.

    Raises:
        CorruptStoreError: There was one, and its record is damaged.
        FormatError, UnsupportedError, DeviceError: There is no sound header, or it cannot be
            read or written.
    """
    copies, attesting = read_header_copies(device)
    header = max(filter(None, attesting), key=lambda copy: copy.sequence)
    if header.incompatible != CHANGING_PROTECTION:
        return False
    writer = DurableWriter(device)
    record = _find(device, header)
    if header.sequence == record.before + 1:
        # The blocks are not touched before both copies say that there is a record.
        _write_copies(writer, Authenticator.of(header), header, copies)
        _apply(device, writer, record)
        copies = (header, header)
    new = record.header
    authenticator = Authenticator.of(new)
    _write_copies(writer, authenticator, new, copies)
    final = replace(new, sequence=new.sequence + 1, incompatible=0)
    _write_copies(writer, authenticator, final, (new, new))
    _wipe(writer, record)
    _log.info("the store has a new key: its protection was changed in place")
    return True


@dataclass(frozen=True, slots=True)
class _Record:
    """A record of a change, whose check agrees.

    Attributes:
        offset: Where it lies.
        before: Sequence number of the header before the change.
        header: The new one, with the bit.
        offsets: Where its blocks belong, without those of the header copies.
        first: Where its first block is.
        size: Bytes of all of it.
    """

    offset: int
    before: int
    header: ContainerHeader
    offsets: tuple[int, ...]
    first: int
    size: int


def _ignore(_offset: int, _piece: memoryview) -> None:
    """Do nothing with a piece of a blob."""


def _write_copies(
    writer: DurableWriter,
    authenticator: Authenticator,
    header: ContainerHeader,
    known: tuple[ContainerHeader | None, ContainerHeader | None],
) -> None:
    """Make both copies say ``header``, the damaged or older one of those ``known`` first."""

    def age(copy: int) -> int:
        found = known[copy]
        return -1 if found is None else found.sequence

    for copy in sorted((1, 0), key=age):
        wanted = replace(header, copy=copy)
        if known[copy] != wanted:
            writer.write([header_span(authenticator, wanted)])


def _directory_size(count: int, block_size: int) -> int:
    """Return the bytes that a record of so many blocks has before them."""
    return -(-(_FIXED_SIZE + count * _OFFSET.size) // block_size) * block_size


def _place(container: OpenContainer) -> int:
    """Return where the record goes: after the head of the largest free item."""
    directory, block_size = container.directory, container.block_size
    extents = [*directory.sections.values(), *directory.left_over]
    count = 2 + sum(len(extent.copies) for extent in extents)
    count += len(directory.free) + len(directory.left_over)
    needed = block_size + _directory_size(count, block_size) + count * block_size
    length, offset = max(
        ((item.length, offset) for offset, item in directory.free.items()), default=(0, 0)
    )
    if length < needed:
        raise NoSpaceError(
            f"to change the key of the store needs {needed} free bytes in one piece, and there are"
            f" {length} [O202]",
            hint="grow the store, or compact it, and do this again",
        )
    return offset + block_size


def _write_record(
    container: OpenContainer,
    place: int,
    before: int,
    blocks: list[tuple[int, bytes]],
    new: Authenticator,
) -> None:
    """Write the record into free space: its blocks, then what leads to them, and flush."""
    device, block_size = container.device, container.block_size
    offsets = b"".join(_OFFSET.pack(offset) for offset, _ in blocks)
    start = _START.pack(_MAGIC, before, len(blocks))
    macs = [_started(one, place, start + offsets) for one in (container.authenticator, new)]
    directory_size = _directory_size(len(blocks), block_size)
    at, waiting, size = place + directory_size, list[Span](), 0
    for offset, head in blocks:
        rest = bytes(block_size - HEAD_SIZE)
        if offset >= 2 * block_size:
            rest = read_exactly(device, offset + HEAD_SIZE, block_size - HEAD_SIZE)
        for mac in macs:
            mac.update(head)
            mac.update(rest)
        waiting.append(Span(at, (head, rest), block_size))
        at, size = at + block_size, size + block_size
        if size >= _BATCH_SIZE:
            container.writer.write_free(waiting)
            waiting, size = [], 0
    container.writer.write_free(waiting)
    parts = (start, *(mac.digest() for mac in macs), offsets)
    container.writer.write_free([Span(place, parts, directory_size)])


def _started(authenticator: Authenticator, place: int, directory: bytes) -> RunningMac:
    """Return the check of a record, before its blocks (O205)."""
    # No meta of a record begins so.
    return authenticator.start_mac(_MAGIC + _OFFSET.pack(place) + directory)


def _find(device: BlockDevice, header: ContainerHeader) -> _Record:
    """Return the record that belongs to a header with the bit."""
    authenticator, block_size = Authenticator.of(header), header.block_size
    for place in _marked(device, header):
        record = _read(device, place, header, authenticator)
        if record is not None:
            return record
    raise CorruptStoreError(
        "the key of the store was being changed, and the record of that is damaged [O204]",
        offset=2 * block_size,
    )


def _marked(device: BlockDevice, header: ContainerHeader) -> Iterator[int]:
    """Yield each block that begins like a record."""
    step = max(_BATCH_SIZE, header.block_size)
    for start in range(2 * header.block_size, header.total, step):
        piece = read_exactly(device, start, min(step, header.total - start))
        at = piece.find(_MAGIC)
        while at >= 0:
            if at % header.block_size == 0:
                yield start + at
            at = piece.find(_MAGIC, at + 1)


def _read(
    device: BlockDevice, place: int, header: ContainerHeader, authenticator: Authenticator
) -> _Record | None:
    """Return the record at a place, if its check agrees and it is of this header."""
    block_size, total = header.block_size, header.total
    fixed = read_exactly(device, place, _FIXED_SIZE)
    _, before, count = _START.unpack_from(fixed)
    if header.sequence not in (before + 1, before + 2):
        return None
    if not 2 < count <= (total - place) // block_size:
        return None
    first = place + _directory_size(count, block_size)
    size = first - place + count * block_size
    if place + size > total:
        return None
    offsets = read_exactly(device, place + _FIXED_SIZE, count * _OFFSET.size)
    mac = _started(authenticator, place, fixed[: _START.size] + offsets)
    for block in range(count):
        mac.update(read_exactly(device, first + block * block_size, block_size))
    is_new = header.sequence == before + 2
    check = fixed[_START.size :][is_new * DIGEST_SIZE :][:DIGEST_SIZE]
    if not hmac.compare_digest(mac.digest(), check):
        return None
    head = read_exactly(device, first + (count - 2) * block_size, HEAD_SIZE)
    try:
        new = decode_header(head, 0).header
    except FormatError as error:
        raise CorruptStoreError(f"the record of a change has no header: {error}") from error
    belonging = tuple(offset for (offset,) in _OFFSET.iter_unpack(offsets))[:-2]
    return _Record(place, before, new, belonging, first, size)


def _apply(device: BlockDevice, writer: DurableWriter, record: _Record) -> None:
    """Write the blocks of all items, durably."""
    block_size = record.header.block_size
    waiting: list[Span] = []
    for number, offset in enumerate(record.offsets):
        block = read_exactly(device, record.first + number * block_size, block_size)
        waiting.append(Span(offset, (block,), block_size))
        if len(waiting) * block_size >= _BATCH_SIZE:
            writer.write(waiting)
            waiting = []
    if waiting:
        writer.write(waiting)


def _wipe(writer: DurableWriter, record: _Record) -> None:
    """Write zeros over the record, which has the key in it."""
    for start in range(0, record.size, _BATCH_SIZE):
        length = min(_BATCH_SIZE, record.size - start)
        writer.write_free([Span(record.offset + start, (), length)])
