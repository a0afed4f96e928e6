"""Waking those who wait for commits, without one of them being waited for (O66)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from blobstore.container.recent import Recent

if TYPE_CHECKING:
    from blobstore.container.open_container import OpenContainer


class News:
    """Wakes those who wait for commits of one session."""

    def __init__(self) -> None:
        self.condition: Final = threading.Condition()

    def follow(self, container: OpenContainer) -> None:
        """Have this container remember its commits from now on, and tell of them."""
        directory = container.directory
        if directory.recent is None:
            directory.recent = Recent(directory.generation)
        container.told = self.tell

    def tell(self) -> None:
        """Wake all that wait. Each looks for itself; none is waited for."""
        with self.condition:
            self.condition.notify_all()
