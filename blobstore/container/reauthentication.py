"""What a store says under another key: its header, macs, heads and root (C80).

The layout stays: every item lies where it lies, and sections keep their ids, their
generations and their older blobs. What is made again is all that the key goes into. Two
programs use it: one that carries a store over to another payload, and one that changes the
key where the store lies (`blobstore.container.protection`).
"""

from __future__ import annotations

import hmac
import os
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from blobstore.container.authentication import Authenticator
from blobstore.container.durable import PIECE_SIZE
from blobstore.errors import CorruptBlobError, DamagedHeadError
from formats.container.model import (
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

    #: Called with the byte offset in the container and each piece of a blob.
    Observer = Callable[[int, memoryview], None]

_log = LateLogger(__name__)

_UNKNOWN = bytes(32)


class Head(NamedTuple):
    """A head of an item as it is to be.

    Attributes:
        offset: Of the item in the container, in bytes.
        content: 512 bytes.
        is_record: Whether a blob follows it; else the item is free.
    """

    offset: int
    content: bytes
    is_record: bool


class Reauthentication:
    """A store under another key.

    Attributes:
        header: Its header: copy 0, without the root.
        authenticator: Of that header.
        size: Bytes of all blobs, which are read once.
    """

    def __init__(self, source: OpenContainer, *, encrypted: bool) -> None:
        """Choose a key for a store that is whole.

        Args:
            source: Not modified.
            encrypted: Whether what it will lie in is encrypted; then heads and blobs are
                authenticated by a new random key, else by plain hashes (C25).

        Raises:
            CorruptBlobError: A section is corrupt.
            DamagedHeadError: A head is damaged.
            UnsupportedError: The store has features that only a reader may ignore.
        """
        _require_whole(source)
        self._source = source
        self.header = replace(
            source.header,
            copy=0,
            total=source.total,
            sequence=source.header.sequence + 1,
            encrypted=encrypted,
            authentication=Authentication.HMAC_SHA256 if encrypted else Authentication.SHA256,
            key=os.urandom(KEY_SIZE) if encrypted else b"",
            durable_generation=source.directory.generation,
        )
        self.authenticator = Authenticator.of(self.header)
        self._copies = [
            (copy, copy is section.newest)
            for section in source.directory.sections.values()
            for copy in section.copies
            if copy
        ]
        self.size = sum(blob_size(copy) for copy, _ in self._copies)

    def heads(self, observe: Observer) -> tuple[bytes, Iterator[Head]]:
        """Read and verify every blob; return the new root, and the new head of each item.

        Args:
            observe: Called with each piece of each blob, and its offset.

        Raises:
            CorruptBlobError: The newest blob of a section does not verify. An older one that
                does not is left out, and logged.
            DeviceError: Reading failed, or ``observe``.
        """
        # The root, which every head holds, is known once all macs are.
        versions = [(copy, self._version(copy, newest, observe)) for copy, newest in self._copies]
        state = sum(
            self.authenticator.member(copy.frame.mac_input(version), version.mac)
            for (copy, newest), (_, version) in zip(self._copies, versions, strict=True)
            if newest
        )
        root = self.authenticator.root(state)
        return root, self._heads(versions, root)

    def _version(self, copy: Copy, newest: bool, observe: Observer) -> Version:
        """Read a record's blob; return its version with the new mac."""
        version = copy.version
        if version.state is State.VOID:
            return NEVER_WRITTEN
        meta = copy.frame.mac_input(version)
        old, new = (
            authenticator.start_mac(meta)
            for authenticator in (self._source.authenticator, self.authenticator)
        )
        authenticated = version.state is not State.IN_PLACE
        buffer = memoryview(bytearray(min(PIECE_SIZE, blob_size(copy))))
        for start in range(0, blob_size(copy), PIECE_SIZE):
            piece = buffer[: blob_size(copy) - start]
            self._source.device.read_into(copy.offset + HEAD_SIZE + start, piece)
            if authenticated:
                old.update(piece)
                new.update(piece)
            observe(copy.offset + HEAD_SIZE + start, piece)
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

    def _heads(self, versions: list[tuple[Copy, Version]], root: bytes) -> Iterator[Head]:
        directory = self._source.directory
        for copy, version in versions:
            # An older commit's roots cannot be made again; nothing asks for them (C48).
            roots = (_UNKNOWN, _UNKNOWN)
            if version.generation == directory.generation:
                roots = (root, _UNKNOWN)
            rooted = version._replace(root=roots[0], prev=roots[1])
            head = self.authenticator.record_head(copy.offset, copy.frame, rooted)
            yield Head(copy.offset, head, is_record=True)
        free = {offset: item.length for offset, item in directory.free.items()}
        free |= dict(extent.place for extent in directory.left_over)
        for offset, length in free.items():
            item = Free(directory.generation, root, length)
            yield Head(offset, self.authenticator.free_head(offset, item), is_record=False)


def blob_size(copy: Copy) -> int:
    """Return the bytes of a record's blob that mean something."""
    return copy.version.size if copy.version.state in (State.LIVE, State.IN_PLACE) else 0


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
