"""An image, its store, and all through which devices reach it."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from formats.errors import DeviceBusyError, UnsupportedError
from formats.logs import LateLogger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from blobstore.owner.connection import Limits
    from blobstore.store.description import StateDigest
    from blobstore.store.store import Store

_log = LateLogger(__name__)

#: Seconds between two attempts to take an image.
_PAUSE: Final = 0.01


class Front(Protocol):
    """What devices reach the store by: a server of NBD, a TPM."""

    def at_rest(self) -> AbstractContextManager[None]:
        """Keep its devices between two requests, and what they wrote committed, in the block.

        Raises:
            StorageError: What they wrote cannot be made durable.
        """

    def suspend(self, *, waiting: bool) -> None:
        """Commit what its devices wrote, and let go of the store: it is to be released (O141).

        Args:
            waiting: Whether clients, and those that come, wait until `resume`: it follows
                soon, or the end of this process, which does not answer them then. Otherwise
                nothing changes until `resume`, and what would change something is refused.

        Raises:
            StorageError: What they wrote cannot be made durable; it goes on as before.
        """

    def resume(self) -> None:
        """Go on: the store was taken over, or was not released."""


class Owner:
    """A store that this process has, and its fronts.

    Attributes:
        store: Open for writing.
        image: Path of its image.
        released: Whether another process may have the image meanwhile (O140).
        hand_over: Hands everything over to the process at the other end of a connection,
            which it takes (O135); None if this process cannot do that.
        limits: What clients may ask for; None is what `Limits` says.
        on_taken: Called when the image was taken over.
        on_failed: Called with what ended a thread that was to go on.
    """

    def __init__(self, store: Store, image: Path, *, released: bool = False) -> None:
        """Own a store, which stays the caller's to close; it has no fronts yet.

        Args:
            store: Open for writing.
            image: Path of its image.
            released: Whether the store was opened so.
        """
        self.store, self.image = store, image
        self.released = released
        self.limits: Limits | None = None
        self.on_taken: Callable[[], None] | None = None
        self.on_failed: Callable[[BaseException], None] | None = None
        self.hand_over: Callable[[socket.socket], None] | None = None
        self._fronts: list[Front] = []
        # What concerns all fronts is done one after the other.
        self._resting = threading.RLock()

    def add(self, front: Front) -> None:
        """Have a front at rest when the others are; it stays the caller's."""
        with self._resting:
            if self.released:
                front.suspend(waiting=False)
            self._fronts.append(front)

    def remove(self, front: Front) -> None:
        """Know a front no longer: it ends."""
        with self._resting:
            self._fronts.remove(front)

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

    def release(self, *, waiting: bool = False) -> StateDigest:
        """Let another process have the image, with all devices between two requests (O140).

        Args:
            waiting: As for `Front.suspend`.

        Returns:
            What the state of the store is.

        Raises:
            UnsupportedError: It was released already.
            StorageError: What devices wrote, or the store, cannot be made durable; nothing
                changed.
        """
        with self._resting, ExitStack() as going_on:
            if self.released:
                raise UnsupportedError("the image was released before", feature="a second release")
            for front in self._fronts:
                front.suspend(waiting=waiting)
                going_on.callback(front.resume)
            # At one moment, so that no put comes between.
            digest = self.store.at_one_moment(self._release)
            self.released = True
            going_on.pop_all()
        _log.info("released the image at generation %d", digest.generation)
        return digest

    def _release(self) -> StateDigest:
        digest = self.store.digest()
        self.store.release()
        return digest

    def take_over(
        self,
        *,
        expect_digest: StateDigest | None = None,
        at_least_generation: int = 0,
        patience: float = 0,
    ) -> StateDigest:
        """Take the image, from whichever process has released it; devices go on (O142).

        Args:
            expect_digest: As for `Store.take_over`.
            at_least_generation: Likewise.
            patience: Seconds for which it is tried again while another process has it.

        Returns:
            What the state of the store is.

        Raises:
            StorageError: As `Store.take_over`; it stays released.
        """
        deadline = time.monotonic() + patience
        with self._resting:
            while True:
                try:
                    self.store.take_over(
                        expect_digest=expect_digest, at_least_generation=at_least_generation
                    )
                    break
                except DeviceBusyError:
                    if time.monotonic() >= deadline:
                        raise
                time.sleep(_PAUSE)
            if self.released:
                self.released = False
                for front in self._fronts:
                    front.resume()
                if self.on_taken is not None:
                    self.on_taken()
            digest = self.store.digest()
        _log.info("has the image, at generation %d", digest.generation)
        return digest
