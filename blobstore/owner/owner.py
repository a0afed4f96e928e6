"""An image, its store, and all through which devices reach it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from formats.errors import DeviceBusyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from blobstore.store.store import Store


class Front(Protocol):
    """What devices reach the store by: a server of NBD, a TPM."""

    def at_rest(self) -> AbstractContextManager[None]:
        """Keep its devices between two requests, and what they wrote committed, in the block.

        Raises:
            StorageError: What they wrote cannot be made durable.
        """


@runtime_checkable
class ExclusiveFront(Protocol):
    """A front whose sections are changed by it alone (O100)."""

    @property
    def reserved(self) -> Mapping[str, str]:
        """Names of sections, and to what they belong."""

    def at_rest(self) -> AbstractContextManager[None]:
        """As that of a `Front`."""


class Owner:
    """A store that this process has, and its fronts.

    Attributes:
        store: Open for writing.
        image: Path of its image.
    """

    def __init__(self, store: Store, image: Path) -> None:
        """Own a store, which stays the caller's to close; it has no fronts yet."""
        self.store, self.image = store, image
        self._fronts: list[Front] = []
        self._resting = threading.Lock()
        self._reserved: dict[str, str] = {}

    def add(self, front: Front) -> None:
        """Have a front at rest when the others are; it stays the caller's."""
        self._fronts.append(front)
        if isinstance(front, ExclusiveFront):
            self._reserved.update(front.reserved)

    def require_free(self, name: str) -> None:
        """Refuse to change a section, or to make one, that belongs to a front (O100).

        Raises:
            DeviceBusyError: It does.
        """
        holder = self._reserved.get(name)
        if holder is not None:
            raise DeviceBusyError(
                f"section {name!r} belongs to {holder}, which alone changes it [O100]",
                hint="it can be read; change it when the TPM is not offered",
            )

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Have one moment at which no device is in the middle of anything (O50).

        Fronts wait in the block. Programs that use the store themselves do not: what has to
        be one state takes the store in a transaction, or at one moment, too.

        Raises:
            StorageError: What a device wrote cannot be made durable.
        """
        with self._resting, ExitStack() as resting:
            for front in self._fronts:
                resting.enter_context(front.at_rest())
            yield
