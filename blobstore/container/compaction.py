"""Moving sections together, so that free space is in fewer and larger pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.container.commit import Change, commit
from blobstore.container.extents import release, take_extents
from blobstore.errors import CorruptBlobError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Section

    Progress = Callable[[int, int], None]

_log = LateLogger(__name__)


def compact(container: OpenContainer, progress: Progress | None = None) -> int:
    """Move sections towards the end, so that free space gathers in front of them.

    That way round, because an extent takes the end of a free item (C52). Each
    move is a commit of its own (C55): after a crash the section is where it was,
    or where it went to. A section moves over a gap that is not larger than itself
    by way of another free item that is; where there is none, and where a section
    cannot be read, the gap stays.

    Args:
        container: Its directory is updated move by move.
        progress: Called with bytes looked at and in all.

    Returns:
        How many sections were moved.

    Raises:
        DeviceError, PoisonedStoreError, DamagedHeadError: As in `commit`; what
            was moved before stays moved.
    """
    return _Compaction(container, progress).run()


class _Compaction:
    def __init__(self, container: OpenContainer, progress: Progress | None) -> None:
        self._container = container
        self._free = container.directory.free
        self._progress = progress
        self._by_end = {
            sum(section.place): section for section in container.directory.sections.values()
        }

    def run(self) -> int:
        self._container.next_generation()  # refuses a store that must not be written
        moved: set[str] = set()
        settled = self._container.total
        while True:
            gaps = [offset for offset in self._free if offset < settled]
            if not gaps:
                return len(moved)
            gap = max(gaps)
            section = self._by_end.get(gap)
            name = section.name if section else ""
            if section is not None and self._slide(section, gap):
                moved.add(name)
                gap, _ = self._container.directory.sections[name].place
            settled = gap
            if self._progress:
                self._progress(self._container.total - settled, self._container.total)

    def _slide(self, section: Section, gap: int) -> bool:
        """Move the section before a gap to the end of it; say whether that was done."""
        start, length = section.place
        name = section.name
        if self._free[gap].length <= length:
            others = [
                (item.length, offset)
                for offset, item in self._free.items()
                if item.length > length and offset != gap
            ]
            if not others or not self._move(section, min(others)[1]):
                return False
            section = self._container.directory.sections[name]
            # The gap, and where the section was, are one free item now.
            gap = next(at for at, item in self._free.items() if at <= start < at + item.length)
        return self._move(section, gap)

    def _move(self, section: Section, free_item: int) -> bool:
        """Move a section to the end of a free item; say whether it could be read."""
        container = self._container
        newest = section.newest
        name = section.name
        end = sum(section.place)
        try:
            state, blob = container.blobs.content(newest)
        except CorruptBlobError as error:
            _log.warning("section %r stays where it is: %s", name, error)
            return False
        (place,) = take_extents(container, [newest.identity._replace(copy=0)], within=free_item)
        commit(container, [Change(place, name, state, blob, replaces=section)])
        del self._by_end[end]
        self._by_end[sum(place.place)] = place
        release(container)
        return True
