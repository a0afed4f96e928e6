"""An image, its store, and all through which devices reach it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
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


class Owner:
    """A store that this process has, and its fronts.

    Attributes:
        store: Open for writing.
        image: Absolute path of its image.
        ending: Set when what takes long is to be given up, for the process is to end (O7).
    """

    def __init__(self, store: Store, image: Path) -> None:
        """Own a store, which stays the caller's to close; it has no fronts yet."""
        self.store, self.image = store, image.absolute()
        self.ending = threading.Event()
        self._fronts: list[Front] = []
        self._has_devices = False
        self._resting = threading.Lock()

    @property
    def has_devices(self) -> bool:
        """Whether devices may use the store: by a front that was added."""
        return self._has_devices

    def add(self, front: Front) -> None:
        """Have a front at rest when the others are; it stays the caller's."""
        self._has_devices = True
        self._fronts.append(front)

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
