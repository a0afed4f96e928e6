"""Letting another process have the image, and taking it back: C65."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.container.open_container import is_settled
from blobstore.container.recovery import close, recover
from blobstore.store.reliance import follow_store, require_pinned

if TYPE_CHECKING:
    from blobstore.image.image import ImageLock
    from blobstore.store.description import StateDigest
    from blobstore.store.session import Session


def release(session: Session) -> None:
    """Give up the lock of the image; as `Store.release`."""
    session.require_open()
    session.require_still()
    if not session.released:
        session.require_writable()
    lock = _require_lock(session)
    if not session.released:
        session.require_no_windows()
        close(session.container)
    # Before the lock is gone: an interrupt between must not leave a store that writes without it.
    session.released = session.unlocked = True
    lock.release()


def follow(session: Session) -> int:
    """Take what another process has made of a released store; as `Store.follow`."""
    session.require_open()
    if not session.released:
        return session.container.directory.counted
    lock = _require_lock(session)
    session.require_no_windows()
    session.use(lock.read_anew(lambda: follow_store(session.container), is_settled))
    return session.container.directory.counted


def take_over(
    session: Session,
    expect_digest: StateDigest | None,
    at_least_generation: int,
    *,
    fence: bool = False,
) -> None:
    """Take the lock of the image, and what its store has become; as `Store.take_over`."""
    session.require_open()
    lock = _require_lock(session)
    if not session.released:
        require_pinned(session.container.directory, expect_digest, at_least_generation)
        return
    session.require_no_windows()
    try:
        lock.acquire(fence=fence)
        container = follow_store(session.container)
        session.require_protection(container.header)
        require_pinned(container.directory, expect_digest, at_least_generation)
        if container.writable:
            recover(container)
        session.use(container)
        session.released = session.unlocked = False
    except BaseException:
        session.released = session.unlocked = True
        lock.release()
        raise


def _require_lock(session: Session) -> ImageLock:
    if session.image_lock is None or session.read_only:
        raise ValueError("only a store opened by its path for writing can change hands")
    return session.image_lock
