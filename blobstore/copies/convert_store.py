"""Carrying a store over to another payload, with a key and a flag of its own: C25, C80, C81.

Each blob is read once, verified by the old key, authenticated by the new one, and written;
free space is not touched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.container.durable import PIECE_SIZE, DurableWriter, Span
from blobstore.container.headers import header_span
from blobstore.container.reauthentication import Reauthentication
from formats.container.model import BLOCK_SIZES, HEAD_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.container.open_container import OpenContainer
    from formats.devices.device import BlockDevice

    Progress = Callable[[int, int], None]


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
        self._target = target
        self._writer = DurableWriter(target)
        self._blank = blank
        self._progress = progress
        self._under = Reauthentication(source, encrypted=encrypted)
        self._done = 0
        self._all = self._under.size
        if not blank:
            self._all += source.total

    def run(self) -> None:
        self._wipe()
        root, heads = self._under.heads(self._carry)
        block_size = self._under.header.block_size
        spans = [
            Span(offset, (content,), HEAD_SIZE if is_record else block_size)
            for offset, content, is_record in heads
        ]
        self._writer.write(spans)
        header = replace(self._under.header, root=root)
        for number in (1, 0):
            copy = header_span(self._under.authenticator, replace(header, copy=number))
            self._writer.write([copy])

    def _carry(self, offset: int, piece: memoryview) -> None:
        self._target.write(offset, piece)
        self._advance(len(piece))

    def _wipe(self) -> None:
        """Overwrite what a reader could take for a part of this store."""
        header = self._under.header
        total = header.total
        # Wherever a reader looks for a header copy, there may be an old one (C59).
        headers = min(BLOCK_SIZES[-1] + header.block_size, total)
        self._writer.write([Span(0, (), headers)])
        if self._blank:
            return
        zeros = bytes(PIECE_SIZE)
        for start in range(headers, total, PIECE_SIZE):
            self._target.write(start, zeros[: total - start])
            self._advance(min(PIECE_SIZE, total - start))
        self._advance(headers)
        self._writer.write()

    def _advance(self, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done, self._all)
