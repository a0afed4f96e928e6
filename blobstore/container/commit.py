"""Commits: one generation, n members, one flush (C31, C50, C62, C63).

A commit changes one or several sections, all of them or none. Each change becomes one
record, a head and a blob, written over the copy of its section that does not count.
The records of one commit share a generation, the number of its members, the root of the
store after it, and the root before it. One flush makes all of them durable. There is no
commit record and nothing to be cleared afterwards: a reader counts the members it finds,
and that decides (`blobstore.container.directory`).

**What a crash leaves.** Before the flush returns, any part of the records may have reached
the medium. If all did, the commit happened. If not, the copies that it replaces still
count, because none of them was touched. The order within the commit does not matter; the
order between commits does, and the writer keeps it. (A section of
a single copy has nothing to go back to. A put overwrites its record and is not atomic, so it
never shares a commit with others: C32.)

**Who is in doubt.** From before its first byte until the flush has returned, it is unknown
whether the commit happened, to the caller and to this process. The writer notes
that, with the names of the sections, before it writes. If the step ends in between, by an
error of the device or by an interrupt at any instruction, it stays noted: nothing more is
written, and those sections are not answered from memory, until the store is opened
again and the heads say what happened (C51). A generation is used up with the first byte
of its step, so that no two commits ever have the same one (C30).

**How memory follows.** Everything the directory has to become is worked out before
anything is written. When the flush has returned, `_follow` assigns it. Its
assignments can be repeated from any point at which they were interrupted: the writer keeps
the step as durable until they are through, and finishes them before it does or answers
anything else (C63). So memory is never ahead of the medium, and lags it only while
nothing is answered from it.

**Who is told.** Where commits are watched, the directory remembers the latest ones (`recent`),
and memory follows in that as well. Then `OpenContainer.told` is called: the one place where
others learn of a commit after it is durable. It waits for none of them.

**What must not happen here.** Nothing is read: a put costs its blob and one flush, whatever
else is in the store, and the root follows by one addition and one subtraction (C24).
No blob is written that its record's mac does not cover, except in place (C62). Space is
neither taken nor released: an extent that becomes a section was made void before
(C52), and one that a section has left is noted as left over (C56).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from blobstore.container.durable import Span
from formats.container.encoder import record_frame
from formats.container.model import HEAD_SIZE, State, Version, record_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from blobstore.container.directory import Directory
    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Copy, Section
    from formats.container.encoder import RecordFrame
    from formats.container.model import Identity
    from formats.devices.device import ReadableBuffer

_UNKNOWN = bytes(32)


class Change(NamedTuple):
    """What a commit does to one section.

    Attributes:
        section: What the section is from then on: as it lies, or a void extent
            that becomes it.
        name: The section's name from then on.
        state: What the record becomes that is written.
        blob: Its blob; empty if the state has none.
        replaces: The section as it was; None if it is new.
        ranges: What of the record is written: from byte to byte of it, in whole
            blocks, in order, the first block included; the rest is known to be
            there (C62). None writes all of it.
        crc32: Of the blob, where the caller knows it; None computes it.
    """

    section: Section
    name: str
    state: State = State.LIVE
    blob: ReadableBuffer = b""
    replaces: Section | None = None
    ranges: Sequence[tuple[int, int]] | None = None
    crc32: int | None = None


@dataclass(slots=True)
class _Written:
    """What a change makes of the record it is written to.

    Attributes:
        change: The change.
        replaced: The newest record of the section as it was; None if it is new.
        target: The record that is written: the older copy, or the first of a
            void extent.
        identity: Of the record, then.
        frame: Likewise.
        version: Likewise. The mac covers what it counts, and the root covers all macs,
            so these two follow.
        mac: Of the record, then.
    """

    change: Change
    replaced: Copy | None
    target: Copy
    identity: Identity
    frame: RecordFrame
    version: Version
    mac: bytes = _UNKNOWN

    @property
    def moves(self) -> bool:
        """Whether the section gets another name or place, or ends."""
        change, replaced = self.change, self.replaced
        return (
            replaced is None
            or change.section is not change.replaces
            or change.name != replaced.identity.name
            or change.state is State.TOMBSTONE
        )


def commit(container: OpenContainer, changes: Sequence[Change]) -> None:
    """Make all changes or none; nothing is read.

    Args:
        container: Its directory follows once everything is durable; extents
            that sections have left are left over then.
        changes: One for each section, with blobs no larger than it allows; of
            several, none over the only record of a section (C32).

    Raises:
        DeviceError, PoisonedStoreError, DamagedHeadError: Nothing is known to
            have changed; see `DurableWriter` for what follows.
    """
    generation = container.next_generation()
    directory, authenticator = container.directory, container.authenticator
    prev = directory.root
    assert prev is not None, "next_generation refuses a store without a root"
    state = directory.state
    records = []
    for change in changes:
        written = _written(container, change, generation, len(changes))
        meta = written.frame.mac_input(written.version)
        # What is written in place has no mac from then on (C22).
        blob = (change.blob,) if change.state is not State.IN_PLACE else ()
        written.mac = authenticator.mac(meta, blob)
        if change.state is not State.TOMBSTONE:
            state += authenticator.member(meta, written.mac)
        state -= authenticator.member_of(written.replaced)
        records.append(written)
    root = authenticator.root(state)
    spans: list[Span] = []
    for written in records:
        offset = written.target.offset
        counters = written.version
        # Spelt out, for `_replace` takes a tenth of a small put.
        written.version = Version(
            counters.state,
            generation,
            counters.members,
            counters.size,
            counters.crc32,
            written.mac,
            root,
            prev,
        )
        head = authenticator.record_head(offset, written.frame, written.version)
        spans += _spans(container, written.change, offset, head)
    container.writer.write(
        spans, _follow(directory, records, generation, state, root), _names(records)
    )
    if container.told is not None:
        container.told()


def _written(container: OpenContainer, change: Change, generation: int, members: int) -> _Written:
    """Return what a change writes, but for mac and root."""
    section, replaces = change.section, change.replaces
    replaced = None
    if replaces is None:
        target = section.first
    else:
        replaced, older = replaces.newest_and_older
        target = older if section is replaces else section.first
    identity, frame = target.identity, target.frame
    if identity.name != change.name:
        identity = identity._replace(name=change.name)
        frame = record_frame(identity, container.block_size)
    blob = change.blob
    if change.state is State.IN_PLACE:
        crc32 = 0
    else:
        crc32 = zlib.crc32(blob) if change.crc32 is None else change.crc32
    version = Version(
        change.state, generation, members, len(blob), crc32, _UNKNOWN, _UNKNOWN, _UNKNOWN
    )
    return _Written(change, replaced, target, identity, frame, version)


def _names(changes: Sequence[_Written]) -> list[str]:
    """Return the names, old and new, of all sections that change."""
    old = [written.replaced.identity.name for written in changes if written.replaced]
    return old + [written.change.name for written in changes]


def _follow(
    directory: Directory, records: Sequence[_Written], generation: int, state: int, root: bytes
) -> Callable[[], None]:
    """Return what makes the directory say what a commit wrote; it may run again (C63)."""
    sections = directory.sections
    moved = [
        (written.change, written.replaced.identity.name if written.replaced else None)
        for written in records
        if written.moves
    ]
    recent = directory.recent
    if recent is not None:
        recent = recent.with_commit(
            generation,
            [
                (
                    written.change.name,
                    written.replaced.identity.name if written.replaced else None,
                    written.change.state is State.TOMBSTONE,
                )
                for written in records
            ],
        )

    def follow() -> None:
        for written in records:
            target = written.target
            target.identity, target.frame = written.identity, written.frame
            target.version = written.version
        # First all old names, then all new ones: two sections may change theirs with each other.
        for change, name in moved:
            if name is not None and sections.get(name) is change.replaces:
                del sections[name]
        for change, _ in moved:
            if change.state is State.TOMBSTONE:
                directory.leave_over(change.section)
                continue
            directory.take_up(change.section)
            sections[change.name] = change.section
            if change.replaces is not None and change.replaces is not change.section:
                directory.leave_over(change.replaces)
        directory.state, directory.root = state, root
        directory.generation = generation
        directory.clean = False
        directory.recent = recent

    return follow


def _spans(container: OpenContainer, change: Change, offset: int, head: bytes) -> Iterable[Span]:
    """Return what a change writes to the record at ``offset``."""
    if change.ranges is None:
        blob = change.blob
        return (Span(offset, (head, blob), record_length(len(blob), container.block_size)),)
    return _chosen_blocks(offset, head, memoryview(change.blob), change.ranges)


def _chosen_blocks(
    offset: int, head: bytes, blob: memoryview, ranges: Sequence[tuple[int, int]]
) -> Iterator[Span]:
    """Yield the spans of a record at ``offset`` of which only ``ranges`` are written."""
    for start, stop in ranges:
        piece = blob[max(start - HEAD_SIZE, 0) : stop - HEAD_SIZE]
        yield Span(offset + start, (piece,) if start else (head, piece), stop - start)
