"""Writing so that it is durable, or so that nothing more is written (C51)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blobstore.errors import PoisonedStoreError
from formats.errors import DeviceError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from formats.device import BlockDevice, ReadableBuffer

_log = LateLogger(__name__)

#: Longest single write, in bytes: small enough to stay in the cache and to
#: stream blobs of any size, large enough that the number of calls is nothing.
PIECE_SIZE = 256 << 10

#: How often the same bytes are written before the store gives up.
ATTEMPTS = 2


class Span(NamedTuple):
    """Contiguous bytes to write: the parts, then zeros up to ``length`` bytes."""

    offset: int
    parts: tuple[ReadableBuffer, ...]
    length: int

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield byte offsets and bytes to write there, in order."""
        if self.length <= PIECE_SIZE:  # as nearly all are
            rest = self.length - sum(map(len, self.parts))
            yield self.offset, b"".join((*self.parts, bytes(rest)))
            return
        for start in range(0, self.length, PIECE_SIZE):
            stop = min(start + PIECE_SIZE, self.length)
            chosen: list[ReadableBuffer] = []
            position = 0
            for part in self.parts:
                low, high = max(start - position, 0), min(stop - position, len(part))
                if low < high:
                    chosen.append(memoryview(part)[low:high])
                position += len(part)
            chosen.append(bytes(min(max(stop - position, 0), stop - start)))
            yield self.offset + start, b"".join(chosen)


class DurableWriter:
    """Writes spans and flushes, in the caller's order; refuses after a failure.

    After a failed flush the system may have dropped what it could not store,
    and a flush that then succeeds would say nothing. So the same bytes are
    written again before the next flush, and if that fails too, what is durable
    is unknown until the store is opened anew.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._failure: DeviceError | None = None
        self._unrepeatable = False

    @property
    def poisoned(self) -> bool:
        """Whether a write failed, so that nothing more may be written."""
        return self._failure is not None

    def require_sound(self) -> None:
        """Refuse to go on after a failure.

        Raises:
            PoisonedStoreError: A write failed earlier.
        """
        if self._failure is not None:
            raise PoisonedStoreError(
                f"an earlier write failed ({self._failure}); what is durable is unknown",
                hint="open the store again: it then holds exactly the old or the new state",
            ) from self._failure

    def write(self, spans: Sequence[Span] = ()) -> None:
        """Write the spans, in any order as far as durability goes, and flush.

        Raises:
            PoisonedStoreError: A write failed earlier; nothing was written.
            DeviceError: Writing or flushing failed repeatedly; from now on
                nothing is written.
        """
        self.require_sound()
        # A flush alone is never repeated, nor one that was to make durable what
        # is not kept to be written again.
        attempts = ATTEMPTS if spans and not self._unrepeatable else 1
        for attempt in range(1, attempts + 1):
            try:
                for span in spans:
                    for offset, piece in span.pieces():
                        self._device.write(offset, piece)
                self._device.flush()
            except DeviceError as error:
                _log.error("attempt %d of %d to write failed: %s", attempt, attempts, error)
                if attempt == attempts:
                    self._failure = error
                    raise
            except BaseException as error:
                # Interrupted in the middle: the same uncertainty.
                self._failure = DeviceError(f"a write was interrupted by {type(error).__name__}")
                raise
            else:
                self._unrepeatable = False
                return

    @property
    def unflushed(self) -> bool:
        """Whether `write_in_place` wrote something that is not durable yet."""
        return self._unrepeatable

    def write_in_place(self, offset: int, data: ReadableBuffer) -> None:
        """Write without a flush, and without keeping ``data``: the next `write` makes it durable.

        Raises:
            PoisonedStoreError: A write failed earlier; nothing was written.
            DeviceError: Writing failed; from now on nothing is written.
        """
        self.require_sound()
        self._unrepeatable = True
        try:
            self._device.write(offset, data)
        except DeviceError as error:
            self._failure = error
            raise
        except BaseException as error:
            self._failure = DeviceError(f"a write was interrupted by {type(error).__name__}")
            raise
