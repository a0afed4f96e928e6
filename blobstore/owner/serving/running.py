"""Owning an image until a signal says that it is enough."""

from __future__ import annotations

import enum
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from blobstore.image.fencing import can_fence
from blobstore.image.place import entry_of, place_of
from blobstore.owner.owner import Owner
from blobstore.owner.serving.config import ServeConfig
from blobstore.owner.serving.fronts import PassingConfig
from blobstore.owner.serving.handing import Predecessor
from blobstore.owner.serving.places import Places
from blobstore.owner.serving.service import Service
from blobstore.owner.serving.store_front import StoreFront
from formats.errors import DeviceBusyError, DeviceError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from blobstore.image.place import Place
    from blobstore.owner.limits import Limits
    from blobstore.owner.owner import Front
    from blobstore.sockets.listening import Listener
    from blobstore.store.store import Store

_log = LateLogger(__name__)

#: Seconds that the owner before may take to answer what it received (O7, O11).
_RELEASING = 45.0
#: Seconds for which the image is tried, once its owner has released it.
_PATIENCE = 3.0
#: Seconds in which TPMs end whose owner was killed (V76), and between two looks.
_ENDING = 1.0
_PAUSE = 0.02


class Beginning(enum.StrEnum):
    """How an owner comes to its image."""

    OPENED = "opened"
    #: It waits until it is told to take the image over (O143).
    TOLD = "told"
    #: It takes the image as soon as no other process has it.
    FREE = "free"
    #: It waits until no other process has the image, and serves then (O178).
    STANDING_BY = "standing by"
    #: It takes the image from a process that is dead or cut off (O181).
    TAKING = "taking"
    #: It takes everything from the owner that there is, if there is one (O135).
    REPLACING = "replacing"


def serve(
    store: Store,
    image: str | os.PathLike[str],
    config: ServeConfig | None = None,
    *,
    socket: str | os.PathLike[str] | None = None,
    begins: Beginning = Beginning.OPENED,
    reread: Callable[[], ServeConfig] | None = None,
    limits: Limits | None = None,
    fronts: Iterable[Front] = (),
    waiting: Callable[[], None] | None = None,
    ready: Callable[[Path], None] | None = None,
) -> None:
    """Serve a store until SIGTERM or SIGINT, or until another process has replaced this one.

    Requests that were received are answered first, and sockets are removed (O6, O7). Call
    it from the main thread, where signals arrive.

    Args:
        store: Opened for writing from ``image``; released, unless it begins `OPENED`.
            Stays the caller's to close.
        image: Place of the image.
        config: What is served, where; by default the store at its entry in the runtime
            directory (O3).
        socket: Path of the store's socket, in place of ``config``.
        begins: How the image is had.
        reread: Returns the configuration as it is now, when SIGHUP asks for it (O131).
        limits: What clients may ask for.
        fronts: By which devices reach the store besides; they stay the caller's.
        waiting: Called when it begins to wait for the image, if it is `STANDING_BY`.
        ready: Called with the path of the store's socket once all sockets take connections.

    Raises:
        DeviceBusyError: A process listens at one of the sockets, or has the image.
        DeviceError: A socket cannot be made.
        StorageError: A front cannot be started, or the image not be taken.
        ArgumentError: The process was given descriptors that do not fit (O127).
    """
    if config is None:
        config = ServeConfig(store=StoreFront(path=None if socket is None else str(socket)))
    owner = Owner(store, place_of(image), released=begins is not Beginning.OPENED)
    owner.limits = limits
    for front in fronts:
        owner.add(front)
    service = Service(owner, Places(), reread=reread)
    with ExitStack() as ending:
        ending.enter_context(service.signals())
        ending.callback(owner.reencryption.end)
        ending.callback(service.fronts.close)
        if begins is Beginning.REPLACING:
            _replace(owner, service, config)
        elif begins is Beginning.TAKING:
            _take_from_the_dead(owner, service, config)
        elif begins is Beginning.STANDING_BY and not service.stand_by(waiting or _no_one):
            return
        else:
            service.fronts.start(config, _prepare(service, config))
        if ready is not None:
            ready(service.fronts.path)
        if _is_moving(store):
            owner.reencryption.carry_on()
        service.run(take_when_free=begins is Beginning.FREE)


