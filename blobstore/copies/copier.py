"""Copying an image while others write to it.

It is copied as it lies, still encrypted. The heads of items are read before and after the
copying, and an item whose head has changed is copied again, until none has: a head
changes with everything in its item (C5, C30). Only a window that is being written in
place changes without its head, so its copy may mix several moments; it is unverified in
the copy, as it is in the image (C62).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from blobstore.container.scan import Damaged, scan
from blobstore.copies.convert_bytes import HOLE_SIZE, carry
from blobstore.errors import CorruptBlobError, StoreBusyError
from blobstore.image.files import new_file
from blobstore.image.layers import LayersLock
from formats.devices.device import read_exactly
from formats.errors import FormatError, StorageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from blobstore.container.scan import Scan
    from blobstore.image.layers import Layers
    from formats.devices.device import BlockDevice

    AnyPath = str | os.PathLike[str]
    Progress = Callable[[int, int], None]

_Found = TypeVar("_Found")

#: How often what changed is copied again before the store is called too busy.
PASSES = 10
#: What comes of reading tables and ends that are being changed.
_PASSING = (FormatError, CorruptBlobError)
_PIECE = 1 << 20


@contextmanager
def new_copy(
    resources: ExitStack, layers: Layers, destination: AnyPath, overwrite: bool
) -> Iterator[BlockDevice]:
    """Yield an empty file, or an empty disk in one, as large as what is copied."""
    size = 0 if layers.qcow2 else layers.file.size
    with new_file(destination, size, overwrite=overwrite) as file:
        if layers.qcow2 is None:
            yield file
        else:
            from blobstore.image.qcow2 import make_copy  # noqa: PLC0415  not for raw images

            with ExitStack() as opened:
                yield make_copy(opened, file, layers.qcow2, layers.file).device
    resources.push(file)


class Copier:
    """Copies a file or disk, then again what changed meanwhile."""

    def __init__(self, layers: Layers, copy: BlockDevice, progress: Progress | None) -> None:
        """Prepare to copy.

        Args:
            layers: Of the image.
            copy: As long as its file or disk, and all zeros; becomes longer as that does.
            progress: Called with bytes done and in all.
        """
        self._layers, self._copy = layers, copy
        self._source = layers.device
        self._start = 0 if layers.volume is None else layers.volume.header.data_offset
        self._progress = progress

    def run(self) -> None:
        before = self._scan()
        self._copy_all()
        last: StorageError | None = None
        for _ in range(PASSES):
            after = self._scan()
            try:
                if not self._copy_changes(before, after):
                    return
            except _PASSING as error:
                last = error  # it grew, or its tables changed: what was to be copied still is
                continue
            before = after
        raise StoreBusyError(
            f"the store changed in each of {PASSES} passes",
            hint="try again when its users write less",
        ) from last

    def _copy_all(self) -> None:
        for attempt in range(1, PASSES + 1):
            data = self._source.data_ranges(0, self._source.size)
            try:
                carry(
                    [(self._source, self._copy)], data, hole_size=HOLE_SIZE, progress=self._progress
                )
            except _PASSING as error:
                if attempt == PASSES:
                    raise _changing(error) from error
                self._follow()
            else:
                return

    def _copy_changes(self, before: Scan, after: Scan) -> bool:
        front, items = self._copy_front(), self._copy_items(before, after)
        return front or items

    def _copy_items(self, before: Scan, after: Scan) -> bool:
        changed = False
        for offset, length in differences(before, after):
            self._copy_range(self._start + offset, length)
            changed = True
        return changed

    def _scan(self) -> Scan:
        """Read the heads as they are at one moment."""
        return self._read_anew(lambda: scan(self._layers.payload), _has_no_damage)

    def _follow(self) -> None:
        self._read_anew(lambda: None, lambda _: True)

    def _read_anew(self, read: Callable[[], _Found], settled: Callable[[_Found], bool]) -> _Found:
        """Take the image as it is now, with what was added to it."""
        found = LayersLock(self._layers).read_anew(read, settled)
        if self._source.size > self._copy.size:
            self._copy.resize(self._source.size)
        return found

    def _copy_front(self) -> bool:
        """Copy what lies before the container, if key operations changed it."""
        changed = False
        for offset in range(0, self._start, _PIECE):
            size = min(_PIECE, self._start - offset)
            if read_exactly(self._source, offset, size) != read_exactly(self._copy, offset, size):
                self._copy_range(offset, size)
                changed = True
        return changed

    def _copy_range(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, _PIECE):
            size = min(_PIECE, offset + length - at)
            self._copy.write(at, read_exactly(self._source, at, size))


def _changing(error: StorageError) -> StoreBusyError:
    return StoreBusyError(f"the image changed while it was copied: {error}")


def _has_no_damage(found: Scan) -> bool:
    return None not in found.copies and not any(
        isinstance(item, Damaged) for _, item in found.items
    )


def differences(before: Scan, after: Scan) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what changed between two scans, in the container."""
    if before.copies != after.copies:
        yield 0, 2 * after.header.block_size
    known = dict(before.items)
    for offset, item in after.items:
        if known.get(offset) != item:
            yield offset, item.length
