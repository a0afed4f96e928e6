"""The plaintext payload of a volume that is being re-encrypted, between two steps."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Protocol

from formats.devices.device import Device
from luks.payload.segment import CryptSegment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer
    from formats.process import OwnedLock
    from luks.reencryption.plan import Plan, Progress
    from luks.reencryption.resilience import Converter


class Mover(Protocol):
    """What moves the payload."""

    @property
    def lock(self) -> OwnedLock:
        """Held by a step, and by each use of the payload."""

    @property
    def progress(self) -> Progress:
        """How far it is, by what is durable."""

    def settle(self) -> bool:
        """Finish a step that is in doubt; the caller holds the lock."""

    def payload_changes(self) -> None:
        """Forget what was read ahead; the caller holds the lock."""


class _Layout(NamedTuple):
    """The segments of the payload at one moment, and where each starts in it."""

    progress: Progress
    segments: tuple[CryptSegment, ...]
    starts: tuple[int, ...]


class Payload(Device):
    """The plaintext payload, whose bytes are found where they are durable."""

    def __init__(self, device: BlockDevice, plan: Plan, converter: Converter, mover: Mover) -> None:
        """Serve the payload on ``device``, which ``mover`` moves as ``plan`` says."""
        self._device = device
        self._plan = plan
        self._converter = converter
        self._mover = mover
        self._layout: _Layout | None = None
        # Another process may have written to the image without a flush.
        self._is_unflushed = True

    @property
    def size(self) -> int:
        return self._plan.size

    @property
    def block_size(self) -> int:
        return max(self._plan.old.sector_size, self._plan.new.sector_size)

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._check_range(offset, len(buffer))
        view = memoryview(buffer)
        with self._mover.lock:
            for segment, at, first, last in self._pieces(offset, len(view)):
                segment.read_into(at, view[first:last])

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._check_range(offset, len(data))
        view = memoryview(data)
        with self._mover.lock:
            for segment, at, first, last in self._pieces(offset, len(view)):
                self._is_unflushed = True
                self._mover.payload_changes()
                segment.write(at, view[first:last])

    def flush(self) -> None:
        with self._mover.lock:
            self._mover.settle()
            self._is_unflushed = True
            self.make_durable()

    def make_durable(self) -> None:
        """Flush what was written; the caller holds the lock.

        A step needs that before it computes checksums: they must be those of what is
        durable, or recovery would take older sectors for new ones (L158).
        """
        if self._is_unflushed:
            self._device.flush()
            self._is_unflushed = False

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[CryptSegment, int, int, int]]:
        """Cut a range at segment bounds: segment, offset in it, bounds in the range."""
        self._mover.settle()
        layout = self._layout
        if layout is None or layout.progress != self._mover.progress:
            self._layout = layout = self._laid_out(self._mover.progress)
        at, end = offset, offset + size
        while at < end:
            index = bisect_right(layout.starts, at) - 1
            stop = min(end, layout.starts[index + 1])
            yield layout.segments[index], at - layout.starts[index], at - offset, stop - offset
            at = stop

    def _laid_out(self, progress: Progress) -> _Layout:
        pieces = [piece for piece in self._plan.pieces(progress) if piece.start < piece.end]
        segments = tuple(
            CryptSegment(
                self._device,
                self._converter.new if segment_kind == "new" else self._converter.old,
                offset=segment.offset,
                size=piece.end - piece.start,
                sector_size=segment.sector_size,
                first_sector=segment.iv_tweak,
            )
            for piece, (segment, segment_kind) in zip(
                pieces, self._plan.segments(progress), strict=True
            )
        )
        ends = accumulate(piece.end - piece.start for piece in pieces)
        return _Layout(progress, segments, (0, *ends))
