"""Reading the records of a store that is in use, a few at a time, before all is verified."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from blobstore.container.verification import Verified

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.store.session import Session

#: Seconds for which others wait, unless one record takes longer, and that they have then.
_LOOK: Final = 0.02
_PAUSE: Final = 0.001


def verify_ahead(
    session: Session, progress: Callable[[int, int], None] | None = None
) -> Verified | None:
    """Return which records verify; threads that wait for the store have it in between.

    None where the store is to be read at one moment anyway: its image is not locked, or this
    thread has the store already; and where it became another store meanwhile.

    Raises:
        ValueError: It is closed.
    """
    if session.unlocked or session.lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
        return None
    verified, container = None, session.container
    while True:
        with session.lock:
            session.require_open()
            if session.container is not container:
                return None
            verified = verified or Verified(container, progress)
            if not verified.look(_LOOK):
                return verified
        time.sleep(_PAUSE)  # who waits for the lock has it now
