"""The owner's socket: a thread for each connection, and an end that finishes what it began."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from blobstore.owner.budget import Budget
from blobstore.owner.changes import ChangeResources
from blobstore.owner.connection import Connection
from blobstore.owner.images import ImageResources
from blobstore.owner.lifecycle import LifecycleResources
from blobstore.owner.limits import Limits
from blobstore.owner.maintenance import MaintenanceResources
from blobstore.owner.problems import RefusedError
from blobstore.owner.reencryption import ReencryptionResources
from blobstore.owner.routes import Routes
from blobstore.owner.sections import SectionResources
from blobstore.owner.windows import WindowResources
from blobstore.sockets.peers import describe_peer
from formats.logs import LateLogger
from formats.signals import Waker

if TYPE_CHECKING:
    from blobstore.owner.owner import Owner

_log = LateLogger(__name__)

#: Seconds after which a connection without a request is one that gives way to others, and
#: that it may take to end then.
_IDLE: Final = 0.25


class OwnerServer:
    """Serves a store on a listening socket.

    `run` takes connections in the thread that calls it; `stop` ends it, from any thread
    and from a signal's handler.
    """

    def __init__(
        self,
        owner: Owner,
        listener: socket.socket,
        *,
        limits: Limits | None = None,
        grace: float | None = None,
    ) -> None:
        """Serve ``owner`` on ``listener``; both stay the caller's to close.

        Args:
            owner: Its store is open for as long as `run` runs.
            listener: A Unix socket that listens.
            limits: What clients may ask for.
            grace: Seconds that clients have at the end to take their replies (O7); None is as
                long as ``limits`` permit.
        """
        self._owner = owner
        self._limits = limits or Limits()
        self._grace = self._limits.sending + self._limits.draining if grace is None else grace
        self._budget = Budget(self._limits.bodies, self._limits.waiting)
        self._routes = routes_of(owner)
        self._listener = listener
        self._stopping = False
        self._waker = Waker()
        self._connections: dict[socket.socket, tuple[Connection, threading.Thread]] = {}
        self._lock = threading.Lock()
        self._failing = False

    def stop(self) -> None:
        """Have `run` take no more requests, answer those that it has, and return."""
        self._stopping = True
        self._waker.wake()

    def run(self) -> None:
        """Serve until `stop`. The caller closes the store after that.

        Raises:
            StorageError: What clients wrote to windows and did not flush cannot be committed.
        """
        self._listener.setblocking(False)
        self._owner.watches.start()
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._waker, selectors.EVENT_READ)
                while not self._stopping:
                    ready = [key.fileobj for key, _ in selector.select()]
                    if self._listener in ready and not self._stopping:
                        self._accept()
        finally:
            self._finish()

    def close(self) -> None:
        """Let go of what `stop` needs; `run` has returned."""
        self._waker.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return  # the client went away again
        except OSError as error:
            # No descriptors are left, for instance: it waits in the kernel's queue.
            if not self._failing:
                _log.error("cannot take a connection: %s", error.strerror)
            self._failing = True
            time.sleep(0.05)
            return
        self._failing = False
        if not self._make_room():
            # Never waits: this thread is the one that takes all connections.
            with sock:
                quick = Limits(sending=0.001, draining=0)
                error_ = RefusedError(
                    503, "the owner has too many connections", "O11", (("retry-after", "1"),)
                )
                Connection(sock, self._routes, quick, self._budget).refuse(error_)
            return
        _log.info("a connection from %s", describe_peer(sock))
        connection = Connection(sock, self._routes, self._limits, self._budget)
        thread = threading.Thread(
            target=self._serve, args=(sock, connection), name="connection", daemon=True
        )
        with self._lock:
            self._connections[sock] = connection, thread
        try:
            thread.start()
        except RuntimeError as error:
            _log.error("cannot serve a connection: %s", error)
            self._forget(sock)

    def _make_room(self) -> bool:
        """Say whether there is room for one more connection; end the most idle one for it (O73)."""
        with self._lock:
            if len(self._connections) < self._limits.connections:
                return True
            idle = [
                (connection.idle_since, number, sock, thread)
                for number, (sock, (connection, thread)) in enumerate(self._connections.items())
                if connection.idle_since is not None
            ]
        if not idle:
            return False
        since, _, sock, thread = min(idle)
        if since > time.monotonic() - _IDLE:
            return False
        # What it has sent until now is still answered: no request is lost.
        _shut(sock)
        thread.join(_IDLE)
        return not thread.is_alive()

    def _serve(self, sock: socket.socket, connection: Connection) -> None:
        try:
            connection.serve()
        finally:
            if connection.upgrade is None:
                self._forget(sock)
        if connection.upgrade is not None:
            # It is not HTTP any more, and does not end with this server.
            with self._lock:
                self._connections.pop(sock, None)
            connection.upgrade(sock)

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._connections.pop(sock, None)
        sock.close()

    def _finish(self) -> None:
        """Wait for the replies to what was received; clients cannot make that longer (O7)."""
        with self._lock:
            connections = dict(self._connections)
        for sock in connections:
            _shut(sock)
        self._owner.watches.stop()
        deadline = time.monotonic() + self._grace
        for _, thread in connections.values():
            thread.join(max(deadline - time.monotonic(), 0))
        # What takes longer than that leaves nothing half done.
        self._owner.ending.set()
        deadline = time.monotonic() + self._limits.draining
        for _, thread in connections.values():
            thread.join(max(deadline - time.monotonic(), 0))
        self._owner.windows.close_all()


def routes_of(owner: Owner) -> Routes:
    """Return all that an owner offers."""
    return Routes(
        [
            SectionResources(owner.store, owner.require_free, owner.ending).resources(),
            WindowResources(owner.windows, owner.store).resources(),
            ChangeResources(owner.watches).resources(),
            MaintenanceResources(owner.store, owner.require_free).resources(),
            ImageResources(owner).resources(),
            LifecycleResources(owner).resources(),
            ReencryptionResources(owner).resources(),
        ]
    )


def _shut(sock: socket.socket) -> None:
    """Have a connection end after what was received."""
    try:
        sock.shutdown(socket.SHUT_RD)
    except OSError as error:
        _log.debug("a connection had ended: %s", error)
