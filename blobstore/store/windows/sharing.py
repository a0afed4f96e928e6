"""Several users of one window, which is closed after the last of them (O63)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.store.session import Closing
from formats.devices.device import Device
from formats.errors import StorageError

if TYPE_CHECKING:
    from blobstore.store.windows.window import Host, Window
    from formats.devices.device import ReadableBuffer, WritableBuffer


class SharedWindow(Closing, Device):
    """A window that others may use, too. `Store.shared_window` makes it.

    Its methods are those of `Window`. A flush makes durable what any of its users wrote.
    """

    def __init__(self, host: Host, window: Window) -> None:
        """Use ``window`` as well; use `Store.shared_window` instead."""
        self._host = host
        self._window = window
        self._closed = False
        window.users.append(self)

    @property
    def name(self) -> str:
        """The section's name."""
        return self._window.name

    @property
    def size(self) -> int:
        return self._window.size

    @property
    def block_size(self) -> int:
        return self._window.block_size

    @property
    def read_only(self) -> bool:
        """Whether it takes no writes."""
        return self._window.read_only

    @property
    def in_place(self) -> bool:
        """Whether writes go to the section's record directly."""
        return self._window.in_place

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        with self._host.lock:
            self._require_open()
            self._window.read_into(offset, buffer)

    def write(self, offset: int, data: ReadableBuffer, /, *, fua: bool = False) -> None:
        """Store ``data``; as `Window.write`."""
        with self._host.lock:
            self._require_open()
            self._window.write(offset, data, fua=fua)

    def discard(self, offset: int, size: int, /) -> None:
        """Fill a range with zeros; errors as `write`."""
        with self._host.lock:
            self._require_open()
            self._window.discard(offset, size)

    def flush(self) -> None:
        """Make durable what was written so far, by any user; errors as `write`."""
        with self._host.lock:
            self._require_open()
            self._window.flush()

    def close(self) -> None:
        """Commit what was written, and let go of the window. Twice is fine.

        Raises:
            ValueError, DeviceError, PoisonedStoreError: As `Window.close`.
        """
        if self._host.lock.owner.is_other:
            return  # what was written is the parent's to commit
        with self._host.lock:
            if self._closed:
                return
            users = self._window.users
            try:
                if users == [self]:
                    self._window.close()
                elif not self._window.closed:
                    self._window.flush()
            except StorageError:
                self._let_go()
                raise
            # After an interrupt it is still open: to close it again commits what waits.
            self._let_go()

    def _let_go(self) -> None:
        self._closed = True
        if self in self._window.users:
            self._window.users.remove(self)

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("this window was closed")
