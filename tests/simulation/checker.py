"""What was asked, what was acknowledged, and what each reader may see.

Each blob is unique: it names the change that put it. So everything that is observed of a section
(the acknowledgement of a put, a reply to a read, the content after a recovery) says which change
made it and, by its ETag, at which generation. From that follows whether the history is one of an
atomic register, without a search:

- A generation of a section has one content, and a content one generation.
- What is observed is not older than what was observed before the request began, of any client.
- A put that is acknowledged comes after all that was observed before it began.
- A change with If-Match comes directly after the generation that it names.
- What was refused is never seen; what was under way when the owner died is seen by the next
  owner at once, or never.
- The sections of one transaction change together.

Windows are in `windows`, and what watches are told is in `watches`.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.simulation.scheduler import SimulationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.simulation.scheduler import Scheduler

_DIGITS: Final = 10


def blob_of(number: int, most: int) -> bytes:
    """Return the blob of a change: its number, again and again, of some length up to ``most``."""
    text = b"%0*d" % (_DIGITS, number)
    size = _DIGITS + number * 7919 % (most - _DIGITS + 1)
    return (text * (size // _DIGITS + 1))[:size]


@dataclass(slots=True)
class Change:
    """A change that a client asks for.

    Attributes:
        number: Unique; the blobs of the change name it.
        names: Sections that it changes.
        floors: Of each, the generation that was observed before it began.
        wanted: The generation that If-Match names, of its first section.
        generation: Of its commit, once that was observed.
        refused: Whether it was refused, so that it never happens.
        limit: A generation that it can no longer exceed: those with whom it was are dead.
        is_open: Whether its client still waits for the outcome.
    """

    number: int
    names: tuple[str, ...]
    floors: dict[str, int]
    wanted: int | None = None
    generation: int | None = None
    refused: bool = False
    limit: int | None = None
    is_open: bool = True


@dataclass(slots=True)
class _Section:
    """What is known of a section.

    Attributes:
        floor: Highest generation that was observed in it.
        at: Numbers of changes by generation.
        order: Generations that were observed, in order.
        jumps: For each conditional change: the generation that it comes directly after.
    """

    floor: int = 0
    at: dict[int, int] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    jumps: dict[int, int] = field(default_factory=dict)


class Checker:
    """Knows the history of one simulation, and raises `SimulationError` if it is impossible.

    Attributes:
        generation: Highest generation that was acknowledged or observed.
        acknowledged: Changes that were.
        unknown: Changes whose outcome their client does not know.
        reads: Observations by readers.
    """

    def __init__(self, scheduler: Scheduler, sizes: Mapping[str, int], *, moves: bool) -> None:
        """Know of sections, with the largest blob of each, and whether they may be moved."""
        self._moves = moves
        self._scheduler = scheduler
        self.sizes = sizes
        self._sections = {name: _Section() for name in sizes}
        self.changes: dict[int, Change] = {}
        self._unknown: dict[int, Change] = {}
        self._by_generation: dict[int, list[Change]] = {}
        self.generation = 0
        self.acknowledged = self.unknown = self.reads = self.recoveries = 0

    # ------------------------------------------------------------- changes

    def begin(self, names: Sequence[str], wanted: int | None = None) -> Change:
        """Note that a client asks for a change; its blobs are those of `blob`."""
        number = len(self.changes) + 1
        floors = {name: self._sections[name].floor for name in names}
        change = Change(number, tuple(names), floors, wanted)
        self.changes[number] = change
        return change

    def blob(self, change: Change, name: str) -> bytes:
        return blob_of(change.number, self.sizes[name])

    def succeeded(self, change: Change, generation: int) -> None:
        """Note that a change was acknowledged, at a generation."""
        self.acknowledged += 1
        change.is_open = False
        for name in change.names:
            if generation <= change.floors[name]:
                raise self._wrong(
                    f"change {change.number} of {name} is acknowledged at generation {generation},"
                    f" and {change.floors[name]} was seen before it began"
                )
            self._observe(name, generation, change.number)

    def was_refused(self, change: Change) -> None:
        """Note that a change was refused before anything was written."""
        change.refused = True
        change.is_open = False

    def is_unknown(self, change: Change) -> None:
        """Note that the client does not learn what became of a change."""
        self.unknown += 1
        change.is_open = False
        self._unknown[change.number] = change

    def between(self, low: int, high: int) -> Iterator[tuple[int, Change]]:
        """Yield changes that were observed above one generation and up to another one."""
        for generation in range(low + 1, high + 1):
            for change in self._by_generation.get(generation, ()):
                yield generation, change

    # --------------------------------------------------------------- reads

    def floor(self, name: str) -> int:
        """Return what a read that begins now has to see at least."""
        return self._sections[name].floor

    def was_read(self, name: str, floor: int, generation: int, blob: bytes | None) -> None:
        """Note what a read saw that began when ``floor`` was the `floor`; no blob: unwritten."""
        self.reads += 1
        if generation < floor:
            raise self._wrong(
                f"{name} is read at generation {generation}, and {floor} was seen before"
            )
        self._observe(name, generation, 0 if blob is None else self._number_in(name, blob))

    def was_unwritten(self, name: str, floor: int) -> None:
        """Note that a read found that the section was never written."""
        if self._sections[name].at.get(floor):
            raise self._wrong(f"{name} is unwritten, and generation {floor} was seen before")

    def recovered(self, owner: str, found: Mapping[str, tuple[int, bytes | None]]) -> None:
        """Note what an owner found when it opened the store, before it served anyone."""
        self.recoveries += 1
        for name, (generation, blob) in found.items():
            self.was_read(name, self.floor(name), generation, blob)
        for name in found:
            number = self._sections[name].at[found[name][0]]
            change = self.changes.get(number)
            if change is None:
                continue
            for other in change.names:
                if found[other][0] < (change.generation or 0):
                    raise self._wrong(
                        f"{owner} finds change {number} in {name}, and not in {other}"
                    )
        # What earlier owners did not say is not done later: they are dead, or shut out.
        for change in self._unknown.values():
            change.limit = self.generation
        self._unknown.clear()

    # ------------------------------------------------------------ internal

    def _observe(self, name: str, generation: int, number: int) -> None:
        section = self._sections[name]
        known = section.at.get(generation)
        if known is None:
            self._first_seen(name, section, generation, number)
        elif known != number:
            raise self._wrong(
                f"generation {generation} of {name} has change {known}, and now {number}"
            )
        section.floor = max(section.floor, generation)
        self.generation = max(self.generation, generation)

    def _first_seen(self, name: str, section: _Section, generation: int, number: int) -> None:
        section.at[generation] = number
        place = bisect.bisect(section.order, generation)
        section.order.insert(place, generation)
        if place + 1 < len(section.order):
            after = section.order[place + 1]
            if section.jumps.get(after, generation) < generation:
                raise self._wrong(
                    f"generation {generation} of {name} comes between {section.jumps[after]} and"
                    f" {after}, which was to follow it directly"
                )
        if not number:
            return
        change = self.changes.get(number)
        if change is None or name not in change.names:
            raise self._wrong(f"{name} has change {number}, which no client asked for there")
        if change.refused:
            raise self._wrong(f"{name} has change {number}, which was refused")
        if change.generation not in (None, generation):
            self._require_moved(name, section, change, generation)
            return
        if change.limit is not None and generation > change.limit:
            raise self._wrong(
                f"change {number} appears in {name} at generation {generation}, after its owner"
                f" was gone at {change.limit}"
            )
        change.generation = generation
        self._by_generation.setdefault(generation, []).append(change)
        if change.wanted is not None and name == change.names[0]:
            section.jumps[generation] = change.wanted
            before = section.order[place - 1] if place else 0
            if before > change.wanted:
                raise self._wrong(
                    f"change {number} of {name} wanted generation {change.wanted}, and follows"
                    f" {before}"
                )

    def _require_moved(self, name: str, section: _Section, change: Change, generation: int) -> None:
        """Check that a change at two generations was moved, which leaves the blob as it is."""
        first = change.generation or 0
        between = [section.at[one] for one in section.order if first <= one <= generation]
        if not self._moves or generation < first or set(between) != {change.number}:
            raise self._wrong(
                f"change {change.number} of {name} is at generation {first}, and at {generation};"
                f" between them are {between}"
            )

    def _number_in(self, name: str, blob: bytes) -> int:
        try:
            number = int(blob[:_DIGITS])
        except ValueError:
            number = 0
        if not number or blob != blob_of(number, self.sizes[name]):
            raise self._wrong(f"{name} is torn or foreign: {blob[:40]!r}, {len(blob)} bytes")
        return number

    def _wrong(self, text: str) -> SimulationError:
        self._scheduler.note(text)
        return SimulationError(text)
