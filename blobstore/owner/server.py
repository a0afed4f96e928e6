"""The owner's socket: a thread for each connection, and an end that finishes what it began."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING

from blobstore.image.owners import peer_credentials
from blobstore.owner.connection import Connection, Limits
from blobstore.owner.images import ImageResources
from blobstore.owner.maintenance import MaintenanceResources
from blobstore.owner.problems import RefusedError
from blobstore.owner.routes import Routes
from blobstore.owner.sections import SectionResources
from formats.logs import LateLogger

if TYPE_CHECKING:
    from blobstore.owner.owner import Owner

_log = LateLogger(__name__)


class OwnerServer:
    """Serves a store on a listening socket.

    `run` takes connections in the thread that calls it; `stop` ends it, from any thread
    and from a signal's handler.
    """

    def __init__(
        self, owner: Owner, listener: socket.socket, *, limits: Limits | None = None
    ) -> None:
        """Serve ``owner`` on ``listener``; both stay the caller's to close.

        Args:
            owner: Its store is open for as long as `run` runs.
            listener: A Unix socket that listens.
            limits: What clients may ask for.
        """
        self._limits = limits or Limits()
        self._owner = owner
        self._routes = routes_of(owner)
        self._listener = listener
        self._stop_read, self._stop_write = os.pipe()
        os.set_blocking(self._stop_write, False)
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Have `run` take no more requests, answer those that it has, and return."""
        try:
            os.write(self._stop_write, b"\0")
        except (BlockingIOError, OSError):
            _log.debug("the owner is stopping already")

    def run(self) -> None:
        """Serve until `stop`. The caller closes the store after that."""
        self._listener.setblocking(False)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._stop_read, selectors.EVENT_READ)
                while all(key.fd != self._stop_read for key, _ in selector.select()):
                    self._accept()
        finally:
            self._finish()

    def close(self) -> None:
        """Let go of what `stop` needs; `run` has returned."""
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return  # the client went away again
        except OSError as error:
            # No descriptors are left, for instance: it waits in the kernel's queue.
            _log.error("cannot take a connection: %s", error.strerror)
            time.sleep(0.05)
            return
        with self._lock:
            full = len(self._connections) >= self._limits.connections
        if full:
            # Never waits: this thread is the one that takes all connections.
            with sock:
                quick = Limits(sending=0.001, draining=0)
                error_ = RefusedError(
                    503, "the owner has too many connections", "O11", (("retry-after", "1"),)
                )
                Connection(sock, self._routes, quick).refuse(error_)
            return
        _log.info("a connection from %s", _peer(sock))
        thread = threading.Thread(target=self._serve, args=(sock,), name="connection", daemon=True)
        with self._lock:
            self._connections[sock] = thread
        try:
            thread.start()
        except RuntimeError as error:
            _log.error("cannot serve a connection: %s", error)
            self._forget(sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            Connection(sock, self._routes, self._limits).serve()
        finally:
            self._forget(sock)

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._connections.pop(sock, None)
        sock.close()

    def _finish(self) -> None:
        """Wait for the replies to what was received; clients cannot make that longer (O7)."""
        with self._lock:
            connections = dict(self._connections)
        for sock in connections:
            try:
                sock.shutdown(socket.SHUT_RD)
            except OSError as error:
                _log.debug("a connection had ended: %s", error)
        deadline = time.monotonic() + self._limits.sending + self._limits.draining
        for thread in connections.values():
            thread.join(max(deadline - time.monotonic(), 0))
        # What takes longer than that leaves nothing half done.
        self._owner.ending.set()
        deadline = time.monotonic() + self._limits.draining
        for thread in connections.values():
            thread.join(max(deadline - time.monotonic(), 0))


def routes_of(owner: Owner) -> Routes:
    """Return all that an owner offers."""
    groups = (
        SectionResources(owner.store),
        MaintenanceResources(owner.store),
        ImageResources(owner),
    )
    return Routes(group.resources() for group in groups)


def _peer(sock: socket.socket) -> str:
    """Say who is at the other end, where the system tells."""
    credentials = peer_credentials(sock)
    if credentials is None:
        return "a process that the system does not name"
    return "process {} of user {}, group {}".format(*credentials)
