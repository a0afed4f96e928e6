"""What the product's code finds as `socket`, `select` and `selectors`."""

from __future__ import annotations

import select as real_select
import selectors as real_selectors
import socket as real_socket
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from greenlet import getcurrent

from tests.simulation.scheduler import current_process
from tests.simulation.sockets import SimulatedSocket

if TYPE_CHECKING:
    from tests.simulation.network import Network
    from tests.simulation.scheduler import Process


class SocketModule:
    """A module `socket` of one simulation."""

    AF_UNIX, AF_INET = real_socket.AF_UNIX, real_socket.AF_INET
    SOCK_STREAM = real_socket.SOCK_STREAM
    SHUT_RD, SHUT_WR, SHUT_RDWR = range(3)
    MSG_PEEK, MSG_DONTWAIT = real_socket.MSG_PEEK, real_socket.MSG_DONTWAIT
    SO_LINGER = real_socket.SO_LINGER
    SOL_SOCKET, SO_KEEPALIVE = real_socket.SOL_SOCKET, real_socket.SO_KEEPALIVE
    SO_PEERCRED = 17
    IPPROTO_TCP, TCP_NODELAY = real_socket.IPPROTO_TCP, real_socket.TCP_NODELAY

    def __init__(self, network: Network) -> None:
        self._network = network

    def socket(self, family: int, _kind: int) -> SimulatedSocket:
        return SimulatedSocket(self._network, _me(), is_local=family == self.AF_UNIX)

    def socketpair(self) -> tuple[SimulatedSocket, SimulatedSocket]:
        process = _me()
        one = SimulatedSocket(self._network, process, is_local=True)
        other = SimulatedSocket(self._network, process, is_local=True)
        self._network.pair(one, other, hosts=(process.host, process.host))
        return one, other

    def getaddrinfo(
        self,
        host: str,
        port: int,
        *,
        type: int,  # noqa: A002  as it is named there
    ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(self.AF_INET, type, 0, "", (host, port))]


class SelectModule:
    """A module `select` of one simulation."""

    POLLIN = real_select.POLLIN
    POLLRDHUP = 0x2000

    class poll:  # noqa: N801  as it is named there
        def __init__(self) -> None:
            self._sockets: list[tuple[SimulatedSocket, bool]] = []

        def register(self, sock: SimulatedSocket, events: int) -> None:
            self._sockets.append((sock, bool(events & real_select.POLLIN)))

        def poll(self, timeout: float) -> list[SimulatedSocket]:
            assert timeout == 0, "nothing that is simulated waits so"
            return [
                sock
                for sock, data in self._sockets
                if sock.has_ended or (data and sock.is_readable)
            ]


class _Key(NamedTuple):
    fileobj: Any


class SelectorsModule:
    """A module `selectors` of one simulation."""

    EVENT_READ = real_selectors.EVENT_READ

    def __init__(self, network: Network) -> None:
        self._network = network

    def DefaultSelector(self) -> _Selector:  # noqa: N802  as it is named there
        return _Selector(self._network)


class _Selector:
    def __init__(self, network: Network) -> None:
        self._network = network
        self._registered: list[tuple[Any, SimulatedSocket]] = []

    def register(self, fileobj: Any, _events: int) -> None:
        self._registered.append((fileobj, self._network.sockets[fileobj.fileno()]))

    def select(self) -> list[tuple[_Key, int]]:
        me: Any = getcurrent()
        self._network.scheduler.pause()
        while True:
            ready = [(_Key(one), 1) for one, sock in self._registered if sock.is_readable]
            if ready:
                return ready
            for _, sock in self._registered:
                sock.add_reader(me)
            self._network.scheduler.wait()
            for _, sock in self._registered:
                sock.remove_reader(me)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._registered.clear()


def _me() -> Process:
    process = current_process()
    assert process is not None, "only simulated processes have sockets"
    process.require_alive()
    return process
