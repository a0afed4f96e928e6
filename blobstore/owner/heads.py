"""Heads of messages that h11 has judged: the same bytes mean the same again (O170)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

_Start = TypeVar("_Start")

#: What differs from one put to the next: the generation, which is some digits in quotes.
_GENERATION: Final = re.compile(rb'\r\n(etag|if-match): ("[0-9]{1,20}")\r\n', re.IGNORECASE)
_END: Final = b"\r\n\r\n"
#: Heads that are remembered for a connection, and bytes that one may have.
_MOST: Final = 16
_SIZE: Final = 1 << 10


class Head(NamedTuple, Generic[_Start]):
    """What a head says.

    Attributes:
        start: The first line.
        headers: By their names in lower case.
        size: Bytes that the head had.
    """

    start: _Start
    headers: Mapping[str, str]
    size: int


class KnownHeads(Generic[_Start]):
    """The heads that came on one connection. h11 takes 30 us and more to read one.

    What is found here was read by h11 before, byte for byte, but for the digits of a generation.
    """

    def __init__(self) -> None:
        """Know none yet."""
        self._known: dict[bytes, Head[_Start]] = {}

    def find(self, data: bytes) -> Head[_Start] | None:
        """Return what the head means with which ``data`` begins; None if it is not known."""
        size = data.find(_END) + len(_END)
        if not len(_END) <= size <= _SIZE:
            return None
        key, generation = _split(data[:size])
        head = self._known.get(key)
        if head is None or generation is None:
            return head
        return Head(head.start, {**head.headers, **generation}, size)

    def remember(self, data: bytes, start: _Start, headers: Mapping[str, str]) -> None:
        """Remember what a head means, if it is one of those that come again.

        Args:
            data: All of the head.
            start: What its first line says.
            headers: By their names in lower case.
        """
        if len(data) > _SIZE or data.find(_END) != len(data) - len(_END):
            return
        key, generation = _split(data)
        if generation and not generation.items() <= headers.items():
            return  # the header is there twice
        if len(self._known) >= _MOST:
            self._known.pop(next(iter(self._known)))
        self._known[key] = Head(start, headers, len(data))


def _split(head: bytes) -> tuple[bytes, dict[str, str] | None]:
    """Return a head without the generation that it names, and the header that does."""
    found = _GENERATION.search(head)
    if found is None:
        return head, None
    name, value = found[1].decode().lower(), found[2].decode()
    return head[: found.start(2)] + head[found.end(2) :], {name: value}
