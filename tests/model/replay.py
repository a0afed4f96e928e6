"""Replay: a part of the medium is set back to what it was at some time before.

An attacker who cannot forge anything can still do this. What comes of it is classified:

- **harmless**: the same is seen as before;
- **detected**: the store is refused, or all that changes is reported as corrupt;
- **detected in part**: something is reported as corrupt, and something else changed;
- **seen as damage**: the bytes before were not a head, so that one seems damaged now, which is
  reported, and for which the root is not compared (C48); sections are not found, or,
  **with another value**, one that was deleted is back;
- **of what is in grown space**: the header copies are from before the container grew; nothing but
  they, and what lies in the grown space, attests what lies there;
- **of the whole store**: with that part everything is as it was then, which nothing in it can tell;
- **unavoidable**: some other history, with no attacker in it, leaves just this disk;
- **equivalent**: the same is seen as after one of these replays of the same disk; or what was seen
  before its newest commit, if the store was not closed since;
- **unnoticed**: something else is seen, and nothing is said. There must be none. Neither may a
  section come, go or move in any of the last four ways: D attests all of that (C52, C53, C55).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tests.model.directory import CORRUPT, Placed, Refusal, describe, verifies
from tests.model.disk import Block, Free, Header, Record, Root, written
from tests.model.disk import State as RecordState
from tests.model.reader import read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.model.directory import Directory, Extent, View
    from tests.model.disk import Atom, Content, Disk, SectionId
    from tests.model.explore import Outcome, State

#: Readings kept; many replays give the same disk.
_READINGS = 1 << 15

#: Generation and operation: what a commit is told by, in section ids and pieces of blobs.
Origin: TypeAlias = tuple[int, int]
#: Two disks have the same form if no reader or writer can tell them apart.
Form: TypeAlias = tuple[object, ...]


class Hole(NamedTuple):
    """An undetected replay: after which history, of which part, and what is seen."""

    state: State
    what: str
    detail: str


class _Replay(NamedTuple):
    """A disk of which a part was set back; `whole` if that makes all of the store as it was."""

    what: str
    disk: Disk
    whole: bool


def unnoticed_replays(outcome: Outcome) -> Iterator[Hole]:
    """Set back every part of every disk that an exploration reached, and read the result.

    Args:
        outcome: Of an exploration that has ended; its counts are added to.
    """
    return _Replayer(outcome).holes()


class _Replayer:
    def __init__(self, outcome: Outcome) -> None:
        rules = outcome.scenario.rules
        self._outcome = outcome
        self._counts = outcome.counts
        self._read = lru_cache(_READINGS)(lambda disk: read(disk, rules))
        self._forms = self._find_forms()
        self._tried: set[tuple[Disk, Disk]] = set()
        self._unavoidable: dict[Disk, set[View]] = defaultdict(set)

    def _find_forms(self) -> set[Form]:
        """Return the forms of all disks that come about without an attacker."""
        disks = dict.fromkeys(
            disk
            for state, step in self._outcome.steps.items()
            for disk in (written(state.disk, state.pending), *step.durable)
        )
        return {form(disk, directory) for disk, directory in self._readable(disks)}

    def _readable(self, disks: Iterable[Disk]) -> Iterator[tuple[Disk, Directory]]:
        for disk in disks:
            try:
                yield disk, self._read(disk)
            except Refusal:
                continue

    def holes(self) -> Iterator[Hole]:
        for state in self._outcome.steps:
            # A crash has to be left, or there are no other histories to compare with.
            if state.running and not state.pending and state.crashes:
                for _, directory in self._readable([state.disk]):
                    yield from self._holes_of(state, directory)

    def _holes_of(self, state: State, directory: Directory) -> Iterator[Hole]:
        self._counts["replayed disks"] += 1
        disks = dict.fromkeys(self._outcome.durable_before(state))
        before = [(disk, past) for disk, past in self._readable(disks) if disk != state.disk]
        unavoidable = self._unavoidable[state.disk]
        suspects: list[tuple[_Replay, Directory]] = []
        holes: list[tuple[_Replay, Directory]] = []
        for replayed in self._replays(state.disk, directory, before):
            self._counts["replays"] += 1
            try:
                left = self._read(replayed.disk)
            except Refusal:
                self._counts["replays detected"] += 1
                continue
            verdict = self._judge(replayed, left, directory)
            if verdict in ("unnoticed", "undone"):
                (suspects if verdict == "unnoticed" else holes).append((replayed, left))
                continue
            if verdict in ("unavoidable", "of the whole store"):
                unavoidable.add(left.view)
            self._counts[f"replays {verdict}"] += 1
            if verdict == "unavoidable" and is_closed(directory):
                self._counts["replays unavoidable, of a closed store"] += 1
        if not is_closed(directory):
            unavoidable = unavoidable | _view_before(before, directory.view)
        for replayed, left in suspects:
            if left.view in unavoidable:
                self._counts["replays equivalent"] += 1
            else:
                holes.append((replayed, left))
        for replayed, left in holes:
            self._counts["replays unnoticed"] += 1
            detail = f"sees {describe(left.view)} instead of {describe(directory.view)}"
            yield Hole(state, replayed.what, detail)

    def _judge(self, replayed: _Replay, left: Directory, directory: Directory) -> str:
        """Return what a replay amounts to."""
        truth, seen = dict(directory.view), dict(left.view)
        changed = [name for name in {**truth, **seen} if truth.get(name) != seen.get(name)]
        if not changed:
            return "harmless"
        if all(seen.get(name) == CORRUPT for name in changed):
            return "detected"
        if left.damaged:
            hidden = all(seen.get(name, CORRUPT) == CORRUPT for name in changed)
            return "seen as damage" if hidden else "seen as damage, with another value"
        if left.total != directory.total:
            return "of what is in grown space"
        if _extents(left) != _extents(directory):
            return "undone"
        if replayed.whole:
            return "of the whole store"
        if form(replayed.disk, left) in self._forms:
            return "unavoidable"
        if any(seen.get(name) == CORRUPT for name in changed):
            return "detected in part"
        return "unnoticed"

    def _replays(
        self, disk: Disk, directory: Directory, before: Sequence[tuple[Disk, Directory]]
    ) -> Iterator[_Replay]:
        for older, past in before:
            for kind, start, blocks in dict.fromkeys([*parts(directory), *parts(past)]):
                stop = start + blocks
                if kind == "head":
                    image = written(disk, [(start, Block(older[start].head, disk[start].rest))])
                else:
                    image = disk[:start] + older[start:stop] + disk[stop:]
                if image != disk and (disk, image) not in self._tried:
                    self._tried.add((disk, image))
                    whole = image[: past.total] == older[: past.total]
                    yield _Replay(f"{kind} {start} is set back", image, whole)


def is_closed(directory: Directory) -> bool:
    """Say whether a store was closed after its last commit (C49)."""
    return directory.header.durable == directory.generation


def _view_before(before: Sequence[tuple[Disk, Directory]], view: View) -> set[View]:
    """Return what was seen last of all that is not what is seen now."""
    return {next((past.view for _, past in before if past.view != view), view)}


def _extents(directory: Directory) -> dict[SectionId, Extent]:
    return {identifier: section.extent for identifier, section in directory.sections.items()}


def parts(directory: Directory) -> Iterator[tuple[str, int, int]]:
    """Yield what may be set back: its kind, where it starts, and how many blocks it has."""
    for item in directory.items:
        if isinstance(item.head, Record):
            start = item.position - item.head.copy * item.blocks
            yield "section", start, item.blocks * item.head.copies
            yield "record", item.position, item.blocks
        elif item.head:
            yield "free item", item.position, 1
    yield "header", 0, 1
    yield "header", 1, 1
    yield "headers", 0, 2
    for position in range(2, directory.total):
        yield "head", position, 1
        yield "block", position, 1


# --------------------------------------------------------------------- forms


def form(disk: Disk, directory: Directory) -> Form:
    """Return what of a disk matters to readers and writers.

    Which operation wrote a blob does not: another history may have written it in its place. So
    operations count only as far as they tell commits of the same generation from each other.
    """
    heads = [disk[0].head, disk[1].head, *(item.head for item in directory.items if item.head)]
    ranks: dict[Origin, int] = {}
    last, rank = 0, 0
    for origin in sorted({origin for head in heads for origin in _origins(head)}):
        generation, _ = origin
        rank = rank + 1 if generation == last else 0
        ranks[origin], last = rank, generation
    same = [_relabelled(head, tuple(ranks[o] for o in _origins(head))) for head in heads]
    whole = [
        verifies(disk, Placed(position, head))
        for position, _, head in directory.items
        if isinstance(head, Record) and head.state is RecordState.LIVE
    ]
    return (*same, *whole)


@cache
def _origins(head: Atom) -> tuple[Origin, ...]:
    """Return the origins of all that is in a head, in order."""
    if isinstance(head, Record):
        found = {(head.section.generation, head.section.operation)}
        found.update((piece.generation, piece.operation) for piece in head.content)
        return tuple(sorted(found.union(*map(_root_origins, (head.root, head.prev)))))
    if isinstance(head, Header | Free):
        return tuple(sorted(_root_origins(head.root)))
    return ()


@cache
def _root_origins(root: Root | None) -> frozenset[Origin]:
    found: set[Origin] = set()
    for member in root.members if root else ():
        found.add((member.section.generation, member.section.operation))
        found.update((piece.generation, piece.operation) for piece in member.content)
    return frozenset(found)


@cache
def _relabelled(head: Atom, ranks: tuple[int, ...]) -> Atom:
    """Return a head with other operations in all its origins, given in the order of these."""
    if not isinstance(head, Header | Free | Record):
        return head
    labels = dict(zip(_origins(head), ranks, strict=True))

    def identifier(old: SectionId) -> SectionId:
        return old._replace(operation=labels[old.generation, old.operation])

    def content(old: Content) -> Content:
        return tuple(
            piece._replace(
                section=identifier(piece.section),
                operation=labels[piece.generation, piece.operation],
            )
            for piece in old
        )

    def root(old: Root | None) -> Root | None:
        if old is None:
            return None
        return Root(
            frozenset(
                replace(member, section=identifier(member.section), content=content(member.content))
                for member in old.members
            )
        )

    if isinstance(head, Record):
        return replace(
            head,
            section=identifier(head.section),
            content=content(head.content),
            root=root(head.root),
            prev=root(head.prev),
        )
    return replace(head, root=root(head.root))
