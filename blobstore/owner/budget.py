"""Memory for bodies, which all connections share (O72)."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import DOCUMENT_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator


class Budget:
    """Bytes that requests take before their bodies come, and give back after their replies.

    Those that have to wait get their turn in order, so that a large one is not overtaken for ever.
    """

    def __init__(self, total: int, patience: float) -> None:
        """Have ``total`` bytes, for which a request waits ``patience`` seconds."""
        self._total = self._left = total
        self._patience = patience
        self._condition: Final = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Have ``size`` bytes in the block; few are free, since a connection has one request.

        What is larger than all there is takes all.

        Raises:
            RefusedError: Others did not give back enough in time (503).
        """
        size = min(size, self._total) if size > DOCUMENT_SIZE else 0
        if size:
            self._take(size)
        try:
            yield
        finally:
            if size:
                with self._condition:
                    self._left += size
                    self._condition.notify_all()

    def _take(self, size: int) -> None:
        ticket = object()
        deadline = time.monotonic() + self._patience
        with self._condition:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._left < size:
                    patience = deadline - time.monotonic()
                    if patience <= 0:
                        raise RefusedError(
                            503,
                            f"other requests have the memory for a body of {size} bytes",
                            "O72",
                            (("retry-after", "1"),),
                        )
                    self._condition.wait(patience)
                self._left -= size
            finally:
                self._waiting.remove(ticket)
                self._condition.notify_all()
