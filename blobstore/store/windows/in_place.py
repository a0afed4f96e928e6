"""Windows whose writes go to the record itself (C62)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.store.windows.differing import DifferingWriter
from blobstore.store.windows.window import Window
from formats.container.model import HEAD_SIZE, State

if TYPE_CHECKING:
    from blobstore.container.sections import Copy
    from blobstore.store.windows.window import Host
    from formats.devices.device import WritableBuffer
    from formats.state.padded_flash import Padding


class InPlaceWindow(Window):
    """A window whose writes go to the record directly, for large ones.

    After a crash every byte of it is what it was at the last flush, or what was
    written there since; the store reports it as unverified. What it was when it
    was opened is kept beside it. (In CBC a torn sector of the volume garbles 16
    bytes more.) Nothing of it stays in memory, but opening and closing hold it
    there for a moment. After a failed write or flush nothing more is written.
    """

    def __init__(self, host: Host, name: str, size: int, padding: Padding | None) -> None:
        """Serve a section that is in place already, or will be by `begin`."""
        super().__init__(host, name, size, read_only=False, padding=padding)
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
        """Make the section live again: the caller gets no window to close."""
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
