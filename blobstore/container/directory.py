"""What counts after a crash: the heads of a container and what they mean (C42 to C49).

A crash, or another process, leaves a set of heads. This module decides what they say, by
rules that give every reader the same answer. The reasoning is this:

**Only one commit can be in doubt.** Commits are strictly serial: nothing of generation G
is written before the flush of the one before it has returned (C31). So if anything is
incomplete, it has the highest generation there is. Every lower generation is decided: it
is complete, and a record of it that does not verify is damage, not a crash (C45).

**Often none is.** A generation that the header calls durable (D), or that a free item
carries, was flushed before that was written. If the highest generation is no higher than
these, nothing is in doubt (C35), and nothing is verified here (C44).

**The newest commit proves itself.** Each of its records says how many there are. If all of
them are found and verify, it is complete. If not, none of them counts: they are *orphans*,
and each section is what its other copy says, which the commit did not touch (C42, C44).
The one exception is a section with a single copy, whose old record was overwritten. The
root tells: if the store without the new record is not what `prev` says, there is nothing
to go back to, and the record stands, torn or not.

**Extents may be between two places.** A create, resize or delete that was cut short leaves
extents that belong to no section, or to a section that lies elsewhere by now. They are
*left over*: known, never read, and released by the next writer (C46, C47, C60).

**The root settles everything.** The sum of what was found must be what the newest heads
attest (C24, C48). If a part was set back to an older state, it is not, and the store
is corrupt. Nothing is ever answered by falling back to something older.

**Damage stops all that.** A head whose own check proves what it said is mended before it
comes here. One that nothing mends may hide the missing member of a commit, or a newer
blob. While there is one, nothing is rolled back (C43, C44), and what is left counts as the
newest only if it sums up to what the newest heads attest; else the store is not *fresh*,
and nothing is answered from it unless a human permits it (C67).

The function `interpret` is pure, except that it asks its caller whether a record in doubt
verifies. A `Directory` is the state as recovery would leave it, together with what
recovery has still to write (C60); commits then keep it up to date (`commit`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blobstore.container.authentication import Authenticator
from blobstore.container.sections import Copy, Damage, Section
from blobstore.errors import CorruptStoreError
from formats.container.decoder import Record
from formats.container.model import Free, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from blobstore.container.recent import Recent
    from blobstore.container.scan import Damaged, Scan
    from formats.container.model import Identity, Version

    #: Says whether a record verifies (C23).
    Verifies = Callable[[Copy], bool]


@dataclass(slots=True)
class Directory:
    """The state of a store, and what recovery has to write.

    Attributes:
        sections: By name.
        gave_way: Sections whose name damage leaves unknown, as another one has the
            last that is known of it (C13).
        free: Free items by byte offset.
        generation: The highest found anywhere (C44's G).
        rolled_back: The generation of a newest commit that did not complete, and
            the highest that counts (C68); None where the highest found counts.
        state: Sum of members (C24).
        root: Of that state; None where damaged heads may hide a part of it.
        fresh: Whether what is visible is proved to be the newest (C67). Always,
            unless heads are damaged.
        damaged: Byte offset and extent of each damaged head that nothing mends.
        orphans: Copies that are to be written as void; void here already.
        left_over: Extents of no section, which are to be made free (C46, C47).
        clean: Whether the store was closed after its last commit (C49).
        recent: The latest commits; None unless they are to be told.
    """

    sections: dict[str, Section]
    free: dict[int, Free]
    generation: int
    rolled_back: tuple[int, int] | None
    state: int
    root: bytes | None
    fresh: bool
    clean: bool
    damaged: list[tuple[int, Damaged]] = field(default_factory=list)
    orphans: list[Copy] = field(default_factory=list)
    left_over: list[Section] = field(default_factory=list)
    gave_way: list[Section] = field(default_factory=list)
    recent: Recent | None = None

    @property
    def complete(self) -> bool:
        """Whether the sections that are known are all there are, as the root proves (C82)."""
        return self.root is not None

    def every_section(self) -> Iterator[tuple[str, Section]]:
        """Yield each section that is known with its name; empty where that is not (C82)."""
        yield from self.sections.items()
        for section in self.gave_way:
            yield "", section

    def hidden(self) -> list[tuple[int, int]]:
        """Return offset and length of what damaged heads hide in which any section may lie.

        What is only the missing copy of a known section is left out (C82).
        """
        if self.complete:
            return []
        missing = {
            extent.place[0] + number * extent.newest.length: extent.newest.length
            for _, section in self.every_section()
            for extent in (section, *section.rivals)
            for number, copy in enumerate(extent.copies)
            if copy is None
        }
        found: list[tuple[int, int]] = []
        for offset, item in self.damaged:
            known = missing.get(offset, 0)
            start, length = offset + known, item.length - known
            if length <= 0:
                continue
            if found and sum(found[-1]) == start:
                start, length = found[-1][0], found[-1][1] + length
                found.pop()
            found.append((start, length))
        return found

    def leave_over(self, extent: Section) -> None:
        """Note an extent that is of no section any more; twice is fine."""
        if not any(known is extent for known in self.left_over):
            self.left_over.append(extent)

    def take_up(self, extent: Section) -> None:
        """Note that an extent is of a section now, or free; twice is fine."""
        self.left_over = [known for known in self.left_over if known is not extent]

    @property
    def counted(self) -> int:
        """The highest generation that counts: what is reported and pinned (C68)."""
        # Once D says so (C60), or a commit was made since, the highest does.
        if self.rolled_back is None or self.clean or self.generation > self.rolled_back[0]:
            return self.generation
        return self.rolled_back[1]


def interpret(scan: Scan, verifies: Verifies) -> Directory:
    """Work out the state of the store from its heads.

    Args:
        scan: All heads. Not modified.
        verifies: Asked only for records of a commit in doubt.

    Raises:
        CorruptStoreError: Parts contradict each other (C12, C13, C44, C47, C48).
    """
    return _Interpreter(scan, verifies).directory()


class _Interpreter:
    def __init__(self, scan: Scan, verifies: Verifies) -> None:
        self._scan = scan
        self._verifies = verifies
        self._authenticator = Authenticator.of(scan.header)
        self._copies: list[Copy] = []
        self._free: dict[int, Free] = {}
        self._damaged: list[tuple[int, Damaged]] = []
        for offset, item in scan.items:
            if isinstance(item, Record):
                self._copies.append(
                    Copy(offset, item.identity, item.version, item.length, item.frame)
                )
            elif isinstance(item, Free):
                self._free[offset] = item
            else:
                self._damaged.append((offset, item))
        self._undecided: set[int] = set()  # offsets of records
        self._orphans: list[Copy] = []
        self._left_over: list[Section] = []
        self._gave_way: list[Section] = []
        self._whole = True  # no section is damaged, as far as heads tell

    def directory(self) -> Directory:
        durable = self._scan.header.durable_generation
        bound = max([durable, *(free.generation for free in self._free.values())])
        generation = max([bound, *(copy.version.generation for copy in self._copies)])
        torn = self._decide(generation) if generation > bound else None
        sections, state = self._sections()
        if torn and self._authenticator.root(state) != torn.prev:
            # It has overwritten what it replaces, so it cannot be rolled back.
            self._orphans.pop().version = torn
            sections, state = self._sections()
        if self._damaged:
            state = self._visible()
        root = self._authenticator.root(state)
        fresh = self._compare_roots(root)
        counted = max([bound, *(c.counts for c in self._copies if c.offset not in self._undecided)])
        return Directory(
            sections=sections,
            free=self._free,
            generation=generation,
            rolled_back=(generation, counted) if counted < generation else None,
            state=state,
            root=root if fresh and self._whole else None,
            fresh=fresh,
            clean=generation == durable,
            damaged=self._damaged,
            orphans=self._orphans,
            left_over=self._left_over,
            gave_way=self._gave_way,
        )

    def _sections(self) -> tuple[dict[str, Section], int]:
        """Return the sections by name, and the sum of their members (C24)."""
        sections: dict[str, Section] = {}
        state = 0
        self._left_over = []
        self._gave_way = []
        self._whole = True
        for section in self._assemble():
            self._whole = self._whole and not section.damage
            newest = section.newest
            version = newest.version
            if version.state is State.TOMBSTONE and not section.damage:
                self._left_over.append(section)
                continue
            if newest.counts:
                state += self._authenticator.member_of(newest)
            self._enter(sections, section)
        return sections, state

    def _decide(self, generation: int) -> Version | None:
        """Decide the newest commit (C44).

        Returns:
            What stands in an orphan that may have overwritten the only record
            of its section; only the root can tell.
        """
        records = [copy for copy in self._copies if copy.version.generation == generation]
        members = [copy for copy in records if copy.version.state is not State.VOID]
        if not members:
            return None
        claims = {(c.version.members, c.version.root, c.version.prev) for c in members}
        expected = members[0].version.members
        if len(claims) > 1 or len(members) > expected:
            raise CorruptStoreError(
                f"the records of generation {generation} contradict each other [C44]",
                generation=generation,
                offset=members[0].offset,
            )
        whole = len(members) == len(records) == expected
        if whole and all(map(self._verifies, members)):
            return None
        if self._damaged:
            self._undecided.update(copy.offset for copy in members)
            return None
        first = members[0].version
        for copy in members:
            copy.version = copy.version._replace(state=State.VOID)
            self._orphans.append(copy)
        return first if whole and expected == 1 and members[0].identity.copies == 1 else None

    def _assemble(self) -> Iterable[Section]:
        """Join records to extents and pick each section's extent (C47)."""
        # By section id, then by where the extent starts, and the length of its records.
        extents: dict[bytes, dict[tuple[int, int], Section]] = defaultdict(dict)
        for copy in self._copies:
            identity = copy.identity
            place = copy.offset - identity.copy * copy.length, copy.length
            section = extents[identity.section_id].setdefault(
                place, Section([None] * identity.copies)
            )
            if len(section.copies) != identity.copies:
                raise _disagreement(copy)
            section.copies[identity.copy] = copy
        for rivals in extents.values():
            section = max(rivals.values(), key=lambda rival: rival.newest.counts)
            section.damage = self._find_damage(rivals.values(), section)
            others = [rival for rival in rivals.values() if rival is not section]
            if section.damage:
                section.rivals = others
            else:
                self._left_over += others
                if not section.newest.counts:
                    self._left_over.append(section)
                    continue
                if section.newest.counts in (rival.newest.counts for rival in others):
                    raise CorruptStoreError(
                        f"section {section.name!r} is in two places [C47]", name=section.name
                    )
            yield section

    def _find_damage(self, rivals: Iterable[Section], section: Section) -> Damage | None:
        newest = section.newest
        place = newest.version.generation, newest.offset
        present = [copy for rival in rivals for copy in rival.copies if copy]
        if any(None in rival.copies for rival in rivals):
            if not self._damaged:
                raise CorruptStoreError(
                    f"a copy of section {newest.identity.name!r} is missing [C47]",
                    name=newest.identity.name,
                    offset=newest.offset,
                )
            return Damage("has a copy whose head is damaged [C43]", *place)
        if any(copy.offset in self._undecided for copy in present):
            return Damage("was part of a commit that damage leaves undecided [C44]", *place)
        for rival in rivals:
            kinds = {_constants(copy.identity) for copy in rival.copies if copy}
            if len(kinds) > 1:
                raise _disagreement(newest)
        return None

    def _enter(self, sections: dict[str, Section], section: Section) -> None:
        known = sections.setdefault(section.name, section)
        if known is section:
            return
        if not (known.damage or section.damage):
            raise CorruptStoreError(
                f"two sections have the name {section.name!r} [C13]", name=section.name
            )
        # A damaged head may hide that one of them was renamed since.
        stays, gives_way = (section, known) if known.damage else (known, section)
        sections[section.name] = stays
        assert gives_way.damage, "of two sections that are sound none gives way"
        reason = f"{gives_way.damage.reason}, and another one has the name it had [C13]"
        gives_way.damage = gives_way.damage._replace(reason=reason)
        self._gave_way.append(gives_way)

    def _visible(self) -> int:
        """Return the sum of the newest of what damage leaves and does not put in doubt (C67)."""
        newest: dict[bytes, Copy] = {}
        for copy in self._copies:
            if copy.counts and copy.offset not in self._undecided:
                known = newest.setdefault(copy.identity.section_id, copy)
                if copy.counts > known.counts:
                    newest[copy.identity.section_id] = copy
        return sum(map(self._authenticator.member_of, newest.values()))

    def _compare_roots(self, root: bytes) -> bool:
        """Compare what the newest items attest with what was found (C48, C67).

        Returns:
            Whether they agree. Where no head is damaged, it is an error if not.
        """
        # Twice the generation, so that "half a step lower" stays a whole number.
        attested = [(2 * free.generation, free.root) for free in self._free.values()]
        attested += [(2 * h.durable_generation, h.root) for h in self._scan.attesting if h]
        for copy in self._copies:
            version = copy.version
            if version.state is not State.VOID and copy.offset not in self._undecided:
                attested.append((2 * version.generation, version.root))
            elif version.generation:
                attested.append((2 * version.generation - 1, version.prev))
        highest = max(number for number, _ in attested)
        if all(value == root for number, value in attested if number == highest):
            return True
        if self._damaged:
            return False
        raise CorruptStoreError(
            f"the store is not what its generation {(highest + 1) // 2} attests [C48]",
            generation=(highest + 1) // 2,
            hint="part of the image was replaced by an older state, or changed",
        )


def _constants(identity: Identity) -> tuple[object, ...]:
    return identity.copies, identity.kind, identity.max_size, identity.type


def _disagreement(copy: Copy) -> CorruptStoreError:
    return CorruptStoreError(
        f"the copies of section {copy.identity.name!r} contradict each other [C12]",
        name=copy.identity.name,
        generation=copy.version.generation,
        offset=copy.offset,
    )
