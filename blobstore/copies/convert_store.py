"""Carrying a store over to another payload, with a key and a flag of its own: C25, C80, C81.

The layout stays: every item lies where it lay, and sections keep their ids,
their generations and their older blobs. What is made again is all that the key
goes into: checks, macs and roots. Each blob is read once, verified by the old
key, authenticated by the new one, and written; free space is not touched.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.container.authentication import Authenticator
from blobstore.container.durable import PIECE_SIZE, DurableWriter, Span
from blobstore.container.headers import header_span
from blobstore.errors import CorruptBlobError, DamagedHeadError
from formats.container.model import (
    BLOCK_SIZES,
    HEAD_SIZE,
    KEY_SIZE,
    NEVER_WRITTEN,
    Authentication,
    Free,
    State,
)
from formats.errors import UnsupportedError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Copy
    from formats.container.model import Version
    from formats.devices.device import BlockDevice

    Progress = Callable[[int, int], None]

_log = LateLogger(__name__)

_UNKNOWN = bytes(32)


def transfer(
    source: OpenContainer,
    target: BlockDevice,
    *,
    encrypted: bool,
    blank: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a store to another device, as it is after recovery, closed.

    Until the last write there is no container on the target. An older blob that
    does not verify is not carried over, and logged.

    Args:
        source: Not modified.
        target: As large as the container at least; what it held is lost.
        encrypted: Whether the target is encrypted below; then heads and blobs are
            authenticated by a new random key, else by plain hashes (C25).
        blank: Whether the target reads as zeros, or as the noise of a new volume
            key. All of another one is overwritten: a head that lay there may
            pass for one of this store (C14).
        progress: Called with bytes done and in all.

    Raises:
        CorruptBlobError: A section is corrupt.
        DamagedHeadError: A head is damaged.
        UnsupportedError: The store has features that only a reader may ignore.
        DeviceError: Reading or writing failed.
    """
    _Transfer(source, target, encrypted=encrypted, blank=blank, progress=progress).run()


class _Transfer:
    def __init__(
        self,
        source: OpenContainer,
        target: BlockDevice,
        *,
        encrypted: bool,
        blank: bool,
        progress: Progress | None,
    ) -> None:
        _require_whole(source)
        self._source, self._target = source, target
        self._writer = DurableWriter(target)
        self._blank = blank
        self._progress = progress
        self._header = replace(
            source.header,
            total=source.total,
            sequence=source.header.sequence + 1,
            encrypted=encrypted,
            authentication=Authentication.HMAC_SHA256 if encrypted else Authentication.SHA256,
            key=os.urandom(KEY_SIZE) if encrypted else b"",
            durable_generation=source.directory.generation,
        )
        self._authenticator = Authenticator.of(self._header)
        self._copies = [
            (copy, copy is section.newest)
            for section in source.directory.sections.values()
            for copy in section.copies
            if copy
        ]
        self._done = 0
        self._all = sum(_blob_size(copy) for copy, _ in self._copies)
        if not blank:
            self._all += source.total

    def run(self) -> None:
        self._wipe()
        # The root, which every head holds, is known once all macs are.
        versions = [(copy, self._carry_blob(copy, newest)) for copy, newest in self._copies]
        state = sum(
            self._authenticator.member(copy.frame.mac_input(version), version.mac)
            for (copy, newest), (_, version) in zip(self._copies, versions, strict=True)
            if newest
        )
        root = self._authenticator.root(state)
        self._writer.write(list(self._heads(versions, root)))
        header = replace(self._header, root=root)
        for number in (1, 0):
            copy = header_span(self._authenticator, replace(header, copy=number))
            self._writer.write([copy])

    def _wipe(self) -> None:
        """Overwrite what a reader could take for a part of this store."""
        total = self._header.total
        # Wherever a reader looks for a header copy, there may be an old one (C59).
        headers = min(BLOCK_SIZES[-1] + self._header.block_size, total)
        self._writer.write([Span(0, (), headers)])
        if self._blank:
            return
        zeros = bytes(PIECE_SIZE)
        for start in range(headers, total, PIECE_SIZE):
            self._target.write(start, zeros[: total - start])
            self._advance(min(PIECE_SIZE, total - start))
        self._advance(headers)
        self._writer.write()

    def _carry_blob(self, copy: Copy, newest: bool) -> Version:
        """Write a record's blob; return its version with the new mac."""
        version = copy.version
        if version.state is State.VOID:
            return NEVER_WRITTEN
        meta = copy.frame.mac_input(version)
        old, new = (
            authenticator.start_mac(meta)
            for authenticator in (self._source.authenticator, self._authenticator)
        )
        authenticated = version.state is not State.IN_PLACE
        buffer = memoryview(bytearray(min(PIECE_SIZE, _blob_size(copy))))
        for start in range(0, _blob_size(copy), PIECE_SIZE):
            piece = buffer[: _blob_size(copy) - start]
            self._source.device.read_into(copy.offset + HEAD_SIZE + start, piece)
            if authenticated:
                old.update(piece)
                new.update(piece)
            self._target.write(copy.offset + HEAD_SIZE + start, piece)
            self._advance(len(piece))
        if hmac.compare_digest(old.digest(), version.mac):
            return version._replace(mac=new.digest())
        name, generation = copy.identity.name, version.generation
        if newest:
            raise CorruptBlobError(
                f"section {name!r} is corrupt: generation {generation} does not verify [C23]",
                name=name,
                generation=generation,
                offset=copy.offset,
                hint="restore the section from a backup, or rewrite it",
            )
        _log.warning(
            "the blob of %r before the newest does not verify: it is not carried over", name
        )
        return NEVER_WRITTEN

    def _heads(self, versions: list[tuple[Copy, Version]], root: bytes) -> Iterator[Span]:
        directory, block_size = self._source.directory, self._header.block_size
        for copy, version in versions:
            # An older commit's roots cannot be made again; nothing asks for them (C48).
            roots = (_UNKNOWN, _UNKNOWN)
            if version.generation == directory.generation:
                roots = (root, _UNKNOWN)
            rooted = version._replace(root=roots[0], prev=roots[1])
            head = self._authenticator.record_head(copy.offset, copy.frame, rooted)
            yield Span(copy.offset, (head,), HEAD_SIZE)
        free = {offset: item.length for offset, item in directory.free.items()}
        free |= dict(extent.place for extent in directory.left_over)
        for offset, length in free.items():
            item = Free(directory.generation, root, length)
            yield Span(offset, (self._authenticator.free_head(offset, item),), block_size)

    def _advance(self, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done, self._all)


def _require_whole(source: OpenContainer) -> None:
    """Check that nothing of a store is hidden or corrupt, as far as its heads say."""
    if not source.writable:
        raise UnsupportedError(
            "the store has features that are unknown here: it can only be read [C15]",
            feature="read-only-compatible bits",
        )
    directory = source.directory
    for offset, _ in directory.damaged:
        raise DamagedHeadError(
            f"the head at byte {offset} is damaged: the store cannot be carried over whole",
            offset=offset,
            hint="repair the store first, or save what can be read with unpack",
        )
    for section in directory.sections.values():
        if section.damage:
            raise CorruptBlobError(
                f"section {section.name!r} {section.damage.reason}",
                name=section.name,
                generation=section.damage.generation,
                offset=section.damage.offset,
            )


def _blob_size(copy: Copy) -> int:
    """Return the bytes of a record's blob that mean something."""
    return copy.version.size if copy.version.state in (State.LIVE, State.IN_PLACE) else 0
