"""Requests to replies: what the store's interface does (O20 to O29), without sockets."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from blobstore.errors import BlobTooLargeError
from blobstore.owner import documents, problems, requests
from blobstore.owner.problems import RefusedError
from formats.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from blobstore.store.store import Store

#: What a request's body may have, in bytes, where it is not a blob (O11).
DOCUMENT_SIZE: Final = 64 << 10
TRANSACTION_SIZE: Final = 64 << 20

_JSON: Final = ("content-type", "application/json")
_BLOB: Final = ("content-type", "application/octet-stream")

_ETAG = re.compile(r'"(0|[1-9][0-9]{0,19})"')
_ESCAPES = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")


class Request(NamedTuple):
    """A whole request, or its head while ``body`` is on its way.

    Attributes:
        method: Such as ``"GET"``.
        target: Path and query as they were sent.
        headers: By their names in lower case.
        body: All of it.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


class Reply(NamedTuple):
    """What a request is answered with; the length of the body goes without saying."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class _Resource(NamedTuple):
    """What a path names.

    Attributes:
        kind: The path with NAME for the name of a section.
        name: That name; empty if there is none.
        flags: What the query asks for.
    """

    kind: str
    name: str
    flags: frozenset[str]


def reply_of(error: StorageError | ValueError | RefusedError) -> Reply:
    """Return what says that a request failed."""
    status, document = problems.problem_of(error)
    more = error.headers if isinstance(error, RefusedError) else ()
    return Reply(status, (("content-type", problems.CONTENT_TYPE), *more), document)


class Routes:
    """Answers requests with what a store does. Threads may share it, as they do the store."""

    def __init__(self, store: Store) -> None:
        """Answer from ``store``, which stays the caller's to close."""
        self._store = store
        # Which methods a resource has, and which flags its query may have (O14, O15).
        self._methods: dict[str, dict[str, Callable[[Request, _Resource], Reply]]] = {
            "/v1/store": {"GET": self._info},
            "/v1/sections": {"GET": self._sections},
            "/v1/sections/NAME": {"GET": self._get, "PUT": self._put, "DELETE": self._delete},
            "/v1/sections/NAME/info": {"GET": self._section},
            "/v1/sections/NAME/register": {"POST": self._register},
            "/v1/sections/NAME/resize": {"POST": self._resize},
            "/v1/sections/NAME/rename": {"POST": self._rename},
            "/v1/transactions": {"POST": self._transaction},
            "/v1/verify": {"POST": self._verify},
        }
        self._flags = {"/v1/sections": {"allow_damaged"}, "/v1/sections/NAME": {"previous"}}

    def body_limit(self, head: Request) -> int:
        """Return how many bytes the body of a request may have (O11).

        Raises:
            RefusedError, StorageError, ValueError: It is refused whatever its body is.
        """
        _, resource = self._find(head)
        if head.method == "PUT":
            return self._store.section(resource.name).max_size
        if head.method != "POST":
            return 0
        return TRANSACTION_SIZE if resource.kind == "/v1/transactions" else DOCUMENT_SIZE

    def too_large(self, head: Request, limit: int, size: int | None) -> Exception:
        """Return the error for a body that is larger than ``limit``.

        Args:
            head: Of its request.
            limit: What `body_limit` said.
            size: Of the body; None where nothing says it before the end.
        """
        if head.method != "PUT":
            return RefusedError(413, f"the body has more than {limit} bytes", "O11")
        name = self._resource(head.target).name
        if size is not None:
            return BlobTooLargeError.of(name, size, limit)
        return BlobTooLargeError(f"section {name!r} holds at most {limit} bytes")

    def answer(self, request: Request) -> Reply:
        """Do what a request asks for, and say that it was done, or why not."""
        try:
            method, resource = self._find(request)
            return method(request, resource)
        except (StorageError, ValueError, RefusedError) as error:
            return reply_of(error)

    def _find(self, request: Request) -> tuple[Callable[[Request, _Resource], Reply], _Resource]:
        resource = self._resource(request.target)
        methods = self._methods[resource.kind]
        method = methods.get("GET" if request.method == "HEAD" else request.method)
        if method is None:
            allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{resource.kind} takes {allowed}",
                "O14",
                (("allow", allowed),),
            )
        return method, resource

    def _resource(self, target: str) -> _Resource:
        path, _, query = target.partition("?")
        segments = [_segment(segment) for segment in path.split("/")[1:]]
        name = ""
        if segments[:2] == ["v1", "sections"] and len(segments) > 2:
            name, segments[2] = segments[2], "NAME"
        kind = "/".join(["", *segments])
        if not path.startswith("/") or kind not in self._methods:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such resource", "O14")
        flags = frozenset(query.split("&")) if query else frozenset()
        unknown = flags - self._flags.get(kind, set())
        if unknown:
            raise RefusedError(400, f"the query has {min(unknown)!r}", "O15")
        return _Resource(kind, name, flags)

    # ----------------------------------------------------------- reading

    def _info(self, _request: Request, _resource: _Resource) -> Reply:
        return Reply(200, (_JSON,), documents.encode_info(self._store.info()))

    def _sections(self, _request: Request, resource: _Resource) -> Reply:
        sections = self._store.sections(allow_damaged="allow_damaged" in resource.flags)
        return Reply(200, (_JSON,), documents.encode(documents.Sections(sections)))

    def _section(self, _request: Request, resource: _Resource) -> Reply:
        section = self._store.section(resource.name)
        return Reply(200, (_JSON, _etag(section.generation)), documents.encode(section))

    def _get(self, request: Request, resource: _Resource) -> Reply:
        store, name = self._store, resource.name
        if "previous" in resource.flags:
            return Reply(200, (_BLOB,), store.get(name, previous=True))
        generation, blob = store.at_one_moment(
            lambda: (store.section(name).generation, store.get(name))
        )
        known = _generations(request.headers.get("if-none-match"))
        if known is not None and generation in known:
            return Reply(HTTPStatus.NOT_MODIFIED, (_etag(generation),))
        return Reply(200, (_BLOB, _etag(generation)), blob)

    def _verify(self, _request: Request, _resource: _Resource) -> Reply:
        return Reply(200, (_JSON,), documents.encode_report(self._store.verify()))

    # ---------------------------------------------------------- changing

    def _put(self, request: Request, resource: _Resource) -> Reply:
        return self._change(request, requests.PutChange(resource.name, request.body))

    def _delete(self, request: Request, resource: _Resource) -> Reply:
        reply = self._change(request, requests.DeleteChange(resource.name))
        return Reply(reply.status)

    def _resize(self, request: Request, resource: _Resource) -> Reply:
        wanted = requests.decode(request.body, requests.NewSize)
        return self._change(request, requests.ResizeChange(resource.name, wanted.max_size))

    def _rename(self, request: Request, resource: _Resource) -> Reply:
        wanted = requests.decode(request.body, requests.NewName)
        return self._change(request, requests.RenameChange(resource.name, wanted.name))

    def _change(self, request: Request, change: requests.Change) -> Reply:
        """Change one section, if it is at the generation that the request names (O23)."""
        if "if-none-match" in request.headers:
            raise RefusedError(400, "If-None-Match is for GET", "O23")
        wanted = _generations(request.headers.get("if-match"))
        if wanted is not None and len(wanted) > 1:
            raise RefusedError(400, "If-Match names one generation", "O23")
        with self._store.transaction() as changes:
            for generation in wanted or ():
                changes.require_generation(change.name, generation)
            change.apply(changes)
        # What changes nothing has no generation, for instance a new size that is the old one.
        return Reply(204, () if changes.generation is None else (_etag(changes.generation),))

    def _register(self, request: Request, resource: _Resource) -> Reply:
        wanted = requests.decode(request.body, requests.Registration)
        section = self._store.register(
            resource.name, wanted.max_size, wanted.kind, copies=wanted.copies, type=wanted.type
        )
        return Reply(200, (_JSON, _etag(section.generation)), documents.encode(section))

    def _transaction(self, request: Request, _resource: _Resource) -> Reply:
        wanted = requests.decode(request.body, requests.ChangeList)
        with self._store.transaction() as changes:
            for change in wanted.changes:
                change.apply(changes)
        return Reply(200, (_JSON,), documents.encode(documents.Committed(changes.generation)))


def _segment(text: str) -> str:
    """Return what a segment of a path says (O13)."""
    if not _ESCAPES.fullmatch(text):
        raise RefusedError(400, "the path has a % that is not followed by two digits", "O13")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise RefusedError(400, "the path is not UTF-8", "O13") from error


def _etag(generation: int) -> tuple[str, str]:
    return "etag", f'"{generation}"'


def _generations(header: str | None) -> list[int] | None:
    """Return the generations that If-Match or If-None-Match names; None if it is not there."""
    if header is None:
        return None
    found = [_ETAG.fullmatch(tag.strip()) for tag in header.split(",")]
    generations = [int(match[1]) for match in found if match]
    if len(generations) < len(found):
        raise RefusedError(400, f"{header!r} is not a list of generations in quotes", "O23")
    return generations
