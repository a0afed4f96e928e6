"""Puts that wait at the same time become one commit, with one flush (O75)."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from formats.errors import DeviceError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blobstore.store.store import Store
    from blobstore.store.transaction import Transaction
    from formats.devices.device import ReadableBuffer

#: Sections of one commit: as many as a watch is told of (O68).
MOST: Final = 64


class _Put:
    """A put that waits, and what becomes of it: the generation of its commit, or an error."""

    def __init__(self, name: str, blob: ReadableBuffer, wanted: int | None) -> None:
        self.name, self.blob, self.wanted = name, blob, wanted
        self.outcome: int | StorageError | ValueError | None = None

    def add_to(self, changes: Transaction) -> bool:
        """Say whether this can be part of a transaction, to which it is added; else note why."""
        try:
            if self.wanted is not None:
                changes.require_generation(self.name, self.wanted)
            changes.put(self.name, self.blob)
        except (StorageError, ValueError) as error:
            self.outcome = error
            return False
        return True


class GroupedPuts:
    """Puts blobs for many threads. While one commit is flushed, those that come wait together.

    The thread of one of them makes the next commit, for all. A put that finds no other one needs
    no transaction, which would take a fifth of its time (O171).
    """

    def __init__(self, store: Store) -> None:
        """Put to this store."""
        self._store = store
        self._condition: Final = threading.Condition()
        self._waiting: deque[_Put] = deque()
        self._leads = False

    def put(self, name: str, blob: ReadableBuffer, wanted: int | None = None) -> int:
        """Replace the blob of a section, and return the generation of that, which is durable.

        Args:
            name: Of the section.
            blob: All of it.
            wanted: The generation that the section must be at; None for any.

        Raises:
            GenerationMismatchError: It is at another one.
            StorageError, ValueError: As `Store.put`.
        """
        if wanted is None and self._leads_alone():
            try:
                return self._store.put(name, blob)
            finally:
                self._leave()
        mine = _Put(name, blob, wanted)
        with self._condition:
            self._waiting.append(mine)
        while self._becomes_leader(mine):
            try:
                self._commit()
            finally:
                self._leave()
        assert mine.outcome is not None, "only then a thread does not lead"
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        return mine.outcome

    def _leads_alone(self) -> bool:
        """Say whether no other thread puts; then this one does, and others wait until `_leave`."""
        with self._condition:
            if self._leads or self._waiting:
                return False
            self._leads = True
            return True

    def _leave(self) -> None:
        with self._condition:
            self._leads = False
            self._condition.notify_all()

    def _becomes_leader(self, mine: _Put) -> bool:
        """Wait; say whether this thread makes the next commit, or else its put is done."""
        with self._condition:
            while self._leads and mine.outcome is None:
                self._condition.wait()
            self._leads = self._leads or mine.outcome is None
            return mine.outcome is None

    def _commit(self) -> None:
        """Put what waits, once the store is free."""
        batch: Sequence[_Put] = ()
        try:
            with self._store.transaction() as changes:
                batch = self._take()
                ready = [put for put in batch if put.add_to(changes)]
            for put in ready:
                put.outcome = changes.generation
        except ValueError as error:
            # Before anything was written: one of them cannot be put, or only alone.
            if len(batch) > 1:
                self._put_each(batch)
            _fail(batch or self._take(), error)
        except StorageError as error:
            _fail(batch or self._take(), error)
        finally:
            # What is not foreseen, such as a lack of memory, ends the connection of this thread.
            _fail(batch, DeviceError("a put ended early, and may have been made"))

    def _take(self) -> list[_Put]:
        """Return what is put together: the first that wait, no two of them to one section."""
        with self._condition:
            batch: dict[str, _Put] = {}
            later = []
            while self._waiting and len(batch) < MOST:
                put = self._waiting.popleft()
                if put.name in batch:
                    later.append(put)
                else:
                    batch[put.name] = put
            self._waiting.extendleft(reversed(later))
        return list(batch.values())

    def _put_each(self, batch: Sequence[_Put]) -> None:
        for put in batch:
            if put.outcome is not None:
                continue
            try:
                with self._store.transaction() as changes:
                    is_ready = put.add_to(changes)
                if is_ready:
                    put.outcome = changes.generation
            except (StorageError, ValueError) as error:
                put.outcome = error


def _fail(batch: Sequence[_Put], error: StorageError | ValueError) -> None:
    for put in batch:
        if put.outcome is None:
            put.outcome = error
