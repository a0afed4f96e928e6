"""The header copies, and the whole container at its start: close, grow, initialise (C57 to C59)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from tests.model.disk import (
    EMPTY,
    NOTHING,
    Block,
    Content,
    Free,
    Header,
    Piece,
    Record,
    Root,
    SectionId,
    State,
    never_written,
    write_head,
)
from tests.model.reader import OURS
from tests.model.structure import Newest, merge
from tests.model.writing import joined, unseen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.model.directory import Directory
    from tests.model.rules import Rules
    from tests.model.writing import Change, Epoch, Operation, Store


def header_epoch(copy: int, header: Header) -> Epoch:
    """Return the writing of one header copy: its whole block (C3)."""
    return [(copy, Block(header, NOTHING))]


def durable_epochs(directory: Directory, generation: int, root: Root, rules: Rules) -> list[Epoch]:
    """Return the writing of D: that everything is durable up to a generation (C58).

    Args:
        directory: With the header copies as they are.
        generation: The highest there is.
        root: The current one.
        rules: Those in force.
    """
    header = directory.header
    if (header.durable, header.root) == (generation, root):
        return []
    wanted = replace(
        header,
        sequence=header.sequence + 1,
        total=directory.total,
        durable=generation,
        root=root,
    )
    order = [1, 0]
    if rules.worse_header_copy_is_written_first:
        order.sort(key=lambda copy: _sequence(directory.copies[copy]))
    if not rules.durable_is_in_both_copies:
        order = sorted(order, key=lambda copy: _sequence(directory.copies[copy]))[:1]
    epochs = [header_epoch(copy, wanted) for copy in order]
    return epochs if rules.header_copies_are_flushed_apart else joined(epochs)


def close(store: Store) -> Change | None:
    """Write down that everything is durable (C58)."""
    directory = store.directory
    epochs = durable_epochs(directory, directory.generation, directory.root, store.rules)
    return unseen(epochs, directory.view) if epochs else None


def _sequence(header: Header | None) -> int:
    return header.sequence if header else -1


def grow(blocks: int) -> Operation:
    """Return the operation that adds the space after the container (C57)."""

    def operation(store: Store) -> Change | None:
        directory, rules = store.directory, store.rules
        total = directory.total + blocks
        if total > len(store.disk):
            return None
        root = directory.root if rules.grown_item_attests else None
        item = Block(Free(blocks, directory.generation, root), NOTHING)
        header = replace(directory.header, total=total)
        if rules.growing_is_a_new_sequence:
            header = replace(header, sequence=header.sequence + 1)
        order = [0, 1] if rules.growing_writes_the_first_copy_first else [1, 0]
        if not rules.growing_writes_both_copies:
            order = order[:1]
        epochs = [header_epoch(copy, header) for copy in order]
        epochs.insert(0 if rules.grown_item_comes_first else 1, [(directory.total, item)])
        newest = Newest(directory.generation, directory.root)
        disk = store.after(epochs)
        merging, inside = merge(disk, total, directory.total, blocks, newest)
        if inside:
            epochs += [merging, [write_head(disk, position, NOTHING) for position in inside]]
        return unseen(epochs, directory.view)

    return operation


# ---------------------------------------------------------------- initialise


class SectionSpec(NamedTuple):
    """A section of a new container; its first blob is `live`, or it is unwritten."""

    name: str
    blocks: int = 1
    copies: int = 2
    live: bool = True


def new_items(specs: Sequence[SectionSpec], free: int) -> tuple[Epoch, Header]:
    """Return the writing of the items of a new container, and its header (C59)."""
    identifiers = [SectionId(spec.name, 1, 0) for spec in specs]
    firsts = []
    for spec, identifier in zip(specs, identifiers, strict=True):
        content: Content = ()
        if spec.live:
            content = tuple(Piece(identifier, 1, 0, index) for index in range(spec.blocks))
        firsts.append(
            Record(
                section=identifier,
                copy=0,
                copies=spec.copies,
                blocks=spec.blocks,
                name=spec.name,
                state=State.LIVE if spec.live else State.UNWRITTEN,
                generation=1,
                members=0,
                content=content,
                root=None,
                prev=Root(frozenset()),
            )
        )
    root = Root(frozenset(first.member for first in firsts))
    items: Epoch = []
    position = 2
    for first in firsts:
        second = never_written(replace(first, copy=1))
        for record in (replace(first, root=root), second)[: first.copies]:
            image = [*record.image, *[EMPTY] * (record.blocks - len(record.image))]
            items += enumerate(image, position)
            position += record.blocks
    if free:
        items.append((position, Block(Free(free, 1, root), NOTHING)))
        position += free
    return items, Header(OURS, 1, position, 1, root)


def initialise(specs: Sequence[SectionSpec], free: int, rules: Rules) -> list[Epoch]:
    """Return what is written to make a new container over whatever was there (C59)."""
    items, header = new_items(specs, free)
    epochs = [[(0, EMPTY), (1, EMPTY)], items, header_epoch(1, header), header_epoch(0, header)]
    if not rules.old_headers_are_zeroed_first:
        del epochs[0]
    if not rules.headers_come_last:
        epochs = [*epochs[:-3], *epochs[-2:], items]
    return epochs
