"""The store: named blobs that survive, one object per open container."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from blobstore.container.durable import interrupt_first
from blobstore.container.open_container import OpenContainer, is_settled, open_container
from blobstore.store.lookup import Lookup
from blobstore.store.policy import follow_store, require_pinned, require_protection
from blobstore.store.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from blobstore.container.scrub import Scrubbed
    from blobstore.container.verification import Report
    from blobstore.image.image import Image, ImageLock
    from blobstore.store.description import Digest
    from formats.container.model import Header
    from formats.devices.device import BlockDevice


class Store(StoreWriter):
    """An open store. `blobstore.open` and `blobstore.create` make them.

    All methods may be called from several threads; a put is atomic and durable
    when it returns. A closed store raises `ValueError`, and one that was opened
    before a fork raises `ForkedProcessError` in the child (C64).
    """

    def __init__(
        self,
        container: OpenContainer,
        image: Image | None,
        *,
        read_only: bool,
        resources: ExitStack,
        require_protection: Callable[[Header], None],
        image_lock: ImageLock | None = None,
        released: bool = False,
        unlocked: bool = False,
    ) -> None:
        """Serve ``container``; use the functions that open stores instead."""
        super().__init__(
            container,
            image,
            read_only=read_only,
            released=released,
            unlocked=image_lock if unlocked else None,
        )
        self._resources = resources
        self._require_protection = require_protection
        self._image_lock = image_lock

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
        allow_damaged: bool = False,
        image: Image | None = None,
        resources: ExitStack | None = None,
        image_lock: ImageLock | None = None,
        released: bool = False,
        unlocked: bool = False,
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
            allow_damaged: Read blobs whose records verify also where damage
                leaves unknown whether they are the newest (C67). A human's decision.
            image: What the device lies in, if it is known.
            resources: Closed with the store; the caller's if this raises.
            image_lock: The lock that `release` and `take_over` deal with.
            released: Whether that lock is not held yet.
            unlocked: Whether others may be writing, so that it has to hold still (C66).

        Raises:
            FormatError, UnsupportedError, DeviceError: There is none, or it
                cannot be read.
            CorruptStoreError: Its parts contradict each other.
            PolicyError: Its protection is not what it should be (C25).
            PinMismatchError: It is not what ``expect_digest`` and
                ``at_least_generation`` ask for.
            DamagedHeadError: Damage leaves unknown whether it is that.
        """

        def protected(header: Header) -> None:
            if not allow_unprotected:
                require_protection(header, encrypted=encrypted, with_secret=with_secret)

        def opened() -> OpenContainer:
            container = open_container(device, allow_damaged=allow_damaged)
            require_pinned(container.directory, expect_digest, at_least_generation)
            protected(container.header)
            return container

        if unlocked and image_lock:
            container = image_lock.read_anew(opened, is_settled)
        else:
            container = opened()
        if not (read_only or released) and container.writable:
            from blobstore.container.recovery import recover  # noqa: PLC0415  not to read

            recover(container)
        return cls(
            container,
            image,
            read_only=read_only,
            resources=resources or ExitStack(),
            require_protection=protected,
            image_lock=image_lock,
            released=released,
            unlocked=unlocked,
        )

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

        Only what something proves is repaired (`blobstore.container.repair.repair`): no blob that
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
        from blobstore.container.repair.repair import repair, report  # noqa: PLC0415  rarely used

        with self._lock:
            self._require_alone()
            done = repair(
                self._container,
                accept_previous=as_names(accept_previous),
                accept_lost=accept_lost,
                names=as_names(names),
            )
            if done.container is not self._container:
                self._container, self._lookup = done.container, Lookup(done.container)
            return report(done, self.verify(progress))

    def compact(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Move sections together, so that free space is in fewer and larger pieces.

        The image does not get smaller. Previous blobs of what is moved are gone.

        Args:
            progress: Called with sections looked at and in all.

        Returns:
            How many sections were moved.

        Raises:
            ValueError: The store has open windows.
            ReadOnlyError, DamagedHeadError, DeviceError, PoisonedStoreError:
                As in `put`.
        """
        from blobstore.container.compaction import compact  # noqa: PLC0415  rarely used

        with self._lock:
            self._require_alone()
            return compact(self._container, progress)

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
        from blobstore.container.scrub import scrub  # noqa: PLC0415  rarely used

        with self._lock:
            self._require_alone()
            return scrub(self._container, progress)

    # ---------------------------------------------------------- handover

    def release(self) -> None:
        """Let another process take the image over, as in a live migration.

        Everything is recorded as durable and the image's lock is given up. The
        volume stays unlocked; what is read is what was there at this moment, or what
        another process made of it since (C66), and writing is refused until `take_over`.

        Raises:
            ValueError: The store was not opened by path for writing, or has open
                windows.
            DeviceError, PoisonedStoreError: As in `close`; the lock is kept.
        """
        from blobstore.container.recovery import close  # noqa: PLC0415  not to read

        with self._lock:
            self._require_writable()
            lock = self._require_lock()
            if self._lookup.windows:
                raise ValueError("close the windows of the store first")
            close(self._container)
            lock.release()
            self._released, self._unlocked = True, lock

    def take_over(
        self, *, expect_digest: Digest | None = None, at_least_generation: int = 0
    ) -> None:
        """Take the image's lock and what its store has become meanwhile (C65).

        For a store that was opened with ``released``, or that `release` gave up. It must
        be the same store in the same file, no less protected, and no older than it was
        known here: all that was asked when it was opened is asked again, but for
        ``expect_digest``: what the digest is now only the process that had it can tell.

        Args:
            expect_digest: What `digest` said there after the last change.
            at_least_generation: The generation that it must have reached.

        Raises:
            DeviceBusyError: Another process has not released it yet; nothing
                changed, and it can be tried again.
            ImageReplacedError: Another file has the image's name by now: open that.
            PinMismatchError: It is older than it was known here, or another store, or
                not what the arguments ask for.
            PolicyError: It is less protected than it should be (C25), or encrypted in
                another way than when it was opened.
            ValueError: The store has open windows.
            CorruptStoreError, FormatError, DeviceError: As in `blobstore.open`.
        """
        from blobstore.container.recovery import recover  # noqa: PLC0415  not to read

        with self._lock:
            self._require_open()
            lock = self._require_lock()
            if not self._released:
                require_pinned(self._container.directory, expect_digest, at_least_generation)
                return
            if self._lookup.windows:
                raise ValueError("close the windows of the store first")
            lock.acquire()
            try:
                container = follow_store(self._container)
                self._require_protection(container.header)
                require_pinned(container.directory, expect_digest, at_least_generation)
                if container.writable:
                    recover(container)
            except BaseException:
                lock.release()
                raise
            self._container, self._lookup = container, Lookup(container)
            self._released, self._unlocked = False, None

    def _require_lock(self) -> ImageLock:
        if self._image_lock is None or self._read_only:
            raise ValueError("only a store opened by its path for writing can change hands")
        return self._image_lock

    # -------------------------------------------------------------- end

    def close(self) -> None:
        """Close all windows, record that everything is durable, and release the image.

        A transaction that is under way in this thread is abandoned: nothing of
        it was written. Closing again finishes what was interrupted.

        Raises:
            DeviceError: The record could not be written. Nothing is lost; the
                next open finds a store that was not closed. Or a window could
                not be committed; this, and `PoisonedStoreError`, are as in
                `Window.close`.
        """
        if self._lock.owner.is_other:
            return  # all this is the parent's to do
        with self._lock:
            try:
                if not self._closed:
                    self._end_transaction()
                    with ExitStack() as ending:
                        ending.callback(self._finish)
                        for window in list(self._lookup.windows.values()):
                            ending.callback(window.close)
            finally:
                self._closed = True
                self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with interrupt_first(error):
            self.close()

    def _finish(self) -> None:
        if not (self._read_only or self._released) and self._container.writable:
            from blobstore.container.recovery import close  # noqa: PLC0415  not to read

            close(self._container)


def as_names(names: Collection[str]) -> Collection[str]:
    """Return a set of names, also for a single one."""
    return {names} if isinstance(names, str) else set(names)
