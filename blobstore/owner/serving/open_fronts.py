"""The fronts that run, and their sockets (O124, O131, O132)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from blobstore.owner.listening import make_entry, prepare_place, require_entry
from blobstore.owner.serving.fronts import PassingConfig, PassingFront, RereadingFront
from blobstore.owner.serving.places import place_of, set_mode
from blobstore.owner.serving.store_front import STORE
from blobstore.sockets.addresses import UnixAddress
from formats.errors import ArgumentError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from blobstore.owner.owner import Owner
    from blobstore.owner.serving.config import ServeConfig
    from blobstore.owner.serving.fronts import FrontConfig, Passed, RunningFront
    from blobstore.owner.serving.handing import Offer
    from blobstore.owner.serving.places import Places
    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener, MadeFile

_log = LateLogger(__name__)


class _Running(NamedTuple):
    """A front that runs, the entry that says so, and its sockets by name."""

    entry: FrontConfig
    listeners: Mapping[str, Listener]
    front: RunningFront


class OpenFronts:
    """The fronts of an owner, their sockets, and the image's entry."""

    def __init__(self, owner: Owner, places: Places) -> None:
        """Have no fronts yet.

        Args:
            owner: What they serve; stays the caller's.
            places: Where sockets come from; closed with this.
        """
        self._owner = owner
        self._places = places
        self._running: dict[str, _Running] = {}
        self._entry: MadeFile | None = None
        # Fronts that another process passed on, by their names, until they begin here.
        self._passed: dict[str, Passed] = {}
        self._resting: list[RunningFront] = []
        owner.on_taken = self._make_entry

    @property
    def names(self) -> list[str]:
        """What those that run are called."""
        return list(self._running)

    @property
    def store(self) -> RunningFront:
        """What serves the store."""
        return self._running[STORE].front

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
        # What stays may name files that are others now; what begins reads them anyway.
        staying = [one.front for one in known.values() if one not in gone]
        reread = [one.reread() for one in staying if isinstance(one, RereadingFront)]
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
                        socket_name: _reuse(undo, reusable, socket_name, place)
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
        for use in reread:
            use()
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
        if name == STORE and not self._places.has(name):
            if address is None:
                require_entry(self._owner.image)
            elif isinstance(address, UnixAddress):
                prepare_place(self._owner.image, address)
        listener = self._places.take(name, address)
        undo.callback(listener.close)
        return listener

    def _start(
        self, undo: ExitStack, entry: FrontConfig, listeners: Mapping[str, Listener]
    ) -> None:
        front = self._go_on(entry, listeners) or entry.start(self._owner, listeners)
        running = _Running(entry, listeners, front)
        self._running[entry.name] = running
        undo.callback(self._stop, running)

    def _go_on(self, entry: FrontConfig, listeners: Mapping[str, Listener]) -> RunningFront | None:
        passed = self._passed.pop(entry.name, None)
        if passed is None or not isinstance(entry, PassingConfig) or passed.kind != entry.kind:
            return None
        front = entry.start_passed(self._owner, listeners, passed)
        if front is None:
            _log.warning("%r is begun again: the owner before said otherwise of it", entry.name)
        else:
            self._resting.append(front)
        return front

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

    def pass_on(self, names: Collection[str], kinds: Collection[str], most: int) -> list[Passed]:
        """Return the devices that a successor goes on with; after `Owner.release` (O150).

        Args:
            names: Of the sockets that it has.
            kinds: Of the devices that it can go on with.
            most: Descriptors that there may be.
        """
        passed: list[Passed] = []
        for entry, listeners, front in self._running.values():
            if not isinstance(entry, PassingConfig) or not isinstance(front, PassingFront):
                continue
            found = None
            if entry.kind in kinds and listeners.keys() <= set(names):
                found = front.pass_on()
            if found is None or len(found.descriptors) > most:
                _log.warning("what runs of %r ends: it cannot be passed on [O150]", entry.name)
                front.withhold()
            else:
                passed.append(found)
                most -= len(found.descriptors)
        return passed

    def accept(self, passed: Iterable[Passed]) -> None:
        """Have fronts that `start` starts go on with these, from `go_on` on (O150)."""
        self._passed = {one.front: one for one in passed}

    def go_on(self) -> None:
        """Let what was passed on go on: the other process has it no longer."""
        for front in self._resting:
            front.resume()
        self._resting.clear()

    def leave(self, names: Iterable[str]) -> None:
        """Leave these sockets' names, and the image's entry, where they are at the end."""
        for name, listener in self.listeners():
            if name in names:
                listener.leave_name()
        self._entry = None


def _reuse(
    undo: ExitStack, reusable: dict[str, Listener], name: str, address: Address | None
) -> Listener | None:
    """Return a socket that listens already, with the mode that it is to have now."""
    listener = reusable.get(name if address is None else place_of(address))
    for key in [key for key, one in reusable.items() if one is listener]:
        del reusable[key]  # one front has it
    if listener is not None and isinstance(address, UnixAddress) and listener.address != address:
        before = listener.address
        undo.callback(setattr, listener, "address", before)
        if isinstance(before, UnixAddress):
            undo.callback(set_mode, before)
        set_mode(address)
        listener.address = address
    return listener
