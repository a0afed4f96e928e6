"""In which order typed parts are stored, where that is not the usual one (E2)."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING

from formats.errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Collection

#: The type of a part, and its bytes.
Part = tuple[int, bytes]


def stated_order(stored: list[int], usual: list[int]) -> tuple[int, ...]:
    """Return the types in the order in which they are stored, or nothing if that is the usual."""
    return () if stored == usual else tuple(stored)


def arrange(usual: list[Part], order: tuple[int, ...], named: Collection[int]) -> list[Part]:
    """Return parts in the order that a model states.

    Args:
        usual: The parts in their usual order.
        order: Their types, or nothing for the usual order.
        named: The types that are fields of their own; others are in one field, and
            stay in its order.

    Raises:
        FieldError: The field ``order`` is not what reading them would give.
    """
    types = [kind for kind, _ in usual]
    if not order:
        return usual
    if Counter(order) != Counter(types):
        raise FieldError("order", "does not name exactly the types that there are")
    if list(order) == types:
        raise FieldError("order", "is the usual one, which is not given")
    if [kind for kind in order if kind not in named] != [k for k in types if k not in named]:
        raise FieldError("order", "has the types in other in another order")
    parts: dict[int, deque[Part]] = defaultdict(deque)
    for part in usual:
        parts[part[0]].append(part)
    return [parts[kind].popleft() for kind in order]
