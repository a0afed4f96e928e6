"""The process that owns an image: its fronts, and what it waits for (O6, O128 to O143)."""

from __future__ import annotations

import select
import signal
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from blobstore.owner.listening import make_entry
from blobstore.owner.serving.handing import MOST_SOCKETS, QUICK, Messages
from blobstore.owner.serving.places import place_of, set_mode
from blobstore.owner.serving.store_front import STORE, RunningStore
from blobstore.sockets.addresses import UnixAddress
from blobstore.sockets.notifying import Notifier
from formats.errors import ArgumentError, DeviceBusyError, StorageError
from formats.logs import LateLogger
from formats.signals import Waker, handled

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from blobstore.owner.owner import Owner
    from blobstore.owner.serving.config import ServeConfig
    from blobstore.owner.serving.fronts import FrontConfig, RunningFront
    from blobstore.owner.serving.handing import Offer
    from blobstore.owner.serving.places import Places
    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener, MadeFile
    from blobstore.store.description import StateDigest

_log = LateLogger(__name__)

#: Seconds between two attempts to take an image that another process has.
_LOOKS: Final = 0.1
#: Seconds that a successor may take to have the image, and for which it is taken back.
_TAKING: Final = 10.0
_TAKING_BACK: Final = 3.0


class _Running(NamedTuple):
    """A front that runs, the entry that says so, and its sockets by name."""

    entry: FrontConfig
    listeners: Mapping[str, Listener]
    front: RunningFront


