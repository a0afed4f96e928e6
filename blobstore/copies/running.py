"""Copying the image of a store that this process has open, at one moment of it (O85, O86).

What makes it differ from the backup of an image that others use is that this process knows
who writes. A first copy is made while they do, and what changed meanwhile is copied again
until that is little. Then the store is held, windows are flushed, and the rest is copied.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Final, TypeVar

from blobstore.container.open_container import open_container
from blobstore.container.scan import scan
from blobstore.container.verification import verify
from blobstore.copies.copier import PASSES, Copier, differences, new_copy
from blobstore.errors import StoreBusyError
from blobstore.image.creation import existing_images_refused
from blobstore.image.files import is_same_file
from blobstore.store.snapshots import put_in_order
from formats.container.model import State
from formats.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from blobstore.container.scan import Scan
    from blobstore.copies.copier import Progress
    from blobstore.image.layers import Layers
    from blobstore.store.session import Session
    from blobstore.store.store import Store
    from formats.devices.device import BlockDevice

_Found = TypeVar("_Found")

#: Bytes that may be left to copy when the store is held.
_LITTLE: Final = 1 << 20


def backup_store(
    store: Store,
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    at_rest: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> int:
    """Copy the image that an open store lies in, as it is at one moment.

    Args:
        store: Opened by its path. Other threads wait only while the last of it is copied.
        destination: The copy, which appears whole or not at all.
        overwrite: Replace what is there.
        progress: Called with bytes done and in all; what it raises ends the copying.
        at_rest: Keeps devices from writing in its block, with what they wrote committed.

    Returns:
        The generation of the store in the copy.

    Raises:
        ImageExistsError: ``destination`` exists.
        ValueError: It is the image itself, or its header; or a transaction is under way.
        UnsupportedError: The store was opened on a device, or without the lock.
        StoreBusyError: The copy is not what its source is.
        DeviceError, PoisonedStoreError: The image cannot be read, the copy not written,
            or what was written to the store not be made durable.
    """
    session = store.session
    session.require_open()
    session.require_still()
    layers = session.layers
    if layers is None or session.unlocked:
        raise UnsupportedError(
            "only a store that was opened by its path, with the lock, is backed up as it is open",
            feature="backups of such stores",
            hint="back the image up by its path",
        )
    if any(one and is_same_file(destination, one) for one in (layers.path, layers.header_path)):
        raise ArgumentError(f"{destination} is the image itself, or its header")
    with (
        ExitStack() as stack,
        existing_images_refused(),
        new_copy(stack, layers, destination, overwrite) as copy,
    ):
        generation = _StoreCopier(session, layers, copy, progress).run_at(at_rest)
        volume = layers.volume
        view = copy if volume is None else stack.enter_context(volume.over(copy))
        _require_same_health(session, view)
        copy.flush()
    return generation


class _StoreCopier(Copier):
    """Copies what this process has open; nothing else changes it."""

    def __init__(
        self, session: Session, layers: Layers, copy: BlockDevice, progress: Progress | None
    ) -> None:
        super().__init__(layers, copy, progress)
        self._session = session

    def run_at(self, at_rest: Callable[[], AbstractContextManager[None]]) -> int:
        before = self._scan()
        self._copy_all()
        for _ in range(PASSES):
            after = self._scan()
            if sum(length for _, length in differences(before, after)) <= _LITTLE:
                break
            self._copy_items(before, after)
            before = after
        session = self._session
        with at_rest(), session.lock:
            session.require_open()
            if not session.read_only:
                put_in_order(session)
            if session.layers is not self._layers:
                raise StoreBusyError(
                    "the image was re-encrypted while it was copied [O215]", hint="try again"
                )
            self._copy_items(before, self._scan())
            self._copy_in_place()
            generation = session.container.directory.counted
        # Keys are not the store's, and may change at any time. A pass that finds nothing
        # different has seen one header.
        for _ in range(PASSES):
            if not self._copy_front():
                return generation
        raise StoreBusyError(
            f"the LUKS header changed in each of {PASSES} passes", hint="try again"
        )

    def _copy_in_place(self) -> None:
        """Copy windows that are written in place, whose heads do not tell that they changed."""
        lookup = self._session.lookup
        for name in lookup.windows:
            copy = lookup.find(name, damaged=True).newest
            if copy.version.state is State.IN_PLACE:
                self._copy_range(self._start + copy.offset, copy.length)

    def _scan(self) -> Scan:
        return self._read_anew(lambda: scan(self._layers.payload), lambda _: True)

    def _read_anew(self, read: Callable[[], _Found], _settled: Callable[[_Found], bool]) -> _Found:
        with self._session.lock:
            self._session.require_open()
            found = read()
            if self._source.size > self._copy.size:
                self._copy.resize(self._source.size)
        return found


def _require_same_health(session: Session, copy: BlockDevice) -> None:
    """Check that a copy has no problem that its source does not have."""
    problems = {each.message for each in verify(open_container(copy, allow_damaged=True)).problems}
    if problems:
        with session.lock:
            session.require_open()
            problems -= {each.message for each in verify(session.container).problems}
    if problems:
        raise StoreBusyError(f"the copy is not what its source is: {min(problems)}")
