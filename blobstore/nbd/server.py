"""The server: a socket, and a thread for each client (N22, N28 to N30)."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from blobstore.nbd.catalogue import Catalogue
from blobstore.nbd.connection import HANDSHAKE_TIME, STALL_TIME, Connection
from blobstore.nbd.sockets import listen, require_address, shown
from blobstore.sockets.peers import describe_peer
from formats.errors import ArgumentError
from formats.logs import LateLogger
from formats.process import Owned, Owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from blobstore.nbd.credentials import NbdTls
    from blobstore.nbd.exports import Source
    from blobstore.nbd.sockets import Address
    from blobstore.sockets.listening import Listener

_log = LateLogger(__name__)

#: Most clients at once (N29).
MOST_CONNECTIONS: Final = 64
#: Seconds for which a client may choose an export while others wait for its place (N70).
_CHOOSING: Final = 0.25
#: Seconds to wait after a connection that could not be accepted.
_PAUSE: Final = 0.1
#: Seconds that clients have to take their last answers when the server stops.
_LAST_ANSWERS: Final = 5.0


class NbdServer(Owned):
    """Exports sections and devices by NBD, from `start` to `stop`.

        with blobstore.open("machine.img", secret) as store:
            with NbdServer(Path("nbd.sock"), NbdSections(store)):
                ...

    The store may be used meanwhile, but for the windows that clients have open. It belongs
    to the process that made it; in a child of that, `stop` does nothing.
    """

    def __init__(
        self,
        address: Address,
        *sources: Source,
        tls: NbdTls | None = None,
        most_connections: int = MOST_CONNECTIONS,
        handshake_time: float = HANDSHAKE_TIME,
        stall_time: float = STALL_TIME,
    ) -> None:
        """Be ready to start.

        Args:
            address: Path of a Unix socket, or host and port of TCP, at a loopback
                address unless ``tls`` identifies clients (N36); port 0 means any.
            sources: What to export; where two have one name, the first one's counts.
            tls: Serve within TLS, and only there.
            most_connections: Clients at once; others are turned away.
            handshake_time: Seconds that a client may take to choose an export.
            stall_time: Seconds that half a request, or an answer, may wait for it.

        Raises:
            ArgumentError: The address can be reached from other machines, and clients are
                not identified.
        """
        if not isinstance(address, Path):
            require_address(address, tls)
        self._address = address
        self._catalogue = Catalogue(sources)
        self._tls = tls
        self._most = most_connections
        self._times = handshake_time, stall_time
        self._owner = Owner("the NBD server")
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, tuple[Connection, threading.Thread]] = {}
        self._listening: Listener | None = None
        self._acceptor: threading.Thread | None = None
        self._wake: socket.socket | None = None
        self._closes = True
        self._abandons = False

    @property
    def address(self) -> Address:
        """Where it listens; with the real port, once it was started."""
        if self._listening is None or isinstance(self._address, Path):
            return self._address
        host, port = self._listening.socket.getsockname()[:2]
        return host, port

    def start(self, listener: Listener | None = None) -> None:
        """Listen, and return: clients are served by threads of their own.

        Args:
            listener: A socket that listens already, at the address; it stays the caller's.

        Raises:
            DeviceBusyError: A process listens there.
            DeviceError: It is not possible to listen there.
            ValueError: It was started before.
        """
        if self._acceptor is not None:
            raise ValueError("an NBD server is started once")
        listening = listener or listen(self._address)
        self._closes = listener is None
        listening.socket.setblocking(False)
        self._listening = listening
        self._begin_accepting(listening)
        _log.info("serving NBD at %s", shown(self.address))

    def use_tls(self, tls: NbdTls | None) -> None:
        """Use other certificates or keys for connections to come (N71).

        Args:
            tls: Such that identifies clients as before; None only if there was none.

        Raises:
            ArgumentError: There is TLS now and was none, or the other way round; or it would
                identify clients in another way.
        """
        kinds = {None if one is None else one.identifies_clients for one in (self._tls, tls)}
        if len(kinds) > 1:
            raise ArgumentError("a server that runs keeps its kind of TLS [N71]")
        self._tls = tls

    def flush(self) -> None:
        """Make durable what clients have written until now; errors as `Window.flush`.

        For a caller that needs all exports at one moment, as before a snapshot; not to be called
        in a transaction of the store, for which clients wait.
        """
        self._owner.require()
        self._catalogue.flush()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Let clients wait in the block, with what they wrote durable; errors as `flush`.

        The block may use the store, as `flush` may not be called while the store is used.
        """
        self._owner.require()
        with self._catalogue.at_rest():
            yield

    def suspend(self, *, waiting: bool) -> None:
        """Let go of the store, so that another process can have it (O141); errors as `flush`.

        Args:
            waiting: Whether clients wait until `resume` or `stop`; after `stop`, what they
                asked for meanwhile is not answered. Otherwise they read what was committed,
                and what they write is refused.
        """
        self._owner.require()
        self._catalogue.suspend(waiting=waiting)
        if waiting:
            self._abandons = True
            self._end_accepting()

    def resume(self) -> None:
        """Go on after `suspend`: the store was taken over."""
        self._owner.require()
        self._catalogue.resume()
        if self._abandons and self._listening is not None:
            self._abandons = False
            self._begin_accepting(self._listening)

    def stop(self) -> None:
        """End all connections after the requests in progress, and close what they used.

        What clients wrote is committed. A client that does not take its answer is not
        waited for longer than five seconds. Twice is fine.
        """
        if self._owner.is_other or self._wake is None or self._acceptor is None:
            return
        self._end_accepting()
        if self._listening is not None:
            if self._closes:
                self._listening.close()
            self._listening = None
        with self._lock:
            clients = {client: thread for client, (_, thread) in self._clients.items()}
        # The process that has the store now answers the requests that are left.
        _shut(clients, socket.SHUT_RDWR if self._abandons else socket.SHUT_RD)
        self._catalogue.end_waiting()
        deadline = time.monotonic() + _LAST_ANSWERS
        for thread in clients.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        _shut(clients, socket.SHUT_RDWR)
        for thread in clients.values():
            thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _begin_accepting(self, listener: Listener) -> None:
        self._wake, stopped = socket.socketpair()
        self._acceptor = threading.Thread(
            target=self._accept, args=(listener.socket, stopped), name="blobstore nbd", daemon=True
        )
        self._acceptor.start()

    def _end_accepting(self) -> None:
        if self._wake is not None and self._acceptor is not None:
            self._wake.close()
            self._acceptor.join()

    def _accept(self, listening: socket.socket, stopped: socket.socket) -> None:
        with stopped, selectors.DefaultSelector() as selector:
            selector.register(listening, selectors.EVENT_READ)
            selector.register(stopped, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if stopped in ready:
                    return
                try:
                    client = listening.accept()[0]
                except BlockingIOError:
                    continue  # it is gone already
                except OSError as error:
                    _log.warning("a connection cannot be accepted: %s", error.strerror)
                    time.sleep(_PAUSE)  # where there are no descriptors left
                    continue
                self._begin(client)

    def _begin(self, client: socket.socket) -> None:
        if not self._make_room():
            who = describe_peer(client)
            _log.warning("%s is turned away: there are %d clients", who, self._most)
            client.close()
            return
        handshake_time, stall_time = self._times
        connection = Connection(
            client,
            self._catalogue,
            tls=self._tls,
            handshake_time=handshake_time,
            stall_time=stall_time,
        )
        thread = threading.Thread(
            target=self._serve, args=(client, connection), name="blobstore nbd client", daemon=True
        )
        with self._lock:
            self._clients[client] = connection, thread
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads
                _log.warning("a client is turned away: %s", error)
                del self._clients[client]
                client.close()

    def _make_room(self) -> bool:
        """Say whether there is room for a client; one that has not begun gives way (N70)."""
        with self._lock:
            if len(self._clients) < self._most:
                return True
            choosing = [
                (connection.choosing_since, number, client, thread)
                for number, (client, (connection, thread)) in enumerate(self._clients.items())
                if connection.choosing_since is not None
            ]
        if not choosing:
            return False
        since, _, client, thread = min(choosing)
        if since > time.monotonic() - _CHOOSING:
            return False
        _log.warning("%s has not begun, and gives way to another client", describe_peer(client))
        _shut([client], socket.SHUT_RDWR)
        thread.join(_CHOOSING)
        return not thread.is_alive()

    def _serve(self, client: socket.socket, connection: Connection) -> None:
        who = describe_peer(client)
        try:
            _log.info("%s is connected", who)
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.serve()
            _log.info("%s has gone", who)
        except ConnectionError:
            _log.info("%s has gone without a word", who)  # as some do
        except OSError as error:
            _log.warning("the connection of %s broke: %s", who, error)
        finally:
            with self._lock:
                del self._clients[client]
            client.close()


def _shut(clients: Iterable[socket.socket], how: int) -> None:
    for client in clients:
        with suppress(OSError):  # it is closed already
            client.shutdown(how)
