"""The states of one TPM, which its process reads and changes in its owner's store (O101).

Messages over a socket pair: four bytes of length, and a value in MessagePack. Requests are
answered one after the other. It does less than HTTP, in a tenth of the time: a TPM waits
for it on each command that changes its state.
"""

from __future__ import annotations

import select
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from blobstore.errors import BlobNotFoundError
from blobstore.owner import problems, requests
from blobstore.store.description import SectionInfo  # noqa: TC001  msgspec reads it
from formats.errors import DeviceError, FormatError, StorageError
from formats.logs import LateLogger
from formats.signals import Waker
from luks import PolicyError

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterator

    from blobstore.store.store import Store

_log = LateLogger(__name__)

_LENGTH: Final = struct.Struct(">I")
#: Bytes of a message: more than any state of a TPM has.
_MOST: Final = 1 << 20
_PIECE: Final = 256 << 10


class Get(msgspec.Struct, tag=True):
    """Ask for the blob of a section."""

    name: str


class Describe(msgspec.Struct, tag=True):
    """Ask what the directory says of a section."""

    name: str


class Apply(msgspec.Struct, tag=True):
    """Make all of these changes or none."""

    changes: list[requests.PutChange | requests.RegisterChange | requests.DeleteChange]


class Blob(msgspec.Struct, tag=True):
    """The answer to `Get`."""

    data: bytes


class Described(msgspec.Struct, tag=True):
    """The answer to `Describe`."""

    section: SectionInfo


class Applied(msgspec.Struct, tag=True):
    """The answer to `Apply`: it is durable."""


class Refused(msgspec.Struct, tag=True):
    """The answer to what cannot be done: why, as a problem document."""

    status: int
    problem: bytes


_Answer = TypeVar("_Answer", Blob, Described, Applied)
_encoder = msgspec.msgpack.Encoder()
_questions: msgspec.msgpack.Decoder[Get | Describe | Apply] = msgspec.msgpack.Decoder(
    Get | Describe | Apply
)
_answers: msgspec.msgpack.Decoder[Blob | Described | Applied | Refused] = msgspec.msgpack.Decoder(
    Blob | Described | Applied | Refused
)


class StatesServer:
    """Answers one process from a store, for as long as that asks."""

    def __init__(self, connection: socket.socket, store: Store, names: Collection[str]) -> None:
        """Answer on ``connection``, which stays the caller's to close.

        Args:
            connection: To the process.
            store: Of the owner.
            names: Of the sections that there are for the process.
        """
        self._connection, self._store, self._names = connection, store, frozenset(names)
        self._waker = Waker()
        self._pausing = False

    def serve(self) -> bool:
        """Answer until the process ends, does not keep to the rules (O101), or `pause`.

        Returns:
            Whether it is paused: what the process asks next is another's to answer.
        """
        poll = select.poll()
        for one in (self._connection, self._waker):
            poll.register(one, select.POLLIN)
        try:
            while True:
                poll.poll()
                if self._pausing:
                    return True
                message = _receive(self._connection)
                if message is None:
                    return False
                self._connection.sendall(_framed(self._answer(_questions.decode(message))))
        except (OSError, FormatError, msgspec.MsgspecError) as error:
            _log.warning("the process of a TPM is not understood: %s", error)
        return False

    def pause(self) -> None:
        """Have `serve` return before the next question; from another thread, once."""
        self._pausing = True
        self._waker.wake()

    def close(self) -> None:
        """Let go of what this waits with, after `serve`."""
        self._waker.close()

    def _answer(self, question: Get | Describe | Apply) -> Blob | Described | Applied | Refused:
        try:
            if isinstance(question, Get):
                self._require(question.name)
                return Blob(self._store.get(question.name))
            if isinstance(question, Describe):
                self._require(question.name)
                return Described(self._store.section(question.name))
            for change in question.changes:
                self._require(change.name)
            with self._store.transaction() as changes:
                for change in question.changes:
                    change.apply(changes)
            return Applied()
        except (StorageError, ValueError) as error:
            return Refused(*problems.problem_of(error))

    def _require(self, name: str) -> None:
        if name not in self._names:
            raise PolicyError(f"section {name!r} is not one of this TPM's [O101]")


