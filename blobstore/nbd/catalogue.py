"""Opens each export once, however many clients it has (N5, N24)."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from blobstore.errors import BlobNotFoundError
from formats.errors import DeviceBusyError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from blobstore.nbd.exports import Described, Opened, Source

_log = LateLogger(__name__)


class Shared:
    """An open export and the clients that use it.

    Attributes:
        opened: The export; another one when the store was released, or taken over.
        source: Where it comes from.
        lock: Held by the thread that uses its device.
    """

    def __init__(self, opened: Opened, key: tuple[str, int], source: Source) -> None:
        """Be used by no one yet."""
        self.opened = opened
        self.source: Final = source
        self.lock: Final = threading.Lock()
        self.key: Final = key
        self.users = 0


class Catalogue:
    """All exports of a server. Its methods may be called from several threads."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Offer what these have; where two have one name, the first one's."""
        self._sources = tuple(sources)
        self._lock = threading.Lock()
        self._shared: dict[tuple[str, int], Shared] = {}
        self._released = False
        self._waiting: ExitStack | None = None

    def names(self) -> list[str]:
        """Return the names of all exports; errors as those of the sources."""
        return list(dict.fromkeys(name for source in self._sources for name in source.names()))

    def describe(self, name: str) -> Described:
        """Return what there is of that name; errors as `Source.describe`."""
        return self._find(name)[1]

    def open(self, name: str) -> Shared:
        """Open an export, or share one that is open; the caller gives it to `release`.

        Raises:
            DeviceBusyError: Its section has a window that this server did not open.
            StorageError: As `Source.open`.
        """
        with self._lock:
            source, described = self._find(name)
            name = described.export.name
            key = name, described.version
            shared = self._shared.get(key)
            if shared is None:
                try:
                    opened = (source.open_released if self._released else source.open)(name)
                except ValueError as error:
                    # What `Store.window` says of a second one, and any closed store.
                    raise DeviceBusyError(f"export {name!r} cannot be opened: {error}") from error
                shared = self._shared[key] = Shared(opened, key, source)
            shared.users += 1
            return shared

    def release(self, shared: Shared) -> None:
        """Close an export after its last client; what fails then is logged."""
        with self._lock:
            shared.users -= 1
            if shared.users:
                return
            # First, so that the next client opens it again, also if closing fails.
            del self._shared[shared.key]
            try:
                shared.opened.close()
            except StorageError as error:
                _log.error("export %r: closing it failed: %s", shared.opened.export.name, error)

    def flush(self) -> None:
        """Make durable what was written to any export; errors as `BlockDevice.flush`."""
        with self._lock:
            for shared in self._shared.values():
                with shared.lock:
                    shared.opened.device.flush()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Make durable what was written, and let clients wait in the block; errors as `flush`."""
        with self._lock, ExitStack() as resting:
            for shared in self._shared.values():
                resting.enter_context(shared.lock)
                shared.opened.device.flush()
            yield

    def suspend(self, *, waiting: bool) -> None:
        """Give the store back what is open of it, so that it can be released (O141).

        Args:
            waiting: Whether clients wait until `resume`. Otherwise they read what there is
                now, and what they write is refused.

        Raises:
            StorageError: As `flush`; then nothing changed.
        """
        with ExitStack() as resting:
            resting.enter_context(self.at_rest())
            if not self._released:
                held = [one for one in self._shared.values() if one.opened.holds_store]
                changed: list[Shared] = []
                try:
                    for shared in held:
                        changed.append(shared)
                        shared.opened.close()
                        shared.opened = shared.source.open_released(shared.opened.export.name)
                except BaseException:
                    _open_again(changed)
                    raise
                self._released = True
            if waiting:
                self._waiting = resting.pop_all()

    def resume(self) -> None:
        """Open again what `suspend` closed. What fails to open is logged, and stays as it is."""
        with self._waiting or self.at_rest():
            self._waiting = None
            self._released = False
            _open_again(one for one in self._shared.values() if one.opened.holds_store)

    def end_waiting(self) -> None:
        """Let requests that wait go on, and fail: their clients are not there any more."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def _find(self, name: str) -> tuple[Source, Described]:
        if not name:
            name = self._only_name()
        missing = BlobNotFoundError(f"there is no export {name!r}")
        for source in self._sources:
            try:
                return source, source.describe(name)
            except BlobNotFoundError as error:
                missing = error
        raise missing

    def _only_name(self) -> str:
        names = self.names()
        if len(names) != 1:
            raise BlobNotFoundError(
                f"there are {len(names)} exports, so one has to be named [N5]",
                hint="ask for the list of exports",
            )
        return names[0]


def _open_again(shared: Iterable[Shared]) -> None:
    """Open again what was closed because the store was released."""
    for one in shared:
        name = one.opened.export.name
        try:
            one.opened = one.source.open(name)
        except (StorageError, ValueError) as error:
            _log.error("export %r cannot be opened again: %s", name, error)
