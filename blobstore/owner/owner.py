"""An image, its store, and all through which devices reach it."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from blobstore.image.place import absolute
from blobstore.owner.changes import Watches
from blobstore.owner.moving import MovingImage
from blobstore.owner.windows import HeldWindows
from formats.errors import DeviceBusyError, UnsupportedError
from formats.logs import LateLogger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from blobstore.image.place import Place
    from blobstore.owner.limits import Limits
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


@runtime_checkable
class ExclusiveFront(Front, Protocol):
    """A front whose sections are changed by it alone (O100)."""

    @property
    def reserved(self) -> Mapping[str, str]:
        """Names of sections, and to what they belong."""


class Owner:
    """A store that this process has, and its fronts.

    Attributes:
        store: Open for writing.
        image: Place of its image; a path is absolute.
        ending: Set when what takes long is to be given up, for the process is to end (O7).
        released: Whether another process may have the image meanwhile (O140).
        hand_over: Hands everything over to the process at the other end of a connection,
            which it takes (O135); None if this process cannot do that.
        limits: What clients may ask for; None is what `Limits` says.
        on_taken: Called when the image was taken over.
        on_failed: Called with what ended a thread that was to go on.
        on_end: Called when the process is to end, or with what ended a thread that was to
            go on; None if this process does not end because of a front.
        windows: Those that are open for HTTP: a front, too.
        watches: Those who are told of commits over HTTP.
        reencryption: That of its image, if one is in progress.
    """

    def __init__(self, store: Store, image: Place, *, released: bool = False) -> None:
        """Own a store, which stays the caller's to close; it has no fronts yet.

        Args:
            store: Open for writing.
            image: Place of its image; a path is absolute.
        ending: Set when what takes long is to be given up, for the process is to end (O7).
            released: Whether the store was opened so.
        """
        self.store, self.image = store, absolute(image)
        self.ending = threading.Event()
        self.released = released
        self.limits: Limits | None = None
        self.on_taken: Callable[[], None] | None = None
        self.on_failed: Callable[[BaseException], None] | None = None
        self.on_end: Callable[[BaseException | None], None] | None = None
        self.hand_over: Callable[[socket.socket], None] | None = None
        self.windows = HeldWindows(store, released=released)
        self.watches = Watches(store)
        self._fronts: list[Front] = [self.windows]
        self._devices: list[Front] = []
        # Whether a front is one is asked when it comes: it takes longer than the rest of a request.
        self._exclusive: list[ExclusiveFront] = []
        # What concerns all fronts is done one after the other.
        self._resting = threading.RLock()
        self.reencryption = MovingImage(store, self._resting)

    @property
    def has_devices(self) -> bool:
        """Whether devices may use the store: by a front that was added."""
        return bool(self._devices)

    def add(self, front: Front, *, devices: bool = True) -> None:
        """Have a front at rest when the others are; it stays the caller's.

        Args:
            front: The front.
            devices: Whether devices use the store through it, and not programs only.
        """
        with self._resting:
            if self.released:
                front.suspend(waiting=False)
            self._fronts.append(front)
            if devices:
                self._devices.append(front)
            if isinstance(front, ExclusiveFront):
                self._exclusive.append(front)

    def remove(self, front: Front) -> None:
        """Know a front no longer: it ends."""
        with self._resting:
            self._fronts.remove(front)
            if front in self._devices:
                self._devices.remove(front)
            if front in self._exclusive:
                self._exclusive.remove(front)

    def require_free(self, name: str) -> None:
        """Refuse to change a section, or to make one, that belongs to a front (O100).

        Raises:
            DeviceBusyError: It does.
        """
        for front in tuple(self._exclusive):
            holder = front.reserved.get(name)
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
            self.store.session.require_still()
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
        fence: bool = False,
    ) -> StateDigest:
        """Take the image, from whichever process has released it; devices go on (O142).

        Args:
            expect_digest: As for `Store.take_over`.
            at_least_generation: Likewise.
            patience: Seconds for which it is tried again while another process has it.
            fence: As for `Store.take_over`.

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
                        expect_digest=expect_digest,
                        at_least_generation=at_least_generation,
                        fence=fence,
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
