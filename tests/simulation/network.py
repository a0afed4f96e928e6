"""Connections between hosts: delayed, cut in pieces, held up, broken.

A connection delivers bytes in order, as TCP does, or breaks. While a link is cut, what was sent is
held up, and what is given up on one side may still arrive on the other when the link heals: so an
old connection's requests can reach a server after those of a new one. A host that loses power
says nothing; a process that dies has its connections closed by its host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.simulation.sockets import SimulatedSocket, Stream

if TYPE_CHECKING:
    from tests.simulation.scheduler import Process, Scheduler

#: Bytes of a stream that are on their way or were not read yet.
CAPACITY: Final = 64 << 10
#: The host with the disk, to which the others connect.
SERVER: Final = "storage"
#: Where a socket listens: a path, or host and port.
Address = str | tuple[str, int]


class Network:
    """All hosts, their links, and what listens.

    Attributes:
        latency: Seconds that a message between two hosts takes on average.
        loss: How likely a message is lost once, and comes after a time-out of TCP.
        pieces: How likely a message arrives in two pieces.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.latency = 0.0002
        self.loss = 0.0
        self.pieces = 0.1
        self.sockets: dict[int, SimulatedSocket] = {}
        self._number = 2
        self._listening: dict[tuple[str, Address], SimulatedSocket] = {}
        self._cut: dict[frozenset[str], list[Stream]] = {}

    # ----------------------------------------------------------- sockets

    def add(self, sock: SimulatedSocket) -> int:
        """Give a socket its number."""
        self._number += 1
        self.sockets[self._number] = sock
        process = sock.process
        process.at_death.append(sock.die)
        return self._number

    def forget(self, sock: SimulatedSocket, number: int) -> None:
        del self.sockets[number]
        sock.process.at_death.remove(sock.die)
        for key, listening in list(self._listening.items()):
            if listening is sock:
                del self._listening[key]

    def listen(self, process: Process, address: Address) -> SimulatedSocket:
        """Return a socket that listens: at a path of this host, or at a port of it."""
        sock = SimulatedSocket(self, process, is_local=isinstance(address, str))
        sock.accepting = []
        self._listening[_key(process.host, address)] = sock
        return sock

    def pair(self, one: SimulatedSocket, other: SimulatedSocket, *, hosts: tuple[str, str]) -> None:
        """Connect two sockets."""
        there = Stream(self, hosts[0], hosts[1])
        back = Stream(self, hosts[1], hosts[0])
        one.connected(outgoing=there, incoming=back)
        other.connected(outgoing=back, incoming=there)

    def connect(self, sock: SimulatedSocket, address: Address, timeout: float | None) -> None:
        """Connect a socket to what listens at an address.

        Raises:
            ConnectionRefusedError: Nothing does.
            TimeoutError: The link is cut, or that host does not answer.
        """
        key = _key(sock.process.host, address)
        began = self.scheduler.now
        self.scheduler.pause()
        if key[0] != sock.process.host:
            self.scheduler.sleep(self.scheduler.random.expovariate(1 / self.latency))
        while self.is_cut(sock.process.host, key[0]):
            if timeout is not None and self.scheduler.now - began >= timeout:
                raise TimeoutError("timed out")
            self.scheduler.sleep(0.2)
        listening = self._listening.get(key)
        if listening is None or listening.accepting is None:
            raise ConnectionRefusedError("connection refused")
        other = SimulatedSocket(self, listening.process, is_local=listening.is_local)
        self.pair(sock, other, hosts=(sock.process.host, key[0]))
        listening.accepting.append(other)
        listening.wake_readers()

    # -------------------------------------------------------------- links

    def is_cut(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self._cut

    def cut(self, one: str, other: str) -> None:
        """Hold up whatever these two hosts send each other, until `heal`."""
        self._cut.setdefault(frozenset((one, other)), [])
        self.scheduler.note(f"link {one} - {other} is cut")

    def heal(self, one: str, other: str) -> None:
        held = self._cut.pop(frozenset((one, other)), [])
        self.scheduler.note(f"link {one} - {other} heals")
        for stream in held:
            # TCP tries again after a pause that has become long meanwhile.
            pause = self.scheduler.random.choice((0.0, 0.5, 20.0))
            self.scheduler.after(pause, "message", stream.deliver)

    def hold(self, stream: Stream) -> None:
        """Deliver what a stream has on its way when the link heals."""
        self._cut[frozenset((stream.sender, stream.receiver))].append(stream)

    def break_one(self, one: str, other: str) -> None:
        """Reset a connection between two hosts, as a middlebox may: the server sees it first.

        Where the client did, a request that the server still has could come after those of the
        next connection, which neither can prevent (spec/decisions/0042).
        """
        draw = self.scheduler.random
        found = [
            sock
            for sock in self.sockets.values()
            if sock.outgoing is not None
            and {sock.outgoing.sender, sock.outgoing.receiver} == {one, other}
        ]
        if not found:
            return
        sock = draw.choice(found)
        self.scheduler.note(f"a connection of {sock.process.name} is reset")
        assert sock.outgoing is not None
        assert sock.incoming is not None
        for stream in (sock.outgoing, sock.incoming):
            delay = 0.0 if stream.receiver == SERVER else draw.choice((0.0, 0.001, 0.1))
            stream.scheduled_break(delay)

    def power_lost(self, host: str, outage: float) -> None:
        """Have a host vanish without a word; its peers give up on it before it is back."""
        for sock in list(self.sockets.values()):
            if sock.process.host == host:
                sock.vanish(outage)


def _key(host: str, address: Address) -> tuple[str, Address]:
    if isinstance(address, tuple):
        return address[0], address
    return host, address
