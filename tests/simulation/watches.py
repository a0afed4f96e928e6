"""What a watch is told: every commit, in order, or that it missed some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.scheduler import SimulationError

if TYPE_CHECKING:
    from blobstore.store.changes import CommitInfo
    from tests.simulation.checker import Checker


class WatchHistory:
    """The items of one connection of a watch.

    Attributes:
        told: Commits that it was told.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._acknowledged_before = 0
        self._position: int | None = None
        self._since: list[int] = []
        self.told = 0

    def item(self, found: CommitInfo) -> None:
        """Note the next item, and check that nothing is missing between it and the last one."""
        position = self._position
        if position is not None and found.generation < position:
            raise SimulationError(f"a watch goes from {position} back to {found.generation}")
        if found.changes:
            self.told += 1
            if position is not None and found.generation == position:
                raise SimulationError(f"a watch is told of generation {position} twice")
        if position is not None and not found.missed:
            self._require_all(position, found)
        self._position = found.generation

    def _require_all(self, position: int, found: CommitInfo) -> None:
        """Check each acknowledged change after the last item, up to this one."""
        names = {one.name for one in found.changes}
        for generation, change in self._checker.between(position, found.generation):
            told = names if generation == found.generation else set()
            if not set(change.names) <= told:
                raise SimulationError(
                    f"a watch that stood at {position} is told of {found.generation}, and not of"
                    f" change {change.number} to {change.names} at {generation}"
                )