def _replace(owner: Owner, service: Service, config: ServeConfig) -> None:
    """Take everything from the owner of the image; it goes on if this fails (O135 to O137)."""
    predecessor = _predecessor(owner.image, config)
    if predecessor is None:
        owner.take_over()
        service.fronts.start(config, _prepare(service, config))
        return
    with predecessor:
        try:
            service.fronts.offer(predecessor.offers)
            began = _take(owner, service, config, predecessor)
        except (StorageError, ValueError) as error:
            predecessor.failed(str(error))
            raise
        predecessor.taken()
    # Not before: until then the owner may take everything back.
    service.fronts.go_on()
    service.fronts.take_names(predecessor.offers)
    _log.warning("took everything over in %.0f ms", (time.monotonic() - began) * 1000)


def _take(owner: Owner, service: Service, config: ServeConfig, predecessor: Predecessor) -> float:
    """Take the image and start all fronts; return when it was released."""
    listeners = service.fronts.prepare(config)
    with ExitStack() as undo, ExitStack() as unused:
        undo.callback(lambda: _close(listeners))
        used = {id(listener) for one in listeners.values() for listener in one.values()}
        wanted = [one.name for one in predecessor.offers if id(one.listener) in used]
        released = predecessor.released(wanted, _RELEASING)
        began = time.monotonic()
        if released is None:
            # Its sockets may have lost their names.
            _log.warning("the owner ended before it handed over")
            _close(listeners)
            listeners = _prepare(service, config)
        else:
            unused.enter_context(closing(released))
            service.fronts.accept(released.passed)
        digest = None if released is None else released.digest
        owner.take_over(expect_digest=digest, patience=_PATIENCE)
        undo.pop_all()
        try:
            service.fronts.start(config, listeners)
        except BaseException:
            owner.store.release()
            raise
    return began


def _take_from_the_dead(owner: Owner, service: Service, config: ServeConfig) -> None:
    """Take the image, shutting out the process that has it if that is possible (O181)."""
    # Before it is taken: an owner on this machine that is alive has these sockets.
    listeners = _prepare(service, config)
    try:
        digest = owner.take_over(fence=can_fence(owner.image))
    except BaseException:
        _close(listeners)
        raise
    _log.warning("took the image over at generation %d", digest.generation)
    service.fronts.start(config, listeners)


def _is_moving(store: Store) -> bool:
    """Say whether the image of a store was opened to resume its re-encryption (O216)."""
    layers = store.session.layers
    return layers is not None and layers.moving is not None


def _no_one() -> None:
    """Tell no one."""


def _prepare(service: Service, config: ServeConfig) -> Mapping[str, Mapping[str, Listener]]:
    """Prepare the sockets, once the TPMs of an owner that was killed have ended."""
    deadline = time.monotonic() + _ENDING
    while True:
        try:
            return service.fronts.prepare(config)
        except DeviceBusyError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)


def _predecessor(image: Place, config: ServeConfig) -> Predecessor | None:
    """Return the owner of the image, if there is one."""
    path = entry_of(image) if config.store.path is None else Path(config.store.path)
    if path is None:
        return None
    try:
        kinds = {one.kind for one in config.fronts() if isinstance(one, PassingConfig)}
        return Predecessor(path, sorted(kinds))
    except DeviceError as error:
        if isinstance(error.__cause__, (ConnectionRefusedError, FileNotFoundError)):
            return None
        raise


def _close(listeners: Mapping[str, Mapping[str, Listener]]) -> None:
    for one in listeners.values():
        for listener in one.values():
            listener.close()
