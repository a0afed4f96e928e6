"""What all writing shares: the open store, what an operation does to it, and in which order.

An **operation** gets the store and returns a `Change`: what it writes between one flush and the
next, and what is to be seen afterwards; or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tests.model.disk import Disk, Record, State, Write, written
from tests.model.reader import read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.model.directory import Directory, Seen, View
    from tests.model.rules import Rules

#: What is written between two flushes: all of it is durable once the second has returned.
Epoch: TypeAlias = list[Write]


@dataclass(frozen=True, slots=True)
class Store:
    """An open store that was recovered.

    Attributes:
        disk: As the writer sees it, with what may lie in a volatile cache.
        directory: What was read from it.
        rules: Those in force.
        number: Of the operation: it tells what this one writes from what others wrote.
    """

    disk: Disk
    directory: Directory
    rules: Rules
    number: int

    def after(self, epochs: Sequence[Epoch]) -> Disk:
        """Return the disk after these writes."""
        return written(self.disk, [write for epoch in epochs for write in epoch])

    def view_with(self, changes: Mapping[str, Seen | None]) -> View:
        """Return what is seen, but for some names that stand for something else, or nothing."""
        names = {**dict(self.directory.view), **changes}
        return frozenset((name, seen) for name, seen in names.items() if seen is not None)


class Stage(NamedTuple):
    """What is written up to a flush, and what is seen if a crash happens in it."""

    epoch: Epoch
    seen: frozenset[View]


@dataclass(frozen=True, slots=True)
class Change:
    """What an operation does.

    Attributes:
        stages: What it writes.
        view: What is to be seen when it has ended.
    """

    stages: list[Stage]
    view: View

    @property
    def epochs(self) -> list[Epoch]:
        """Return what is written; each epoch ends with a flush."""
        return [stage.epoch for stage in self.stages]


Operation: TypeAlias = Callable[[Store], Change | None]


def unseen(epochs: Sequence[Epoch], view: View) -> Change:
    """Return a change of which nothing is seen, neither in the middle nor at the end."""
    return Change([Stage(epoch, frozenset([view])) for epoch in epochs], view)


def next_generation(store: Store) -> int:
    """Return the generation of the next change: one that was never used (C30)."""
    directory = store.directory
    if store.rules.void_generations_are_used_up:
        return directory.generation + 1
    records = [item.head for item in directory.items if isinstance(item.head, Record)]
    used = [record.generation for record in records if record.state is not State.VOID]
    return 1 + max(directory.bound, *used)


def joined(epochs: Sequence[Epoch]) -> list[Epoch]:
    """Return all writes as one epoch, with no flush between them."""
    return [[write for epoch in epochs for write in epoch]]


def in_turn(rule: str, first: Operation, second: Operation, *, flushed: int = 0) -> Operation:
    """Return two operations as one.

    Args:
        rule: With this one off, the second begins before the first is durable.
        first: The operation to begin with.
        second: The operation that follows.
        flushed: How many stages of the first are flushed even then.
    """

    def operation(store: Store) -> Change | None:
        one = first(store)
        if one is None:
            return None
        disk = store.after(one.epochs)
        two = second(replace(store, disk=disk, directory=read(disk, store.rules)))
        if two is None:
            return None
        stages = [*one.stages, *two.stages]
        if not getattr(store.rules, rule):
            stop = len(one.stages) + 1
            mixed = stages[flushed:stop]
            seen = frozenset(view for stage in mixed for view in stage.seen)
            (epoch,) = joined([stage.epoch for stage in mixed])
            stages[flushed:stop] = [Stage(epoch, seen)]
        return Change(stages, two.view)

    return operation
