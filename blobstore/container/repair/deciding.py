"""Deciding what becomes of damaged heads (C71 to C75).

Damage is taken away only where something proves what was there: a head's own check
(`blobstore.container.repair.mending`), or the root
(`blobstore.container.repair.rebuilding`). Where nothing does, a human may decide;
nothing is given up that was not named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blobstore.container.proving import Patience
from blobstore.container.repair.known import mend
from blobstore.container.repair.plan import Plan
from blobstore.container.repair.rebuilding import finished, prove
from blobstore.container.repair.remains import Remains
from blobstore.container.repair.survey import Survey
from blobstore.container.scan import scan
from blobstore.container.search import likely_heads
from formats.container.decoder import decode_item, locate_check
from formats.container.model import Free, State
from formats.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.repair.rebuilding import Proof
    from blobstore.container.repair.remains import Lost
    from blobstore.container.repair.survey import Reading
    from blobstore.container.sections import Copy

# States of records that stand for nothing once no other record needs them.
_NOTHING = (State.VOID, State.TOMBSTONE)

_CONTRADICTION = "the records that are sound contradict each other [C72]"


@dataclass(frozen=True, slots=True)
class Consent:
    """What a human decided before a repair.

    Attributes:
        previous: Names of sections that may lose a change that nothing proves (C75).
        nameless: Whether sections may be lost of which no name is left (C75).
        names: What sections may have been renamed to, by lost heads (C73).
    """

    previous: frozenset[str]
    nameless: bool
    names: tuple[str, ...]


def plan_repair(container: OpenContainer, consent: Consent) -> Plan:
    """Work out what can be repaired; nothing is written."""
    # Readers give up after about a second; a repair tries everything.
    patience = Patience(left=None)
    device = container.device
    found = mend(device, scan(device, quiet=True, patience=patience), patience)
    survey = Survey(found)
    plan = Plan(container.authenticator)
    names = {copy.offset: copy.identity.name for copy in survey.copies}
    for offset, head in found.mended.items():
        plan.mend(offset, head, names.get(offset))
    if survey.is_damaged() or survey.stray:
        _Decision(container, consent, survey, plan).make()
    return plan


class _Decision:
    """What becomes of the heads that could not be mended (C72 to C75)."""

    def __init__(
        self, container: OpenContainer, consent: Consent, survey: Survey, plan: Plan
    ) -> None:
        self._container = container
        self._consent = consent
        self._survey = survey
        self._plan = plan

    def make(self) -> None:
        """Fill the plan in: by what the root proves, else by consent."""
        container = self._container
        remains = {
            lost: Remains(
                container.device,
                container.authenticator,
                lost,
                container.block_size,
                self._consent.names,
            )
            for lost in self._survey.lost
        }
        reading = None
        for reading in self._survey.readings(container.blobs.verifies):
            proof = prove(self._survey, reading, remains, container.authenticator)
            if proof:
                self._use(proof)
                return
        if reading is None:
            self._plan.refuse("the heads that are sound contradict each other [C72]", None, 0)
        else:
            self._fall_back(reading)

    # ---------------------------------------------------------------- proof

    def _use(self, proof: Proof) -> None:
        """Write what a proof says; ask about what it leaves open (C72 to C74)."""
        survey, reading = self._survey, proof.reading
        older = [lost for lost in survey.lost if lost not in proof.rebuilt]
        unsure = [lost for lost in older if self._may_have_been_newer(lost, proof)]
        asked = {lost.twin.identity.name for lost in unsure}
        if unsure:
            asked |= self._orphaned(reading)
        refused = not asked <= self._consent.previous
        if refused:
            for lost in unsure:
                self._refuse_unproved(lost, reading)
            if reading.orphans:
                return  # they may belong to the commit that is asked about
        self._rebuild(proof)
        self._free_lost_space(reading.generation, reading.root)
        self._void([lost for lost in older if lost not in unsure], "is not needed any more")
        if unsure and not refused:
            self._settle(reading, self._state(proof), unsure)

    def _may_have_been_newer(self, lost: Lost, proof: Proof) -> bool:
        """Say whether a lost copy may have held a change that nothing attests (C74)."""
        section = lost.identity.section_id
        counts = self._survey.newest(proof.reading).get(section)
        return (
            counts is lost.twin
            and counts.version.state is not State.TOMBSTONE
            and section not in proof.replaced
            and not proof.reading.last
        )

    def _rebuild(self, proof: Proof) -> None:
        for lost, candidate in proof.rebuilt.items():
            version = finished(self._survey, proof.reading, candidate)
            self._plan.rebuild(lost, candidate.frame, version)
        for copy in self._survey.copies:
            if copy.identity.section_id in proof.gone and copy.version.state is not State.VOID:
                self._plan.finish_deletion(copy)

    def _state(self, proof: Proof) -> int:
        """Return the state (C24) that a proof is of."""
        newest = self._survey.newest(proof.reading)
        kept = [copy for section, copy in newest.items() if section not in proof.replaced]
        rebuilt = sum(candidate.member for candidate in proof.rebuilt.values())
        return rebuilt + sum(map(self._container.authenticator.member_of, kept))

    # -------------------------------------------------------------- consent

    def _fall_back(self, reading: Reading) -> None:
        """Keep what is left, if everything that this may lose was named (C75)."""
        survey = self._survey
        newest = survey.newest(reading)
        asked = set() if reading.last else self._orphaned(reading)
        nameless = bool(survey.gaps)
        for lost in survey.lost:
            left = newest.get(lost.identity.section_id)
            if left is None or left.version.state is State.TOMBSTONE:
                nameless = True
            else:
                asked.add(left.identity.name)
        agreed = asked <= self._consent.previous and (self._consent.nameless or not nameless)
        if self._is_contradicted():
            self._plan.refuse(_CONTRADICTION, None, 0)
        elif not agreed:
            self._refuse_everything(newest)
        else:
            self._free_lost_space(survey.generation, bytes(32))
            state = sum(map(self._container.authenticator.member_of, newest.values()))
            self._settle(reading, state, survey.lost)

    def _orphaned(self, reading: Reading) -> set[str]:
        """Return the names in records of a newest commit that did not complete."""
        return {c.identity.name for c in self._survey.copies if c.offset in reading.orphans}

    def _is_contradicted(self) -> bool:
        """Say whether records stand for something where nothing can be."""
        survey = self._survey
        return any(copy.version.state not in _NOTHING for copy in survey.stray) or any(
            self._standing(*gap) is not None for gap in survey.gaps
        )

    def _settle(self, reading: Reading, state: int, lost: Iterable[Lost]) -> None:
        """Make what is left the state of the store, of a generation above all others (C75)."""
        survey = self._survey
        for copy in survey.copies:
            if copy.offset in reading.orphans:
                self._plan.withdraw(copy)
        # What the lost heads may have had is never used again (C30).
        generation = survey.generation + len(survey.lost) + len(survey.gaps) + 1
        self._plan.set_durable(generation, self._container.authenticator.root(state))
        self._void(lost, "was given up, as accepted")

    def _void(self, records: Iterable[Lost], why: str) -> None:
        for lost in records:
            self._plan.void(lost, why)

    # -------------------------------------------------------------- refusal

    def _refuse_unproved(self, lost: Lost, reading: Reading) -> None:
        name = lost.twin.identity.name
        self._plan.refuse(
            f"section {name!r}: the head at byte {lost.offset} is lost. Its other copy is the "
            f"newest that anything tells of, up to generation {reading.generation}; only a "
            "change after that, in a run that did not close the store, would be given up "
            "[C74]",
            name,
            lost.offset,
        )

    def _refuse_everything(self, newest: dict[bytes, Copy]) -> None:
        for lost in self._survey.lost:
            left = newest.get(lost.identity.section_id)
            name = left.identity.name if left else None
            what = f"section {name!r}" if left else "a section whose name is lost"
            self._plan.refuse(
                f"{what}: the head at byte {lost.offset} is lost, and nothing proves what "
                "it said [C73]",
                name,
                lost.offset,
            )
        for start, end in self._survey.gaps:
            self._plan.refuse(
                f"what lies at byte {start}, {end - start} bytes, may be sections whose "
                "names are lost [C73]",
                None,
                start,
            )

    # ----------------------------------------------------------- lost space

    def _free_lost_space(self, generation: int, root: bytes) -> None:
        """Make free items of what damage hides and nothing counts (C72)."""
        for copy in self._survey.stray:
            if copy.version.state in _NOTHING:
                self._plan.free_stray(copy, generation, root)
        for start, end in self._survey.gaps:
            standing = self._standing(start, end)
            if standing is None:
                self._plan.free_gap(start, end, generation, root)
            else:
                self._plan.refuse(
                    f"the head at byte {standing} stands in space that a damaged head hides [C72]",
                    None,
                    standing,
                )

    def _standing(self, start: int, end: int) -> int | None:
        """Return where in lost space a head stands that may stand for something, or None."""
        block_size = self._container.block_size
        for offset, head in likely_heads(self._container.device, start, end, block_size):
            try:
                check_start = locate_check(head)
                if not self._container.authenticator.is_sound(offset, head, check_start):
                    continue
                item = decode_item(head, block_size)
            except (FormatError, UnsupportedError):
                continue
            if isinstance(item, Free) or item.version.state in _NOTHING:
                continue
            return offset
        return None
