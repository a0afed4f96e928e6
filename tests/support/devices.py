"""Devices that record, crash and fail, for proofs about the output of writers.

The disk model is the one `BlockDevice` states: what was written since the last
flush may have reached the medium in any order, any part of it, torn at 512-byte
sectors. A *crash point* is a moment in the recorded log; a *crash state* is one
content the medium may have at that point.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from formats.devices.device import Device, MemoryDevice
from formats.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer

SECTOR = 512


@dataclass(frozen=True)
class Write:
    """One recorded write."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class ForcedWrite(Write):
    """One that was durable when it returned (FUA), whatever was written before."""


@dataclass(frozen=True)
class Resize:
    """A recorded change of size; new bytes are zero."""

    size: int


@dataclass(frozen=True)
class Flush:
    """One recorded flush that returned."""


@dataclass(frozen=True)
class Mark:
    """A note of the test's own between two events, such as "put acknowledged"."""

    label: object


Event = Write | Resize | Flush | Mark


class RecordingDevice(Device):
    """Passes everything on to memory and keeps a log of writes and flushes."""

    def __init__(
        self, content: int | ReadableBuffer, *, block_size: int = SECTOR, resizable: bool = False
    ) -> None:
        self._resizable = resizable
        self.before = bytes(content)
        self.log: list[Event] = []
        self.reads: list[tuple[int, int]] = []
        self._memory = MemoryDevice(content, block_size=block_size)

    @property
    def size(self) -> int:
        return self._memory.size

    @property
    def block_size(self) -> int:
        return self._memory.block_size

    @property
    def content(self) -> bytes:
        return bytes(self._memory.content)

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self.reads.append((offset, len(buffer)))
        self._memory.read_into(offset, buffer)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._memory.write(offset, data)
        self.log.append(Write(offset, bytes(data)))

    def flush(self) -> None:
        self.log.append(Flush())

    def resize(self, size: int, /) -> None:
        if not self._resizable:
            super().resize(size)
        self._memory.resize(size)
        self.log.append(Resize(size))

    def mark(self, label: object) -> None:
        self.log.append(Mark(label))

    @property
    def writes(self) -> list[Write]:
        return [event for event in self.log if isinstance(event, Write)]

    @property
    def flushes(self) -> int:
        return sum(isinstance(event, Flush) for event in self.log)


@dataclass(frozen=True)
class CrashState:
    """One content the medium may have after a crash.

    Attributes:
        content: The whole medium.
        marks: Labels of all marks that lie before the crash point.
        point: Index into the log: events before it were issued.
        landed: How many of the unflushed sector writes are in ``content``.
    """

    content: bytes
    marks: tuple[object, ...]
    point: int
    landed: int


@dataclass
class _Disk:
    durable: bytearray
    size: int  # once the last resize is durable
    pending: list[tuple[int, bytes]] = field(default_factory=list)  # sector writes, in order

    def content(self, landed: Iterable[int] = (), *, resized: bool = True) -> bytearray:
        """Return the content if those pending writes landed, with the resize or without it."""
        content = bytearray(self.durable)
        if resized:
            content = content[: self.size].ljust(self.size, b"\0")
        for index in landed:
            offset, data = self.pending[index]
            if offset + len(data) <= len(content):
                content[offset : offset + len(data)] = data
        return content

    def flush(self) -> None:
        self.durable = self.content(range(len(self.pending)))
        self.pending.clear()

    def force(self, write: Write) -> None:
        """Make one write durable, over anything older in the same sectors."""
        sectors = dict(_sectors(write))
        self.pending = [(at, data) for at, data in self.pending if at not in sectors]
        self.durable[write.offset : write.offset + len(write.data)] = write.data


