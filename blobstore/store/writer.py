"""What can be changed in an open store."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blobstore.errors import BlobTooLargeError
from blobstore.store.reader import StoreReader
from formats.errors import ReadOnlyError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.container.open_container import OpenContainer
    from blobstore.image.image import Image, ImageLock
    from blobstore.store.description import SectionInfo
    from blobstore.store.transaction import Transaction
    from blobstore.store.windows.window import Window
    from formats.devices.device import ReadableBuffer


class _Block:
    """Stands for the block of a transaction: it is gone when that is left."""

    __slots__ = ("__weakref__",)


def _no_block() -> object:
    return None


class StoreWriter(StoreReader):
    """The writing half of `blobstore.Store`."""

    def __init__(
        self,
        container: OpenContainer,
        image: Image | None,
        *,
        read_only: bool,
        released: bool,
        unlocked: ImageLock | None = None,
    ) -> None:
        """Serve ``container``, which lies in ``image``.

        Args:
            container: Recovered, if it is to be written.
            image: What it lies in, if it is known.
            read_only: Whether writing is refused for good.
            released: Whether it is refused until the image is taken over.
            unlocked: How the image is read anew, if others may write to it.
        """
        super().__init__(container, image, unlocked=unlocked)
        self._read_only = read_only
        self._released = released
        self._transaction: Transaction | None = None
        self._transaction_block: Callable[[], object] = _no_block

    @property
    def read_only(self) -> bool:
        """Whether the store was opened for reading only."""
        return self._read_only

    def put(self, name: str, data: ReadableBuffer) -> None:
        """Replace the blob of a section, atomically and durably.

        Args:
            name: A registered section.
            data: The whole blob; not modified, and not kept.

        Raises:
            BlobNotFoundError: There is no such section.
            BlobTooLargeError: ``data`` is larger than the section's worst case.
            ReadOnlyError: The store is open for reading only.
            DamagedHeadError: A head is damaged; nothing is written around it.
            DeviceError: The write failed. The section has the old blob or the
                new one, which of them shows when the store is opened anew.
            PoisonedStoreError: An earlier write failed.
            ValueError: The section has an open window.
        """
        from blobstore.container.commit import Change, commit  # noqa: PLC0415  not to read

        # What `transaction` does for one section, without its bookkeeping.
        blob = memoryview(data).cast("B")
        with self._lock:
            self._require_writable()
            section = self._lookup.find(name)
            if len(blob) > section.max_size:
                raise BlobTooLargeError.of(name, len(blob), section.max_size)
            self._lookup.require_no_window(name)
            commit(self._container, [Change(section, name, blob=blob, replaces=section)])

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Make several changes as one: all of them or none, also after a crash.

            with store.transaction() as changes:
                changes.put("tpm-permanent-state", permanent)
                changes.put("tpm-volatile-state", volatile)

        Nothing is written before the end of the block, and nothing at all if it
        is left by an exception. Other threads wait meanwhile.

        Raises:
            ReadOnlyError: The store is open for reading only.
            ValueError: Another transaction is under way in this thread.
            Exception: At the end of the block as `Transaction.commit` says.
        """
        from blobstore.store.transaction import Transaction  # noqa: PLC0415  not to read

        with self._lock:
            self._require_writable()
            transaction = Transaction(self._container, self._lookup)
            # It lives as long as this block, whatever ends it and wherever.
            block = _Block()
            self._transaction = transaction
            self._transaction_block = weakref.ref(block)
            try:
                yield transaction
                transaction.commit()
            finally:
                transaction.abandon()

    def register(
        self,
        name: str,
        max_size: int,
        kind: str = "blob",
        *,
        copies: int | None = None,
        type: str = "",  # noqa: A002  the field's name in the format
    ) -> SectionInfo:
        """Make sure that a section exists and is large enough.

        What a device calls when it starts. It creates the section, or finds it,
        or moves it to a larger place; it never makes one smaller. The image
        grows if it must and can.

        Args:
            name: 1 to 200 bytes of UTF-8 without control characters.
            max_size: Worst-case size of the blob, in bytes.
            kind: ``"blob"``, or ``"window"`` for devices that write like disks.
            copies: 2 (the default) makes puts atomic; 1 is for content that is
                only read. None takes an existing section as it is.
            type: What the blob is, for tools; used when the section is created.

        Raises:
            ValueError: An argument is out of bounds.
            SectionMismatchError: It exists as another kind or with other copies.
            NoSpaceError: There is no room for it.
            ReadOnlyError: It would have to be made or moved and must not be.
            CorruptBlobError: It is corrupt and would have to be moved, or the
                name is not found in a damaged directory.
            DeviceError, PoisonedStoreError: As in `put`.
        """
        from blobstore.store.transaction import Transaction  # noqa: PLC0415  not to read

        with self._lock:
            self._require_open()
            transaction = Transaction(self._container, self._lookup)
            transaction.register(name, max_size, kind, copies=copies, type=type)
            if transaction.changes:
                self._require_writable()
                transaction.commit()
            return self.section(name)

    def window(
        self,
        name: str,
        *,
        in_place: bool = False,
        idle: float = 0.05,
        longest: float = 1.0,
        accept_unverified: bool = False,
    ) -> Window:
        """Open a section of kind ``"window"`` as a device of exactly its worst-case size.

        Writes are buffered and become commits: when the window is flushed or
        closed, after a pause, or when they have waited for long. A crash leaves
        what one of these commits left. The content is kept in memory meanwhile.
        `get` and backups see what was committed last; nothing else may change
        the section before the window is closed. Closing the store closes it.

        In place, writes go to the image directly and a flush makes them durable,
        as on a disk; the window is committed when it is closed. After a crash it
        is unverified: `get` raises `CorruptBlobError`, and with ``previous``
        returns what it was when it was opened. Nothing authenticates what lies in
        place: what is committed at the end is what is found there, whoever wrote it,
        also if that was somebody else with access to the image. `SectionInfo` says
        since when that was so (``in_place_since``), and `verify` notes it. So do not
        write in place what must not be falsified.

        On a store open for reading, or released, and of a section of one copy, the
        window takes no writes.

        Args:
            name: A registered section; it has at most one window at a time.
            in_place: Do not buffer.
            idle: Seconds without a write after which is committed: longer than
                the gaps inside a burst of writes.
            longest: Seconds after the first uncommitted write at which is
                committed in any case: what a crash can take. A commit computes
                a mac over the whole window, so it should not be much shorter.
            accept_unverified: Go on with what is there if the section was
                being written in place when the store was last used.

        Raises:
            SectionMismatchError: It is no window, or has one copy and was to be
                written in place.
            ValueError: It has an open window already.
            BlobNotFoundError, CorruptBlobError, DeviceError: As in `get`.
            ReadOnlyError, PoisonedStoreError: Opening in place makes commits.
        """
        from blobstore.store.windows.window import Host, open_window  # noqa: PLC0415  rarely used

        def read() -> Window:
            host = Host(
                self._container,
                self._lookup,
                self._lock,
                self._read_only or self._released or not self._container.writable,
                self._require_writable,
            )
            return open_window(
                host,
                name,
                in_place=in_place,
                idle=idle,
                longest=longest,
                accept_unverified=accept_unverified,
            )

        return self.at_one_moment(read)

    def resize(self, name: str, max_size: int) -> None:
        """Change the worst-case size of a section, to more or to less.

        Raises:
            BlobTooLargeError: Its blob is larger than ``max_size``.
            NoSpaceError: There is no room to move it to.
            BlobNotFoundError, CorruptBlobError, ReadOnlyError, DeviceError,
            PoisonedStoreError: As in `put`.
        """
        with self.transaction() as changes:
            changes.resize(name, max_size)

    def rename(self, name: str, new: str) -> None:
        """Give a section another name.

        Raises:
            SectionExistsError: There is a section of that name already.
            BlobNotFoundError, CorruptBlobError, ReadOnlyError, DeviceError,
            PoisonedStoreError: As in `put`.
        """
        with self.transaction() as changes:
            changes.rename(name, new)

    def restore(self, name: str) -> None:
        """Make the previous blob of a section its newest one again, by a new commit.

        Raises:
            NoPreviousBlobError: As in `get` with ``previous``.
            DamagedHeadError: A head is damaged: repair the store first.
            BlobNotFoundError, ReadOnlyError, DeviceError, PoisonedStoreError:
                As in `put`.
        """
        with self._lock:
            self.put(name, self.get(name, previous=True))

    def delete(self, name: str) -> None:
        """Delete a section and its blob; its space is free again.

        The blob is not overwritten at once: what lies in free space can be read
        by whoever can open the volume.

        Raises:
            BlobNotFoundError, ReadOnlyError, DeviceError, PoisonedStoreError:
                As in `put`.
        """
        with self.transaction() as changes:
            changes.delete(name)

    def grow(self, size: int) -> None:
        """Make the container, and the image around it, larger.

        Args:
            size: Bytes the container is to have at least; it never gets less.

        Raises:
            NoSpaceError: The image cannot grow.
            ReadOnlyError, DamagedHeadError, DeviceError, PoisonedStoreError:
                As in `put`.
        """
        with self._lock:
            self._require_writable()
            total = -(-size // self._container.block_size) * self._container.block_size
            if total > self._container.total:
                from blobstore.container.growth import grow  # noqa: PLC0415  rarely used

                grow(self._container, total)

    def _is_in_transaction(self) -> bool:
        """Say whether a transaction is under way in this thread.

        Others wait for the lock. One that an interrupt cut off before it could
        say that it has ended is over when its block is gone.
        """
        transaction = self._transaction
        return bool(transaction and not transaction.ended and self._transaction_block())

    def _end_transaction(self) -> None:
        if self._transaction is not None:
            self._transaction.abandon()

    def _require_alone(self) -> None:
        self._require_writable()
        if self._lookup.windows:
            raise ValueError("close the windows of the store first")

    def _require_writable(self) -> None:
        self._require_open()
        if self._is_in_transaction():
            raise ValueError("a transaction is under way: make changes through it")
        if self._released:
            raise ReadOnlyError("the image was released: take it over before writing")
        if self._read_only:
            raise ReadOnlyError("the store is open for reading only")
        if not self._container.writable:
            raise UnsupportedError(
                "the container has features without which it must not be written [C15]",
                feature="unknown read-only-compatible features",
            )
