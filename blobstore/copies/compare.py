"""Comparing two stores section by section: `blobstore diff`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from blobstore.errors import CorruptBlobError
from formats.errors import DeviceError

if TYPE_CHECKING:
    from blobstore.store.protocol import AnyStore

    Change = Literal["same", "added", "removed", "changed", "unreadable"]


@dataclass(frozen=True, slots=True)
class SectionState:
    """A section as one of two stores has it. Sizes in bytes.

    Attributes:
        kind: ``"blob"`` or ``"window"``.
        type: What the blob is, for tools.
        max_size: Worst-case size.
        generation: Of its newest record; it says nothing between two stores
            that are not copies of one.
        size: Of the blob; None if never written.
        sha256: Of the blob; None if never written or not readable.
        damage: Why it cannot be read, or None.
    """

    kind: str
    type: str
    max_size: int
    generation: int
    size: int | None
    sha256: bytes | None
    damage: str | None

    @property
    def content(self) -> tuple[object, ...]:
        """What has to agree for two sections to be the same."""
        return self.kind, self.type, self.max_size, self.size, self.sha256


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of one section between two stores.

    Attributes:
        name: Its name.
        change: ``"same"``, ``"added"`` or ``"removed"`` by the second store,
            ``"changed"``, or ``"unreadable"`` in either.
        before: As the first store has it, or None.
        after: As the second store has it, or None.
    """

    name: str
    change: Change
    before: SectionState | None
    after: SectionState | None


def compare(first: AnyStore, second: AnyStore) -> list[Difference]:
    """Return what became of each section from one store to another, by name.

    Every blob is read and verified, one at a time; nothing is written. A section is
    only said to be added or removed where both stores are complete (C82).

    Raises:
        DamagedHeadError: Damage may hide sections of one of them.
        PoisonedStoreError: A failed write leaves a section in doubt.
    """
    before, after = _states(first), _states(second)
    return [
        Difference(
            name, _change(before.get(name), after.get(name)), before.get(name), after.get(name)
        )
        for name in sorted({*before, *after})
    ]


def _change(before: SectionState | None, after: SectionState | None) -> Change:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    if before.damage or after.damage:
        return "unreadable"
    return "same" if before.content == after.content else "changed"


def _states(store: AnyStore) -> dict[str, SectionState]:
    return store.at_one_moment(
        lambda: _read_states(store),
        settled=lambda states: all(state.damage is None for state in states.values()),
    )


def _read_states(store: AnyStore) -> dict[str, SectionState]:
    states = {}
    for section in store.sections():
        sha256, damage = None, section.damage
        if damage is None and section.size is not None:
            try:
                sha256 = hashlib.sha256(store.get(section.name)).digest()
            except (CorruptBlobError, DeviceError) as error:
                damage = str(error)
        states[section.name] = SectionState(
            section.kind,
            section.type,
            section.max_size,
            section.generation,
            section.size,
            sha256,
            damage,
        )
    return states
