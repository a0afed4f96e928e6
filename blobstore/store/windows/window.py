"""Windows: sections for devices that write like disks (C62)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blobstore.errors import NoSpaceError
from blobstore.store.session import Closing
from formats.devices.device import Device, ReadableBuffer, WritableBuffer
from formats.errors import ReadOnlyError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.container.open_container import OpenContainer
    from blobstore.store.lookup import Lookup
    from formats.process import OwnedLock
    from formats.state.padded_flash import Padding

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

    It has exactly the section's worst-case size in bytes, or that of the flash which the
    section holds the beginning of (F60). What was never written reads as zeros. All
    methods may be called from several threads. A closed window raises `ValueError`, as a
    closed store does.
    """

    def __init__(
        self, host: Host, name: str, size: int, *, read_only: bool, padding: Padding | None
    ) -> None:
        """Serve section ``name``, whose worst case is ``size``; use `Store.window` instead."""
        self._host = host
        self._name = name
        self._size = size
        self._padding = padding
        self._read_only = read_only
        self._closed = False
        # Of one that is shared (O63); the others have one user, who is not noted.
        self.users: list[Device] = []

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def name(self) -> str:
        """The section's name."""
        return self._name

    @property
    def size(self) -> int:
        return self._size if self._padding is None else self._padding.size

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
            held = self._held(offset, len(buffer))
            if self._padding is None or held == len(buffer):
                self._read(offset, buffer)
                return
            view = memoryview(buffer)
            if held:
                self._read(offset, view[:held])
            view[held:] = self._padding.filler * (len(view) - held)

    def write(self, offset: int, data: ReadableBuffer, /, *, fua: bool = False) -> None:
        """Store ``data``; with ``fua`` ("forced unit access") it is durable on return.

        Raises:
            ReadOnlyError: The window takes no writes.
            NoSpaceError: These bytes would lie after the part of a flash that the section
                has room for (F60); nothing is written.
            DamagedHeadError: A head is damaged; nothing is written around it.
            DeviceError: Writing failed, now or when a commit was made in the
                background since the last call.
            PoisonedStoreError: A write failed earlier.
        """
        view = memoryview(data).cast("B")
        with self._host.lock:
            self._require_writable()
            self._check_range(offset, len(view))
            held = self._held(offset, len(view))
            self._require_padding(offset + held, view[held:])
            if held:
                self._write(offset, view[:held])
            if fua:
                self._make_durable()

    def discard(self, offset: int, size: int, /) -> None:
        """Fill a range with zeros; errors as `write`."""
        with self._host.lock:
            self._require_writable()
            self._check_range(offset, size)
            held = self._held(offset, size)
            if held < size:
                self._require_padding(offset + held, memoryview(_ZEROS)[:1])
            for start in range(offset, offset + held, len(_ZEROS)):
                self._write(start, memoryview(_ZEROS)[: offset + held - start])

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

    def _held(self, offset: int, size: int) -> int:
        """Return how many bytes of a range lie in the section; padding follows them."""
        return max(0, min(size, self._size - offset))

    def _require_padding(self, offset: int, data: memoryview) -> None:
        """Refuse to write anything but padding after the end of the section (F60)."""
        if self._padding is None or not bytes(data).strip(self._padding.filler):
            return
        raise NoSpaceError(
            f"section {self._name!r} holds the first {self._size} bytes of a flash, and byte"
            f" {offset} was to be written [F60]",
            hint="close the window, make the section larger with resize, and write again",
        )

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("this window was closed")

    def _require_writable(self) -> None:
        self._require_open()
        if self._read_only:
            raise ReadOnlyError(f"the window of section {self._name!r} takes no writes")
        # Now, while the caller can still be told; a commit in the background cannot tell.
        self._host.container.next_generation()
