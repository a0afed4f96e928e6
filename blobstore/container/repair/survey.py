"""What is known of a store with damaged heads, and what may lie under them: C70, C72.

Where `blobstore.container.directory` calls a section corrupt, this asks what there could
have been. It judges nothing: `blobstore.container.repair.rebuilding` looks for proof.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blobstore.container.repair.remains import Lost
from blobstore.container.sections import Copy
from formats.container.decoder import Record
from formats.container.encoder import record_frame
from formats.container.model import Free, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.container.scan import Scan


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read the newest commit (C44), and what is then attested (C48).

    Attributes:
        orphans: Offsets of the records that did not complete.
        generation: Up to which everything counts.
        root: What the highest attestation says.
        last: Whether no commit can have been written after it: the newest one
            did not complete, as what is sound shows. Then nothing newer is lost.
    """

    orphans: frozenset[int]
    generation: int
    root: bytes
    last: bool


class Survey:
    """The sound heads of a store, and the places of the lost ones.

    Attributes:
        copies: All sound records.
        free: Sound free items by offset.
        lost: Records whose head is damaged and whose twin is sound.
        gaps: Start and end of what else damaged heads hide.
        stray: Records whose twin can be nowhere: remnants in lost free space.
        generation: The highest found (C44's G).
    """

    def __init__(self, scan: Scan) -> None:
        """Sort the items of a scan."""
        self._scan = scan
        self.copies: list[Copy] = [
            Copy(offset, item.identity, item.version, item.length, item.frame)
            for offset, item in scan.items
            if isinstance(item, Record)
        ]
        self.free: dict[int, Free] = {
            offset: item for offset, item in scan.items if isinstance(item, Free)
        }
        self.gaps: list[tuple[int, int]] = []
        for offset, item in scan.items:
            if isinstance(item, Record | Free):
                continue
            if self.gaps and self.gaps[-1][1] == offset:
                self.gaps[-1] = (self.gaps[-1][0], offset + item.length)
            else:
                self.gaps.append((offset, offset + item.length))
        self.lost: list[Lost] = []
        self.stray: list[Copy] = []
        self._find_lost()
        durable = max(copy.durable_generation for copy in scan.attesting if copy)
        self._bound = max([durable, *(free.generation for free in self.free.values())])
        self.generation: int = max([self._bound, *(c.version.generation for c in self.copies)])

    def is_damaged(self) -> bool:
        """Say whether any head is."""
        return bool(self.lost or self.gaps)

    def _find_lost(self) -> None:
        """Find the places of missing twins, and take them out of the gaps."""
        by_offset = {copy.offset: copy for copy in self.copies}
        for copy in self.copies:
            identity = copy.identity
            if identity.copies == 1:
                continue
            other = 1 - identity.copy
            offset = copy.offset + (other - identity.copy) * copy.length
            twin = by_offset.get(offset)
            if twin and twin.identity.section_id == identity.section_id:
                continue
            if self._carve(offset, offset + copy.length):
                placed = identity._replace(copy=other)
                frame = record_frame(placed, self._scan.header.block_size)
                self.lost.append(Lost(offset, placed, copy.length, frame, copy))
            else:
                self.stray.append(copy)

    def _carve(self, start: int, end: int) -> bool:
        """Take a range out of the gap it lies in; say whether there is one."""
        for number, (low, high) in enumerate(self.gaps):
            if low <= start and end <= high:
                rest = [(low, start), (end, high)]
                self.gaps[number : number + 1] = [part for part in rest if part[0] < part[1]]
                return True
        return False

    # ------------------------------------------------------ the newest commit

    def readings(self, verifies: Callable[[Copy], bool]) -> Iterator[Reading]:
        """Yield the ways in which the newest commit may be read, the complete one first (C72)."""
        records = [c for c in self.copies if c.version.generation == self.generation]
        members = [c for c in records if c.version.state is not State.VOID]
        nothing: frozenset[int] = frozenset()
        if self.generation <= self._bound or not members:
            yield from self._reading(nothing, last=self.generation > self._bound)
            return
        claims = {(c.version.members, c.version.root, c.version.prev) for c in members}
        expected = members[0].version.members
        if len(claims) > 1 or len(members) > expected:
            return
        verified = all(map(verifies, members))
        voided = len(records) > len(members)
        single = expected == 1 and members[0].identity.copies == 1
        if verified and not voided:
            yield from self._reading(nothing, last=False)
        if len(members) < expected or voided or not verified:
            orphans = frozenset(c.offset for c in members)
            yield from self._reading(orphans, last=voided or len(members) == expected)
        if single and not voided and not verified:
            yield from self._reading(nothing, last=True)

    def _reading(self, orphans: frozenset[int], *, last: bool) -> Iterator[Reading]:
        # Twice the generation, so that "half a step lower" stays a whole number.
        attested = [(2 * free.generation, free.root) for free in self.free.values()]
        attested += [(2 * h.durable_generation, h.root) for h in self._scan.attesting if h]
        for copy in self.copies:
            version = copy.version
            if version.state is not State.VOID and copy.offset not in orphans:
                attested.append((2 * version.generation, version.root))
            elif version.generation:
                attested.append((2 * version.generation - 1, version.prev))
        highest = max(number for number, _ in attested)
        roots = {root for number, root in attested if number == highest}
        if len(roots) == 1:
            yield Reading(orphans, highest // 2, roots.pop(), last)

    def newest(self, reading: Reading) -> dict[bytes, Copy]:
        """Return the newest record of each section id of which one counts (C42, C47)."""
        newest: dict[bytes, Copy] = {}
        for copy in self.copies:
            if copy.version.state is State.VOID or copy.offset in reading.orphans:
                continue
            known = newest.get(copy.identity.section_id)
            if known is None or known.version.generation < copy.version.generation:
                newest[copy.identity.section_id] = copy
        return newest

    # ---------------------------------------------------------------- hints

    def members(self) -> dict[int, int]:
        """Return the number of members of each commit that a record tells of."""
        return {
            c.version.generation: c.version.members
            for c in self.copies
            if c.version.state is not State.VOID
        }

    def complete(self) -> set[int]:
        """Return the generations all of whose records are sound."""
        seen: dict[int, int] = defaultdict(int)
        for copy in self.copies:
            if copy.version.state is not State.VOID:
                seen[copy.version.generation] += 1
        members = self.members()
        return {g for g, count in seen.items() if 0 < members[g] <= count}

    def attested(self) -> list[tuple[int, bytes]]:
        """Return generations and roots that heads tell of, the highest first."""
        found = {(free.generation, free.root) for free in self.free.values()}
        found |= {(h.durable_generation, h.root) for h in self._scan.attesting if h}
        for copy in self.copies:
            if copy.version.generation:
                found.add((copy.version.generation, copy.version.root))
                found.add((copy.version.generation - 1, copy.version.prev))
        return sorted(found, reverse=True)
