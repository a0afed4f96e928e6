"""Windows: sections for devices that write like disks (C62)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blobstore.errors import SectionMismatchError
from blobstore.store.session import Closing
from blobstore.store.windows.alarm import Alarm
from blobstore.store.windows.writer import DifferingWriter
from formats.container.model import HEAD_SIZE, Kind, State
from formats.devices.device import Device, ReadableBuffer, WritableBuffer
from formats.errors import ReadOnlyError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Copy
    from blobstore.store.lookup import Lookup
    from formats.process import OwnedLock

_log = LateLogger(__name__)

_ZEROS = bytes(64 << 10)


@dataclass(frozen=True, slots=True)
class Host:
    """What a window needs of its store.

    Attributes:
        container: The open container.
        lookup: Finds sections; knows the open windows.
        lock: Guards both, and the windows.
        read_only: Whether nothing may be written.
        require_writable: Raises where a commit cannot be made now.
    """

    container: OpenContainer
    lookup: Lookup
    lock: OwnedLock
    read_only: bool
    require_writable: Callable[[], None]


class Window(Closing, Device):
    """A section as a `BlockDevice`. `Store.window` opens windows.

    It has exactly the section's worst-case size in bytes. What was never written
    reads as zeros. All methods may be called from several threads. A closed
    window raises `ValueError`, as a closed store does.
    """

    def __init__(self, host: Host, name: str, size: int, *, read_only: bool) -> None:
        """Serve section ``name``; use `Store.window` instead."""
        self._host = host
        self._name = name
        self._size = size
        self._read_only = read_only
        self._closed = False

    @property
    def name(self) -> str:
        """The section's name."""
        return self._name

    @property
    def size(self) -> int:
        return self._size

    @property
    def block_size(self) -> int:
        """Always 512: what devices that write like disks take for granted."""
        return 512

    @property
    def read_only(self) -> bool:
        """Whether it takes no writes."""
        return self._read_only

    @property
    @abstractmethod
    def in_place(self) -> bool:
        """Whether writes go to the section's record directly."""

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        with self._host.lock:
            self._require_open()
            self._check_range(offset, len(buffer))
            self._read(offset, buffer)

    def write(self, offset: int, data: ReadableBuffer, /, *, fua: bool = False) -> None:
        """Store ``data``; with ``fua`` ("forced unit access") it is durable on return.

        Raises:
            ReadOnlyError: The window takes no writes.
            DamagedHeadError: A head is damaged; nothing is written around it.
            DeviceError: Writing failed, now or when a commit was made in the
                background since the last call.
            PoisonedStoreError: A write failed earlier.
        """
        view = memoryview(data).cast("B")
        with self._host.lock:
            self._require_writable()
            self._check_range(offset, len(view))
            if view:
                self._write(offset, view)
            if fua:
                self._make_durable()

    def discard(self, offset: int, size: int, /) -> None:
        """Fill a range with zeros; errors as `write`."""
        with self._host.lock:
            self._require_writable()
            self._check_range(offset, size)
            for start in range(offset, offset + size, len(_ZEROS)):
                self._write(start, memoryview(_ZEROS)[: offset + size - start])

    def flush(self) -> None:
        """Make everything written so far durable; errors as `write`."""
        with self._host.lock:
            self._require_open()
            self._make_durable()

    def close(self) -> None:
        """Commit what was written, and let go of the section. Twice is fine.

        Raises:
            ValueError: A transaction is under way in this thread; the window
                stays open.
            DeviceError, PoisonedStoreError: Not everything that was written is
                durable. The window is closed all the same.
        """
        if self._host.lock.owner.is_other:
            return  # what was written is the parent's to commit
        with self._host.lock:
            if self._closed:
                return
            if self._has_to_commit():
                self._host.require_writable()
            try:
                self._finish()
            except StorageError:
                self._let_go()
                raise
            # After an interrupt it is still open: to close it again commits what waits.
            self._let_go()

    def _let_go(self) -> None:
        self._host.lookup.windows.pop(self._name, None)
        self._closed = True

    @abstractmethod
    def _read(self, offset: int, buffer: WritableBuffer) -> None: ...

    @abstractmethod
    def _write(self, offset: int, data: memoryview) -> None: ...

    @abstractmethod
    def _make_durable(self) -> None: ...

    @abstractmethod
    def _has_to_commit(self) -> bool:
        """Say whether closing makes a commit."""

    @abstractmethod
    def _finish(self) -> None: ...

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("this window was closed")

    def _require_writable(self) -> None:
        self._require_open()
        if self._read_only:
            raise ReadOnlyError(f"the window of section {self._name!r} takes no writes")
        # Better now than when it is too late to tell whoever writes.
        self._host.container.next_generation()


