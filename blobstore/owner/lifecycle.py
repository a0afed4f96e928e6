"""The owner itself as a resource: who it is, and letting others have the image (O135 to O142)."""

from __future__ import annotations

import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from blobstore.owner import documents, requests
from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import (
    DOCUMENT_SIZE,
    JSON,
    Found,
    Method,
    Reply,
    Request,
    Resources,
)
from blobstore.owner.resting import REST, rest
from blobstore.store.description import StateDigest
from formats.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from blobstore.owner.owner import Owner

#: What a connection becomes on which everything is handed over.
HAND_OVER: Final = "blobstore-hand-over"

#: Seconds for which an image is tried to be taken: as long as a TPM tries it (V42).
_PATIENCE: Final = 3.0


class LifecycleResources:
    """Answers with what an owner does. Threads may share it."""

    def __init__(self, owner: Owner) -> None:
        """Answer from ``owner``."""
        self._owner = owner

    def resources(self) -> Resources:
        """Return these resources."""
        return {
            "/v1/owner": {"GET": Method(self._state)},
            "/v1/release": {"POST": Method(self._release)},
            "/v1/take-over": {"POST": Method(self._take_over, DOCUMENT_SIZE)},
            "/v1/hand-over": {"POST": Method(self._hand_over)},
            "/v1/rest": {"POST": Method(self._rest)},
        }

    def _state(self, _request: Request, _resource: Found) -> Reply:
        state = documents.OwnerState(os.getpid(), self._owner.released)
        return Reply(200, (JSON,), documents.encode(state))

    def _release(self, _request: Request, _resource: Found) -> Reply:
        return _handed(self._owner.release())

    def _take_over(self, request: Request, _resource: Found) -> Reply:
        asked = requests.decode(request.body or b"{}", requests.TakeOver)
        wanted = asked.expect_digest
        try:
            digest = None if wanted is None else StateDigest.parse(wanted)
        except ValueError as error:
            raise ArgumentError(str(error)) from error
        if asked.at_least_generation < 0:
            raise ArgumentError(f"a generation is 0 or more, not {asked.at_least_generation}")
        return _handed(
            self._owner.take_over(
                expect_digest=digest,
                at_least_generation=asked.at_least_generation,
                patience=_PATIENCE,
            )
        )

    def _hand_over(self, request: Request, _resource: Found) -> Reply:
        if self._owner.hand_over is None:
            raise UnsupportedError("this owner is a part of another program", feature="hand-over")
        return _upgraded(request, HAND_OVER, "O136", self._owner.hand_over)

    def _rest(self, request: Request, _resource: Found) -> Reply:
        return _upgraded(request, REST, "O175", lambda sock: rest(self._owner, sock))


def _upgraded(
    request: Request, protocol: str, rule: str, use: Callable[[socket.socket], None]
) -> Reply:
    """Return a reply that makes the connection another one, which goes on by itself."""
    headers = (("upgrade", protocol), ("connection", "upgrade"))
    if request.headers.get("upgrade") != protocol:
        raise RefusedError(
            HTTPStatus.UPGRADE_REQUIRED,
            "this is for another process, which says Upgrade",
            rule,
            headers,
        )
    return Reply(HTTPStatus.SWITCHING_PROTOCOLS, headers, upgrade=use)


def _handed(digest: StateDigest) -> Reply:
    return Reply(200, (JSON,), documents.encode(documents.Handed(digest.generation, str(digest))))
