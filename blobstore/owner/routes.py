"""Requests to replies, without sockets: which resource a path names (O13 to O15)."""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from blobstore.errors import BlobTooLargeError
from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import (
    DOCUMENT_SIZE,
    Found,
    Method,
    Reply,
    Request,
    Resources,
    reply_of,
)
from formats.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Targets that are remembered, of at most as many bytes as a head has.
_REMEMBERED: Final = 64
#: Which segment of a path is free, where one is: ``/v1/sections/NAME``.
_FREE: Final = 3
_ESCAPES = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")


class Routes:
    """Answers requests. Threads may share it, as they do what resources answer from."""

    def __init__(self, groups: Iterable[Resources]) -> None:
        """Answer with these resources; each path is in one group."""
        self.resources: Resources = {kind: one for group in groups for kind, one in group.items()}
        # Each request asks several times, and devices ask for the same again and again.
        self._named = lru_cache(_REMEMBERED)(self._resolve)

    def body_limit(self, head: Request) -> int:
        """Return how many bytes the body of a request may have (O11).

        Raises:
            RefusedError, StorageError, ValueError: It is refused whatever its body is.
        """
        method, found = self._find(head)
        if isinstance(method.body, int):
            return method.body
        size = head.headers.get("content-length", "")
        if "expect" not in head.headers and size.isdigit() and int(size) <= DOCUMENT_SIZE:
            return DOCUMENT_SIZE  # so little is received first, and the store refuses it
        return method.body(found)

    def reply_size(self, head: Request) -> int:
        """Return how many bytes the reply may have, if these are many."""
        method, found = self._find(head)
        if method.reply is None:
            return 0
        try:
            return method.reply(head, found)
        except (StorageError, ValueError, RefusedError):
            return 0  # `answer` will say what is wrong

    def too_large(self, head: Request, limit: int, size: int | None) -> Exception:
        """Return the error for a body that is larger than ``limit``.

        Args:
            head: Of its request.
            limit: What `body_limit` said.
            size: Of the body; None where nothing says it before the end.
        """
        method, found = self._find(head)
        if not method.is_blob:
            return RefusedError(413, f"the body has more than {limit} bytes", "O11")
        if size is not None:
            return BlobTooLargeError.of(found.name, size, limit)
        return BlobTooLargeError(f"section {found.name!r} holds at most {limit} bytes")

    def answer(self, request: Request) -> Reply:
        """Do what a request asks for, and say that it was done, or why not."""
        try:
            method, found = self._find(request)
            return method.answer(request, found)
        except (StorageError, ValueError, RefusedError) as error:
            return reply_of(error)

    def _find(self, request: Request) -> tuple[Method, Found]:
        return self._named(request.method, request.target)

    def _resolve(self, verb: str, target: str) -> tuple[Method, Found]:
        path, _, query = target.partition("?")
        kind, name = self._kind(path)
        methods = self.resources[kind]
        method = methods.get("GET" if verb == "HEAD" else verb)
        if method is None:
            allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{kind} takes {allowed}",
                "O14",
                (("allow", allowed),),
            )
        flags: dict[str, str] = {}
        for flag in query.split("&") if query else ():
            key, _, value = flag.partition("=")
            if key not in method.flags:
                raise RefusedError(400, f"the query has {key!r}", "O15")
            if key in flags:
                raise RefusedError(400, f"the query has {key!r} twice", "O15")
            if value and key in method.bare:
                raise RefusedError(400, f"{key} has no value", "O15")
            flags[key] = _decoded(value)
        return method, Found(kind, name, flags)

    def _kind(self, path: str) -> tuple[str, str]:
        """Return which resource a path names, and the segment in the place of NAME."""
        segments = [_decoded(segment) for segment in path.split("/")]
        if len(segments) > _FREE:
            name = segments[_FREE]
            kind = "/".join([*segments[:_FREE], "NAME", *segments[_FREE + 1 :]])
            if kind in self.resources:
                return kind, name
        kind = "/".join(segments)
        if kind in self.resources and "NAME" not in segments:
            return kind, ""
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such resource", "O14")


def _decoded(text: str) -> str:
    """Return what a segment of a path says (O13)."""
    if not _ESCAPES.fullmatch(text):
        raise RefusedError(400, "the path has a % that is not followed by two digits", "O13")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise RefusedError(400, "the path is not UTF-8", "O13") from error