class BufferedWindow(Window):
    """A window whose writes become commits: on flush, in idle moments, at close.

    After a crash it has the content of some moment: of the last acknowledged
    flush, or of a later commit. So the order of writes is kept. The mac covers
    all of it, so the whole content is kept in memory while it is open.
    """

    def __init__(
        self,
        host: Host,
        name: str,
        content: bytearray,
        *,
        read_only: bool,
        committed: bool,
        idle: float,
        longest: float,
    ) -> None:
        """Serve ``content``, which ``committed`` says is what the newest copy holds."""
        super().__init__(host, name, len(content), read_only=read_only)
        self._content = content
        self._writer = DifferingWriter(host.container, host.lookup, name)
        if committed:
            self._writer.know_newest(self._writer.section.newest)
        self._changed: set[int] = set()  # blocks of the record
        self._blank = self._writer.section.newest.version.state is State.UNWRITTEN
        self._waiting = False
        self._failure: StorageError | None = None
        self._alarm = Alarm(self._ring, host.lock, idle=idle, longest=longest)

    @property
    def in_place(self) -> bool:
        return False

    def mark_changed(self) -> None:
        """Have the next flush, or close, commit the content as it is."""
        self._waiting = True

    def _read(self, offset: int, buffer: WritableBuffer) -> None:
        buffer[:] = memoryview(self._content)[offset : offset + len(buffer)]

    def _require_writable(self) -> None:
        self._raise_failure()
        super()._require_writable()

    def _write(self, offset: int, data: memoryview) -> None:
        # EEPROMs are written whole for a byte that changed. (What was never
        # written is another matter: there zeros are news.)
        changed = self._changed_blocks(offset, data)
        if not changed and not self._blank:
            return
        # In this order: an interrupt must not leave a change that no commit writes.
        self._changed |= changed
        self._waiting = True
        self._content[offset : offset + len(data)] = data
        self._alarm.touch()

    def _changed_blocks(self, offset: int, data: memoryview) -> set[int]:
        """Return the blocks of the record in which ``data`` is not what is there."""
        changed = set()
        block_size = self._host.container.block_size
        for block in self._writer.blocks(offset, len(data)):
            start = max(block * block_size - HEAD_SIZE - offset, 0)
            stop = min((block + 1) * block_size - HEAD_SIZE - offset, len(data))
            if self._content[offset + start : offset + stop] != data[start:stop]:
                changed.add(block)
        return changed

    def _make_durable(self) -> None:
        self._raise_failure()
        if self._waiting:
            self._commit()

    def _has_to_commit(self) -> bool:
        return self._waiting

    def _finish(self) -> None:
        self._alarm.stop()
        self._make_durable()

    def _commit(self) -> None:
        self._host.require_writable()
        self._writer.commit(self._content, self._changed)
        self._changed.clear()
        self._blank = self._waiting = False
        self._alarm.clear()

    def _ring(self) -> None:
        """Commit in the alarm's thread; what fails is told to the next caller."""
        try:
            self._commit()
        except StorageError as error:
            _log.error("section %r: committing its window failed: %s", self._name, error)
            self._failure = error

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


