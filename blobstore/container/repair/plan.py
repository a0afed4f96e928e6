"""Deciding what becomes of damaged heads (C71 to C75).

`blobstore.container.repair.repair` writes it. Damage is taken away only where something
proves what was there: a head's own check (`blobstore.container.repair.mending`), or the
root (`blobstore.container.repair.rebuilding`). Where nothing does, a human may decide;
nothing is given up that nobody named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blobstore.container.proving import Patience
from blobstore.container.repair.known import mend
from blobstore.container.repair.rebuilding import finished, prove
from blobstore.container.repair.remains import Remains
from blobstore.container.repair.survey import Survey
from blobstore.container.scan import scan
from blobstore.container.search import likely_heads
from formats.container.decoder import decode_item, locate_check
from formats.container.encoder import encode_free
from formats.container.model import NEVER_WRITTEN, Free, State
from formats.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from blobstore.container.directory import Copy
    from blobstore.container.open_container import OpenContainer
    from blobstore.container.repair.rebuilding import Proof
    from blobstore.container.repair.remains import Lost
    from blobstore.container.repair.survey import Reading

# States of records that stand for nothing once no other record needs them.
_NOTHING = (State.VOID, State.TOMBSTONE)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was repaired, or could not be.

    Attributes:
        message: What, and by what right.
        name: Of the section it is about, or None.
        offset: Byte offset in the container.
    """

    message: str
    name: str | None
    offset: int


def mended_finding(offset: int, name: str | None) -> Finding:
    """Return what is said of a head that was mended."""
    return Finding(f"the head at byte {offset} was mended: its check proves it", name, offset)


@dataclass(slots=True)
class Plan:
    """What a repair is going to write.

    Attributes:
        stages: Heads by byte offset, one dictionary for each flush, in the order
            of C77: mended ones; rebuilt ones; those of commits that are given
            up; void and free ones.
        state: D and root to write before the last stage (C75), if any.
        freed: Lengths of new free items, by offset.
        repairs: What that repairs.
        refused: What stays damaged, and why.
    """

    stages: tuple[dict[int, bytes], ...] = field(default_factory=lambda: ({}, {}, {}, {}))
    state: tuple[int, bytes] | None = None
    freed: dict[int, int] = field(default_factory=dict)
    repairs: list[Finding] = field(default_factory=list)
    refused: list[Finding] = field(default_factory=list)


def plan_repair(
    container: OpenContainer,
    *,
    accept_previous: Collection[str],
    accept_lost: bool,
    names: Collection[str],
) -> Plan:
    """Work out what can be repaired; nothing is written. Arguments as in `repair`."""
    return _Planner(
        container, frozenset(accept_previous), accept_lost=accept_lost, names=names
    ).plan()


