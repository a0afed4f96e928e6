"""Changes that an NBD server answered and that are not durable: kept to be made again (N66)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blobstore.image.remote.nbd_connection import Ask
from formats.nbd.numbers import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.image.remote.nbd_connection import NbdConnection

#: Most bytes that are kept, and most changes.
LIMIT: Final = 16 << 20
_MOST: Final = LIMIT // 4096


class Unflushed:
    """The changes since the last flush that the server answered, in their order.

    One that it refused, or did not answer, is not among them: its caller is told (N78).
    """

    def __init__(self) -> None:
        self._changes: list[tuple[Command, int, int, bytes]] = []
        self._size = 0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._changes)

    def has_room(self, size: int) -> bool:
        """Say whether another change with so many bytes can be kept."""
        return self._size + size <= LIMIT and len(self._changes) < _MOST

    def add(self, command: Command, offset: int, length: int, data: bytes = b"") -> None:
        """Keep a change that was answered."""
        self._changes.append((command, offset, length, data))
        self._size += len(data)

    def clear(self) -> None:
        """Forget all: they are durable."""
        self._changes.clear()
        self._size = 0

    def repeat(self, connection: NbdConnection, most: int) -> None:
        """Make all of them again, one after the other; errors as `NbdConnection.carry_out`.

        Args:
            connection: To the server that may have lost them.
            most: Bytes of its largest request.
        """
        for command, offset, length, data in self._changes:
            if command is Command.WRITE:
                connection.carry_out(writes(offset, memoryview(data), most))
            else:
                connection.carry_out([Ask(command, offset, length)])


def writes(offset: int, view: memoryview, most: int) -> Iterator[Ask]:
    """Yield the requests that write bytes at an offset, each at most so large."""
    for at in range(0, len(view), most):
        piece = view[at : at + most]
        yield Ask(Command.WRITE, offset + at, len(piece), data=piece)
