"""Windows as resources: ranges of bytes that are read, written and flushed (O60 to O64)."""

from __future__ import annotations

import math
import re
import secrets
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from blobstore.owner import documents, requests
from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import (
    BLOB,
    DOCUMENT_SIZE,
    JSON,
    Found,
    Method,
    Reply,
    Request,
    Resources,
)
from blobstore.store.windows.alarm import Alarm
from formats.errors import DeviceBusyError, ReadOnlyError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.store.store import Store
    from blobstore.store.windows.sharing import SharedWindow

_log = LateLogger(__name__)

#: Seconds without a request after which a window is closed, and bytes of all that are open (O63).
IDLE: Final = 30.0
MOST_BYTES: Final = 256 << 20

_RANGE = re.compile(r"bytes=(?:([0-9]{1,20})-([0-9]{0,20})|-([0-9]{1,20}))", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,20}")
_CONDITIONS = ("if-match", "if-none-match", "if-range", "if-modified-since", "if-unmodified-since")


class _Held(NamedTuple):
    """A window that is open for HTTP, what closes it, and the bytes that it has in memory."""

    window: SharedWindow
    alarm: Alarm
    size: int


class HeldWindows:
    """The windows that HTTP clients use. They are shared with other users in this process.

    A window is opened at its first use, and closed when it was not used for a while. One whose
    writes cannot be committed stays open, so that a flush says so. Threads may share this.

    Attributes:
        run: Tells apart what is open here from what another process had open before (O64).
    """

    def __init__(
        self,
        store: Store,
        *,
        released: bool = False,
        idle: float = IDLE,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Have no window open yet.

        Args:
            store: Whose windows these are.
            released: Whether another process may have the image (O141).
            idle: Seconds without a request after which a window is closed.
            most_bytes: Of all windows that are open.
        """
        self._store = store
        self._released = released
        self._idle = idle
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}  # the one that was used last is the last one
        self.run: Final = secrets.token_hex(8)

    @contextmanager
    def use(self, name: str) -> Iterator[SharedWindow]:
        """Have the window of a section in the block, in which others wait.

        Raises:
            DeviceBusyError: Others take up the memory.
            ValueError: It has a window that is not shared.
            StorageError: As `Store.window`.
        """
        with self._lock:
            held = self._held.pop(name, None) or self._open(name)
            self._held[name] = held
            held.alarm.touch()
            yield held.window

    def close(self, name: str) -> None:
        """Close a window; nothing happens if it is not open.

        Raises:
            StorageError: What was written cannot be committed. It stays open.
        """
        with self._lock:
            if name in self._held:
                self._close(name)

    def close_all(self) -> None:
        """Close all windows; errors as `close`, but all are closed."""
        failure: StorageError | None = None
        with self._lock:
            for name, held in list(self._held.items()):
                del self._held[name]
                held.alarm.stop()
                try:
                    held.window.close()
                except StorageError as error:
                    _log.error("section %r: closing its window failed: %s", name, error)
                    failure = failure or error
        if failure is not None:
            raise failure

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Have what was written committed, and no window used in the block (O50).

        Raises:
            StorageError: It cannot be committed.
        """
        with self._lock:
            for held in self._held.values():
                held.window.flush()
            yield

    def suspend(self, *, waiting: bool) -> None:
        """Close all windows: the store is to be released (O141).

        Raises:
            StorageError: What was written cannot be committed; those that were are closed.
        """
        del waiting  # who is told to wait does not come here
        with self._lock:
            for name in list(self._held):
                self._close(name)
            self._released = True

    def resume(self) -> None:
        """Open windows again where they are asked for."""
        with self._lock:
            self._released = False

    def _open(self, name: str) -> _Held:
        if self._released:
            raise ReadOnlyError(
                "the image was released, and its windows are another process's [O141]",
                hint="take it over first; the section itself can be read",
            )
        size = self._store.section(name).max_size
        for other in list(self._held):
            if self._size() + size <= self._most_bytes:
                break
            try:
                self._close(other)
            except StorageError as error:
                _log.error("section %r: committing its window failed: %s", other, error)
        if self._size() + size > self._most_bytes:
            raise DeviceBusyError(
                f"section {name!r} has {size} bytes: the windows that are open at the same time"
                f" have {self._most_bytes} at most [O63]"
            )
        window = self._store.shared_window(name)
        alarm = Alarm(lambda: self._ring(name), self._lock, idle=self._idle, longest=math.inf)
        return _Held(window, alarm, size)

    def _size(self) -> int:
        return sum(held.size for held in self._held.values())

    def _close(self, name: str) -> None:
        held = self._held[name]
        held.window.flush()
        held.alarm.stop()
        del self._held[name]
        held.window.close()

    def _ring(self, name: str) -> None:
        """Close a window that was not used for a while, in the thread of its alarm."""
        try:
            self._close(name)
        except StorageError as error:
            _log.error("section %r: committing its window failed: %s", name, error)
            self._held[name].alarm.touch()
        except ValueError as error:  # the store was closed, and its windows with it
            _log.debug("section %r: its window was closed: %s", name, error)
            del self._held[name]


class WindowResources:
    """Answers with what windows do. Threads may share it."""

    def __init__(self, windows: HeldWindows, store: Store) -> None:
        """Answer from these windows of ``store``."""
        self._windows = windows
        self._store = store

    def resources(self) -> Resources:
        """Return these resources."""
        run = frozenset({"run"})
        return {
            "/v1/windows/NAME": {
                "GET": Method(self._read, flags=run, reply=self._read_size),
                "PUT": Method(
                    self._write,
                    self._write_limit,
                    frozenset({"offset", "fua", "run"}),
                    bare=frozenset({"fua"}),
                ),
            },
            "/v1/windows/NAME/info": {"GET": Method(self._info)},
            "/v1/windows/NAME/discard": {"POST": Method(self._discard, DOCUMENT_SIZE, run)},
            "/v1/windows/NAME/flush": {"POST": Method(self._flush, DOCUMENT_SIZE, run)},
            "/v1/windows/NAME/close": {"POST": Method(self._close, DOCUMENT_SIZE, run)},
        }

    def _info(self, _request: Request, resource: Found) -> Reply:
        with self._windows.use(resource.name) as window:
            found = documents.WindowInfo(
                window.name,
                window.size,
                window.block_size,
                window.read_only,
                window.in_place,
                self._windows.run,
            )
        return Reply(200, (JSON,), documents.encode(found))

    def _read(self, request: Request, resource: Found) -> Reply:
        self._require_sane(request, resource)
        with self._windows.use(resource.name) as window:
            chosen = _chosen(request, window.size)
            data = window.read(chosen.start, len(chosen))
            headers = (BLOB, ("accept-ranges", "bytes"))
            if "range" not in request.headers:
                return Reply(200, headers, data)
            where = f"bytes {chosen.start}-{chosen.stop - 1}/{window.size}"
            return Reply(206, (*headers, ("content-range", where)), data)

    def _read_size(self, request: Request, resource: Found) -> int:
        return len(_chosen(request, self._store.section(resource.name).window_size))

    def _write(self, request: Request, resource: Found) -> Reply:
        self._require_sane(request, resource)
        if "content-range" in request.headers:
            raise RefusedError(400, "a write says where with ?offset=BYTE", "O62")
        fua = "fua" in resource.flags
        with self._windows.use(resource.name) as window:
            window.write(_offset(resource), request.body, fua=fua)
        return Reply(204 if fua else 202)

    def _write_limit(self, resource: Found) -> int:
        size, offset = self._store.section(resource.name).window_size, _offset(resource)
        if offset > size:
            raise RefusedError(
                416, f"the window has {size} bytes, so none at {offset}", "O62", _unsatisfied(size)
            )
        return size - offset

    def _discard(self, request: Request, resource: Found) -> Reply:
        self._require_sane(request, resource)
        wanted = requests.decode(request.body, requests.ByteRange)
        with self._windows.use(resource.name) as window:
            window.discard(wanted.offset, wanted.size)
        return Reply(202)

    def _flush(self, request: Request, resource: Found) -> Reply:
        self._require_sane(request, resource)
        with self._windows.use(resource.name) as window:
            window.flush()
        return Reply(204)

    def _close(self, request: Request, resource: Found) -> Reply:
        self._require_sane(request, resource)
        self._store.section(resource.name)
        self._windows.close(resource.name)
        return Reply(204)

    def _require_sane(self, request: Request, resource: Found) -> None:
        """Refuse conditions, and clients of a process that had the image before (O64)."""
        for name in _CONDITIONS:
            if name in request.headers:
                raise RefusedError(400, f"a window takes no {name.title()}", "O61")
        if resource.flags.get("run", self._windows.run) != self._windows.run:
            raise RefusedError(412, "another process has the image by now", "O64")


def _chosen(request: Request, size: int) -> range:
    """Return the bytes that a Range header asks for; all of them if there is none (O61).

    Raises:
        RefusedError: It is not one range (400), or begins after the end (416).
    """
    header = request.headers.get("range")
    if header is None:
        return range(size)
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        raise RefusedError(400, "a range is bytes=FIRST-LAST, and there is one", "O61")
    first, last, final = match.groups()
    if final is not None:
        chosen = range(max(size - int(final), 0), size)
    else:
        chosen = range(int(first), min(int(last) + 1, size) if last else size)
        if last and int(last) < int(first):
            raise RefusedError(400, "the range ends before it begins", "O61")
    if not chosen:
        raise RefusedError(
            416,
            f"the window has {size} bytes, none of them in this range",
            "O61",
            _unsatisfied(size),
        )
    return chosen


def _unsatisfied(size: int) -> tuple[tuple[str, str], ...]:
    return (("content-range", f"bytes */{size}"),)


def _offset(resource: Found) -> int:
    text = resource.flags.get("offset", "0")
    if not _NUMBER.fullmatch(text):
        raise RefusedError(400, f"the offset must be a number of bytes, not {text!r}", "O62")
    return int(text)