class _Planner:
    def __init__(
        self,
        container: OpenContainer,
        accepted: frozenset[str],
        *,
        accept_lost: bool,
        names: Collection[str],
    ) -> None:
        self._container = container
        self._device = container.device
        self._authenticator = container.authenticator
        self._block_size = container.block_size
        self._accepted = accepted
        self._accept_lost = accept_lost
        self._names = names
        # All of it is tried that a reader has no time for.
        patience = Patience(left=None)
        self._found = mend(
            self._device, scan(self._device, quiet=True, patience=patience), patience
        )
        self._survey = Survey(self._found)
        self._plan = Plan()

    def plan(self) -> Plan:
        self._mend()
        if self._survey.is_damaged() or self._survey.stray:
            self._resolve()
        return self._plan

    # ---------------------------------------------------------------- proof

    def _mend(self) -> None:
        """Take what heads prove by their checks (C71)."""
        for offset, head in self._found.mended.items():
            self._plan.stages[0][offset] = head
            name = next((c.identity.name for c in self._survey.copies if c.offset == offset), None)
            self._plan.repairs.append(mended_finding(offset, name))

    def _remains(self, lost: Lost) -> Remains:
        return Remains(self._device, self._authenticator, lost, self._block_size, self._names)

    def _resolve(self) -> None:
        """Decide about the heads that could not be mended (C72 to C75)."""
        survey = self._survey
        remains = {lost: self._remains(lost) for lost in survey.lost}
        reading = proof = None
        for reading in survey.readings(self._container.blobs.verifies):
            proof = prove(survey, reading, remains, self._authenticator)
            if proof:
                break
        if reading is None:
            self._refuse("the heads that are sound contradict each other [C72]", None, 0)
        elif proof:
            self._use(proof)
        else:
            self._give_up(reading)

    def _use(self, proof: Proof) -> None:
        survey, reading = self._survey, proof.reading
        newest = survey.newest(reading)
        unsure = []
        void: list[Lost] = []
        for lost in survey.lost:
            if lost in proof.rebuilt:
                continue
            identity = lost.identity
            counts = newest.get(identity.section_id)
            replaced = {other.identity.section_id for other in proof.rebuilt} | proof.gone
            if (
                counts is lost.twin
                and counts.version.state is not State.TOMBSTONE
                and identity.section_id not in replaced
                and not reading.last
            ):
                unsure.append(lost)
            else:
                void.append(lost)
        asked = {lost.twin.identity.name for lost in unsure}
        if unsure and reading.orphans:
            asked |= {c.identity.name for c in survey.copies if c.offset in reading.orphans}
        missing = asked - self._accepted
        for lost in unsure:
            self._ask(lost, reading, missing)
        if missing and reading.orphans:
            return
        self._rebuild(proof)
        self._free_gaps(reading.generation, reading.root)
        self._void(void, "is of no use any more")
        if unsure and not missing:
            state = self._sum(proof)
            self._accept(reading, state, unsure)

    def _rebuild(self, proof: Proof) -> None:
        survey = self._survey
        for lost, candidate in proof.rebuilt.items():
            version = finished(survey, proof.reading, candidate)
            frame = candidate.frame
            self._plan.stages[1][lost.offset] = self._authenticator.seal(
                lost.offset, frame.head(version), frame.check_start
            )
            name = lost.identity.name
            self._plan.repairs.append(
                Finding(
                    f"section {name!r}: the head of its newest record, generation "
                    f"{version.generation}, was rebuilt; the root proves it",
                    name,
                    lost.offset,
                )
            )
        for copy in survey.copies:
            if copy.identity.section_id in proof.gone and copy.version.state is not State.VOID:
                self._plan.stages[1][copy.offset] = self._void_head(copy)
                name = copy.identity.name
                self._plan.repairs.append(
                    Finding(
                        f"section {name!r} was deleted, as the root proves: finished",
                        name,
                        copy.offset,
                    )
                )

    def _sum(self, proof: Proof) -> int:
        """Return the state (C24) that a proof is of."""
        newest = self._survey.newest(proof.reading)
        replaced = {lost.identity.section_id for lost in proof.rebuilt} | proof.gone
        state = sum(candidate.member for candidate in proof.rebuilt.values())
        return state + self._members(
            copy for section, copy in newest.items() if section not in replaced
        )

    def _members(self, copies: Iterable[Copy]) -> int:
        return sum(
            self._authenticator.member(copy.frame.mac_input(copy.version), copy.version.mac)
            for copy in copies
            if copy.version.state is not State.TOMBSTONE
        )

    # -------------------------------------------------------------- consent

    def _ask(self, lost: Lost, reading: Reading, missing: set[str]) -> None:
        if not missing:
            return
        name = lost.twin.identity.name
        self._refuse(
            f"section {name!r}: the head at byte {lost.offset} is lost. Its other copy is the "
            f"newest that anything tells of, up to generation {reading.generation}; only a "
            "change behind that, in a run that did not close the store, would be given up "
            "[C74]",
            name,
            lost.offset,
        )

    def _give_up(self, reading: Reading) -> None:
        """Fall back to what is left, if everything that this may lose was named (C75)."""
        survey = self._survey
        newest = survey.newest(reading)
        asked = {c.identity.name for c in survey.copies if c.offset in reading.orphans}
        if reading.last:
            asked = set()
        nameless = [start for start, _ in survey.gaps]
        for lost in survey.lost:
            left = newest.get(lost.identity.section_id)
            if left is None or left.version.state is State.TOMBSTONE:
                nameless.append(lost.offset)
            else:
                asked.add(left.identity.name)
        missing = sorted(asked - self._accepted)
        contradicted = any(c.version.state not in _NOTHING for c in survey.stray)
        if contradicted or any(self._standing(*gap) is not None for gap in survey.gaps):
            self._refuse("the records that are sound contradict each other [C72]", None, 0)
        elif missing or (nameless and not self._accept_lost):
            for lost in survey.lost:
                left = newest.get(lost.identity.section_id)
                name = left.identity.name if left else None
                what = f"section {name!r}" if left else "a section whose name is lost"
                self._refuse(
                    f"{what}: the head at byte {lost.offset} is lost, and nothing proves what "
                    "it said [C73]",
                    name,
                    lost.offset,
                )
            for start, end in survey.gaps:
                self._refuse(
                    f"what lies at byte {start}, {end - start} bytes, may be sections whose "
                    "names are lost [C73]",
                    None,
                    start,
                )
        else:
            self._free_gaps(survey.generation, bytes(32))
            self._accept(reading, self._members(newest.values()), survey.lost)

    def _accept(self, reading: Reading, state: int, lost: Sequence[Lost]) -> None:
        """Make what is left the state of the store, of a generation above all others (C75)."""
        survey = self._survey
        for copy in survey.copies:
            if copy.offset in reading.orphans:
                orphan = copy.version._replace(state=State.VOID)
                frame = copy.frame
                self._plan.stages[2][copy.offset] = self._authenticator.seal(
                    copy.offset, frame.head(orphan), frame.check_start
                )
        # What the lost heads may have had is never used again (C30).
        generation = survey.generation + len(survey.lost) + len(survey.gaps) + 1
        self._plan.state = generation, self._authenticator.root(state)
        for offset, length in self._plan.freed.items():
            self._plan.stages[3][offset] = self._free_head(offset, length, *self._plan.state)
        self._void(lost, "was given up, as accepted")

    # --------------------------------------------------------------- heads

    def _void(self, lost: Sequence[Lost], why: str) -> None:
        for record in lost:
            self._plan.stages[3][record.offset] = self._authenticator.seal(
                record.offset, record.frame.head(NEVER_WRITTEN), record.frame.check_start
            )
            name = record.twin.identity.name
            self._plan.repairs.append(
                Finding(
                    f"section {name!r}: its copy at byte {record.offset} {why}: void now",
                    name,
                    record.offset,
                )
            )

    def _void_head(self, copy: Copy) -> bytes:
        return self._authenticator.seal(
            copy.offset, copy.frame.head(NEVER_WRITTEN), copy.frame.check_start
        )

    def _free_gaps(self, generation: int, root: bytes) -> None:
        """Make free items of what damage hides and nothing counts (C72)."""
        survey = self._survey
        for copy in survey.stray:
            if copy.version.state in _NOTHING:
                self._plan.freed[copy.offset] = copy.length
                head = self._free_head(copy.offset, copy.length, generation, root)
                self._plan.stages[1][copy.offset] = head
        for start, end in survey.gaps:
            standing = self._standing(start, end)
            if standing is not None:
                self._refuse(
                    f"the head at byte {standing} stands in space that a damaged head hides [C72]",
                    None,
                    standing,
                )
                continue
            self._plan.freed[start] = end - start
            self._plan.stages[3][start] = self._free_head(start, end - start, generation, root)
            self._plan.repairs.append(
                Finding(
                    f"what lies at byte {start}, {end - start} bytes, is of no section: free now",
                    None,
                    start,
                )
            )

    def _free_head(self, offset: int, length: int, generation: int, root: bytes) -> bytes:
        return self._authenticator.seal(offset, encode_free(Free(generation, root, length)))

    def _standing(self, start: int, end: int) -> int | None:
        """Return where in lost space a head stands that may stand for something, or None."""
        for offset, head in likely_heads(self._device, start, end, self._block_size):
            try:
                if not self._authenticator.is_sound(offset, head, locate_check(head)):
                    continue
                item = decode_item(head, self._block_size)
            except (FormatError, UnsupportedError):
                continue
            if isinstance(item, Free) or item.version.state in _NOTHING:
                continue
            return offset
        return None

    def _refuse(self, message: str, name: str | None, offset: int) -> None:
        self._plan.refused.append(Finding(message, name, offset))