class StatesClient:
    """The sections of one TPM in another process's store: `blobstore.vtpm.nvram.StateStore`.

    Methods do, return and raise what those of `Store` do, and `DeviceError` if the owner is
    not there any more. For one thread at a time.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Ask by ``connection``, which stays the caller's to close."""
        self._connection = connection

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a section."""
        try:
            self.section(str(name))
        except BlobNotFoundError:
            return False
        return True

    def get(self, name: str) -> bytes:
        """Return the blob of a section, as `Store.get`."""
        return self._ask(Get(name), Blob).data

    def section(self, name: str) -> SectionInfo:
        """Return what the directory says of a section, as `Store.section`."""
        return self._ask(Describe(name), Described).section

    def put(self, name: str, data: bytes) -> None:
        """Replace the blob of a section, as `Store.put`."""
        self._ask(Apply([requests.PutChange(name, data)]), Applied)

    def delete(self, name: str) -> None:
        """Delete a section and its blob, as `Store.delete`."""
        self._ask(Apply([requests.DeleteChange(name)]), Applied)

    @contextmanager
    def transaction(self) -> Iterator[StatesChanges]:
        """Make several changes as one; all that is refused is raised at the end."""
        changes = StatesChanges()
        yield changes
        self._ask(Apply(changes.made), Applied)

    def _ask(self, question: Get | Describe | Apply, kind: type[_Answer]) -> _Answer:
        try:
            self._connection.sendall(_framed(question))
            message = _receive(self._connection)
        except OSError as error:
            raise DeviceError("the owner of the TPM has gone away [V76]") from error
        if message is None:
            raise DeviceError("the owner of the TPM has gone away [V76]")
        answer = _answers.decode(message)
        if isinstance(answer, Refused):
            raise problems.error_of(answer.status, answer.problem)
        if not isinstance(answer, kind):
            raise FormatError("the owner of the TPM answers something else", rule="O101")
        return answer


class StatesChanges:
    """Changes that are made together.

    Attributes:
        made: Those that were asked for until now.
    """

    def __init__(self) -> None:
        """Start with nothing to do."""
        self.made: list[requests.PutChange | requests.RegisterChange | requests.DeleteChange] = []

    def put(self, name: str, data: bytes) -> None:
        """Replace the blob of a section."""
        self.made.append(requests.PutChange(name, data))

    def register(
        self,
        name: str,
        max_size: int,
        kind: str = "blob",
        *,
        copies: int | None = None,
        type: str = "",  # noqa: A002  the field's name in the format
    ) -> None:
        """Make sure that a section exists and is large enough."""
        self.made.append(requests.RegisterChange(name, max_size, kind, copies, type))

    def delete(self, name: str) -> None:
        """Delete a section and its blob."""
        self.made.append(requests.DeleteChange(name))


def _framed(message: msgspec.Struct) -> bytes:
    content = _encoder.encode(message)
    return _LENGTH.pack(len(content)) + content


def _receive(connection: socket.socket) -> bytes | bytearray | None:
    """Return the next message; None at the end.

    Raises:
        FormatError: It is longer than any can be, or ends before its end.
        OSError: The connection broke.
    """
    received = bytearray(connection.recv(_PIECE))
    if not received:
        return None
    size = _LENGTH.size
    while len(received) < size or len(received) < size + _LENGTH.unpack_from(received)[0]:
        if len(received) >= size and _LENGTH.unpack_from(received)[0] > _MOST:
            raise FormatError(f"a message of more than {_MOST} bytes", rule="O101")
        piece = connection.recv(_PIECE)
        if not piece:
            raise FormatError("a message ends before its end", rule="O101")
        received += piece
    return received[size:]  # if more than this came, it is not one value
