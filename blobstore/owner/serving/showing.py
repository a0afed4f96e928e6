"""A directory of a store that is only read: it needs no owner (M55)."""

from __future__ import annotations

import select
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from blobstore.image.place import absolute
from blobstore.owner.serving.mount_front import RunningMount
from formats.signals import Waker, handled

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.image.place import Place
    from blobstore.owner.serving.mount_front import MountFront
    from blobstore.store.store import Store


def show(
    store: Store,
    image: Place,
    front: MountFront,
    *,
    ready: Callable[[], None] | None = None,
) -> None:
    """Have a store mounted, for reading, until SIGTERM or SIGINT, or until it is unmounted.

    Call it from the main thread, where signals arrive.

    Args:
        store: Open for reading; stays the caller's to close.
        image: Where it lies, for the table of mounts.
        front: Where, and how.
        ready: Called when it is mounted.

    Raises:
        StorageError: It cannot be mounted.
    """
    waker = Waker()
    ends: list[BaseException | None] = []

    def end(reason: BaseException | None) -> None:
        ends.append(reason)
        waker.wake()

    front = msgspec.structs.replace(front, read_only=True, terminate=True)
    with ExitStack() as ending:
        ending.callback(waker.close)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        ending.enter_context(handled(numbers, lambda _: end(None), waker))
        running = RunningMount(store, absolute(image), front, on_end=end)
        ending.callback(running.stop)
        if ready is not None:
            ready()
        while not ends:
            select.select([waker], [], [])
            waker.clear()
        reason = ends[0]
    if reason is not None:
        raise reason
