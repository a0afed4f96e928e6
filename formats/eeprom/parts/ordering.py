"""In which order typed parts are stored, where that is not the usual one (E2).

A model states no more of it than it has to: the types that come first. What it does
not state follows in the usual order, so that parts can be added to it.
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
    """Return the types that have to be stated for the others to follow in the usual order.

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
        FieldError: The field ``order`` is not what reading the parts would give.
    """
    types = [kind for kind, _ in usual]
    try:
        places = _places(order, types)
    except IndexError:
        raise FieldError("order", "names a type more often than there are such") from None
    first = set(places)
    places += [place for place in range(len(usual)) if place not in first]
    arranged = [usual[place] for place in places]
    if stated_order([kind for kind, _ in arranged], types) != order:
        raise FieldError("order", "ends with types that come next without it")
    if [k for k, _ in arranged if k not in named] != [k for k in types if k not in named]:
        raise FieldError("order", "has the types in other in another order")
    return arranged


def _places(order: Iterable[int], usual: list[int]) -> list[int]:
    """Return where in the usual order each type is, the second of one type behind its first.

    Raises:
        IndexError: A type is not there, or not so often.
    """
    places: dict[int, deque[int]] = defaultdict(deque)
    for place, kind in enumerate(usual):
        places[kind].append(place)
    return [places[kind].popleft() for kind in order]
