"""The order in which typed parts are stored, if it is not the usual one (E2).

A model states only as much of it as necessary: the types that come first. The others
follow in the usual order, so that parts can be added to the model.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

from formats.errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: The type of a part, and its bytes.
Part = tuple[int, bytes]


def stated_order(stored: list[int], usual: list[int]) -> tuple[int, ...]:
    """Return the types that must be stated so that the others follow in the usual order.

    Args:
        stored: The types as they are stored.
        usual: The same types in the usual order.
    """
    places = _places(stored, usual)
    end = len(places)
    while end > 1 and places[end - 2] < places[end - 1]:
        end -= 1
    return tuple(stored[: end - 1]) if end else ()


def arrange(usual: list[Part], order: tuple[int, ...], named: Collection[int]) -> list[Part]:
    """Return parts in the order that a model states.

    Args:
        usual: The parts in their usual order.
        order: From `stated_order`.
        named: The types that are fields of their own; the others are in the field
            ``other``, and stay in its order.

    Raises:
        FieldError: The field ``order`` is not the one that reading the parts would give.
    """
    types = [kind for kind, _ in usual]
    try:
        places = _places(order, types)
    except IndexError:
        raise FieldError("order", "names a type more often than it occurs") from None
    first = set(places)
    places += [place for place in range(len(usual)) if place not in first]
    arranged = [usual[place] for place in places]
    if stated_order([kind for kind, _ in arranged], types) != order:
        raise FieldError("order", "ends with types that would come next anyway: leave them out")
    if [k for k, _ in arranged if k not in named] != [k for k in types if k not in named]:
        raise FieldError("order", "has the types of the field other in a different order")
    return arranged


def _places(order: Iterable[int], usual: list[int]) -> list[int]:
    """Return the place of each type in the usual order; a type's second place follows its first.

    Raises:
        IndexError: A type does not occur, or not often enough.
    """
    places: dict[int, deque[int]] = defaultdict(deque)
    for place, kind in enumerate(usual):
        places[kind].append(place)
    return [places[kind].popleft() for kind in order]
