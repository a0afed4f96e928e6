"""The store and its sections as resources (O21 to O28)."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from blobstore.owner import documents, requests
from blobstore.owner.grouping import GroupedPuts
from blobstore.owner.lines import Lines, wants_lines
from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import (
    BLOB,
    DOCUMENT_SIZE,
    JSON,
    LINES,
    TRANSACTION_SIZE,
    Found,
    Method,
    Reply,
    Request,
    Resources,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from blobstore.store.description import SectionInfo
    from blobstore.store.store import Store

_ETAG = re.compile(r'"(0|[1-9][0-9]{0,19})"')


class SectionResources:
    """Answers with what a store does. Threads may share it, as they do the store."""

    def __init__(
        self, store: Store, require_free: Callable[[str], None], ending: threading.Event
    ) -> None:
        """Answer from ``store``, which stays the caller's to close.

        Args:
            store: The store.
            require_free: Refuses names of sections that clients do not change (O100).
            ending: Set when what takes long is to be given up.
        """
        self._store = store
        self._require_free, self._ending = require_free, ending
        self._puts = GroupedPuts(store)

    def resources(self) -> Resources:
        """Return these resources."""
        allow_damaged, previous = frozenset({"allow_damaged"}), frozenset({"previous"})
        return {
            "/v1/store": {"GET": Method(self._info)},
            "/v1/sections": {
                "GET": Method(self._sections, flags=allow_damaged, bare=allow_damaged)
            },
            "/v1/sections/NAME": {
                "GET": Method(self._get, flags=previous, bare=previous, reply=self._blob_size),
                "PUT": Method(self._put, self._blob_limit, is_blob=True),
                "DELETE": Method(self._delete),
            },
            "/v1/sections/NAME/info": {"GET": Method(self._section)},
            "/v1/sections/NAME/register": {"POST": Method(self._register, DOCUMENT_SIZE)},
            "/v1/sections/NAME/resize": {"POST": Method(self._resize, DOCUMENT_SIZE)},
            "/v1/sections/NAME/rename": {"POST": Method(self._rename, DOCUMENT_SIZE)},
            "/v1/transactions": {"POST": Method(self._transaction, TRANSACTION_SIZE)},
            "/v1/verify": {"POST": Method(self._verify, DOCUMENT_SIZE)},
        }

    def _blob_limit(self, found: Found) -> int:
        return self._store.section(found.name).max_size

    def _blob_size(self, _request: Request, found: Found) -> int:
        return self._store.section(found.name).size or 0

    # ----------------------------------------------------------- reading

    def _info(self, _request: Request, _resource: Found) -> Reply:
        return Reply(200, (JSON,), documents.encode_info(self._store.info()))

    def _sections(self, _request: Request, resource: Found) -> Reply:
        sections = self._store.sections(allow_damaged="allow_damaged" in resource.flags)
        return Reply(200, (JSON,), documents.encode(documents.Sections(sections)))

    def _section(self, _request: Request, resource: Found) -> Reply:
        return _described(self._store.section(resource.name))

    def _get(self, request: Request, resource: Found) -> Reply:
        store, name = self._store, resource.name
        if "previous" in resource.flags:
            return Reply(200, (BLOB,), store.get(name, previous=True))
        generation, blob = store.at_one_moment(
            lambda: (store.section(name).generation, store.get(name))
        )
        known = _generations(request.headers.get("if-none-match"))
        if known is not None and generation in known:
            return Reply(HTTPStatus.NOT_MODIFIED, (_etag(generation),))
        return Reply(200, (BLOB, _etag(generation)), blob)

    def _verify(self, request: Request, _resource: Found) -> Reply:
        if not wants_lines(request):
            return Reply(200, (JSON,), documents.encode_report(self._store.verify()))

        def work(progress: Callable[[int, int], None]) -> dict[str, Any]:
            return documents.plain_report(self._store.verify(progress))

        return Reply(200, (LINES,), Lines(work, self._ending, at_once=True))

    # ---------------------------------------------------------- changing

    def _put(self, request: Request, resource: Found) -> Reply:
        self._require_free(resource.name)
        wanted = _wanted(request)
        return Reply(204, (_etag(self._puts.put(resource.name, request.body, wanted)),))

    def _delete(self, request: Request, resource: Found) -> Reply:
        reply = self._change(request, requests.DeleteChange(resource.name))
        return Reply(reply.status)

    def _resize(self, request: Request, resource: Found) -> Reply:
        wanted = requests.decode(request.body, requests.NewSize)
        return self._change(request, requests.ResizeChange(resource.name, wanted.max_size))

    def _rename(self, request: Request, resource: Found) -> Reply:
        wanted = requests.decode(request.body, requests.NewName)
        return self._change(request, requests.RenameChange(resource.name, wanted.name))

    def _change(self, request: Request, change: requests.Change) -> Reply:
        """Change one section, if it is at the generation that the request names (O23)."""
        self._require_changes(change)
        wanted = _wanted(request)
        with self._store.transaction() as changes:
            if wanted is not None:
                changes.require_generation(change.name, wanted)
            change.apply(changes)
        # What changes nothing has no generation, for instance a new size that is the old one.
        return Reply(204, () if changes.generation is None else (_etag(changes.generation),))

    def _register(self, request: Request, resource: Found) -> Reply:
        wanted = requests.decode(request.body, requests.Registration)
        self._require_free(resource.name)
        section = self._store.register(
            resource.name, wanted.max_size, wanted.kind, copies=wanted.copies, type=wanted.type
        )
        return _described(section)

    def _transaction(self, request: Request, _resource: Found) -> Reply:
        wanted = requests.decode(request.body, requests.ChangeList)
        self._require_changes(*wanted.changes)
        with self._store.transaction() as changes:
            for change in wanted.changes:
                change.apply(changes)
        return Reply(200, (JSON,), documents.encode(documents.Committed(changes.generation)))

    def _require_changes(self, *changes: requests.Change) -> None:
        """Check all of the sections that these change, before any is (O100)."""
        for change in changes:
            if not isinstance(change, requests.RequireChange):
                for name in requests.names_of(change):
                    self._require_free(name)


def _wanted(request: Request) -> int | None:
    """Return the generation that a change asks for (O23)."""
    if "if-none-match" in request.headers:
        raise RefusedError(400, "If-None-Match is for GET", "O23")
    wanted = _generations(request.headers.get("if-match"))
    if wanted is not None and len(wanted) > 1:
        raise RefusedError(400, "If-Match names one generation", "O23")
    return wanted[0] if wanted else None


def _described(section: SectionInfo) -> Reply:
    """Return a section, also in fields of the head, for clients without JSON (O151)."""
    size = "-" if section.size is None else section.size
    fields = (JSON, _etag(section.generation), ("blobstore-section", f"{section.max_size} {size}"))
    return Reply(200, fields, documents.encode(section))


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
