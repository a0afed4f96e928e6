"""Reading: the state after a crash (C35, C40 to C49).

`read` works out from the heads what a reader sees that acts as if recovery had happened, and what
recovery has to write. It knows only the disk. Damaged heads are mended in memory where their
own checks prove what they said (`mending.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from tests.model.directory import (
    CORRUPT,
    Directory,
    Extent,
    Placed,
    Refusal,
    Section,
    Seen,
    Special,
    verifies,
    walk,
)
from tests.model.disk import Free, Header, Record, Root, State
from tests.model.mending import mended

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.model.directory import Value, View
    from tests.model.disk import Disk, Member, SectionId
    from tests.model.rules import Rules

#: Extents of one section id by where they start, with what records of each are found.
Rivals: TypeAlias = dict[int, dict[int, Placed]]

#: The store that the model is about; header copies of another one are foreign.
OURS = 1


def read(disk: Disk, rules: Rules) -> Directory:
    """Read a store.

    Raises:
        Refusal: Its parts contradict each other, or no header copy is sound.
    """
    return _Reader(mended(disk), rules).directory()


class _Reader:
    """Goes through C40 to C48 one after the other."""

    def __init__(self, disk: Disk, rules: Rules) -> None:
        self._disk = disk
        self._rules = rules
        self._read_headers()
        self._items = list(walk(disk, self._total))
        self._records = [Placed(p, head) for p, _, head in self._items if isinstance(head, Record)]
        self._free = [head for _, _, head in self._items if isinstance(head, Free)]
        self._damaged = [p for p, _, head in self._items if head is None]
        self._orphans: list[Placed] = []
        self._undecided: list[Placed] = []
        self._sections: dict[SectionId, Section] = {}
        self._left_over: list[Extent] = []

    def directory(self) -> Directory:
        torn = self._decide()
        members = frozenset(self._assemble())
        if torn and Root(members) is not torn.record.prev:
            # It has overwritten what it replaces, so it cannot be rolled back (C44).
            self._orphans.remove(torn)
            members = frozenset(self._assemble())
        root = Root(members)
        disagreement = self._compare_roots(self._visible_root() if self._damaged else root)
        if disagreement and not (self._damaged and self._rules.damage_leaves_root_unverified):
            raise Refusal(disagreement)
        return Directory(
            copies=self._copies,
            header=self._header,
            total=self._total,
            items=self._items,
            damaged=self._damaged,
            fresh=not (disagreement and self._rules.damage_may_hide_what_is_newer),
            generation=self._generation,
            counted=self._counted(),
            bound=self._bound,
            orphans=self._orphans,
            undecided=self._undecided,
            sections=self._sections,
            left_over=self._left_over,
            members=members,
            root=root,
            view=self._view(),
            hides_names=bool(self._damaged) and self._rules.damage_may_hide_names,
        )

    # ------------------------------------------------------------------ C40

    def _read_headers(self) -> None:
        rules = self._rules
        heads = [block.head for block in self._disk[:2]]
        first, second = (head if isinstance(head, Header) else None for head in heads)
        header = first or second
        if header is None:
            raise Refusal("no header copy is sound")
        total = header.total
        if first and second:
            if first.store != second.store:
                raise Refusal("the header copies belong to different stores [C40]")
            if second.sequence == first.sequence and second is not first:
                raise Refusal("equally new header copies differ [C40]")
            newer = second.sequence >= first.sequence
            if newer and second.total != first.total:
                raise Refusal("the outer length is not that of the newest header [C40]")
            older, newest = (first, second) if newer else (second, first)
            if older.durable > newest.durable:
                raise Refusal("the older header copy says more is durable [C40]")
            if newer and rules.newest_header_counts:
                header = second
        if header.store != OURS:
            raise Refusal("another store's header")
        if total > len(self._disk):
            raise Refusal("the container is longer than the device [C2]")
        self._copies, self._header, self._total = (first, second), header, total

    # ------------------------------------------------------------------ C44

    def _decide(self) -> Placed | None:
        """Find whether the newest commit is complete (C35, C44).

        Returns:
            An orphan that may have overwritten the only record of its section; the root tells.
        """
        rules = self._rules
        decided = [self._header.durable] if rules.durable_decides else [0]
        if rules.free_items_decide:
            decided += [free.generation for free in self._free]
        self._bound = bound = max(decided)
        self._generation = generation = max(
            bound,
            self._header.durable,
            *(record.generation for _, record in self._records),
            *(free.generation for free in self._free),
        )
        if generation <= bound:
            return None
        found = [placed for placed in self._records if placed.record.generation == generation]
        present = [placed for placed in found if placed.record.state is not State.VOID]
        if not present:
            return None
        expected = present[0].record.members
        claims = {(r.members, r.root, r.prev) for _, r in present}
        if len(claims) > 1 or len(present) > expected:  # nothing known here leads to this
            raise Refusal(f"the records of generation {generation} disagree [C44]")
        complete = len(present) == len(found)
        if rules.members_are_counted:
            complete = complete and len(present) == expected
        if rules.members_are_verified:
            complete = complete and all(verifies(self._disk, placed) for placed in present)
        if complete:
            return None
        if self._damaged and rules.damage_leaves_undecided:
            self._undecided += present
            return None
        alone = expected == len(found) == 1 and present[0].record.copies == 1
        if alone and rules.single_copy_is_no_orphan and not rules.only_overwritten_is_no_orphan:
            return None
        self._orphans += present
        return present[0] if alone and rules.single_copy_is_no_orphan else None

    def _counted(self) -> int:
        """Return the highest generation of what counts."""
        complete = (self._counts(p) for p in self._records if p not in self._undecided)
        return max(self._bound, *complete, 0)

    # -------------------------------------------------------- C42, C45, C47

    def _counts(self, placed: Placed) -> int:
        """Return the generation that a record counts as (C42)."""
        void = placed.record.state is State.VOID and self._rules.void_counts_nothing
        return 0 if void or placed in self._orphans else placed.record.generation

    def _assemble(self) -> Iterable[Member]:
        """Join the records to sections; return the members of the state (C24, C47)."""
        members: list[Member] = []
        self._sections, self._left_over = {}, []
        found: dict[SectionId, Rivals] = {}
        for placed in self._records:
            record = placed.record
            start = placed.position - record.copy * record.blocks
            rivals = found.setdefault(record.section, {})
            rivals.setdefault(start, {})[record.copy] = placed
        for identifier, rivals in found.items():
            doubtful = self._is_doubtful(rivals.values())
            if not doubtful:
                self._leave_over(rivals, self._find_void(rivals))
            if not rivals:
                continue
            start = self._choose(rivals, doubtful=doubtful)
            records = rivals[start]
            newest = max(records.values(), key=lambda p: (self._counts(p), -p.record.copy))
            counts = self._counts(newest)
            gone = newest.record.state is State.TOMBSTONE
            if counts and not gone:
                members.append(newest.record.member)
            if not doubtful:
                others = [other for other in rivals if gone or other != start]
                self._leave_over(rivals, others)
                if gone:
                    continue
            corrupt = doubtful or not counts
            value = Special.CORRUPT if corrupt else self._value(newest, records)
            self._sections[identifier] = Section(_extent(start, records), records, newest, value)
        return members

    def _find_void(self, rivals: Rivals) -> list[int]:
        """Return which extents are of void records and orphans only (C46)."""
        if not self._rules.void_extents_are_left_over:
            return []
        return [start for start in rivals if not self._highest(rivals[start])]

    def _leave_over(self, rivals: Rivals, starts: Iterable[int]) -> None:
        """Take extents out of the rivals, for recovery to release."""
        for start in starts:
            self._left_over.append(_extent(start, rivals.pop(start)))

    def _highest(self, records: dict[int, Placed]) -> int:
        return max(map(self._counts, records.values()))

    def _choose(self, rivals: Rivals, *, doubtful: bool) -> int:
        """Return the start of the extent that is the section's (C47)."""
        if not self._rules.newest_extent_counts:
            return min(rivals)
        best, *others = sorted(rivals, key=lambda start: -self._highest(rivals[start]))
        equal = others and self._highest(rivals[best]) == self._highest(rivals[others[0]])
        if equal and not doubtful:  # nothing known here leads to this
            raise Refusal("two extents of a section are equally new [C47]")
        return best

    def _is_doubtful(self, rivals: Iterable[dict[int, Placed]]) -> bool:
        """Say whether a record is missing or undecided (C43, C44, C47)."""
        for records in rivals:
            missing = len(records) != next(iter(records.values())).record.copies
            if missing and self._rules.missing_record_is_corrupt:
                if not self._damaged:
                    raise Refusal("a record of an extent is missing [C47]")
                return True
            if self._undecided and any(p in self._undecided for p in records.values()):
                return True
        return False

    def _value(self, newest: Placed, records: dict[int, Placed]) -> Value:
        """Return what a reader of the section gets (C23, C45)."""
        if newest.record.state is State.UNWRITTEN:
            return Special.UNWRITTEN
        if verifies(self._disk, newest):
            return newest.record.content
        if not self._rules.decided_is_final:
            for other in records.values():
                if other.record.state is State.LIVE and verifies(self._disk, other):
                    return other.record.content
        return Special.CORRUPT

    def _view(self) -> View:
        """Return what names stand for (C13).

        With a damaged head, two sections may seem to have one name: the head of one that was
        renamed is gone, and its older copy has the old name. That one is corrupt; the other holds.
        """
        names: dict[str, Seen] = {}
        for section in self._sections.values():
            record = section.newest.record
            corrupt = section.value is Special.CORRUPT
            known = names.get(record.name)
            if known is None or (known is CORRUPT and self._damaged):
                names[record.name] = CORRUPT if corrupt else Seen(record.blocks, section.value)
            elif not (corrupt and self._damaged):
                raise Refusal(f"two sections have the name {record.name} [C13]")
        return frozenset(names.items())

    # ------------------------------------------------------------------ C48

    def _visible_root(self) -> Root:
        """Return the root of what damage leaves and does not put in doubt (C67)."""
        newest: dict[SectionId, Placed] = {}
        for placed in self._records:
            if self._counts(placed) and placed not in self._undecided:
                known = newest.setdefault(placed.record.section, placed)
                if self._counts(placed) > self._counts(known):
                    newest[placed.record.section] = placed
        visible = (placed.record for placed in newest.values())
        return Root(frozenset(r.member for r in visible if r.state is not State.TOMBSTONE))

    def _compare_roots(self, root: Root) -> str | None:
        """Compare what the newest items attest with what was found (C48, C67)."""
        rules = self._rules
        if not rules.root_is_compared:
            return None
        # Twice the generation, so that "half a step lower" is a whole number.
        attested: list[tuple[int, Root | None]] = []
        if rules.headers_attest:
            attested += [(2 * copy.durable, copy.root) for copy in self._copies if copy]
        if rules.free_items_attest:
            attested += [(2 * free.generation, free.root) for free in self._free]
        incomplete = [*self._orphans, *self._undecided]
        for placed in self._records:
            record = placed.record
            if record.state is not State.VOID and placed not in incomplete:
                attested.append((2 * record.generation, record.root))
            elif record.generation and rules.void_attests_prev:
                attested.append((2 * record.generation - 1, record.prev))
        highest = max((number for number, _ in attested), default=0)
        if all(value is root for number, value in attested if number == highest):
            return None
        return f"the store is not what generation {(highest + 1) // 2} attests [C48]"


def _extent(start: int, records: dict[int, Placed]) -> Extent:
    record = next(iter(records.values())).record
    return Extent(start, record.blocks * record.copies, record.copies)
