"""What a repair writes, in which order, and what is said of it (C77).

`blobstore.container.repair.deciding` fills a plan in, and `blobstore.container.repair.repair`
writes it. Nothing here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from formats.container.model import NEVER_WRITTEN, Free, State

if TYPE_CHECKING:
    from blobstore.container.authentication import Authenticator
    from blobstore.container.repair.remains import Lost
    from blobstore.container.sections import Copy
    from formats.container.encoder import RecordFrame
    from formats.container.model import Version


class Stage(Enum):
    """When a head is written: one stage after the other, with a flush after each (C77).

    A crash between two stages leaves what can be repaired in the same way.
    """

    #: Heads that their own checks prove (C71).
    MENDED = auto()
    #: What the root proves: newest records, and deletions that are finished (C72, C73).
    PROVED = auto()
    #: Records of a commit that is given up: void from then on (C75).
    WITHDRAWN = auto()
    #: Void and free heads. What a human gave up ends here, so the header that says
    #: what counts from then on is written before.
    EMPTIED = auto()


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
        authenticator: Of the store; it fills in the checks.
        heads: By stage and byte offset. A head that an earlier stage has as well
            is written twice.
        durable: D and its root, written before `Stage.EMPTIED` (C75), if any.
        freed: Lengths of new free items, by offset.
        repairs: What that repairs.
        refused: What stays damaged, and why.
    """

    authenticator: Authenticator
    heads: dict[Stage, dict[int, bytes]] = field(
        default_factory=lambda: {stage: {} for stage in Stage}
    )
    durable: tuple[int, bytes] | None = None
    freed: dict[int, int] = field(default_factory=dict)
    repairs: list[Finding] = field(default_factory=list)
    refused: list[Finding] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not any(self.heads.values())

    def mend(self, offset: int, head: bytes, name: str | None) -> None:
        """Write a head as its own check proves that it was."""
        self.heads[Stage.MENDED][offset] = head
        self.repairs.append(mended_finding(offset, name))

    def rebuild(self, lost: Lost, frame: RecordFrame, version: Version) -> None:
        """Write the head of a newest record as the root proves that it was."""
        self._write_record(Stage.PROVED, lost.offset, frame, version)
        self._repair(
            f"section {lost.identity.name!r}: the head of its newest record, generation "
            f"{version.generation}, was rebuilt; the root proves it",
            lost.identity.name,
            lost.offset,
        )

    def finish_deletion(self, copy: Copy) -> None:
        """Make a record void whose section was deleted, as the root proves."""
        name = copy.identity.name
        self._write_record(Stage.PROVED, copy.offset, copy.frame, NEVER_WRITTEN)
        self._repair(
            f"section {name!r} was deleted, as the root proves: finished", name, copy.offset
        )

    def withdraw(self, orphan: Copy) -> None:
        """Make a record of a commit void that is given up; it keeps its generation."""
        version = orphan.version._replace(state=State.VOID)
        self._write_record(Stage.WITHDRAWN, orphan.offset, orphan.frame, version)

    def void(self, lost: Lost, why: str) -> None:
        """Make a lost record void; ``why`` completes "its copy at byte ..."."""
        name = lost.twin.identity.name
        self._write_record(Stage.EMPTIED, lost.offset, lost.frame, NEVER_WRITTEN)
        self._repair(
            f"section {name!r}: its copy at byte {lost.offset} {why}: void now", name, lost.offset
        )

    def free_stray(self, copy: Copy, generation: int, root: bytes) -> None:
        """Make a free item of a record that does not belong to a section.

        Early, because its head is sound: while it stands, readers take its section for damaged.
        """
        self._write_free(Stage.PROVED, copy.offset, copy.length, generation, root)

    def free_gap(self, start: int, end: int, generation: int, root: bytes) -> None:
        """Make a free item of space that damaged heads hide and nothing counts."""
        self._write_free(Stage.EMPTIED, start, end - start, generation, root)
        self._repair(
            f"what lies at byte {start}, {end - start} bytes, belongs to no section: free now",
            None,
            start,
        )

    def set_durable(self, generation: int, root: bytes) -> None:
        """Have the header say what counts; what was freed already attests it too."""
        self.durable = generation, root
        for offset, length in self.freed.items():
            self._write_free(Stage.EMPTIED, offset, length, generation, root)

    def refuse(self, message: str, name: str | None, offset: int) -> None:
        """Note what stays damaged."""
        self.refused.append(Finding(message, name, offset))

    def _repair(self, message: str, name: str | None, offset: int) -> None:
        self.repairs.append(Finding(message, name, offset))

    def _write_record(
        self, stage: Stage, offset: int, frame: RecordFrame, version: Version
    ) -> None:
        self.heads[stage][offset] = self.authenticator.record_head(offset, frame, version)

    def _write_free(
        self, stage: Stage, offset: int, length: int, generation: int, root: bytes
    ) -> None:
        self.freed[offset] = length
        item = Free(generation, root, length)
        self.heads[stage][offset] = self.authenticator.free_head(offset, item)
