"""Commits: what one generation changes, atomically, with one flush (C31, C50, C62)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

from blobstore.writing import Span
from formats.container import HEAD_SIZE, State, Version
from formats.container_encoder import record_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from blobstore.directory import Copy
    from blobstore.opened import OpenContainer
    from formats.device import ReadableBuffer

_UNKNOWN = bytes(32)


class Change(NamedTuple):
    """What a commit does to one section.

    Attributes:
        target: The record that is written: the section's older copy, or a void
            one in an extent that becomes the section's.
        name: The section's name from then on.
        state: What the record becomes.
        blob: Its blob; empty if the state has none.
        replaces: What was the section's newest record; None if it is new.
        ranges: What of the record is written: from byte to byte of it, in whole
            blocks, in order, the first block included; the rest is known to be
            there (C62). None writes all of it.
    """

    target: Copy
    name: str
    state: State = State.LIVE
    blob: ReadableBuffer = b""
    replaces: Copy | None = None
    ranges: Sequence[tuple[int, int]] | None = None


def commit(container: OpenContainer, changes: Sequence[Change]) -> None:
    """Make all changes or none; nothing is read.

    Args:
        container: Its root, and the records, are updated once everything is
            durable.
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
    prepared = []
    for change in changes:
        identity, frame, blob = change.target.identity, change.target.frame, change.blob
        if identity.name != change.name:
            identity = identity._replace(name=change.name)
            frame = record_frame(identity, container.block_size)
        unsealed = Version(
            state=change.state,
            generation=generation,
            members=len(changes),
            size=len(blob),
            crc32=zlib.crc32(blob) if change.state is not State.IN_PLACE else 0,
            mac=_UNKNOWN,
            root=_UNKNOWN,
            prev=prev,
        )
        meta = frame.mac_input(unsealed)
        # What is written in place has no mac from then on (C22).
        mac = authenticator.mac(meta, (blob,) if change.state is not State.IN_PLACE else ())
        if change.state is not State.TOMBSTONE:
            state += authenticator.member(meta, mac)
        if change.replaces is not None:
            state -= authenticator.member(
                change.replaces.frame.mac_input(change.replaces.version),
                change.replaces.version.mac,
            )
        prepared.append((change, identity, frame, unsealed, mac))
    root = authenticator.root(state)
    spans, updates = [], []
    for change, identity, frame, unsealed, mac in prepared:
        target, blob = change.target, change.blob
        # Spelt out, for `replace` takes a tenth of a small put.
        version = Version(
            unsealed.state,
            generation,
            unsealed.members,
            unsealed.size,
            unsealed.crc32,
            mac,
            root,
            prev,
        )
        head = authenticator.seal(target.offset, frame.head(version), frame.check_start)
        if change.ranges is None:
            spans.append(Span(target.offset, (head, blob), _whole_blocks(len(blob), container)))
        else:
            spans += _chosen_blocks(target.offset, head, memoryview(blob), change.ranges)
        updates.append((target, identity, frame, version))
    container.writer.write(spans)
    for target, identity, frame, version in updates:
        target.identity, target.frame, target.version = identity, frame, version
    directory.state, directory.root = state, root
    directory.generation = generation
    directory.clean = False


def _whole_blocks(size: int, container: OpenContainer) -> int:
    block_size = container.block_size
    return -(-(HEAD_SIZE + size) // block_size) * block_size


def _chosen_blocks(
    offset: int, head: bytes, blob: memoryview, ranges: Sequence[tuple[int, int]]
) -> Iterator[Span]:
    """Yield the spans of a record at ``offset`` of which only ``ranges`` are written."""
    for start, stop in ranges:
        piece = blob[max(start - HEAD_SIZE, 0) : stop - HEAD_SIZE]
        yield Span(offset + start, (piece,) if start else (head, piece), stop - start)
