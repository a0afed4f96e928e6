"""Places of key material: which move where, so that none is ever overwritten in use.

Moving key material means copying it to a place that no keyslot uses, and then writing a
header that says so. A place may therefore not overlap one that is in use, not even the
place that the same material leaves. Here all places of a header have the same size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from luks.header.validate import AREA_ALIGNMENT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


class Room(NamedTuple):
    """The part of a device that has key material.

    Attributes:
        start: Its first byte.
        end: The first byte after it.
        size: Bytes of each place in it.
    """

    start: int
    end: int
    size: int

    def fits(self, offset: int) -> bool:
        """Say whether a place lies inside."""
        return self.start <= offset and offset + self.size <= self.end

    def is_free(self, offset: int, taken: Iterable[int]) -> bool:
        """Say whether a place lies inside and overlaps none of those that are taken."""
        return self.fits(offset) and all(abs(offset - other) >= self.size for other in taken)

    def find(self, taken: Collection[int], avoided: Collection[int] = ()) -> int | None:
        """Return a free place, if possible one that overlaps none of the avoided ones."""
        edges = {self.start, self.end - self.size}
        for other in (*taken, *avoided):
            edges |= {other - self.size, other + self.size}
        aligned = {edge + -edge % AREA_ALIGNMENT for edge in edges}
        aligned |= {edge - edge % AREA_ALIGNMENT for edge in edges}
        for unwanted in ((*taken, *avoided), taken):
            for places in (aligned, edges):
                found = [place for place in places if self.is_free(place, unwanted)]
                if found:
                    return min(found)
        return None


class Move(NamedTuple):
    """Material of a keyslot that moves to a free place, given by its offset."""

    number: int
    target: int


#: More moves than this for each keyslot mean that there is no way.
_PATIENCE: Final = 4


def plan_moves(
    places: Mapping[int, int], goals: Mapping[int, int], room: Room
) -> list[Move] | None:
    """Return moves after which each keyslot is at its goal, or None if none were found.

    Args:
        places: Offset of each keyslot's material, inside the room or not.
        goals: Offset at which it must be, for the same keyslots.
        room: Where all moves must end.
    """
    now = dict(places)
    moves: list[Move] = []
    while now != goals:
        if len(moves) > _PATIENCE * len(goals):
            return None
        move = _next_move(now, goals, room)
        if move is None:
            return None
        now[move.number] = move.target
        moves.append(move)
    return moves


def _next_move(now: Mapping[int, int], goals: Mapping[int, int], room: Room) -> Move | None:
    pending = [number for number in goals if now[number] != goals[number]]
    for number in pending:
        if room.is_free(goals[number], now.values()):
            return Move(number, goals[number])
    # None can move: make way for one with the fewest in its way.
    blockers = {
        number: [other for other in now if abs(now[other] - goals[number]) < room.size]
        for number in pending
    }
    for number in sorted(pending, key=lambda number: len(blockers[number])):
        if not room.fits(goals[number]):
            return None
        taken = (*now.values(), goals[number])
        place = room.find(taken, [goals[other] for other in pending])
        if place is not None and blockers[number]:
            return Move(blockers[number][0], place)
    return None
