"""What puts a store right or makes room in it, as resources (O92)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.owner import documents, requests
from blobstore.owner.resources import DOCUMENT_SIZE, JSON, Found, Method, Reply, Request, Resources
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.store.store import Store


class MaintenanceResources:
    """Answers with what a store does to itself. Threads may share it, as they do the store."""

    def __init__(self, store: Store, require_free: Callable[[str], None]) -> None:
        """Answer from ``store``, which stays the caller's to close.

        Args:
            store: The store.
            require_free: Refuses names of sections that clients do not change (O100).
        """
        self._store = store
        self._require_free = require_free

    def resources(self) -> Resources:
        """Return these resources."""
        return {
            "/v1/regions": {"GET": Method(self._regions)},
            "/v1/sections/NAME/restore": {"POST": Method(self._restore, DOCUMENT_SIZE)},
            "/v1/grow": {"POST": Method(self._grow, DOCUMENT_SIZE)},
            "/v1/repair": {"POST": Method(self._repair, DOCUMENT_SIZE)},
            "/v1/compact": {"POST": Method(self._compact, DOCUMENT_SIZE)},
            "/v1/scrub": {"POST": Method(self._scrub, DOCUMENT_SIZE)},
        }

    def _regions(self, _request: Request, _found: Found) -> Reply:
        return Reply(200, (JSON,), documents.encode(documents.Regions(self._store.regions())))

    def _restore(self, _request: Request, found: Found) -> Reply:
        self._require_free(found.name)
        self._store.restore(found.name)
        return Reply(204)

    def _grow(self, request: Request, _found: Found) -> Reply:
        size = requests.decode(request.body, requests.NewTotal).size
        if size < 0:
            raise ArgumentError(f"a size is 0 or more, not {size}")
        self._store.grow(size)
        return Reply(204)

    def _repair(self, request: Request, _found: Found) -> Reply:
        wanted = requests.decode(request.body, requests.Repair)
        for name in (*wanted.names, *wanted.accept_previous):
            self._require_free(name)
        report = self._store.repair(
            accept_previous=frozenset(wanted.accept_previous),
            accept_lost=wanted.accept_lost,
            names=frozenset(wanted.names),
        )
        return Reply(200, (JSON,), documents.encode_report(report))

    def _compact(self, _request: Request, _found: Found) -> Reply:
        return Reply(200, (JSON,), documents.encode(documents.Compacted(self._store.compact())))

    def _scrub(self, _request: Request, _found: Found) -> Reply:
        return Reply(200, (JSON,), documents.encode(self._store.scrub()))
