"""The values that come out of a connection: exports, questions, requests, its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from formats.nbd.numbers import TransmissionFlag

if TYPE_CHECKING:
    from formats.nbd.numbers import Command, Errno


@dataclass(frozen=True, slots=True)
class Export:
    """What a client is told of a device.

    Attributes:
        name: By which clients ask for it.
        size: Of the device, in bytes.
        read_only: Whether it takes no writes.
        can_trim: Whether TRIM is offered (N26).
        block_size: Bytes that its requests are best multiples of; at least 4096 is said.
        description: For people; may be empty.
    """

    name: str
    size: int
    read_only: bool
    can_trim: bool = False
    block_size: int = 4096
    description: str = ""

    @property
    def flags(self) -> int:
        """The transmission flags (N12)."""
        flag = TransmissionFlag
        flags = flag.HAS_FLAGS | flag.SEND_FLUSH | flag.SEND_DF
        flags |= flag.CAN_MULTI_CONN | flag.SEND_CACHE
        if self.read_only:
            return flags | flag.READ_ONLY
        flags |= flag.SEND_FUA | flag.SEND_WRITE_ZEROES | flag.SEND_FAST_ZERO
        return flags | (flag.SEND_TRIM if self.can_trim else 0)


@dataclass(frozen=True, slots=True)
class NamesWanted:
    """The client asks which exports there are; `Handshake.tell_names` answers."""


@dataclass(frozen=True, slots=True)
class ExportWanted:
    """The client asks for an export; `Handshake.tell_export` or ``refuse_export`` answers.

    Attributes:
        name: As the client wrote it; empty means the only one (N5).
        begins: Whether transmission begins if it is told.
    """

    name: str
    begins: bool


@dataclass(frozen=True, slots=True)
class TlsWanted:
    """The client begins TLS next, and has been told that it may.

    What is in `Handshake.outgoing` is sent, then TLS begins, then `Handshake.begin_tls` says so.
    """


@dataclass(frozen=True, slots=True)
class Begun:
    """Transmission begins.

    Attributes:
        export: The one that was chosen.
        structured: Whether replies are structured (N9).
        allocation: Whether BLOCK_STATUS may be asked for (N10).
        rest: Bytes that have arrived already, and belong to requests.
    """

    export: Export
    structured: bool
    allocation: bool
    rest: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more is read from this connection.

    Attributes:
        reason: Why, where the client broke the protocol; empty if it asked for the end.
    """

    reason: str = ""


class Request(NamedTuple):
    """A request that is whole, and whose flags and range are right.

    A tuple, which is made in a quarter of the time that a frozen dataclass takes.

    Attributes:
        command: What to do.
        flags: Of `CommandFlag`.
        cookie: Repeated in the reply.
        offset: Where, in bytes.
        length: How many bytes.
        data: Those to be written, for a WRITE.
    """

    command: Command
    flags: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that is not carried out, but answered with an error (N16).

    Attributes:
        cookie: Of the request.
        error: To answer.
        message: Why, for people.
    """

    cookie: int
    error: Errno
    message: str


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of an export, for BLOCK_STATUS: its length in bytes, and whether it is zeros."""

    length: int
    is_zero: bool
