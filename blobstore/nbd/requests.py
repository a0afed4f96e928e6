"""Requests carried out on a device, and answered (N16 to N27)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blobstore.errors import NoSpaceError
from formats.errors import DeviceFullError, ReadOnlyError, StorageError, UnsupportedError
from formats.logs import LateLogger
from formats.nbd.model import Extent
from formats.nbd.numbers import Command, CommandFlag, Errno

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.nbd.catalogue import Shared
    from formats.devices.device import BlockDevice
    from formats.nbd.model import Refused, Request
    from formats.nbd.replies import Replies

_log = LateLogger(__name__)

_FUA: Final = int(CommandFlag.FUA)
_FAST_ZERO: Final = int(CommandFlag.FAST_ZERO)
_REQ_ONE: Final = int(CommandFlag.REQ_ONE)

#: In which BLOCK_STATUS tells zeros, and how much it looks at for one request (N20).
_STATUS_BLOCK: Final = 4096
_STATUS_LOOK: Final = 4 << 20

_ZEROS: Final = bytes(1 << 20)
_ZERO_BLOCK: Final = bytes(_STATUS_BLOCK)

_ERRORS: Final[tuple[tuple[type[StorageError], Errno], ...]] = (
    (ReadOnlyError, Errno.EPERM),
    (DeviceFullError, Errno.ENOSPC),
    (NoSpaceError, Errno.ENOSPC),
    (UnsupportedError, Errno.ENOTSUP),
    (StorageError, Errno.EIO),
)

_CHANGES: Final = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})

#: What is sent, in pieces.
Answer = tuple[bytes | bytearray, ...]


class Requests:
    """Carries out the requests of one connection."""

    def __init__(
        self, shared: Shared, replies: Replies, is_abandoned: Callable[[], bool] = lambda: False
    ) -> None:
        """Use an open export, and answer with these replies.

        Args:
            shared: The export.
            replies: What the answers look like.
            is_abandoned: Says whether the client has gone.
        """
        self._is_abandoned = is_abandoned
        self._shared = shared
        self._fills = shared.opened.fills
        self._name = shared.opened.export.name
        self._lock = shared.lock
        self._replies = replies
        self._methods: dict[Command, Callable[[Request], Answer]] = {
            Command.READ: self._read,
            Command.WRITE: self._write,
            Command.FLUSH: self._flush,
            Command.TRIM: self._fill,
            Command.CACHE: self._done,
            Command.WRITE_ZEROES: self._fill,
            Command.BLOCK_STATUS: self._block_status,
        }

    @property
    def _device(self) -> BlockDevice:
        """The device, which is another one after the store was released (O141)."""
        return self._shared.opened.device

    def refuse(self, refused: Refused) -> Answer:
        """Return the answer to a request that is not carried out."""
        _log.debug("export %r: %s", self._name, refused.message)
        return (self._replies.failed(refused.cookie, refused.error, refused.message),)

    def carry_out(self, request: Request) -> Answer:
        """Carry out a request, and return its answer: also if it failed.

        Raises:
            ConnectionAbortedError: It changes something, and the client has gone (P61).
        """
        try:
            with self._lock:
                # With the lock: the next connection may have written here before this was begun.
                if request.command in _CHANGES and self._is_abandoned():
                    raise ConnectionAbortedError("the client left before its last request")
                return self._methods[request.command](request)
        except StorageError as error:
            number = next(number for kind, number in _ERRORS if isinstance(error, kind))
            return self._failed(request, number, str(error))
        except ValueError as error:  # ranges are right (N16), so the window was closed
            return self._failed(request, Errno.ESHUTDOWN, str(error))
        except MemoryError:
            return self._failed(request, Errno.ENOMEM, "there is not enough memory")

    def _failed(self, request: Request, error: Errno, message: str) -> Answer:
        _log.error("export %r: %s failed: %s", self._name, request.command.name, message)
        return (self._replies.failed(request.cookie, error, message),)

    def _done(self, request: Request) -> Answer:
        return (self._replies.done(request.cookie),)

    def _read(self, request: Request) -> Answer:
        data = bytearray(request.length)
        self._device.read_into(request.offset, data)
        return self._replies.read(request.cookie, request.offset, request.length), data

    def _write(self, request: Request) -> Answer:
        self._device.write(request.offset, request.data)
        return self._changed(request)

    def _fill(self, request: Request) -> Answer:
        """Answer TRIM and WRITE_ZEROES: TRIM is offered only where it is the same (N26)."""
        offset, length = request.offset, request.length
        if self._fills:
            self._device.discard(offset, length)
        elif request.flags & _FAST_ZERO:
            raise UnsupportedError("zeros are not faster than a write [N26]", feature="fast zeros")
        else:
            for start in range(offset, offset + length, len(_ZEROS)):
                part = memoryview(_ZEROS)[: offset + length - start]
                self._device.write(start, part)
        return self._changed(request)

    def _changed(self, request: Request) -> Answer:
        if request.flags & _FUA:
            self._device.flush()
        return self._done(request)

    def _flush(self, request: Request) -> Answer:
        self._device.flush()
        return self._done(request)

    def _block_status(self, request: Request) -> Answer:
        data = bytearray(min(request.length, _STATUS_LOOK))
        self._device.read_into(request.offset, data)
        extents = list(_extents(bytes(data)))
        if request.flags & _REQ_ONE:
            del extents[1:]
        return (self._replies.block_status(request.cookie, extents),)


def _extents(data: bytes) -> Iterator[Extent]:
    """Yield which parts are zeros and which are not, by turns."""
    begin, was_zero = 0, False
    for start in range(0, len(data), _STATUS_BLOCK):
        block = data[start : start + _STATUS_BLOCK]
        is_zero = block == (_ZERO_BLOCK if len(block) == _STATUS_BLOCK else bytes(len(block)))
        if start and is_zero != was_zero:
            yield Extent(start - begin, was_zero)
            begin = start
        was_zero = is_zero
    yield Extent(len(data) - begin, was_zero)
