"""Commits: what one generation changes, atomically, with one flush (C31, C50, C62)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

from blobstore.writing import Span
from formats.container import HEAD_SIZE, State, Version
from formats.container_encoder import record_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from blobstore.directory import Copy, Directory, Section
    from blobstore.opened import OpenContainer
    from formats.container import Identity
    from formats.container_encoder import RecordFrame
    from formats.device import ReadableBuffer

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
    """

    section: Section
    name: str
    state: State = State.LIVE
    blob: ReadableBuffer = b""
    replaces: Section | None = None
    ranges: Sequence[tuple[int, int]] | None = None

    @property
    def target(self) -> Copy:
        """The record that is written: the older copy, or the first of a void extent."""
        return self.section.older if self.section is self.replaces else self.section.first

    @property
    def old_name(self) -> str | None:
        """The section's name before; None if it is new."""
        return None if self.replaces is None else self.replaces.name

    @property
    def moves(self) -> bool:
        """Whether the section gets another name or place, or ends."""
        return (
            self.section is not self.replaces
            or self.state is State.TOMBSTONE
            or self.name != self.old_name
        )


class _Written(NamedTuple):
    """What a change makes of the record it is written to."""

    target: Copy
    identity: Identity
    frame: RecordFrame
    version: Version


def commit(container: OpenContainer, changes: Sequence[Change]) -> None:
    """Make all changes or none; nothing is read.

    Args:
        container: Its directory follows once everything is durable; extents
            that are no longer of a section are left over then.
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
    unrooted = []
    for change in changes:
        written = _unrooted(container, change, generation, len(changes), prev)
        meta = written.frame.mac_input(written.version)
        # What is written in place has no mac from then on (C22).
        mac = authenticator.mac(meta, (change.blob,) if change.state is not State.IN_PLACE else ())
        if change.state is not State.TOMBSTONE:
            state += authenticator.member(meta, mac)
        if change.replaces is not None:
            replaced = change.replaces.newest
            state -= authenticator.member(
                replaced.frame.mac_input(replaced.version), replaced.version.mac
            )
        unrooted.append((written, mac))
    root = authenticator.root(state)
    rooted = [
        written._replace(version=_with_proofs(written.version, mac, root))
        for written, mac in unrooted
    ]
    spans: list[Span] = []
    for change, written in zip(changes, rooted, strict=True):
        spans += _spans(container, change, written)
    container.writer.write(
        spans,
        _follow(directory, changes, rooted, state, root),
        names={name for change in changes for name in (change.old_name, change.name) if name},
    )


def _unrooted(
    container: OpenContainer, change: Change, generation: int, members: int, prev: bytes
) -> _Written:
    """Return what a change writes, but for mac and root."""
    target = change.target
    identity, frame = target.identity, target.frame
    if identity.name != change.name:
        identity = identity._replace(name=change.name)
        frame = record_frame(identity, container.block_size)
    blob = change.blob
    crc32 = zlib.crc32(blob) if change.state is not State.IN_PLACE else 0
    version = Version(change.state, generation, members, len(blob), crc32, _UNKNOWN, _UNKNOWN, prev)
    return _Written(target, identity, frame, version)


def _with_proofs(version: Version, mac: bytes, root: bytes) -> Version:
    # Spelt out, for `_replace` takes a tenth of a small put.
    return Version(
        version.state,
        version.generation,
        version.members,
        version.size,
        version.crc32,
        mac,
        root,
        version.prev,
    )


def _follow(
    directory: Directory,
    changes: Sequence[Change],
    rooted: Sequence[_Written],
    state: int,
    root: bytes,
) -> Callable[[], None]:
    """Return what makes the directory say what a commit wrote; it may run again (C63)."""
    generation = rooted[0].version.generation
    sections = directory.sections
    moved = [(change, change.old_name) for change in changes if change.moves]

    def follow() -> None:
        for target, identity, frame, version in rooted:
            target.identity, target.frame, target.version = identity, frame, version
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

    return follow


def _whole_blocks(size: int, container: OpenContainer) -> int:
    block_size = container.block_size
    return -(-(HEAD_SIZE + size) // block_size) * block_size


def _spans(container: OpenContainer, change: Change, written: _Written) -> Sequence[Span]:
    """Return what a change writes where."""
    offset, frame = written.target.offset, written.frame
    head = container.authenticator.seal(offset, frame.head(written.version), frame.check_start)
    blob = change.blob
    if change.ranges is None:
        return (Span(offset, (head, blob), _whole_blocks(len(blob), container)),)
    return list(_chosen_blocks(offset, head, memoryview(blob), change.ranges))


def _chosen_blocks(
    offset: int, head: bytes, blob: memoryview, ranges: Sequence[tuple[int, int]]
) -> Iterator[Span]:
    """Yield the spans of a record at ``offset`` of which only ``ranges`` are written."""
    for start, stop in ranges:
        piece = blob[max(start - HEAD_SIZE, 0) : stop - HEAD_SIZE]
        yield Span(offset + start, (piece,) if start else (head, piece), stop - start)
