"""Verifying while the client is told how far it is (O70, O71)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from blobstore.owner import documents, problems
from formats.errors import StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.container.verification import Report
    from blobstore.owner.resources import Request
    from blobstore.store.store import Store

_log = LateLogger(__name__)

#: Seconds between two lines.
PAUSE: Final = 0.25

_LINES: Final = "application/x-ndjson"


class _NotWantedError(Exception):
    """The client has gone, so the report is not wanted any more."""


def wants_lines(request: Request) -> bool:
    """Say whether a request asks for progress."""
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(kind.partition(";")[0].strip() == _LINES for kind in accepted)


class Verification:
    """The body of a reply: lines with progress, and the report or an error as the last one.

    A thread verifies, since the store is locked meanwhile and must not wait for the client.
    """

    def __init__(self, store: Store) -> None:
        """Begin to verify."""
        self._store = store
        self._condition = threading.Condition()
        self._progress = (0, 0)
        self._result: Report | StorageError | ValueError | None = None
        self._ended = self._unwanted = False
        self._thread = threading.Thread(target=self._verify, name="verify", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._condition:
                if not self._ended:
                    self._condition.wait(PAUSE)
                ended, (done, total) = self._ended, self._progress
            if ended:
                break
            yield documents.encode(documents.Progress(done, total)) + b"\n"
        if self._result is None:
            raise StorageError("verifying ended without a report")
        if isinstance(self._result, Exception):
            yield problems.problem_of(self._result)[1] + b"\n"
        else:
            yield documents.encode_report(self._result) + b"\n"

    def close(self) -> None:
        """Have the thread end soon, if it has not."""
        self._unwanted = True
        self._thread.join()

    def _verify(self) -> None:
        try:
            self._result = self._store.verify(self._note)
        except (StorageError, ValueError) as error:
            self._result = error
        except _NotWantedError:
            _log.info("verifying ends: the client has gone")
        finally:
            with self._condition:
                self._ended = True
                self._condition.notify_all()

    def _note(self, done: int, total: int) -> None:
        if self._unwanted:
            raise _NotWantedError
        self._progress = done, total
