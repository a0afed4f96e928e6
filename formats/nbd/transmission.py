"""Transmission: bytes to requests that are whole and right (N14 to N16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.nbd.buffer import Buffer
from formats.nbd.model import Ended, Refused, Request
from formats.nbd.numbers import MAX_TRANSFER, REQUEST_MAGIC, Command, CommandFlag, Errno
from formats.nbd.structures import (
    REQUEST,
)

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer
    from formats.nbd.model import Begun


#: Looking a member up in its class takes longer than the rest of reading a request.
_WRITE: Final = int(Command.WRITE)
_READ: Final = Command.READ
_DISC: Final = Command.DISC
_FLUSH: Final = Command.FLUSH
_BLOCK_STATUS: Final = Command.BLOCK_STATUS
_COMMANDS: Final = {int(command): command for command in Command}
_CHANGING: Final = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})
_ON_RANGE: Final = _CHANGING | {Command.READ, Command.CACHE, Command.BLOCK_STATUS}
#: Those that there must be space for.
_FILLING: Final = frozenset({Command.WRITE, Command.WRITE_ZEROES})
#: The flags that each command may have; those of READ without structured replies.
_FLAGS: Final = dict.fromkeys(Command, int(CommandFlag.FUA)) | {
    Command.WRITE_ZEROES: CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
    Command.BLOCK_STATUS: CommandFlag.FUA | CommandFlag.REQ_ONE,
}


class Transmission:
    """One client's requests: `receive` what it sends, `next_event` until there is none.

    After `Ended` there are no more events.
    """

    def __init__(self, begun: Begun) -> None:
        """Read requests about the export that the handshake agreed on."""
        self._export = begun.export
        self._allocation = begun.allocation
        self._flags = dict(_FLAGS)
        if begun.structured:
            self._flags[Command.READ] |= CommandFlag.DF
        self._in = Buffer(begun.rest)
        self._ended = False

    @property
    def is_between_requests(self) -> bool:
        """Whether nothing of a request has arrived."""
        return not self._in

    def receive(self, data: ReadableBuffer) -> None:
        """Take bytes that the client sent."""
        self._in.append(data)

    def next_event(self) -> Request | Refused | Ended | None:
        """Return the next request, a refused one, or the end; None until more was received."""
        head = None if self._ended else self._in.peek(REQUEST.size)
        if head is None:
            return None
        with head:
            magic, flags, number, cookie, offset, length = REQUEST.unpack(head)
        if magic != REQUEST_MAGIC:
            return self._end(f"a request begins with {magic:#010x} [N14]")
        size = REQUEST.size
        if number == _WRITE:
            if length > MAX_TRANSFER:
                return self._end(f"a write of {length} bytes is too long [N15]")
            size += length
            if len(self._in) < size:
                return None
        data = self._in.take(size, skip=REQUEST.size)
        command = _COMMANDS.get(number)
        if command is _DISC:
            return self._end("")
        if command is None:
            return Refused(cookie, Errno.EINVAL, f"command {number} is not known [N16]")
        request = Request(command, flags, cookie, offset, length, data)
        return self._refusal(request) or request

    def _end(self, reason: str) -> Ended:
        self._ended = True
        self._in.clear()
        return Ended(reason)

    def _refusal(self, request: Request) -> Refused | None:
        """Return why a request is refused, or None if it is right."""
        command, offset, length = request.command, request.offset, request.length
        found: tuple[Errno, str] | None = None
        if request.flags & ~self._flags[command]:
            found = Errno.EINVAL, f"{command.name} does not have flags {request.flags:#x}"
        elif self._export.read_only and command in _CHANGING:
            found = Errno.EPERM, f"export {self._export.name!r} takes no writes"
        elif command is _FLUSH:
            if offset or length:
                found = Errno.EINVAL, "FLUSH has an offset or a length"
        elif command in _ON_RANGE and offset + length > self._export.size:
            error = Errno.ENOSPC if command in _FILLING else Errno.EINVAL
            found = error, f"bytes {offset} to {offset + length} are not all in the export"
        elif command is _READ and length > MAX_TRANSFER:
            found = Errno.EOVERFLOW, f"a read of {length} bytes is too long"
        elif command is _BLOCK_STATUS and not (self._allocation and length):
            found = Errno.EINVAL, "BLOCK_STATUS has no context or no length"
        return Refused(request.cookie, found[0], f"{found[1]} [N16]") if found else None