def crash_states(
    before: bytes,
    log: list[Event],
    *,
    exhaustive: int = 8,
    samples: int = 64,
    seed: int = 20261120,
) -> Iterator[CrashState]:
    """Enumerate what a crash at any point of ``log`` may leave.

    At each crash point the unflushed writes are cut into 512-byte sectors. Up
    to ``exhaustive`` of them, every subset is taken. With more, these are: none,
    all, every prefix, all except each single one (of at most ``samples`` spread
    evenly), each single one likewise, and ``samples`` random subsets. Contents
    equal to one already given at the same point are left out.
    """
    generator = random.Random(seed)
    disk = _Disk(bytearray(before), len(before))
    marks: list[object] = []
    yield CrashState(bytes(disk.durable), (), 0, 0)
    for point, event in enumerate(log, start=1):
        if isinstance(event, Mark):
            marks.append(event.label)
            continue
        if isinstance(event, Flush):
            disk.flush()
            yield CrashState(bytes(disk.durable), tuple(marks), point, 0)
            continue
        if isinstance(event, Resize):
            disk.size = event.size
        else:
            disk.pending.extend(_sectors(event))
        for chosen in _subsets(len(disk.pending), exhaustive, samples, generator):
            for resized in {True, disk.size == len(disk.durable)}:
                content = disk.content(chosen, resized=resized)
                yield CrashState(bytes(content), tuple(marks), point, len(chosen))
        if isinstance(event, ForcedWrite):
            disk.force(event)
            yield CrashState(bytes(disk.durable), tuple(marks), point, 0)
    if marks:
        # What was issued last is still unflushed, and the marks now count.
        yield CrashState(bytes(disk.durable), tuple(marks), len(log), 0)


def _sectors(write: Write) -> Iterator[tuple[int, bytes]]:
    offset, end = write.offset, write.offset + len(write.data)
    while offset < end:
        stop = min(end, (offset // SECTOR + 1) * SECTOR)
        yield offset, write.data[offset - write.offset : stop - write.offset]
        offset = stop


def _subsets(
    count: int, exhaustive: int, samples: int, generator: random.Random
) -> Iterator[tuple[int, ...]]:
    everything = range(count)
    if count <= exhaustive:
        for size in range(count + 1):
            yield from itertools.combinations(everything, size)
        return
    seen: set[tuple[int, ...]] = set()
    singles = everything[:: max(1, count // samples)]
    candidates = itertools.chain(
        (tuple(everything[:size]) for size in (0, count)),
        (tuple(everything[:size]) for size in singles),
        (tuple(i for i in everything if i != left_out) for left_out in singles),
        ((i,) for i in singles),
        (
            tuple(i for i in everything if generator.random() < share)
            for share in (generator.random() for _ in range(samples))
        ),
    )
    for chosen in candidates:
        if chosen not in seen:
            seen.add(chosen)
            yield chosen


Operation = Literal["read", "write", "flush", "resize"]


class FaultyDevice(Device):
    """Fails the operations it is told to, counted from 1, and records nothing.

    A failing write stores its first half, as a torn one may. With
    ``persistent`` every later operation of that kind fails as well.
    """

    def __init__(
        self,
        device: BlockDevice,
        operation: Operation,
        number: int,
        *,
        persistent: bool = False,
        error: type[DeviceError] = DeviceError,
    ) -> None:
        self._device = device
        self._operation = operation
        self._number = number
        self._persistent = persistent
        self._error = error
        self.counts: dict[Operation, int] = dict.fromkeys(("read", "write", "flush", "resize"), 0)
        self.failed = 0

    def arm(self, number: int) -> None:
        """Count again from here, and fail this operation."""
        self.counts = dict.fromkeys(self.counts, 0)
        self._number, self.failed = number, 0

    @property
    def size(self) -> int:
        return self._device.size

    @property
    def block_size(self) -> int:
        return self._device.block_size

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._count("read")
        self._device.read_into(offset, buffer)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        try:
            self._count("write")
        except DeviceError:
            half = bytes(data)[: len(data) // 2]
            self._device.write(offset, half)
            raise
        self._device.write(offset, data)

    def flush(self) -> None:
        self._count("flush")
        self._device.flush()

    def resize(self, size: int, /) -> None:
        self._count("resize")
        self._device.resize(size)

    def _count(self, operation: Operation) -> None:
        self.counts[operation] += 1
        count = self.counts[operation]
        due = count >= self._number if self._persistent else count == self._number
        if operation == self._operation and due:
            self.failed += 1
            raise self._error(f"injected: {operation} {count} fails")


class WholeSectorFaults(FaultyDevice):
    """A failing write stores its first half, but each sector whole or not at all (L12)."""

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        try:
            self._count("write")
        except DeviceError:
            half = len(data) // 2 // SECTOR * SECTOR
            self._device.write(offset, bytes(data)[:half])
            raise
        self._device.write(offset, data)
