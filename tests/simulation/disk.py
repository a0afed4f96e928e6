"""Disks whose cache, order and failures the seed decides.

What was written since the last flush is in the disk's cache. A power cut keeps any part of it, by
sectors of 512 bytes: of each sector what was durable, or any version that was written since. So
writes are lost, torn and reordered. Between two flushes the disk may also store any of it early.
A failing write has reached the cache in part; a failing flush may have dropped what it could not
store, and then reads show that (a cache that goes on showing it is not simulated, as in
`tests.model`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.devices.device import Device
from formats.errors import DeviceBusyError, DeviceError, DeviceFullError
from tests.simulation.scheduler import KilledError, current_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import ReadableBuffer, WritableBuffer
    from tests.simulation.scheduler import Process, Scheduler

SECTOR: Final = 512


@dataclass(slots=True)
class Weather:
    """How a disk behaves at the moment: probabilities for each request, and seconds.

    Attributes:
        failing: A request fails.
        full: Of the writes that fail: for lack of space.
        slow: A request takes ``seconds``, more or less.
        early: A write is stored without a flush.
    """

    failing: float = 0.0
    full: float = 0.0
    slow: float = 0.0
    seconds: float = 0.05
    early: float = 0.02


class SimulatedDisk:
    """The medium, its cache, and who may use it.

    Attributes:
        weather: How it behaves; faults change it.
        holder: The host that has its lock; None if hosts do not share it.
        when_written: Called once, when something is in the cache.
        lost: Sectors whose cached versions power cuts and failing flushes took, so far.
        failed: Requests that failed, or were refused.
        requests: All of them.
    """

    def __init__(self, scheduler: Scheduler, name: str, content: bytes) -> None:
        self.scheduler = scheduler
        self.name = name
        self.weather = Weather()
        self.holder: str | None = None
        self.when_written: Callable[[], None] | None = None
        self.lost = self.failed = self.requests = 0
        self._durable = bytearray(content)
        self._shown = bytearray(content)
        # Versions of each sector that were written since the last flush, in order.
        self._cached: dict[int, list[bytes]] = {}
        self._users: dict[str, Attachment] = {}

    @property
    def size(self) -> int:
        return len(self._shown)

    def attach(self, process: Process) -> Attachment:
        """Let a process use the disk, until it dies or its host is fenced.

        Raises:
            DeviceBusyError: Another host has taken it over (P5).
        """
        if self.holder not in (None, process.host):
            raise DeviceBusyError(f"{self.name} is locked by {self.holder}")
        attachment = Attachment(self, process)
        self._users[process.name] = attachment
        return attachment

    def fence(self, host: str, *, by: str) -> None:
        """Refuse whatever a host asks for, and give its lock to another (P6, `RbdDisk.fence`)."""
        self.scheduler.note(f"{self.name} fences {host}")
        self.holder = by
        for attachment in self._users.values():
            if attachment.process.host == host:
                attachment.fenced = True

    def cut_power(self) -> None:
        """Keep of the cache what chance keeps."""
        draw = self.scheduler.random
        kept = draw.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        for sector, versions in self._cached.items():
            if draw.random() < kept:
                self._store(sector, draw.choice(versions))
            else:
                self.lost += 1
        self._cached.clear()
        self._shown[:] = self._durable
        self.scheduler.note(f"{self.name} loses its cache, {self.lost} so far")

    # -------------------------------------------- for attachments, no waiting

    def read_into(self, offset: int, buffer: WritableBuffer) -> None:
        buffer[:] = memoryview(self._shown)[offset : offset + len(buffer)]

    def write(self, offset: int, data: bytes, *, only: float = 1.0) -> None:
        """Take data into the cache; ``only`` so much of its sectors if it fails."""
        draw = self.scheduler.random.random
        position = 0
        while position < len(data):
            sector = (offset + position) // SECTOR
            length = min((sector + 1) * SECTOR - offset - position, len(data) - position)
            if only >= 1 or draw() < only:
                at = offset + position
                self._shown[at : at + length] = data[position : position + length]
                version = bytes(self._shown[sector * SECTOR : (sector + 1) * SECTOR])
                self._cached.setdefault(sector, []).append(version)
            position += length
        if self.when_written is not None:
            self.when_written()
            self.when_written = None
        if self._cached and draw() < self.weather.early:
            sector = self.scheduler.random.choice(list(self._cached))
            self._store(sector, self._cached[sector][-1])

    def flush(self) -> None:
        for sector, versions in self._cached.items():
            self._store(sector, versions[-1])
        self._cached.clear()

    def fail_flush(self) -> None:
        """Store some of the cache, keep some, and drop the rest."""
        draw = self.scheduler.random
        for sector in list(self._cached):
            fate = draw.random()
            if fate < 0.4:
                self._store(sector, self._cached.pop(sector)[-1])
            elif fate < 0.7:
                del self._cached[sector]
                self.lost += 1
                start = sector * SECTOR
                self._shown[start : start + SECTOR] = self._durable[start : start + SECTOR]

    def _store(self, sector: int, version: bytes) -> None:
        self._durable[sector * SECTOR : sector * SECTOR + len(version)] = version


class Attachment(Device):
    """A disk as one process has it: a `BlockDevice`.

    Attributes:
        fenced: Whether all that is asked for is refused.
    """

    def __init__(self, disk: SimulatedDisk, process: Process) -> None:
        self.disk, self.process = disk, process
        self.fenced = False

    @property
    def size(self) -> int:
        return self.disk.size

    @property
    def block_size(self) -> int:
        return SECTOR

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._check_range(offset, len(buffer))
        self._begin("read")
        self.disk.read_into(offset, buffer)
        self._end()

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._check_range(offset, len(data))
        content = bytes(data)
        try:
            self._begin("write")
        except DeviceError:
            if not self.fenced:
                self.disk.write(offset, content, only=0.5)
            raise
        self.disk.write(offset, content)
        self._end()

    def flush(self) -> None:
        try:
            self._begin("flush")
        except DeviceError:
            if not self.fenced:
                self.disk.fail_flush()
            raise
        self.disk.flush()
        self._end()

    def _begin(self, what: str) -> None:
        """Let the request wait for its turn; raise if it fails."""
        disk, scheduler = self.disk, self.disk.scheduler
        disk.requests += 1
        weather, draw = disk.weather, scheduler.random.random
        if not self.process.alive:
            raise KilledError
        if weather.slow and draw() < weather.slow and current_process() is not None:
            scheduler.sleep(weather.seconds * 2 * draw())
        else:
            scheduler.pause()
        if self.fenced:
            disk.failed += 1
            raise DeviceError(f"{what}: this host was shut out of {disk.name}")
        if weather.failing and draw() < weather.failing:
            disk.failed += 1
            scheduler.note(f"{disk.name}: {what} fails")
            if what == "write" and draw() < weather.full:
                raise DeviceFullError(f"{what}: {disk.name} is full")
            raise DeviceError(f"{what}: {disk.name} fails")

    def _end(self) -> None:
        self.disk.scheduler.pause()
