"""Commits: new blobs for sections, atomically, with one flush (C31, C50)."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.writing import Span
from formats.container import HEAD_SIZE, State, Version
from formats.container_encoder import record_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blobstore.directory import Copy, Section
    from blobstore.opened import OpenContainer
    from formats.device import ReadableBuffer

_UNKNOWN = bytes(32)


def commit(container: OpenContainer, changes: Sequence[tuple[Section, ReadableBuffer]]) -> None:
    """Give sections new blobs, all of them or none.

    Each blob goes over its section's older copy; nothing is read.

    Args:
        container: Its directory is updated once everything is durable.
        changes: Distinct sections and their blobs, no larger than the sections
            allow; of several, none with a single copy (C32).

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
    for section, blob in changes:
        newest, target = section.newest, section.older
        identity, frame = target.identity, target.frame
        if identity.name != newest.identity.name:
            identity = replace(identity, name=newest.identity.name)
            frame = record_frame(identity, container.block_size)
        unsealed = Version(
            state=State.LIVE,
            generation=generation,
            members=len(changes),
            size=len(blob),
            crc32=zlib.crc32(blob),
            mac=_UNKNOWN,
            root=_UNKNOWN,
            prev=prev,
        )
        mac = authenticator.mac(frame.mac_input(unsealed), (blob,))
        state += authenticator.member(identity.section_id, generation, mac)
        state -= member_of(container, newest)
        prepared.append((target, identity, frame, unsealed, mac, blob))
    root = authenticator.root(state)
    spans, updates = [], []
    for target, identity, frame, unsealed, mac, blob in prepared:
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
        spans.append(Span(target.offset, (head, blob), _whole_blocks(len(blob), container)))
        updates.append((target, identity, frame, version))
    container.writer.write(spans)
    for target, identity, frame, version in updates:
        target.identity, target.frame, target.version = identity, frame, version
    directory.state, directory.root = state, root
    directory.generation = generation
    directory.clean = False


def member_of(container: OpenContainer, newest: Copy) -> int:
    """Return the number that stands for a section in the state (C24)."""
    section_id, version = newest.identity.section_id, newest.version
    return container.authenticator.member(section_id, version.generation, version.mac)


def _whole_blocks(size: int, container: OpenContainer) -> int:
    block_size = container.block_size
    return -(-(HEAD_SIZE + size) // block_size) * block_size
