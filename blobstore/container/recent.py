"""The latest commits and what they changed, which `Store.changes` tells."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Commits that are remembered, and sections of one of them.
MOST_COMMITS: Final = 256
MOST_SECTIONS: Final = 64


@dataclass(frozen=True, slots=True)
class SectionChange:
    """What a commit did to a section.

    Attributes:
        name: Of the section; if it was deleted, the name that it had.
        what: ``"changed"`` says that its blob, size or place may be another. What was renamed
            may have changed as well.
        before: The name that it had, if it was renamed.
    """

    name: str
    what: Literal["created", "changed", "renamed", "deleted"]
    before: str | None = None


class Committed(NamedTuple):
    """A durable commit, and what it did; None if that is too much to remember."""

    generation: int
    changes: tuple[SectionChange, ...] | None


class Recent(NamedTuple):
    """The latest commits, in order. It is replaced, not changed, so no lock is needed to read it.

    Attributes:
        start: The generation before the first of them.
        commits: All commits since then.
    """

    start: int
    commits: tuple[Committed, ...] = ()

    @property
    def newest(self) -> int:
        """The generation of the last one, or that of the start."""
        return self.commits[-1].generation if self.commits else self.start

    def with_commit(
        self, generation: int, changes: Sequence[tuple[str, str | None, bool]]
    ) -> Recent:
        """Return this with one more commit, and without what is too long ago.

        Args:
            generation: Of the commit.
            changes: The name of each section, its name before, or None if there was no such
                section, and whether it is gone.
        """
        known = tuple(starmap(_change, changes)) if len(changes) <= MOST_SECTIONS else None
        commits = (*self.commits, Committed(generation, known))
        if len(commits) <= MOST_COMMITS:
            return Recent(self.start, commits)
        return Recent(commits[0].generation, commits[1:])


def _change(name: str, before: str | None, is_gone: bool) -> SectionChange:
    if before is None:
        return SectionChange(name, "created")
    if is_gone:
        return SectionChange(before, "deleted")
    if name != before:
        return SectionChange(name, "renamed", before)
    return SectionChange(name, "changed")
