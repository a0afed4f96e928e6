"""What takes long, with lines that say how far it is (O70, O71, O86)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blobstore.owner import problems
from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import LINES
from formats.errors import DeviceError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.owner.resources import Request

_log = LateLogger(__name__)

#: Seconds between two lines.
PAUSE: Final = 0.25


def wants_lines(request: Request) -> bool:
    """Say whether a request asks for progress."""
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(kind.partition(";")[0].strip() == LINES[1] for kind in accepted)


class _NotWantedError(Exception):
    """The client has gone, or the owner is to end: what is being done is not wanted any more."""


class Lines:
    """The body of a reply: lines with progress, and a result or an error as the last one.

    A thread of its own does the work, which may have the store, and so never waits for the
    client. If the client goes away, the work ends at its next report.
    """

    def __init__(
        self,
        work: Callable[[Callable[[int, int], None]], dict[str, Any]],
        ending: threading.Event,
        *,
        at_once: bool = False,
    ) -> None:
        """Begin.

        Args:
            work: Called with what takes bytes done and in all; returns the last line.
            ending: Set when the work is to end, too, at its next report.
            at_once: Reply before there is anything to report, where the work may have to wait
                for the store. What fails is told in the last line then.

        Raises:
            StorageError, ValueError: It failed before it had anything to report.
        """
        self._work, self._ending = work, ending
        self._changed = threading.Condition()
        self._progress: tuple[int, int] | None = (0, 0) if at_once else None
        self._result: dict[str, Any] | Exception | None = None
        self._unwanted = False
        threading.Thread(target=self._run, name="work", daemon=True).start()
        if at_once:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._progress or self._result is not None)
        if isinstance(self._result, StorageError | ValueError | RefusedError):
            raise self._result

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._lines()
        finally:
            self._unwanted = True

    def close(self) -> None:
        """End the work at its next report, if it has not ended."""
        self._unwanted = True

    def _lines(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._result is not None, PAUSE)
                result, progress = self._result, self._progress
            if result is not None:
                break
            if progress is not None:
                yield msgspec.json.encode({"done": progress[0], "total": progress[1]}) + b"\n"
        if isinstance(result, StorageError | ValueError | RefusedError):
            yield problems.problem_of(result)[1] + b"\n"
        elif isinstance(result, _NotWantedError):
            error = DeviceError("the owner ends, and gave up what it was asked for")
            yield problems.problem_of(error)[1] + b"\n"
        elif isinstance(result, Exception):
            raise StorageError("what was asked for ended without a result") from result
        else:
            yield msgspec.json.encode(result) + b"\n"

    def _run(self) -> None:
        result: dict[str, Any] | Exception = RuntimeError("it did not end")
        try:
            result = self._work(self._report)
        except (StorageError, ValueError, RefusedError) as error:
            result = error
        except _NotWantedError as error:
            _log.info("what a client asked for was not finished: it went away, or the owner ends")
            result = error
        finally:
            with self._changed:
                self._result = result
                self._changed.notify_all()

    def _report(self, done: int, total: int) -> None:
        if self._unwanted or self._ending.is_set():
            raise _NotWantedError
        with self._changed:
            self._progress = done, total
            self._changed.notify_all()
