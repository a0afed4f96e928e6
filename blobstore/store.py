"""The store: named blobs that survive, one object per open container."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from blobstore.commit import Change, commit
from blobstore.growth import grow
from blobstore.lookup import Lookup
from blobstore.opened import OpenContainer, open_container
from blobstore.policy import require_pinned, require_protection
from blobstore.reader import StoreReader
from blobstore.recovery import close, recover
from blobstore.transaction import Transaction, too_large
from formats.errors import ReadOnlyError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import TracebackType

    from blobstore.description import Digest, SectionInfo
    from blobstore.image import Image, ImageLock
    from blobstore.scrub import Scrubbed
    from blobstore.verification import Report
    from blobstore.window import Window
    from formats.device import BlockDevice, ReadableBuffer


class Store(StoreReader):
    """An open store. `blobstore.open` and `blobstore.create` make them.

    All methods may be called from several threads; a put is atomic and durable
    when it returns. A closed store raises `ValueError`.
    """

    def __init__(
        self,
        container: OpenContainer,
        image: Image | None,
        *,
        read_only: bool,
        resources: ExitStack,
        image_lock: ImageLock | None = None,
        released: bool = False,
    ) -> None:
        """Serve ``container``; use the functions that open stores instead."""
        super().__init__(container, image)
        self._read_only = read_only
        self._resources = resources
        self._image_lock = image_lock
        self._released = released
        self._in_transaction = False

    @classmethod
    def on_device(
        cls,
        device: BlockDevice,
        *,
        encrypted: bool,
        with_secret: bool = False,
        read_only: bool = False,
        allow_unprotected: bool = False,
        expect_digest: Digest | None = None,
        at_least_generation: int = 0,
        image: Image | None = None,
        resources: ExitStack | None = None,
        image_lock: ImageLock | None = None,
        released: bool = False,
    ) -> Self:
        """Open the container that starts at byte 0 of ``device``.

        Args:
            device: Stays the caller's to close, after the store.
            encrypted: Whether the device is encrypted below.
            with_secret: Whether the user gave a secret.
            read_only: Write nothing, recovery included.
            allow_unprotected: Accept a container that is less protected than
                its user has reason to believe (C25).
            expect_digest: The state it must be in, as `digest` once said.
            at_least_generation: The generation it must have reached.
            image: What the device lies in, if it is known.
            resources: Closed with the store; the caller's if this raises.
            image_lock: The lock that `release` and `take_over` deal with.
            released: Whether that lock is not held yet.

        Raises:
            FormatError, UnsupportedError, DeviceError: There is none, or it
                cannot be read.
            CorruptStoreError: Its parts contradict each other.
            PolicyError: Its protection is not what it should be (C25).
            PinMismatchError: It is not what ``expect_digest`` and
                ``at_least_generation`` ask for.
        """
        container = open_container(device)
        require_pinned(container.directory, expect_digest, at_least_generation)
        if not allow_unprotected:
            require_protection(container.header, encrypted=encrypted, with_secret=with_secret)
        if not (read_only or released) and container.writable:
            recover(container)
        return cls(
            container,
            image,
            read_only=read_only,
            resources=resources or ExitStack(),
            image_lock=image_lock,
            released=released,
        )

    @property
    def read_only(self) -> bool:
        """Whether the store was opened for reading only."""
        return self._read_only

    # ----------------------------------------------------------- changes

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
        # What `transaction` does for one section, without its bookkeeping.
        blob = memoryview(data).cast("B")
        with self._lock:
            self._require_writable()
            section = self._lookup.find(name)
            if len(blob) > section.max_size:
                raise too_large(name, len(blob), section.max_size)
            self._lookup.require_no_window(name)
            with self._lookup.changing((name,)):
                change = Change(section.older, section.name, blob=blob, replaces=section.newest)
                commit(self._container, [change])

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
        with self._lock:
            self._require_writable()
            transaction = Transaction(self._container, self._lookup)
            self._in_transaction = True
            try:
                yield transaction
            except BaseException:
                transaction.abandon()
                raise
            finally:
                self._in_transaction = False
            transaction.commit()

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
        returns what it was when it was opened.

        On a store open for reading, and of a section of one copy, the window
        takes no writes.

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
        from blobstore.window import Host, open_window  # noqa: PLC0415  rarely used

        with self._lock:
            self._require_open()
            host = Host(
                self._container,
                self._lookup,
                self._lock,
                self._read_only or not self._container.writable,
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

    def release(self) -> None:
        """Let another process take the image over, as in a live migration.

        Everything is recorded as durable and the image's lock is given up. The
        volume stays unlocked; what is read is what was there at this moment, and
        writing is refused until `take_over`.

        Raises:
            ValueError: The store was not opened by path for writing, or has open
                windows.
            DeviceError, PoisonedStoreError: As in `close`; the lock is kept.
        """
        with self._lock:
            self._require_writable()
            lock = self._require_lock()
            if self._lookup.windows:
                raise ValueError("close the windows of the store first")
            close(self._container)
            lock.release()
            self._released = True

    def take_over(self) -> None:
        """Take the image's lock and what its store has become meanwhile.

        For a store that was opened with ``released``, or that `release` gave up.

        Raises:
            DeviceBusyError: Another process has not released it yet; nothing
                changed, and it can be tried again.
            CorruptStoreError, FormatError, DeviceError: As in `blobstore.open`.
        """
        with self._lock:
            self._require_open()
            lock = self._require_lock()
            if not self._released:
                return
            lock.acquire()
            try:
                container = open_container(self._container.device)
                if container.writable:
                    recover(container)
            except BaseException:
                lock.release()
                raise
            self._container, self._lookup = container, Lookup(container)
            self._released = False

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
                grow(self._container, total)

    # ------------------------------------------------------- maintenance

    def repair(
        self,
        *,
        accept_previous: Collection[str] = (),
        accept_lost: bool = False,
        names: Collection[str] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Repair damaged heads and header copies, then verify.

        Only what something proves is repaired (`blobstore.repair`): no blob that
        verifies and counts is lost, and none is answered with an older one.

        Args:
            accept_previous: Sections that may go back to the copy that is left,
                though nothing proves that it is the newest. A human's decision.
            accept_lost: Give up sections of which not even a name is left.
            names: What sections may have been renamed to: the search for what a
                lost head said tries these as well.
            progress: As in `verify`.

        Returns:
            What was done, and what is wrong now.

        Raises:
            ValueError: The store has open windows.
            ReadOnlyError, DeviceError, PoisonedStoreError: As in `put`.
        """
        from blobstore.repair import repair, report  # noqa: PLC0415  rarely used

        with self._lock:
            self._require_alone()
            done = repair(
                self._container,
                accept_previous=_as_names(accept_previous),
                accept_lost=accept_lost,
                names=_as_names(names),
            )
            if done.container is not self._container:
                self._container, self._lookup = done.container, Lookup(done.container)
            return report(done, self.verify(progress))

    def scrub(self, progress: Callable[[int, int], None] | None = None) -> Scrubbed:
        """Write both copies of every section anew, and zeros where no section is.

        Then both copies of a section hold its newest blob, what was put before
        or deleted cannot be read any more, and `restore` has nothing to go back
        to. Sections that do not verify are left as they are.

        Args:
            progress: Called now and then with bytes done and bytes in all.

        Raises:
            ValueError: The store has open windows.
            ReadOnlyError, DamagedHeadError, DeviceError, PoisonedStoreError:
                As in `put`.
        """
        from blobstore.scrub import scrub  # noqa: PLC0415  rarely used

        with self._lock:
            self._require_alone()
            return scrub(self._container, self._lookup, progress)

    # -------------------------------------------------------------- end

    def close(self) -> None:
        """Close all windows, record that everything is durable, and release the image.

        Raises:
            DeviceError: The record could not be written. Nothing is lost; the
                next open finds a store that was not closed. Or a window could
                not be committed; this, and `PoisonedStoreError`, are as in
                `Window.close`.
            ValueError: A transaction is under way in this thread.
        """
        with self._lock:
            if self._closed:
                return
            if self._in_transaction:
                raise ValueError("a transaction is under way: end it first")
            with self._resources, ExitStack() as ending:
                ending.callback(self._finish)
                for window in self._lookup.windows.values():
                    ending.callback(window.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ---------------------------------------------------------- internal

    def _finish(self) -> None:
        self._closed = True
        if not (self._read_only or self._released) and self._container.writable:
            close(self._container)

    def _require_lock(self) -> ImageLock:
        if self._image_lock is None or self._read_only:
            raise ValueError("only a store opened by its path for writing can change hands")
        return self._image_lock

    def _require_alone(self) -> None:
        self._require_writable()
        if self._lookup.windows:
            raise ValueError("close the windows of the store first")

    def _require_writable(self) -> None:
        self._require_open()
        if self._in_transaction:
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


def _as_names(names: Collection[str]) -> Collection[str]:
    """Return a set of names, also for a single one."""
    return {names} if isinstance(names, str) else set(names)
