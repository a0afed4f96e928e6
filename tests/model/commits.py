"""Commits: atomic changes of one or several sections, with one flush (C31, C32, C50, C62)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.model.directory import CORRUPT, Seen, Special, verifies
from tests.model.disk import Content, Piece, Record, Root, State, write_head
from tests.model.writing import Change, next_generation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.model.directory import Placed, Section
    from tests.model.writing import Epoch, Operation, Store


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What a commit makes of a section."""

    section: Section
    name: str
    state: State
    content: Content


def commit(store: Store, versions: Sequence[NewVersion], *, differing: bool = False) -> list[Epoch]:
    """Return what a commit writes: one epoch (C31).

    Args:
        store: The open store.
        versions: One for each member.
        differing: Write of the blobs only the blocks that differ from the older copy, if that one
            is live and verifies (C62).
    """
    members = store.directory.members
    targets: list[tuple[Placed, Record]] = []
    for version in versions:
        newest = version.section.newest
        target = version.section.older if store.rules.older_copy_is_overwritten else newest
        record = replace(
            target.record,
            name=version.name,
            state=version.state,
            generation=next_generation(store),
            members=len(versions),
            content=version.content,
            root=None,
            prev=store.directory.root,
        )
        members -= {newest.record.member}
        if version.state is not State.TOMBSTONE:
            members |= {record.member}
        targets.append((target, record))
    root = Root(members)
    epoch: Epoch = []
    for target, record in targets:
        position, older = target
        head = replace(record, root=root)
        if record.state is State.TOMBSTONE:
            epoch.append(write_head(store.disk, position, head))
            continue
        base = older.content if differing and _can_be_built_on(store, target) else ()
        for number, block in enumerate(head.image):
            if number == 0 or number >= len(base) or base[number] != record.content[number]:
                epoch.append((position + number, block))
    return [epoch]


def _can_be_built_on(store: Store, older: Placed) -> bool:
    """Say whether a record's blob is what its head says, so that a part of it may stay (C62)."""
    if not store.rules.window_verifies_older_copy:
        return True
    return older.record.state is State.LIVE and verifies(store.disk, older)


def put(*names: str) -> Operation:
    """Return the operation that gives sections new blobs, all of them or none (C31, C50)."""

    def operation(store: Store) -> Change | None:
        sections = {name: store.directory.section(name) for name in names}
        versions: list[NewVersion] = []
        after: dict[str, Seen | None] = {}
        torn: dict[str, Seen | None] = {}
        for name, section in sections.items():
            if section is None:
                return None
            record = section.newest.record
            content = _new_content(store, section, range(record.blocks))
            versions.append(NewVersion(section, name, State.LIVE, content))
            after[name] = Seen(record.blocks, content)
            if record.copies == 1:
                torn[name] = CORRUPT
        if torn and len(names) > 1 and store.rules.single_copy_commits_alone:
            return None
        epochs = commit(store, versions)
        if not store.rules.failed_write_keeps_to_its_copy:
            epochs = _turn_to_other_copies(versions, epochs)
        # A put to a section of one copy is not atomic (C32); a commit of several has to be.
        between = (store.view_with(torn),) if len(names) == 1 else ()
        return Change(epochs, store.view_with(after), between)

    return operation


def window(name: str) -> Operation:
    """Return the operation that commits a window of which the last block changed (C62)."""

    def operation(store: Store) -> Change | None:
        section = store.directory.section(name)
        if section is None or isinstance(section.value, Special):
            return None
        blocks = section.newest.record.blocks
        content = section.value[:-1] + _new_content(store, section, range(blocks - 1, blocks))
        version = NewVersion(section, name, State.LIVE, content)
        view = store.view_with({name: Seen(blocks, content)})
        return Change(commit(store, [version], differing=True), view)

    return operation


def _new_content(store: Store, section: Section, numbers: range) -> Content:
    generation, identifier = next_generation(store), section.newest.record.section
    return tuple(Piece(identifier, generation, store.number, number) for number in numbers)


def _turn_to_other_copies(versions: Sequence[NewVersion], epochs: list[Epoch]) -> list[Epoch]:
    """Return what is written by a store that answers a failed flush with the other copies.

    What the failed flush was to store may still reach the medium, or not.
    """
    (epoch,) = epochs
    heads = {position: block.head for position, block in epoch}
    for version in versions:
        record = heads[version.section.older.position]
        assert isinstance(record, Record)
        position, other = version.section.newest
        epoch += enumerate(replace(record, copy=other.copy).image, position)
    return [epoch]
