"""Owning an image until a signal says that it is enough."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blobstore.owner.listening import listening
from blobstore.owner.owner import Owner
from blobstore.owner.server import OwnerServer
from formats.signals import handled

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from blobstore.owner.connection import Limits
    from blobstore.owner.owner import Front
    from blobstore.store.store import Store

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def serve(
    store: Store,
    image: str | os.PathLike[str],
    *,
    socket: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    fronts: Iterable[Front] = (),
    ready: Callable[[Path], None] | None = None,
) -> None:
    """Serve a store on a Unix socket until SIGTERM or SIGINT (O6, O7).

    Requests that were received are answered first, and the socket is removed. Call it from
    the main thread, where signals arrive.

    Args:
        store: Opened for writing from ``image``. Stays the caller's to close.
        image: Path of the image.
        socket: Path of the socket; None takes the one in the runtime directory (O3).
        limits: What clients may ask for.
        fronts: By which devices reach the store meanwhile; they stay the caller's.
        ready: Called with the path of the socket once it takes connections.

    Raises:
        DeviceBusyError: A process listens at ``socket``.
        DeviceError: The socket cannot be made.
    """
    path = None if socket is None else Path(socket)
    owner = Owner(store, Path(image))
    for front in fronts:
        owner.add(front)
    with listening(owner.image, path) as listener:
        server = OwnerServer(owner, listener, limits=limits)
        try:
            with handled(_ENDING, lambda _: server.stop(), server.waking_fd):
                if ready is not None:
                    ready(Path(listener.getsockname()))
                server.run()
        finally:
            server.close()
