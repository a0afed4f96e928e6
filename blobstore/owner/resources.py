"""What routes are made of: requests, replies, and resources with their methods (O14, O15)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from blobstore.owner import problems
from blobstore.owner.problems import RefusedError

if TYPE_CHECKING:
    import socket

    from formats.errors import StorageError

#: What a request's body may have, in bytes, where it is not a blob (O11).
DOCUMENT_SIZE: Final = 64 << 10
TRANSACTION_SIZE: Final = 64 << 20

JSON: Final = ("content-type", "application/json")
LINES: Final = ("content-type", "application/x-ndjson")
BLOB: Final = ("content-type", "application/octet-stream")


class Request(NamedTuple):
    """A whole request, or its head while ``body`` is on its way.

    Attributes:
        method: Such as ``"GET"``.
        target: Path and query as they were sent.
        headers: By their names in lower case.
        body: All of it.
        peer: Process, user and group of the client, where the system tells.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    peer: tuple[int, int, int] | None = None


class Reply(NamedTuple):
    """What a request is answered with.

    Attributes:
        status: Of HTTP.
        headers: Beside those that each reply has, and those that say how long the body is.
        body: All of it, or its pieces, each of which is sent when it comes. What then raises
            an error ends the connection before the end of the body. Pieces with a ``close``
            are closed when no more of them are wanted.
        upgrade: With status 101, what goes on with the connection, which it takes.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | Iterable[bytes] = b""
    upgrade: Callable[[socket.socket], None] | None = None


class Found(NamedTuple):
    """What a path names.

    Attributes:
        kind: The path with NAME for the segment that is free.
        name: That segment; empty if there is none.
        flags: What the query asks for; the value of a flag without ``=`` is empty.
    """

    kind: str
    name: str
    flags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Method:
    """What one method of a resource does.

    Attributes:
        answer: Called with the whole request, in a thread of its connection.
        body: Bytes that the body may have, or how to find out.
        flags: That its query may have.
        bare: Those of them that have no value.
        reply: Bytes that its reply may have, from the head of the request; None if they are few.
        is_blob: Whether the body becomes the blob of the section.
    """

    answer: Callable[[Request, Found], Reply]
    body: int | Callable[[Found], int] = 0
    flags: frozenset[str] = field(default_factory=frozenset)
    reply: Callable[[Request, Found], int] | None = None
    is_blob: bool = False
    bare: frozenset[str] = field(default_factory=frozenset)


#: Paths, with NAME for a free segment, and their methods.
Resources = Mapping[str, Mapping[str, Method]]


def reply_of(error: StorageError | ValueError | RefusedError) -> Reply:
    """Return what says that a request failed."""
    status, document = problems.problem_of(error)
    more = error.headers if isinstance(error, RefusedError) else ()
    summary = "blobstore-error", problems.summary_of(error)
    return Reply(status, (("content-type", problems.CONTENT_TYPE), summary, *more), document)
