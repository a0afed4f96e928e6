"""Writing so that it is durable, or so that nothing more is written (C51, C63)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from blobstore.errors import PoisonedStoreError
from formats.errors import DeviceError, StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from formats.devices.device import BlockDevice, ReadableBuffer

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


class _InDoubt(NamedTuple):
    """A step of which nothing is known but that it began.

    Attributes:
        names: Sections that it may have changed.
        cause: Why it ended; None if it was interrupted.
    """

    names: Collection[str]
    cause: DeviceError | None = None


class DurableWriter:
    """Writes in steps, each durable before the next, and knows which one is in doubt.

    Source: C51 and C63 of `spec/container.md`.

    A step writes spans, flushes, and has memory follow. It is *in doubt* from
    before its first byte until the flush has returned, and *durable* from then
    on until memory has followed. Which of these it is, or that there is none,
    stands in one attribute: whatever ends the step, at any bytecode, leaves
    there what is known. What is durable is made up for before anything else
    happens. After a step that stays in doubt nothing more is written.

    After a failed flush the system may have dropped what it could not store,
    and a flush that then succeeds would say nothing. So the same bytes are
    written again before the next flush, and if that fails too, the step stays
    in doubt.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._step: _InDoubt | Callable[[], None] | None = None
        self._unrepeatable = False

    @property
    def poisoned(self) -> bool:
        """Whether a step is in doubt, so that nothing more may be written."""
        return isinstance(self._step, _InDoubt)

    @property
    def in_doubt(self) -> Collection[str]:
        """Names of the sections of which is unknown whether the last step changed them."""
        return self._step.names if isinstance(self._step, _InDoubt) else ()

    def settle(self) -> None:
        """Have memory follow a step that was interrupted when it was durable."""
        step = self._step
        if step is not None and not isinstance(step, _InDoubt):
            step()
            self._step = None

    def require_sound(self) -> None:
        """Refuse to go on after a step that is in doubt.

        Raises:
            PoisonedStoreError: An earlier write failed or was interrupted.
        """
        if self._step is None:  # as nearly always
            return
        self.settle()
        if isinstance(self._step, _InDoubt):
            cause = self._step.cause
            reason = f"failed ({cause})" if cause else "was interrupted"
            raise PoisonedStoreError(
                f"an earlier write {reason}; what is durable is unknown",
                hint="open the store again: it then holds exactly the old or the new state",
            ) from cause

    def write(
        self,
        spans: Sequence[Span] = (),
        follow: Callable[[], None] | None = None,
        names: Collection[str] = (),
    ) -> None:
        """Write the spans, in any order as far as durability goes, and flush: one step.

        Args:
            spans: What is written.
            follow: Makes memory say what the device then holds. It only assigns
                what was worked out before, so that it can be repeated from any
                point it was interrupted at.
            names: Sections that are in doubt meanwhile.

        Raises:
            PoisonedStoreError: An earlier step is in doubt; nothing was written.
            DeviceError: Writing or flushing failed repeatedly; from now on
                nothing is written.
        """
        self.require_sound()
        self._step = _InDoubt(names)
        try:
            self._write_durably(spans)
        except DeviceError as error:
            self._step = _InDoubt(names, error)
            raise
        self._unrepeatable = False
        self._step = follow
        self.settle()

    def write_free(self, spans: Sequence[Span]) -> None:
        """Write into space that nothing lives in, and flush.

        Nothing is in doubt afterwards, whatever happens: what lies there has no
        meaning, and is written again before it gets one.

        Raises:
            PoisonedStoreError: An earlier step is in doubt; nothing was written.
            DeviceError: Writing or flushing failed repeatedly.
        """
        self.require_sound()
        if self._unrepeatable:
            # A flush that fails here would say nothing of what was written in place.
            self.write()
        self._write_durably(spans)

    def _write_durably(self, spans: Sequence[Span]) -> None:
        # A flush alone is never repeated, nor one that was to make durable what
        # is not kept to be written again.
        attempts = ATTEMPTS if spans and not self._unrepeatable else 1
        for attempt in range(1, attempts + 1):
            try:
                self._write_and_flush(spans)
            except DeviceError as error:
                _log.error("attempt %d of %d to write failed: %s", attempt, attempts, error)
                if attempt == attempts:
                    raise
            else:
                return

    def _write_and_flush(self, spans: Sequence[Span]) -> None:
        last: tuple[int, bytes] | None = None
        for span in spans:
            for piece in span.pieces():
                if last is not None:
                    self._device.write(*last)
                last = piece
        # Nearly every commit is one piece: on other machines' devices that is one round trip.
        if last is None:
            self._device.flush()
        else:
            self._device.write_durably(*last)

    def give_up(self) -> None:
        """Write nothing more: something else changes what lies here."""
        self._step = _InDoubt(())

    def use_device(self, device: BlockDevice) -> None:
        """Write to another device from now on, which has the same bytes on the same medium."""
        self.settle()
        self._device = device

    @property
    def unflushed(self) -> bool:
        """Whether `write_in_place` wrote something that is not durable yet."""
        return self._unrepeatable

    def write_in_place(self, offset: int, data: ReadableBuffer) -> None:
        """Write without a flush, and without keeping ``data``: the next `write` makes it durable.

        Raises:
            PoisonedStoreError: An earlier step is in doubt; nothing was written.
            DeviceError: Writing failed; from now on nothing is written.
        """
        self.require_sound()
        self._unrepeatable = True
        self._step = _InDoubt(())
        try:
            self._device.write(offset, data)
        except DeviceError as error:
            self._step = _InDoubt((), error)
            raise
        self._step = None


@contextmanager
def interrupt_first(error: BaseException | None) -> Iterator[None]:
    """Let an interrupt that ends a ``with`` block go on, also if closing fails.

    A caller who waits for `KeyboardInterrupt` must not get a `StorageError` for
    what the interrupt itself cut off; it is logged.

    Args:
        error: What ends the block, or None.
    """
    try:
        yield
    except StorageError as failure:
        if error is None or isinstance(error, Exception):
            raise
        _log.error("closing after %s: %s", type(error).__name__, failure)