class InPlaceWindow(Window):
    """A window whose writes go to the record directly, for large ones.

    After a crash every byte of it is what it was at the last flush, or what was
    written there since; the store reports it as unverified. What it was when it
    was opened is kept beside it. (In CBC a torn sector of the volume garbles 16
    bytes more.) Nothing of it stays in memory, but opening and closing hold it
    there for a moment. After a failed write or flush nothing more is written.
    """

    def __init__(self, host: Host, name: str, size: int) -> None:
        """Serve a section that is in place already, or will be by `begin`."""
        super().__init__(host, name, size, read_only=False)
        self._writer = DifferingWriter(host.container, host.lookup, name)
        self._record: Copy = self._writer.section.newest
        self._changed: set[int] = set()

    def begin(self, content: bytearray) -> None:
        """Make ``content`` what both copies hold, and the newest of them in place (C62)."""
        self._host.require_writable()
        try:
            newest = self._writer.section.newest
            if newest.version.state is State.LIVE and newest.version.size == self._size:
                self._writer.know_newest(newest)
            while not self._writer.copies_are_known:
                self._writer.commit(content, ())
            self._writer.commit(content, (), State.IN_PLACE)
            self._record = self._writer.section.newest
            self._writer.know_newest(self._record)
            self._host.lookup.windows[self._name] = self
        except BaseException:
            self._undo(content)
            raise

    def _undo(self, content: bytearray) -> None:
        """Let the section be live again: nobody gets this window, to close it."""
        self._host.lookup.windows.pop(self._name, None)
        writer = self._host.container.writer
        writer.settle()
        if writer.poisoned:
            return
        if self._writer.section.newest.version.state is State.IN_PLACE:
            self._writer.commit(content, ())

    @property
    def in_place(self) -> bool:
        return True

    def _read(self, offset: int, buffer: WritableBuffer) -> None:
        self._host.container.device.read_into(self._start + offset, buffer)

    def _write(self, offset: int, data: memoryview) -> None:
        self._changed.update(self._writer.blocks(offset, len(data)))
        self._host.container.writer.write_in_place(self._start + offset, data)

    def _make_durable(self) -> None:
        writer = self._host.container.writer
        writer.require_sound()
        if writer.unflushed:
            writer.write()

    def _has_to_commit(self) -> bool:
        return True

    def _finish(self) -> None:
        self._host.container.writer.require_sound()
        if self._writer.section.newest is not self._record:
            return  # committed, and interrupted after that
        content = bytearray(self._size)
        self._read(0, content)
        self._writer.commit(content, self._changed)

    @property
    def _start(self) -> int:
        """Where the blob is in the container."""
        return self._record.offset + HEAD_SIZE


def open_window(
    host: Host,
    name: str,
    *,
    in_place: bool,
    idle: float,
    longest: float,
    accept_unverified: bool,
) -> Window:
    """Open the window of a section; arguments and errors as `Store.window`."""
    section = host.lookup.find(name)
    newest = section.newest
    identity = newest.identity
    if identity.kind is not Kind.WINDOW:
        raise SectionMismatchError(
            f"section {name!r} is a blob and has no window",
            hint="register a section of kind 'window' for a device that writes like a disk",
        )
    host.lookup.require_no_window(name)
    read_only = host.read_only or identity.copies == 1
    if in_place and not host.read_only and identity.copies == 1:
        raise SectionMismatchError(f"section {name!r} has one copy, which is only read")
    unverified = accept_unverified and newest.version.state is State.IN_PLACE
    window: Window
    if in_place and not read_only and unverified:
        window = InPlaceWindow(host, name, identity.max_size)
    else:
        content = _content(host.container, newest, unverified=unverified)
        if in_place and not read_only:
            window = InPlaceWindow(host, name, identity.max_size)
            window.begin(content)
        else:
            whole = newest.version.state is State.LIVE and newest.version.size == len(content)
            buffered = BufferedWindow(
                host,
                name,
                content,
                read_only=read_only,
                committed=whole,
                idle=idle,
                longest=longest,
            )
            if unverified and not read_only:
                buffered.mark_changed()
            window = buffered
    host.lookup.windows[name] = window
    return window


def _content(container: OpenContainer, newest: Copy, *, unverified: bool) -> bytearray:
    """Return what a window shows: the blob, and zeros behind it."""
    content = bytearray(newest.identity.max_size)
    version = newest.version
    if unverified:
        container.device.read_into(newest.offset + HEAD_SIZE, memoryview(content)[: version.size])
    elif version.state is not State.UNWRITTEN:
        content[: version.size] = container.blobs.read(newest)
    return content
