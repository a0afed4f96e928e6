"""The process that owns an image: its fronts, and what it waits for (O6, O128 to O143)."""

from __future__ import annotations

import select
import signal
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from blobstore.errors import PinMismatchError
from blobstore.owner.serving.handing import MOST_SOCKETS, QUICK, Messages
from blobstore.owner.serving.open_fronts import OpenFronts
from blobstore.sockets.notifying import Notifier
from formats.errors import DeviceBusyError, FormatError, StorageError
from formats.logs import LateLogger
from formats.signals import Waker, handled

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from blobstore.owner.owner import Owner
    from blobstore.owner.serving.config import ServeConfig
    from blobstore.owner.serving.fronts import Passed
    from blobstore.owner.serving.places import Places
    from blobstore.store.description import StateDigest

_log = LateLogger(__name__)

#: Seconds between two attempts to take an image that another process has.
_LOOKS: Final = 0.1
#: Seconds between two looks how new the store is that it has.
_FOLLOWS: Final = 1.0
#: Seconds that a successor may take to have the image, and for which it is taken back.
_TAKING: Final = 10.0
_TAKING_BACK: Final = 3.0


class Service:
    """Fronts of an owner, and the events that change them. For the main thread.

    Attributes:
        fronts: What runs.
        notifier: Tells the service manager.
    """

    def __init__(
        self, owner: Owner, places: Places, *, reread: Callable[[], ServeConfig] | None = None
    ) -> None:
        """Serve an owner, which stays the caller's; nothing is served yet.

        Args:
            owner: What is served.
            places: Where sockets come from; closed with this.
            reread: Returns the configuration as it is now; None where there is no file.
        """
        self.notifier = Notifier()
        self.fronts = OpenFronts(owner, places)
        self._owner = owner
        self._reread = reread
        self._events: deque[Callable[[], bool]] = deque()
        self._waker = Waker()
        self._succeeding = threading.Lock()
        self._stands_by = False
        owner.hand_over = self._offer
        owner.on_failed = lambda error: self._put(lambda: _fail(error))
        owner.on_end = lambda error: self._put(self._end if error is None else lambda: _fail(error))

    # ------------------------------------------------------------ events

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Let signals be events in the block: SIGTERM, SIGINT, SIGHUP (O6, O131); once."""
        hangup = self._end if self._reread is None else self._reload
        events = {signal.SIGTERM: self._end, signal.SIGINT: self._end, signal.SIGHUP: hangup}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and self._reread is None:
            del events[signal.SIGHUP]  # under nohup
        try:
            with handled(events, lambda one: self._put(events[signal.Signals(one)]), self._waker):
                yield
        finally:
            self._waker.close()  # after the last signal

    def _put(self, event: Callable[[], bool]) -> None:
        """Have the main thread do something; from any thread and any handler."""
        self._events.append(event)
        self._waker.wake()

    def _wait(self, limit: float | None) -> None:
        """Wait until there may be an event, for at most ``limit`` seconds."""
        if not self._events:
            select.select([self._waker], [], [], limit)
            self._waker.clear()

    def run(self, *, take_when_free: bool = False) -> None:
        """Do what events ask for, until one ends it.

        Args:
            take_when_free: Take the image as soon as no other process has it (O143).

        Raises:
            StorageError: The image was released, and can neither be given nor taken back.
        """
        self.notifier.ready(self._status())
        pause = self.notifier.watchdog and self.notifier.watchdog / 2
        if take_when_free:
            pause = min(pause or _LOOKS, _LOOKS)
        goes_on = True
        while goes_on:
            self.notifier.alive()
            self._wait(pause)
            if self._events:
                goes_on = self._events.popleft()()
            elif take_when_free and self._owner.released:
                take_when_free = not self._takes()

    def stand_by(self, waiting: Callable[[], None]) -> bool:
        """Wait until no other process has the image, and take it (O178).

        Args:
            waiting: Called when it begins.

        Returns:
            Whether this process has it; else a signal ended it before.

        Raises:
            StorageError: It is free, and cannot be taken.
        """
        self._stands_by = True
        self.notifier.ready("standing by")
        waiting()
        pause = min((self.notifier.watchdog or 1) / 2, _LOOKS)
        followed = 0.0
        while True:
            self.notifier.alive()
            self._wait(pause)
            if self._events:
                if not self._events.popleft()():
                    return False
                continue
            if time.monotonic() - followed >= _FOLLOWS:
                self._follow()
                followed = time.monotonic()
            try:
                digest = self._owner.take_over()
            except DeviceBusyError:
                continue
            self._stands_by = False
            _log.warning("took the image over at generation %d", digest.generation)
            return True

    def _follow(self) -> None:
        """Know how new the store is, so that none is served that is older (O179)."""
        try:
            self._owner.store.follow()
        except PinMismatchError:
            raise
        except StorageError as error:
            _log.info("the store cannot be read at the moment: %s", error)

    def _end(self) -> bool:
        self.notifier.stopping("answering what was received")
        return False

    def _reload(self) -> bool:
        assert self._reread is not None, "there is such an event only then"
        if self._stands_by:
            return True  # nothing of it is in use yet
        self.notifier.reloading()
        try:
            self.fronts.change(self._reread())
        except (StorageError, ValueError) as error:
            _log.error("everything stays as it is: %s", error)
            self.notifier.ready(f"the configuration was not read again: {error}")
        else:
            _log.warning("the configuration was read again")
            self.notifier.ready(self._status())
        return True

    def _takes(self) -> bool:
        try:
            self._owner.take_over()
        except DeviceBusyError:
            return False
        self.notifier.status(self._status())
        return True

    def _status(self) -> str:
        what = "waiting for the image" if self._owner.released else "serving"
        return f"{what}: {', '.join(self.fronts.names)}"

    # --------------------------------------------------------- hand-over

    def _offer(self, sock: socket.socket) -> None:
        """Offer everything to a successor; in the thread of its connection."""
        messages = Messages(sock)
        with ExitStack() as undo:
            undo.callback(messages.close)
            try:
                messages.require_trusted()
                kinds = _texts(messages.receive(QUICK).get("kinds", []))
                if not self._succeeding.acquire(blocking=False):
                    raise DeviceBusyError("another process is taking over already [O136]")
                undo.callback(self._succeeding.release)
                found = self.fronts.listeners()[:MOST_SOCKETS]
                sockets = [{"name": name, "removes": one.has_name} for name, one in found]
                messages.send({"sockets": sockets}, [one.socket.fileno() for _, one in found])
                wanted = _texts(messages.receive(QUICK, "wanted"))
            except (OSError, StorageError) as error:
                _log.warning("nothing is handed over: %s", error)
                if isinstance(error, StorageError):
                    _refuse(messages, str(error))
                return
            undo.pop_all()
        self._put(lambda: self._hand_over(messages, wanted, kinds))

    def _hand_over(self, messages: Messages, wanted: Sequence[str], kinds: Sequence[str]) -> bool:
        """Give everything to a process that is ready; say whether this one goes on."""
        began = time.monotonic()
        process = messages.peer_process
        with ExitStack() as ending:
            ending.callback(self._succeeding.release)
            ending.enter_context(messages)
            store = self.fronts.store
            try:
                # Before the others: what it is doing may need them to go on.
                store.suspend(waiting=True)
                digest = self._owner.release(waiting=True)
            except (StorageError, ValueError) as error:
                store.resume()
                _log.error("nothing is handed over: %s", error)
                _refuse(messages, str(error))
                return True
            passed = self.fronts.pass_on(wanted, kinds, MOST_SOCKETS)
            if not self._is_taken(messages, digest, passed):
                return True
        self.fronts.leave(wanted)
        _log.warning(
            "process %s has the image: handed over in %.0f ms",
            process,
            (time.monotonic() - began) * 1000,
        )
        if process is not None:
            self.notifier.succeeded(process)
        return False

    def _is_taken(self, messages: Messages, digest: StateDigest, passed: Sequence[Passed]) -> bool:
        """Say whether a successor has taken the image; if not, it was taken back."""
        descriptors = [descriptor for one in passed for descriptor in one.descriptors]
        try:
            messages.send({"released": str(digest), "passed": passed}, descriptors)
            messages.receive(_TAKING, "taken")
        except (OSError, StorageError) as error:
            _log.error("the other process does not take over: %s", error)
        else:
            return True
        try:
            self._owner.take_over(patience=_TAKING_BACK)
        except DeviceBusyError:
            # It has the lock, so it has the image, although it does not say so.
            return True
        return False


def _fail(error: BaseException) -> bool:
    raise error


def _texts(said: Any) -> list[str]:
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        raise FormatError("a successor says something else than a list of names", rule="O136")
    return said


def _refuse(messages: Messages, reason: str) -> None:
    try:
        messages.send({"error": reason})
    except OSError as error:
        _log.debug("the other process is not there to be told: %s", error)
