"""Finding what lost heads said, with the root as proof: C72, C73.

The root is a sum of numbers, one for each section. What is visible either sums
up to what the highest attestation says: then nothing that it counts is hidden.
Or some are missing, and a guess at a lost head is right if with it the sum is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from formats.container.model import DIGEST_SIZE, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from blobstore.container.authentication import Authenticator
    from blobstore.container.repair.remains import Candidate, Lost, Remains
    from blobstore.container.repair.survey import Reading, Survey
    from formats.container.model import Version

# How many candidates for each of two, or three, heads that are lost together.
_PAIRED = 300
_TRIPLED = 40


@dataclass(slots=True)
class Proof:
    """What the root proves of a store with damaged heads.

    Attributes:
        reading: Of the newest commit.
        rebuilt: The lost records that are the newest of their sections.
        gone: Ids of the sections whose lost record is a tombstone.
    """

    reading: Reading
    rebuilt: dict[Lost, Candidate] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)

    @property
    def replaced(self) -> set[bytes]:
        """Ids of the sections whose newest record is a lost one."""
        return {lost.identity.section_id for lost in self.rebuilt} | self.gone


def prove(
    survey: Survey,
    reading: Reading,
    remains: Mapping[Lost, Remains],
    authenticator: Authenticator,
) -> Proof | None:
    """Find what makes the sound and the lost records sum up to what is attested.

    Args:
        survey: Of the store.
        reading: One of its readings.
        remains: Of each lost record.
        authenticator: Of the store.

    Returns:
        None if nothing was found within the bounds of C73.
    """
    return _Search(survey, reading, remains, authenticator).run()


class _Search:
    def __init__(
        self,
        survey: Survey,
        reading: Reading,
        remains: Mapping[Lost, Remains],
        authenticator: Authenticator,
    ) -> None:
        self._survey = survey
        self._reading = reading
        self._remains = remains
        self._authenticator = authenticator
        self._newest = survey.newest(reading)
        self._state = sum(map(authenticator.member_of, self._newest.values()))

    def run(self) -> Proof | None:
        if self._sums_up(0):
            return Proof(self._reading)
        survey = self._survey
        for number in range(1, min(len(survey.lost), 3) + 1):
            bound = (None, _PAIRED, _TRIPLED)[number - 1]
            for chosen in itertools.combinations(survey.lost, number):
                if len({lost.identity.section_id for lost in chosen}) < number:
                    continue
                proof = self._try(chosen, bound)
                if proof:
                    return proof
        return None

    def _try(self, chosen: Sequence[Lost], bound: int | None) -> Proof | None:
        """Take these lost records for the newest of their sections, the others for older ones."""
        if bound is None:
            guesses: Iterator[tuple[tuple[int, Candidate | None], ...]]
            guesses = ((guess,) for guess in self._guesses(chosen[0]))
        else:
            guesses = itertools.product(
                *(list(itertools.islice(self._guesses(lost), bound)) for lost in chosen)
            )
        for guess in guesses:
            if self._sums_up(sum(difference for difference, _ in guess)):
                proof = Proof(self._reading)
                for lost, (_, candidate) in zip(chosen, guess, strict=True):
                    if candidate:
                        proof.rebuilt[lost] = candidate
                    else:
                        proof.gone.add(lost.identity.section_id)
                return proof
        return None

    def _guesses(self, lost: Lost) -> Iterator[tuple[int, Candidate | None]]:
        """Yield what a lost record may be, with what that changes in the sum."""
        known = self._newest.get(lost.identity.section_id)
        before = self._authenticator.member_of(known)
        if before and known is lost.twin:
            yield -before, None  # a tombstone
        if known is not None and known.version.state is State.TOMBSTONE:
            return
        survey = self._survey
        for candidate in self._remains[lost].candidates(
            known.version.generation if known else 0,
            self._reading.generation,
            survey.members(),
            survey.complete(),
        ):
            yield candidate.member - before, candidate

    def _sums_up(self, difference: int) -> bool:
        return self._authenticator.root(self._state + difference) == self._reading.root


def finished(survey: Survey, reading: Reading, candidate: Candidate) -> Version:
    """Return the version of a rebuilt record, with a root and a prev.

    As the commit's other records say, and as far as any do: nothing else is ever
    asked for them, as what is attested now is a higher generation's root.
    """
    version = candidate.version
    root = prev = bytes(DIGEST_SIZE)
    if version.generation == reading.generation:
        root = reading.root
    for copy in survey.copies:
        if copy.version.state is State.VOID:
            continue
        if copy.version.generation == version.generation:
            root, prev = copy.version.root, copy.version.prev
            break
        if copy.version.generation == version.generation - 1:
            prev = copy.version.root
        if copy.version.generation == version.generation + 1:
            root = copy.version.prev
    return version._replace(root=root, prev=prev)
