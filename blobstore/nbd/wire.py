"""The bytes of a connection, as they come and go on its socket (N22)."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.devices.device import ReadableBuffer

#: Most bytes that are received at once. Python allocates them before they come, and from 128 KiB
#: on the C library takes memory from the system for it, and gives it back: twice the time.
RECEIVE: Final = 64 << 10


class Wire(Protocol):
    """How a connection receives and sends."""

    def receive(self, patience: float | None) -> bytes:
        """Return what the client sent next, and nothing if it sends no more.

        Args:
            patience: Seconds to wait for it; None waits for as long as it takes.

        Raises:
            TimeoutError: It sent nothing.
            OSError: The connection broke.
        """

    def send(self, pieces: Iterable[ReadableBuffer], patience: float) -> None:
        """Send all pieces; errors as `receive`.

        Args:
            pieces: To be sent in order; not modified.
            patience: Seconds that the client may take, each time, to take some.
        """

    def is_abandoned(self) -> bool:
        """Say whether the client has closed the connection, or is known to be gone."""

    def finish(self) -> None:
        """Send what tells the client that nothing follows, if anything does."""


class PlainWire:
    """A connection that is not encrypted."""

    def __init__(self, client: socket.socket) -> None:
        """Use a socket, which stays the caller's to close."""
        self._client = client
        self._patience: float | None = None
        client.settimeout(None)
        self._end = select.poll()
        # Where the system does not tell of an end before the data is read, a reset is seen.
        self._end.register(client, getattr(select, "POLLRDHUP", 0))

    def receive(self, patience: float | None) -> bytes:
        self._wait_for(patience)
        return self._client.recv(RECEIVE)

    def send(self, pieces: Iterable[ReadableBuffer], patience: float) -> None:
        rest = [memoryview(piece) for piece in pieces if piece]
        # Nearly every answer finds room, so there is nothing to wait for.
        flags = socket.MSG_DONTWAIT if self._patience is None else 0
        while rest:
            try:
                sent = self._client.sendmsg(rest, (), flags)
            except BlockingIOError:
                flags = 0
                self._wait_for(patience)
                continue
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if sent:
                rest[0] = rest[0][sent:]

    def is_abandoned(self) -> bool:
        return bool(self._end.poll(0))

    def finish(self) -> None:
        """Send nothing: the end of the connection tells it."""

    def _wait_for(self, patience: float | None) -> None:
        # It is a system call, and one more for each one that waits.
        if patience != self._patience:
            self._client.settimeout(patience)
            self._patience = patience
