"""Windows whose writes become commits (C62)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.store.windows.alarm import Alarm
from blobstore.store.windows.checksum import BlockwiseCrc
from blobstore.store.windows.differing import DifferingWriter
from blobstore.store.windows.window import Window
from formats.container.model import HEAD_SIZE, State
from formats.errors import StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from blobstore.store.windows.window import Host
    from formats.devices.device import WritableBuffer
    from formats.state.padded_flash import Padding

_log = LateLogger(__name__)


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
        padding: Padding | None,
        committed: bool,
        idle: float,
        longest: float,
    ) -> None:
        """Serve ``content``, which ``committed`` says is what the newest copy holds."""
        super().__init__(host, name, len(content), read_only=read_only, padding=padding)
        self._content = content
        self._writer = DifferingWriter(host.container, host.lookup, name)
        if committed:
            self._writer.know_newest(self._writer.section.newest)
        self._crc = BlockwiseCrc(len(content), host.container.block_size)
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
        crc32 = self._crc.of(self._content, self._changed)
        self._writer.commit(self._content, self._changed, crc32=crc32)
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
