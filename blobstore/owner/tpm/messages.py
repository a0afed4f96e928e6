"""What an owner and the worker of a TPM tell each other: JSON, a message on each line.

The store has a connection of its own; this one says when to begin, rest and end. A worker
may have an owner of another version (V85), so a change of a message, here or in
`states`, is a change of `PROTOCOL`, too.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blobstore.foreign.encryption import StateKey

#: Version of all messages between an owner and a worker (V86).
PROTOCOL: Final = 1
_PIECE: Final = 64 << 10
_Value = TypeVar("_Value")


class Listening(msgspec.Struct):
    """A channel, as a socket that listens.

    Attributes:
        descriptor: In the worker.
        disconnect: As of `blobstore.vtpm.Channel`.
        terminate: Likewise.
    """

    descriptor: int
    disconnect: bool
    terminate: bool


class Key(msgspec.Struct):
    """What a `StateKey` is made of. Never logged, and never shown."""

    secret: bytes
    source: str
    mode: str | None

    @classmethod
    def of(cls, key: StateKey) -> Key:
        """Return what makes the same key in another process."""
        return cls(*key.parts())

    def __repr__(self) -> str:
        return "<Key>"


class Begin(msgspec.Struct, tag=True):
    """The first message to a worker: which TPM it is."""

    name: str
    version: str | None
    ctrl: Listening | None
    data: Listening | None
    needs_init: bool
    startup: str
    auto_shutdown: bool
    reject_locality_4: bool
    allow_set_locality: bool
    migration_key: Key | None
    log_level: int


class Rest(msgspec.Struct, tag=True):
    """Stay between two commands, and say so."""

    number: int


class Resume(msgspec.Struct, tag=True):
    """Go on after the rest of this number."""

    number: int


class LogHere(msgspec.Struct, tag=True):
    """Write messages to the descriptor that comes with this: the owner is another one (V85)."""


class End(msgspec.Struct, tag=True):
    """End in order (V59)."""


class Ready(msgspec.Struct, tag=True):
    """The TPM serves (V73)."""


class Failed(msgspec.Struct, tag=True):
    """The TPM cannot serve: the problem document that says why."""

    status: int
    problem: bytes


class Resting(msgspec.Struct, tag=True):
    """The TPM is between two commands, and waits."""

    number: int


class Ended(msgspec.Struct, tag=True):
    """The TPM was switched off, and the process ends (V74)."""


ToWorker = Begin | Rest | Resume | LogHere | End
ToOwner = Ready | Failed | Resting | Ended


class Lines:
    """Sends and receives messages over a connection; one thread receives at a time.

    Attributes:
        descriptors: Those that came with messages; who uses one takes it out.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Use ``connection``, which is closed with this."""
        self._connection = connection
        self._received = bytearray()
        self.descriptors: list[int] = []

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self._connection.fileno()

    def send(self, message: ToWorker | ToOwner, descriptors: Sequence[int] = ()) -> bool:
        """Send a message; return whether the other end may still be there."""
        data = msgspec.json.encode(message) + b"\n"
        try:
            sent = socket.send_fds(self._connection, [data], descriptors) if descriptors else 0
            self._connection.sendall(data[sent:])
        except OSError:
            return False
        return True

    def receive(self, kind: type[_Value], timeout: float | None = None) -> _Value | None:
        """Return the next message; None if the other end is gone.

        Raises:
            TimeoutError: There was none within so many seconds.
            FormatError: It is something else.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._received:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            try:
                self._connection.settimeout(left)
                piece, found, _, _ = socket.recv_fds(
                    self._connection, _PIECE, 1, socket.MSG_CMSG_CLOEXEC
                )
                self.descriptors += found
            except TimeoutError:
                raise
            except OSError:
                piece = b""
            if not piece:
                return None
            self._received += piece
        line, _, rest = self._received.partition(b"\n")
        self._received = rest
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.MsgspecError as error:
            raise FormatError("what a TPM's process says is not understood", rule="V70") from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
