"""The store itself as a front: HTTP on a Unix socket."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from blobstore.image.place import entry_of
from blobstore.owner.server import OwnerServer
from blobstore.owner.serving.fronts import DEFAULT_MODE, Mode, socket_address
from blobstore.sockets.addresses import UnixAddress
from formats.errors import ArgumentError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from blobstore.image.place import Place
    from blobstore.owner.owner import Owner
    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener

#: Its name, and that of its socket.
STORE: Final = "store"


class StoreFront(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Where the store is served.

    Attributes:
        path: Of the socket; None is the image's entry in the runtime directory (O3).
        mode: Of the socket.
        group: Of the socket: name or number; None is that of the process.
    """

    path: str | None = None
    mode: Mode = DEFAULT_MODE
    group: str | int | None = None

    def __post_init__(self) -> None:
        """Refuse an entry that contradicts itself.

        Raises:
            ArgumentError: As its message says.
        """
        self._address()

    @property
    def name(self) -> str:
        """Its name: there is one."""
        return STORE

    @property
    def socket_names(self) -> tuple[str, ...]:
        """The name of its socket: there is one."""
        return (STORE,)

    def sockets(self, image: Place) -> Mapping[str, Address | None]:
        """Return where it listens: its path, or the image's entry if there is a place for one."""
        found = self._address()
        if self.path is not None:
            return {STORE: found}
        entry = entry_of(image)
        if entry is None:
            return {STORE: None}
        return {STORE: UnixAddress(entry, found.mode, group=found.group)}

    def start(self, owner: Owner, listeners: Mapping[str, Listener]) -> RunningStore:
        """Serve the store."""
        running = RunningStore(owner, listeners[STORE])
        owner.add(running, devices=False)
        return running

    def _address(self) -> UnixAddress:
        # A path that looks like HOST:PORT is one all the same.
        path = "entry" if self.path is None else f"./{self.path}" if ":" in self.path else self.path
        found = socket_address(path, self.mode, self.group, "path")
        if not isinstance(found, UnixAddress):
            raise ArgumentError(f"{self.path!r} is not a path of a socket")
        return found


class RunningStore:
    """Serves the store in a thread of its own."""

    def __init__(self, owner: Owner, listener: Listener) -> None:
        """Begin to serve; both stay the caller's."""
        self._owner, self._listener = owner, listener
        self._thread: threading.Thread | None = None
        self._failure: StorageError | None = None
        self._start()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Do nothing: a request does one thing, as a whole (O22)."""
        yield

    def suspend(self, *, waiting: bool) -> None:
        """Answer what was received, and take no more, if clients are to wait.

        Raises:
            StorageError: What clients wrote to windows cannot be committed; it goes on.
        """
        if waiting:
            try:
                self.stop()
            except StorageError:
                self.resume()
                raise

    def resume(self) -> None:
        """Go on."""
        if self._thread is None:
            self._start()

    def stop(self) -> None:
        """End connections after the requests in progress (O7).

        Raises:
            StorageError: What clients wrote to windows and did not flush cannot be committed.
        """
        if self._thread is not None:
            self._server.stop()
            self._thread.join()
            self._thread = None
            self._server.close()
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure

    def _start(self) -> None:
        self._server = OwnerServer(self._owner, self._listener.socket, limits=self._owner.limits)
        self._thread = threading.Thread(target=self._run, name="blobstore store")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._server.run()
        except StorageError as error:  # what was written to windows, at the end
            self._failure = error
        except BaseException as error:  # noqa: BLE001  the main thread raises it
            if self._owner.on_failed is not None:
                self._owner.on_failed(error)
