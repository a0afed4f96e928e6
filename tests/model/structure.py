"""Structure changes: create, delete, rename, resize (C33, C52 to C56)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.model.commits import NewVersion, commit
from tests.model.directory import CORRUPT, Seen, Special, walk
from tests.model.disk import EMPTY, NOTHING, Free, Record, Root, SectionId, State, write_head
from tests.model.writing import Change, joined, next_generation

if TYPE_CHECKING:
    from tests.model.directory import Extent, Item, Section, View
    from tests.model.disk import Disk, Member
    from tests.model.rules import Rules
    from tests.model.writing import Epoch, Operation, Store


def create(name: str, *, blocks: int = 1, copies: int = 2) -> Operation:
    """Return the operation that makes a section, unwritten, out of free space (C52)."""

    def operation(store: Store) -> Change | None:
        if store.directory.section(name):
            return None
        first = Record(
            section=SectionId(name, next_generation(store), store.number),
            copy=0,
            copies=copies,
            blocks=blocks,
            name=name,
            state=State.UNWRITTEN,
            generation=next_generation(store),
            members=_members(store),
            content=(),
            root=None,
            prev=store.directory.root,
        )
        epochs = _place(store, first, store.directory.members | {first.member})
        if epochs is None:
            return None
        return Change(epochs, store.view_with({name: Seen(blocks, Special.UNWRITTEN)}))

    return operation


def delete(name: str) -> Operation:
    """Return the operation that makes a section's extent free (C53)."""

    def operation(store: Store) -> Change | None:
        section = store.directory.section(name)
        if section is None:
            return None
        newest = section.newest.record
        epochs: list[Epoch] = []
        if store.rules.tombstone_comes_first:
            epochs = commit(store, [NewVersion(section, newest.name, State.TOMBSTONE, ())])
        root = Root(store.directory.members - {newest.member})
        freed = Freed(section.extent, next_generation(store), root)
        epochs += freed.epochs(store.after(epochs), store.directory.total, store.rules)
        # The head of the only copy is rewritten alone, which may garble its blob (CBC).
        between = (store.view_with({name: CORRUPT}),) if newest.copies == 1 else ()
        return Change(epochs, store.view_with({name: None}), between)

    return operation


def rename(name: str, new: str) -> Operation:
    """Return the operation that gives a section another name (C54)."""

    def operation(store: Store) -> Change | None:
        section = store.directory.section(name)
        if section is None or section.value is Special.CORRUPT or store.directory.section(new):
            return None
        newest = section.newest.record
        epochs = commit(store, [NewVersion(section, new, newest.state, newest.content)])
        between: tuple[View, ...] = ()
        if newest.copies == 1:
            # It is overwritten with the same blob, which a torn write may garble (CBC).
            between = tuple(
                store.view_with({name: None, new: None} | {torn: CORRUPT}) for torn in (name, new)
            )
        after = {name: None, new: Seen(newest.blocks, section.value)}
        return Change(epochs, store.view_with(after), between)

    return operation


def resize(name: str) -> Operation:
    """Return the operation that gives a section two blocks for one, or one for two (C55)."""

    def operation(store: Store) -> Change | None:
        section = store.directory.section(name)
        if section is None or section.value is Special.CORRUPT:
            return None
        old = section.newest.record
        blocks = old.blocks % 2 + 1
        if len(old.content) > blocks:
            return None
        first = replace(
            old,
            copy=0,
            blocks=blocks,
            generation=next_generation(store),
            members=_members(store),
            root=None,
            prev=store.directory.root,
        )
        epochs = _move(store, section, first)
        if epochs is None:
            return None
        return Change(epochs, store.view_with({name: Seen(blocks, section.value)}))

    return operation


def _members(store: Store) -> int:
    """Return what records of create and resize have as `members` (C33)."""
    return 0 if store.rules.free_item_publishes else 1


def _move(store: Store, section: Section, first: Record) -> list[Epoch] | None:
    """Put a section into a new extent, publish that, and free the old one (C55)."""
    members = store.directory.members - {section.newest.record.member} | {first.member}
    epochs = _place(store, first, members)
    if epochs is None:
        return None
    freed = Freed(section.extent, first.generation, Root(members))
    freeing = freed.epochs(store.after(epochs), store.directory.total, store.rules)
    return epochs + freeing if store.rules.old_extent_is_freed_last else freeing + epochs


def _place(store: Store, first: Record, members: frozenset[Member]) -> list[Epoch] | None:
    """Write an extent at the end of a free item, then let that item's head publish it (C52).

    Args:
        store: The open store.
        first: Copy 0, yet without a root. Copy 1 will be void.
        members: The members of the state that is published.
    """
    rules = store.rules
    root = Root(members)
    records = [replace(first, root=root)]
    if first.copies == 2:
        void = replace(first, copy=1, state=State.VOID, generation=0, members=0, content=())
        records.append(replace(void, prev=None))
    length = first.blocks * first.copies
    least = length + 1 if rules.extent_leaves_a_free_block else length
    items = [(item.blocks, item.position) for item in store.directory.items if _is_free(item)]
    fitting = [(blocks, position) for blocks, position in items if blocks >= least]
    if not fitting:
        return None
    blocks, position = min(fitting)
    extent: Epoch = []
    for record in records:
        image = list(record.image)
        if rules.whole_record_is_written:
            image += [EMPTY] * (record.blocks - len(image))
        extent += enumerate(image, position + blocks - length + record.copy * record.blocks)
    if blocks == length:  # nothing but its own first block is left to publish it
        return [extent[1:], extent[:1]]
    free = store.disk[position].head
    assert isinstance(free, Free)
    shortened = Free(blocks - length, first.generation, root)
    if not rules.free_item_publishes:
        shortened = replace(free, blocks=shortened.blocks)
    epochs = [extent, [write_head(store.disk, position, shortened)]]
    return epochs if rules.records_are_flushed_before_publishing else joined(epochs)


def _is_free(item: Item) -> bool:
    return isinstance(item.head, Free)


@dataclass(frozen=True, slots=True)
class Freed:
    """An extent that is made free, and the change that does it (C56)."""

    extent: Extent
    generation: int
    root: Root

    def epochs(self, disk: Disk, total: int, rules: Rules) -> list[Epoch]:
        """Return what is written: the head of a free item, then zeros over heads of records in it.

        The heads of free items that were merged stay: they can only hide something (C43), and
        with them the root finds out a section that is set back here.
        """
        start, blocks, _ = self.extent
        place = start
        free = Free(blocks, self.generation, self.root)
        for position, _, head in walk(disk, total):
            if not isinstance(head, Free):
                continue
            if position == start + blocks:
                free = replace(free, blocks=free.blocks + head.blocks)
            elif position + head.blocks == start:
                place = position
                free = replace(free, blocks=free.blocks + head.blocks)
                if not rules.merged_free_item_is_new:
                    free = replace(head, blocks=free.blocks)
        epochs = [[write_head(disk, place, free)]]
        stale = [write_head(disk, head, NOTHING) for head in self.extent.heads if head != place]
        return [*epochs, stale] if stale else epochs
