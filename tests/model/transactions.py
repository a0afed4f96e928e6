"""Transactions: a commit, the space that is taken for it, and what is released after it.

A **step** adds one section to a transaction: it is written, made, moved, renamed or deleted
(C50, C52 to C55). All steps of a transaction happen or none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from tests.model.commits import Part, commit
from tests.model.directory import CORRUPT, Seen, Special
from tests.model.disk import Block, Disk, Free, Piece, Record, SectionId, State
from tests.model.headers import durable_epochs
from tests.model.structure import Newest, Taken, release, take
from tests.model.writing import Change, Stage, joined, next_generation

if TYPE_CHECKING:
    from tests.model.directory import Extent, Section
    from tests.model.disk import Content, Root
    from tests.model.writing import Epoch, Operation, Store


@dataclass(slots=True)
class Transaction:
    """What the steps so far have come to.

    Attributes:
        store: The open store.
        parts: Of the commit; without a target where that has to be taken from free space.
        released: Extents that nothing needs once the commit is decided.
        after: Names that stand for something else in the end, or for nothing.
        torn: Sections that a crash in the commit may leave corrupt (C32).
    """

    store: Store
    parts: list[Part] = field(default_factory=list)
    released: list[Extent] = field(default_factory=list)
    after: dict[str, Seen | None] = field(default_factory=dict)
    torn: list[str] = field(default_factory=list)

    def overwrite(
        self,
        section: Section,
        name: str,
        state: State,
        content: Content,
        *,
        differing: bool = False,
    ) -> None:
        """Let the commit give a section another name, state and blob, in its older copy (C31)."""
        newest = section.newest
        target = section.older if self.store.rules.older_copy_is_overwritten else newest
        record = replace(target.record, name=name, state=state, content=content)
        self.parts.append(Part(record, newest, target, differing))
        if newest.record.copies == 1:
            self.torn += [newest.record.name, name]

    def place(self, first: Record, section: Section | None) -> None:
        """Let the commit write copy 0 of a new extent.

        Args:
            first: That copy.
            section: The section that is moved there; None for a new one.
        """
        self.parts.append(Part(first, section.newest if section else None))
        if section:
            self.released.append(section.extent)

    def change(self) -> Change | None:
        """Return what is written; None if C32 forbids it, or space is short."""
        store, rules = self.store, self.store.rules
        not_atomic = any(part.overwrites_the_only_record for part in self.parts)
        if not_atomic and len(self.parts) > 1 and rules.single_copy_commits_alone:
            return None
        directory = store.directory
        firsts = [part.record for part in self.parts if not part.target]
        newest = Newest(directory.generation, directory.root)
        taken = take(store.disk, directory.total, firsts, newest)
        if taken is None:
            return None
        places = iter(taken.firsts)
        parts = [part if part.target else replace(part, target=next(places)) for part in self.parts]
        epoch, root = commit(store, parts)
        stages = self._begin(taken, epoch, root) if firsts else [self._commit(epoch)]
        after = store.view_with(self.after)
        disk = store.after([stage.epoch for stage in stages])
        ending = self._end(disk, root) if firsts or self.released else []
        return Change([*stages, *(Stage(epoch, frozenset([after])) for epoch in ending)], after)

    def _commit(self, epoch: Epoch) -> Stage:
        """Return the commit, and what is seen if it is cut."""
        seen = [self.store.directory.view, self.store.view_with(self.after)]
        if len(self.parts) == 1:
            gone: dict[str, Seen | None] = dict.fromkeys(self.torn)
            seen += [self.store.view_with({**gone, name: CORRUPT}) for name in self.torn]
        return Stage(epoch, frozenset(seen))

    def _begin(self, taken: Taken, epoch: Epoch, root: Root) -> list[Stage]:
        """Return the taking of space, and the commit (C52)."""
        rules = self.store.rules
        before = frozenset([self.store.directory.view])
        if not rules.space_is_void_first:
            return self._published(taken, epoch, root)
        taking = [taken.extents, taken.shortening]
        if not rules.void_is_flushed_before_it_shows:
            taking = joined(taking)
        stages = [*(Stage(epoch, before) for epoch in taking), self._commit(epoch)]
        if not rules.space_is_taken_before_commit:
            stages[-2:] = reversed(stages[-2:])
        return stages

    def _published(self, taken: Taken, epoch: Epoch, root: Root) -> list[Stage]:
        """Return a commit that writes into free items, whose heads then publish what it wrote."""
        left = dict(epoch)
        extents = [(position, left.pop(position, block)) for position, block in taken.extents]
        shortening: Epoch = []
        for position, block in taken.shortening:
            assert isinstance(block.head, Free)
            free = Free(block.head.blocks, next_generation(self.store), root)
            shortening.append((position, Block(free, block.rest)))
        return [self._commit(epoch) for epoch in (extents, [*shortening, *left.items()])]

    def _end(self, disk: Disk, root: Root) -> list[Epoch]:
        """Return the writing of D, and the release of left over extents (C52, C53, C55)."""
        directory, rules = self.store.directory, self.store.rules
        newest = Newest(next_generation(self.store), root)
        durable = durable_epochs(directory, *newest, rules)
        releasing = release(disk, directory.total, self.released, newest, rules)
        if not releasing:
            return durable if rules.durable_follows_create else []
        return durable + releasing if rules.durable_precedes_release else releasing + durable


#: Adds one section to a transaction; says whether it can be done.
Step: TypeAlias = Callable[[Transaction], bool]


def together(*steps: Step) -> Operation:
    """Return the operation that takes all steps or none."""

    def operation(store: Store) -> Change | None:
        transaction = Transaction(store)
        if not all(step(transaction) for step in steps):
            return None
        return transaction.change()

    return operation


# --------------------------------------------------------------------- steps


def put(name: str) -> Step:
    """Return the step that gives a section a new blob (C50)."""

    def step(transaction: Transaction) -> bool:
        section = transaction.store.directory.section(name)
        if section is None:
            return False
        blocks = section.newest.record.blocks
        content = _new_content(transaction.store, section.newest.record.section, blocks)
        transaction.overwrite(section, name, State.LIVE, content)
        transaction.after[name] = Seen(blocks, content)
        return True

    return step


def window(name: str) -> Step:
    """Return the step that commits a window of which the last block changed (C62)."""

    def step(transaction: Transaction) -> bool:
        section = transaction.store.directory.section(name)
        if section is None or isinstance(section.value, Special):
            return False
        record = section.newest.record
        last = _new_content(transaction.store, record.section, record.blocks)[-1:]
        content = section.value[:-1] + last
        transaction.overwrite(section, name, State.LIVE, content, differing=True)
        transaction.after[name] = Seen(record.blocks, content)
        return True

    return step


def create(name: str, *, blocks: int = 1, copies: int = 2, live: bool = False) -> Step:
    """Return the step that makes a section, unwritten or with a blob (C52)."""

    def step(transaction: Transaction) -> bool:
        store = transaction.store
        if store.directory.section(name):
            return False
        identifier = SectionId(name, next_generation(store), store.number)
        content = _new_content(store, identifier, blocks) if live else ()
        first = Record(
            section=identifier,
            copy=0,
            copies=copies,
            blocks=blocks,
            name=name,
            state=State.LIVE if live else State.UNWRITTEN,
            generation=0,
            members=0,
            content=content,
            root=None,
            prev=None,
        )
        transaction.after[name] = Seen(blocks, content or Special.UNWRITTEN)
        transaction.place(first, None)
        return True

    return step


def resize(name: str, *, anew: bool = False) -> Step:
    """Return the step that gives a section two blocks for one, or one for two (C55).

    Args:
        name: Of the section.
        anew: Whether it gets a new blob as well, which C55 forbids.
    """

    def step(transaction: Transaction) -> bool:
        section = transaction.store.directory.section(name)
        if section is None or section.value is Special.CORRUPT:
            return False
        if anew and transaction.store.rules.moved_blob_stays:
            return False
        old = section.newest.record
        blocks = old.blocks % 2 + 1
        first = replace(old, copy=0, blocks=blocks)
        if anew:
            content = _new_content(transaction.store, old.section, blocks)
            first = replace(first, state=State.LIVE, content=content)
        if len(first.content) > blocks:
            return False
        transaction.after[name] = Seen(blocks, first.content or Special.UNWRITTEN)
        transaction.place(first, section)
        return True

    return step


def rename(name: str, new: str) -> Step:
    """Return the step that gives a section another name (C54)."""

    def step(transaction: Transaction) -> bool:
        directory = transaction.store.directory
        section = directory.section(name)
        if section is None or section.value is Special.CORRUPT or directory.section(new):
            return False
        newest = section.newest.record
        transaction.overwrite(section, new, newest.state, newest.content)
        transaction.after |= {name: None, new: Seen(newest.blocks, section.value)}
        return True

    return step


def delete(name: str) -> Step:
    """Return the step that ends a section (C53)."""

    def step(transaction: Transaction) -> bool:
        section = transaction.store.directory.section(name)
        if section is None:
            return False
        transaction.overwrite(section, name, State.TOMBSTONE, ())
        transaction.released.append(section.extent)
        transaction.after[name] = None
        return True

    return step


def _new_content(store: Store, identifier: SectionId, blocks: int) -> Content:
    generation = next_generation(store)
    return tuple(Piece(identifier, generation, store.number, number) for number in range(blocks))