class Service:
    """Fronts of an owner, and the events that change them. For the main thread.

    Attributes:
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
        self._owner = owner
        self._places = places
        self._reread = reread
        self._running: dict[str, _Running] = {}
        self._entry: MadeFile | None = None
        self._events: deque[Callable[[], bool]] = deque()
        self._waker = Waker()
        self._succeeding = threading.Lock()
        owner.hand_over = self._offer
        owner.on_taken = self._make_entry

    # ------------------------------------------------------------ fronts

    @property
    def path(self) -> Path:
        """Path of the store's socket."""
        address = self._running[STORE].listeners[STORE].address
        assert isinstance(address, UnixAddress), "the store has no other (O5)"
        return address.path

    def offer(self, offers: Iterable[Offer]) -> None:
        """Use sockets of the owner before where they are wanted; their names stay."""
        self._places.offer((one.name, one.listener) for one in offers)

    def take_names(self, offers: Iterable[Offer]) -> None:
        """Remove the names of these sockets at the end: the owner before does not."""
        used = {id(listener) for _, listener in self.listeners()}
        for offer in offers:
            if offer.removes and id(offer.listener) in used:
                offer.listener.take_name()

    def listeners(self) -> list[tuple[str, Listener]]:
        """Return all sockets by name."""
        return [pair for one in self._running.values() for pair in one.listeners.items()]

    def prepare(self, config: ServeConfig) -> Mapping[str, Mapping[str, Listener]]:
        """Return the sockets of all fronts, which listen then; `start` takes them.

        Raises:
            StorageError, ValueError: One cannot be made; none is left.
        """
        image = self._owner.image
        wanted = {entry.name: entry.sockets(image) for entry in config.fronts()}
        self._places.require_known(name for one in wanted.values() for name in one)
        with ExitStack() as undo:
            found = {
                front: {name: self._take(undo, name, place) for name, place in one.items()}
                for front, one in wanted.items()
            }
            if not isinstance(found[STORE][STORE].address, UnixAddress):
                raise ArgumentError("the store is served on a Unix socket only [O5]")
            undo.pop_all()
        return found

    def start(self, config: ServeConfig, listeners: Mapping[str, Mapping[str, Listener]]) -> None:
        """Start all fronts, on sockets that `prepare` returned, which this owns then.

        Raises:
            StorageError: One cannot be started; none runs, and the sockets are closed.
        """
        with ExitStack() as undo:
            for entry in config.fronts():
                for listener in listeners[entry.name].values():
                    undo.callback(listener.close)
            for entry in config.fronts():
                self._start(undo, entry, listeners[entry.name])
            undo.pop_all()
        self._make_entry()

    def change(self, config: ServeConfig) -> None:
        """Open and close what differs now (O131). The rest goes on, with its connections.

        Raises:
            StorageError, ValueError: It cannot be done; everything is as it was.
        """
        image = self._owner.image
        wanted = {entry.name: entry for entry in config.fronts()}
        known = dict(self._running)
        gone = [one for name, one in known.items() if wanted.get(name) != one.entry]
        reusable: dict[str, Listener] = {}
        for one in gone:
            for socket_name, listener in one.listeners.items():
                reusable[place_of(listener.address)] = listener
                reusable.setdefault(socket_name, listener)
        with ExitStack() as undo:
            if STORE in known and known[STORE] in gone and self._entry is not None:
                # Its own link is not to be in the way of its socket.
                self._entry.remove()
                self._entry = None
                undo.callback(self._make_entry)
            found: dict[str, dict[str, Listener]] = {}
            for name, entry in wanted.items():
                if name not in known or known[name] in gone:
                    found[name] = {
                        socket_name: _reuse(
                            undo,
                            reusable.get(socket_name if place is None else place_of(place)),
                            place,
                        )
                        or self._take(undo, socket_name, place)
                        for socket_name, place in entry.sockets(image).items()
                    }
            # What is new first: where it fails, the others have not noticed anything.
            for name in sorted(found, key=lambda name: name in known):
                if name in known:
                    undo.callback(self._restart, known[name])
                    self._stop(known[name])
                self._start(undo, wanted[name], found[name])
            undo.pop_all()
        used = {id(one) for listeners in found.values() for one in listeners.values()}
        for one in gone:
            if one.entry.name not in wanted:
                self._stop(one)
            for listener in one.listeners.values():
                if id(listener) not in used:
                    listener.close()
        self._running = {name: self._running[name] for name in wanted}
        if STORE in found:
            self._make_entry()

    def close(self) -> None:
        """Stop all fronts and close their sockets (O6, O7)."""
        with ExitStack() as closing:
            closing.callback(self._waker.close)
            closing.callback(self._places.close)
            for one in self._running.values():
                for listener in one.listeners.values():
                    closing.callback(listener.close)
            if self._entry is not None:
                closing.callback(self._entry.remove)
            # The store's socket first, then the devices.
            for one in reversed(self._running.values()):
                closing.callback(one.front.stop)
        self._running = {}

    def _take(self, undo: ExitStack, name: str, address: Address | None) -> Listener:
        listener = self._places.take(name, address)
        undo.callback(listener.close)
        return listener

    def _start(
        self, undo: ExitStack, entry: FrontConfig, listeners: Mapping[str, Listener]
    ) -> None:
        running = _Running(entry, listeners, entry.start(self._owner, listeners))
        self._running[entry.name] = running
        undo.callback(self._stop, running)

    def _stop(self, running: _Running) -> None:
        self._owner.remove(running.front)
        running.front.stop()
        del self._running[running.entry.name]

    def _restart(self, running: _Running) -> None:
        front = running.entry.start(self._owner, running.listeners)
        self._running[running.entry.name] = running._replace(front=front)

    def _make_entry(self) -> None:
        """Have the image found by the store's socket, if this process has the image (O3)."""
        if STORE in self._running and not self._owner.released:
            entry = make_entry(self._owner.image, UnixAddress(self.path))
            if self._entry is not None and (entry is None or entry.path != self._entry.path):
                self._entry.remove()
            self._entry = entry

    # ------------------------------------------------------------ events

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Let signals be events in the block: SIGTERM, SIGINT, SIGHUP (O6, O131)."""
        hangup = self._end if self._reread is None else self._reload
        events = {signal.SIGTERM: self._end, signal.SIGINT: self._end, signal.SIGHUP: hangup}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and self._reread is None:
            del events[signal.SIGHUP]  # under nohup
        with handled(events, lambda number: self._put(events[signal.Signals(number)]), self._waker):
            yield

    def _put(self, event: Callable[[], bool]) -> None:
        """Have the main thread do something; from any thread and any handler."""
        self._events.append(event)
        self._waker.wake()

    def _wait(self, limit: float | None) -> None:
        """Wait until there may be an event, or for so many seconds."""
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

    def _end(self) -> bool:
        self.notifier.stopping("answering what was received")
        return False

    def _reload(self) -> bool:
        assert self._reread is not None, "there is such an event only then"
        self.notifier.reloading()
        try:
            self.change(self._reread())
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
        return f"{what}: {', '.join(self._running)}"

    # --------------------------------------------------------- hand-over

    def _offer(self, sock: socket.socket) -> None:
        """Offer everything to a successor; in the thread of its connection."""
        messages = Messages(sock)
        with ExitStack() as undo:
            undo.callback(messages.close)
            try:
                messages.require_trusted()
                messages.receive(QUICK)
                if not self._succeeding.acquire(blocking=False):
                    raise DeviceBusyError("another process is taking over already [O136]")
                undo.callback(self._succeeding.release)
                found = self.listeners()[:MOST_SOCKETS]
                sockets = [{"name": name, "removes": one.has_name} for name, one in found]
                messages.send({"sockets": sockets}, [one.socket.fileno() for _, one in found])
                wanted = messages.receive(QUICK, "wanted")
            except (OSError, StorageError) as error:
                _log.warning("nothing is handed over: %s", error)
                if isinstance(error, StorageError):
                    _refuse(messages, str(error))
                return
            undo.pop_all()
        self._put(lambda: self._hand_over(messages, wanted))

    def _hand_over(self, messages: Messages, wanted: Sequence[str]) -> bool:
        """Give everything to a process that is ready; say whether this one goes on."""
        began = time.monotonic()
        process = messages.peer_process
        with ExitStack() as ending:
            ending.callback(self._succeeding.release)
            ending.enter_context(messages)
            store = self._running[STORE].front
            assert isinstance(store, RunningStore)
            try:
                # Before the others: what it is doing may need them to go on.
                store.suspend(waiting=True)
                digest = self._owner.release(waiting=True)
            except (StorageError, ValueError) as error:
                store.resume()
                _log.error("nothing is handed over: %s", error)
                _refuse(messages, str(error))
                return True
            if not self._is_taken(messages, digest):
                return True
        for name, listener in self.listeners():
            if name in wanted:
                listener.leave_name()
        self._entry = None
        _log.warning(
            "process %s has the image: handed over in %.0f ms",
            process,
            (time.monotonic() - began) * 1000,
        )
        if process is not None:
            self.notifier.succeeded(process)
        return False

    def _is_taken(self, messages: Messages, digest: StateDigest) -> bool:
        """Say whether a successor has taken the image; if not, it was taken back."""
        try:
            messages.send({"released": str(digest)})
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


def _reuse(undo: ExitStack, listener: Listener | None, address: Address | None) -> Listener | None:
    """Return a socket that listens already, with the mode that it is to have now."""
    if listener is not None and isinstance(address, UnixAddress) and listener.address != address:
        before = listener.address
        undo.callback(setattr, listener, "address", before)
        if isinstance(before, UnixAddress):
            undo.callback(set_mode, before)
        set_mode(address)
        listener.address = address
    return listener


def _refuse(messages: Messages, reason: str) -> None:
    try:
        messages.send({"error": reason})
    except OSError as error:
        _log.debug("the other process is not there to be told: %s", error)
