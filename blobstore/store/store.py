"""The store: named blobs that survive, one object per open container.

This module is the whole of what users call, with the documentation that ``help(Store)``
shows: most of its lines are that, which is why it is so long. What a store consists of
is in `blobstore.store.session`; what its methods do, in the modules that they import.

They import these when they are called, for most programs only get a blob or put one,
and each module that is loaded delays them (``tests/cli/test_start_up.py``).
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self, TypeVar

from blobstore.container.open_container import OpenContainer, is_settled, open_container
from blobstore.errors import BlobNotFoundError, BlobTooLargeError
from blobstore.store.reliance import require_pinned, require_protection
from blobstore.store.session import Closing, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    import luks
    from blobstore.container.regions import Region
    from blobstore.container.scrub import Scrubbed
    from blobstore.container.verification import Report
    from blobstore.image.image import Image, ImageLock
    from blobstore.image.info import ImageInfo
    from blobstore.image.layers import Layers
    from blobstore.store.changes import ChangeWatch
    from blobstore.store.description import SectionInfo, StateDigest, StoreInfo
    from blobstore.store.payload import Payload
    from blobstore.store.transaction import Transaction
    from blobstore.store.windows.sharing import SharedWindow
    from blobstore.store.windows.window import Host, Window
    from formats.container.model import ContainerHeader
    from formats.devices.device import BlockDevice, ReadableBuffer
    from formats.qcow2.snapshot_table import Snapshot, SnapshotKey

_Result = TypeVar("_Result")


class _Block:
    """Stands for the block of a transaction: it is gone when that is left."""

    __slots__ = ("__weakref__",)


class Store(Closing):
    """An open store. `blobstore.open` and `blobstore.create` make them.

    All methods may be called from several threads; a put is atomic and durable
    when it returns. A closed store raises `ValueError`, and one that was opened
    before a fork raises `ForkedProcessError` in the child (C64).
    """

    def __init__(self, session: Session) -> None:
        """Serve what ``session`` holds; use the functions that open stores instead."""
        self._session = session

    @classmethod
    def on_device(
        cls,
        device: BlockDevice,
        *,
        encrypted: bool,
        with_secret: bool = False,
        read_only: bool = False,
        allow_unprotected: bool = False,
        expect_digest: StateDigest | None = None,
        at_least_generation: int = 0,
        allow_damaged: bool = False,
        image: Image | None = None,
        resources: ExitStack | None = None,
        image_lock: ImageLock | None = None,
        layers: Layers | None = None,
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
            layers: What is open of the image; its snapshots and its LUKS header need that.
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

        def protected(header: ContainerHeader) -> None:
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
            from blobstore.container.recovery import recover  # noqa: PLC0415  a get does not need it

            recover(container)
        return cls(
            Session(
                container,
                image,
                image_lock=image_lock,
                layers=layers,
                read_only=read_only,
                released=released,
                unlocked=unlocked,
                require_protection=protected,
                resources=resources or ExitStack(),
            )
        )

    @property
    def image(self) -> Image | None:
        """What the container lies in; None if it was opened on a device."""
        return self._session.image

    @property
    def session(self) -> Session:
        """What the store consists of; for this package, and subject to change."""
        return self._session

    @property
    def read_only(self) -> bool:
        """Whether the store was opened for reading only."""
        return self._session.read_only

    # ----------------------------------------------------------- reading

    def get(self, name: str, *, previous: bool = False) -> bytes:
        """Return the blob of a section.

        Args:
            name: The section.
            previous: Return the blob before the newest instead, or what is left
                where damage took one copy. It is verified like any other, but
                nothing says how old it is; ask for it only on a human's behalf.

        Raises:
            NoPreviousBlobError: There is no such blob, or it does not verify.
            BlobNotFoundError: There is no such section, for certain.
            UnwrittenBlobError: It was registered and never written.
            CorruptBlobError: What was durable no longer verifies.
            DamagedHeadError: Damage leaves unknown whether there is one, or
                whether it is the newest (C67).
            PoisonedStoreError: A failed write leaves it in doubt.
            DeviceError: It cannot be read.
        """
        session = self._session

        def read() -> bytes:
            lookup = session.lookup
            return lookup.previous_blob(name) if previous else lookup.newest_blob(name)

        return session.at_one_moment(read)

    def section(self, name: str) -> SectionInfo:
        """Return what the directory says of a section; errors as `get`."""
        from blobstore.store.description import describe_section  # noqa: PLC0415  a get does not need it

        session = self._session
        return session.at_one_moment(
            lambda: describe_section(session.lookup.find(name, damaged=True)),
            settled=lambda section: section.damage is None,
        )

    def sections(self, *, allow_damaged: bool = False) -> tuple[SectionInfo, ...]:
        """Return all sections in the order in which they lie in the container.

        What is not among them is not there: where damage leaves that open, there is an
        error (C82).

        Args:
            allow_damaged: Return then what is left. What has lost its name is among
                it, with an empty name: sections whose last known name another one has,
                and what damaged heads hide, if they hide anything.

        Raises:
            DamagedHeadError: Damage may hide sections, and not ``allow_damaged``.
            PoisonedStoreError: A failed write leaves some in doubt, and not
                ``allow_damaged``.
        """
        from blobstore.store.description import describe_sections  # noqa: PLC0415  a get does not need it

        session = self._session

        def read() -> tuple[SectionInfo, ...]:
            if not allow_damaged:
                session.lookup.require_complete()
            return describe_sections(session.container.directory)

        return session.at_one_moment(read)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of `sections`; errors as there."""
        return iter([section.name for section in self.sections()])

    def __len__(self) -> int:
        """Return the number of sections; errors as `sections`."""
        return len(self.sections())

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a section.

        Raises:
            DamagedHeadError: It is not found, but may be hidden by damage.
        """
        if not isinstance(name, str):
            return False
        try:
            session = self._session
            session.at_one_moment(lambda: session.lookup.find(name, damaged=True))
        except BlobNotFoundError:
            return False
        return True

    def digest(self) -> StateDigest:
        """Return what pins the state of the whole store from outside.

        Raises:
            DamagedHeadError: A head is damaged, so the root is not known.
        """
        from blobstore.store.description import StateDigest  # noqa: PLC0415  a get does not need it

        session = self._session

        def read() -> StateDigest:
            directory = session.container.directory
            if directory.root is None:
                raise session.lookup.damaged_head("the root is not known")
            return StateDigest(directory.counted, directory.root)

        return session.at_one_moment(read)

    def info(self) -> StoreInfo:
        """Return what the header says of the store as a whole."""
        from blobstore.store.description import describe_store  # noqa: PLC0415  a get does not need it

        session = self._session
        return session.at_one_moment(lambda: describe_store(session.container))

    def regions(self) -> tuple[Region, ...]:
        """Return what every byte of the container is for, in order."""
        from blobstore.container.regions import container_regions  # noqa: PLC0415  few callers need it

        session = self._session
        return session.at_one_moment(lambda: container_regions(session.container))

    def payload(self) -> Payload:
        """Return what the container lies on: the payload of the image, decrypted, for reading.

        It is what the image holds now, and changes under the reader. Each of its reads is of one
        moment, but two are of two: what a program copies piece by piece while the store changes
        may be a mixture, which a store in the copy is found to be damaged by. `backup` makes
        copies that are of one moment; so does a reader that keeps the store from changing.
        What was written to windows in place and not flushed is in it, what windows buffer is
        not. The key that authenticates the store is in it: who reads it can forge records.

        It is closed with the store.
        """
        from blobstore.store.payload import Payload  # noqa: PLC0415  few callers need it

        return Payload(self._session)

    def image_info(self) -> ImageInfo | None:
        """Return what the image is, and what each byte of it is for.

        Its LUKS header is described as it is now. None if the store was opened on a device.
        """
        from blobstore.image.info import describe_image  # noqa: PLC0415  few callers need it
        from blobstore.image.opened import current_header  # noqa: PLC0415  likewise

        layers = self._session.layers
        if layers is None:
            return None
        return self.at_one_moment(
            lambda: describe_image(layers.image(current_header(layers)), self.regions())
        )

    def require_fresh(self) -> None:
        """Refuse a store of which damage leaves unknown whether what is visible is all.

        And whether it is the newest (C67). For callers that conclude from all sections
        together; `get` asks by itself. With ``allow_damaged`` nothing is refused.

        Raises:
            DamagedHeadError: That is not known.
        """
        session = self._session
        with session.lock:
            session.require_open()
            session.lookup.require_fresh("what is left")

    def at_one_moment(
        self,
        read: Callable[[], _Result],
        *,
        settled: Callable[[_Result], bool] = lambda _: True,
    ) -> _Result:
        """Return what ``read`` returns; all that it gets of this store is of one moment.

        Other threads wait meanwhile. On a store without the lock (C66), ``read`` is called
        again if it fails, or its result is not ``settled``, until the image has held still
        for it.

        Args:
            read: Calls methods of this store that change nothing.
            settled: Says whether a result is what a sound store leads to; otherwise it
                counts only if the image held still.

        Raises:
            StorageError: As ``read``; `StoreBusyError` if the image does not hold still.
        """
        return self._session.at_one_moment(read, settled)

    def changes(self, since: int | None = None, *, timeout: float | None = None) -> ChangeWatch:
        """Return an iterator that waits for the commits of this store and tells of each.

            with store.changes() as watch:
                for told in watch:
                    ...

        A commit is told once it is durable, with the sections that it created, changed,
        renamed or deleted. The first item says where the watch begins; so do items that say
        that something was missed: the store remembers a few hundred commits, and no commit
        waits for a watch. It ends when the store is closed. What other processes commit is
        not told.

        Args:
            since: A generation up to which the caller knows the store, as the last item of
                another watch said. None begins now.
            timeout: Seconds after which, without a commit, the watch says where it stands.
                None waits as long as it takes.

        Raises:
            ArgumentError: One of them is negative.
        """
        from blobstore.store.changes import ChangeWatch  # noqa: PLC0415  few callers need it
        from blobstore.store.news import News  # noqa: PLC0415  few callers need it

        session = self._session
        with session.lock:
            session.require_open()
            if session.news is None:
                news = News()
                news.follow(session.container)
                session.news = news
            return ChangeWatch(session, session.news, since, timeout)

    # ---------------------------------------------------------- changing

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
                new one, which of them shows when the store is opened again.
            PoisonedStoreError: An earlier write failed.
            ValueError: The section has an open window.
        """
        from blobstore.container.commit import Change, commit  # noqa: PLC0415  a get does not need it

        # What `transaction` does for one section, without its bookkeeping.
        blob = memoryview(data).cast("B")
        session = self._session
        with session.lock:
            session.require_writable()
            lookup = session.lookup
            section = lookup.find(name)
            if len(blob) > section.max_size:
                raise BlobTooLargeError.of(name, len(blob), section.max_size)
            lookup.require_no_window(name)
            commit(session.container, [Change(section, name, blob=blob, replaces=section)])

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
        from blobstore.store.transaction import Transaction  # noqa: PLC0415  a get does not need it

        session = self._session
        with session.lock:
            session.require_writable()
            transaction = Transaction(session.container, session.lookup)
            # It lives as long as this block, also if an interrupt ends that.
            block = _Block()
            session.transaction = transaction
            session.transaction_block = weakref.ref(block)
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
        from blobstore.store.transaction import Transaction  # noqa: PLC0415  a get does not need it

        session = self._session
        with session.lock:
            session.require_open()
            transaction = Transaction(session.container, session.lookup)
            transaction.register(name, max_size, kind, copies=copies, type=type)
            if transaction.changes:
                session.require_writable()
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
        also if another program with access to the image did. `SectionInfo` says
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
            SectionMismatchError: It is not a window, or has one copy and was to be
                written in place.
            ValueError: It has an open window already.
            BlobNotFoundError, CorruptBlobError, DeviceError: As in `get`.
            ReadOnlyError, PoisonedStoreError: Opening in place makes commits.
        """
        from blobstore.store.windows.opening import open_window  # noqa: PLC0415  few callers need it

        return self._session.at_one_moment(
            lambda: open_window(
                self._window_host(),
                name,
                in_place=in_place,
                idle=idle,
                longest=longest,
                accept_unverified=accept_unverified,
            )
        )

    def shared_window(
        self, name: str, *, in_place: bool = False, accept_unverified: bool = False
    ) -> SharedWindow:
        """Open a section as `window` does, or share the window that this opened before.

        Those who share it see what the others write, and a flush makes durable what any of
        them wrote. The window is closed after the last of them.

        Args:
            name: Of the section.
            in_place: As for `window`, where this is the one that opens it.
            accept_unverified: Likewise.

        Raises:
            ValueError: It has an open window that is not shared.
            StorageError: As `window`.
        """
        from blobstore.store.windows.opening import open_shared  # noqa: PLC0415  few callers need it

        return self._session.at_one_moment(
            lambda: open_shared(
                self._window_host(), name, in_place=in_place, accept_unverified=accept_unverified
            )
        )

    def _window_host(self) -> Host:
        from blobstore.store.windows.window import Host  # noqa: PLC0415  few callers need it

        session = self._session
        return Host(
            session.container,
            session.lookup,
            session.lock,
            session.read_only or session.released or not session.container.writable,
            session.require_writable,
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
        with self._session.lock:
            self.put(name, self.get(name, previous=True))

    def delete(self, name: str) -> None:
        """Delete a section and its blob; its space is free again.

        The blob is not overwritten at once: what lies in free space can be read
        by anyone who can open the volume.

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
        from blobstore.container.growth import grow  # noqa: PLC0415  few callers need it

        session = self._session
        with session.lock:
            session.require_writable()
            container = session.container
            total = -(-size // container.block_size) * container.block_size
            if total > container.total:
                grow(container, total)

    # ------------------------------------------------------- maintenance

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Report:
        """Read and check everything there is (see `blobstore.container.verification`).

        Both copies of a LUKS2 header around it must be sound now as well. Others may use the
        store meanwhile: they wait for a fiftieth of a second at a time, or for one section, and
        at the end for heads, and records that changed since they were read. The report is of
        that end.

        Args:
            progress: Called now and then with bytes done and bytes in all.
        """
        from dataclasses import replace  # noqa: PLC0415  few callers need it

        from blobstore.container.verification import Problem, verify  # noqa: PLC0415  few callers need it
        from blobstore.image.opened import header_problem  # noqa: PLC0415  likewise
        from blobstore.store.verifying import verify_ahead  # noqa: PLC0415  likewise

        session = self._session
        verified = verify_ahead(session, progress)

        def look() -> Report:
            report = verify(session.container, progress, verified)
            found = None if session.layers is None else header_problem(session.layers)
            if found is None:
                return report
            return replace(report, problems=(Problem(found), *report.problems))

        return session.at_one_moment(look, settled=lambda report: report.ok)

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
        from blobstore.container.repair.repair import repair, report  # noqa: PLC0415  few callers need it

        session = self._session
        with session.lock:
            session.require_alone()
            done = repair(
                session.container,
                accept_previous=as_names(accept_previous),
                accept_lost=accept_lost,
                names=as_names(names),
            )
            if done.container is not session.container:
                session.use(done.container)
            return report(done, self.verify(progress))

    def compact(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Move sections together, so that free space is in fewer and larger pieces.

        The image does not get smaller. Previous blobs of what is moved are gone.

        Args:
            progress: Called now and then with bytes looked at and bytes in all.

        Returns:
            How many sections were moved.

        Raises:
            ValueError: The store has open windows.
            ReadOnlyError, DamagedHeadError, DeviceError, PoisonedStoreError:
                As in `put`.
        """
        from blobstore.container.compaction import compact  # noqa: PLC0415  few callers need it

        with self._session.lock:
            self._session.require_alone()
            return compact(self._session.container, progress)

    def scrub(self, progress: Callable[[int, int], None] | None = None) -> Scrubbed:
        """Rewrite both copies of every section, and write zeros where no section is.

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
        from blobstore.container.scrub import scrub  # noqa: PLC0415  few callers need it

        with self._session.lock:
            self._session.require_alone()
            return scrub(self._session.container, progress)

    # --------------------------------- snapshots and keys of the image

    @contextmanager
    def luks_place(self, *, write: bool = False) -> Iterator[luks.Place]:
        """Yield where the LUKS header of the image is, for functions of `luks` that take a place.

            with store.luks_place(write=True) as place:
                luks.add_keyslot(place, b"passphrase", b"another")

        It is as `blobstore.luks_place`, also where the header lies in the disk of a qcow2
        image, which only this process may write.

        Args:
            write: Whether the header is to be changed.

        Raises:
            UnsupportedError: The store was opened on a device.
            FormatError, UnsupportedError, DeviceError: The image cannot be opened.
        """
        from blobstore.store.header_area import luks_place  # noqa: PLC0415  few callers need it

        with luks_place(self._session, write=write) as place:
            yield place

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots of a qcow2 image, in the order of its table, or of a raw one on RBD.

        Raises:
            UnsupportedError: It is a raw image, and does not lie on RBD.
            FormatError, DeviceError: The table cannot be read.
        """
        from blobstore.store.snapshots import list_snapshots  # noqa: PLC0415  few callers need it

        return list_snapshots(self._session)

    def create_snapshot(self, name: str) -> Snapshot:
        """Keep the disk in the qcow2 image as it is now, under a name.

        Windows are flushed first, and the store is put in order as when it is closed: it
        opens from the snapshot as if it had been closed at this moment. Only windows that
        are being written in place are unverified there. A crash leaves the image with the
        snapshot or without.

        Args:
            name: 1 to 255 bytes; neither name nor ID of another snapshot.

        Returns:
            The snapshot, with the ID that it got.

        Raises:
            SnapshotExistsError: A snapshot has this name or ID.
            UnsupportedError: It is a raw image, or its refcounts are too narrow for another
                snapshot.
            ValueError: This cannot be a name; or a transaction is under way in this thread.
            DeviceError: It failed; the snapshot is there or not.
            ReadOnlyError, PoisonedStoreError: As in `put`.
        """
        from blobstore.store.snapshots import create_snapshot  # noqa: PLC0415  few callers need it

        with self._session.lock:
            return create_snapshot(self._session, name)

    def delete_snapshot(self, which: str | SnapshotKey) -> Snapshot:
        """Give up a snapshot of the qcow2 image, and free what only it uses.

        Args:
            which: ID or name of the snapshot, or a `SnapshotKey` that says which of the two.

        Returns:
            The snapshot that is gone.

        Raises:
            SnapshotNotFoundError: There is no such snapshot.
            AmbiguousSnapshotError: Several could be meant.
            UnsupportedError: It is a raw image.
            DeviceError: It failed; the snapshot is there or not.
            ReadOnlyError, ValueError: As in `create_snapshot`.
        """
        from blobstore.store.snapshots import delete_snapshot  # noqa: PLC0415  few callers need it

        with self._session.lock:
            return delete_snapshot(self._session, which)

    def apply_snapshot(self, which: str | SnapshotKey) -> Snapshot:
        """Set the store back to what it was when a snapshot of the image was made.

        The disk becomes what it was, its size and its keyslots too, and the store goes on
        from there: what was put since is lost, unless another snapshot has it, and
        generations are counted from that of the snapshot again.

        Args:
            which: ID or name of the snapshot, or a `SnapshotKey` that says which of the two.

        Returns:
            The snapshot, which stays.

        Raises:
            SnapshotNotFoundError: There is no such snapshot.
            AmbiguousSnapshotError: Several could be meant.
            PinMismatchError: It holds another store.
            PolicyError: It was encrypted in another way, or is less protected.
            UnsupportedError: It is a raw image.
            ValueError: The store has open windows, or a transaction is under way.
            DeviceError: It failed; the store is as it was, or as it is to be.
            StorageError: There is no sound store in the snapshot; nothing was done.
        """
        from blobstore.store.snapshots import apply_snapshot  # noqa: PLC0415  few callers need it

        with self._session.lock:
            return apply_snapshot(self._session, which)

    # ---------------------------------------------------------- handover

    def release(self) -> None:
        """Let another process take the image over, as in a live migration.

        Everything is recorded as durable and the image's lock is given up. The
        volume stays unlocked; what is read is what was there at this moment, or what
        another process made of it since (C66), and writing is refused until `take_over`.
        Releasing again finishes what was interrupted.

        Raises:
            ValueError: The store was not opened by path for writing, or has open
                windows.
            DeviceError, PoisonedStoreError: As in `close`; the lock is kept.
        """
        from blobstore.store.handover import release  # noqa: PLC0415  few callers need it

        with self._session.lock:
            release(self._session)

    def take_over(
        self, *, expect_digest: StateDigest | None = None, at_least_generation: int = 0
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
        from blobstore.store.handover import take_over  # noqa: PLC0415  few callers need it

        with self._session.lock:
            take_over(self._session, expect_digest, at_least_generation)

    # --------------------------------------------------------------- end

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
        self._session.close()


def as_names(names: Collection[str]) -> Collection[str]:
    """Return a set of names, also for a single one."""
    return {names} if isinstance(names, str) else set(names)
