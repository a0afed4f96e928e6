"""Preparing zones in threads of their own, while the disk is busy with the zone before.

To read a zone, compute its checksums and convert it takes the processor; to write it and
to flush takes the disk. The next zone is prepared while the present one is written, in a
thread, and in several if the caller wants (spec/decisions/0048).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from luks.model import SECTOR_SIZE
from luks.reencryption.resilience import checksums

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from luks.reencryption.plan import Plan, Zone
    from luks.reencryption.resilience import Converter
#: Zones of which the memory is kept.
_ROOMS: Final = 2


class Prepared(NamedTuple):
    """A zone in its new form, in memory.

    Attributes:
        zone: Which.
        protection: What restores it, or b"" if that is not needed.
        data: Its new form.
        room: The memory that it lies in, for `Preparer.give_back`.
    """

    zone: Zone
    protection: bytes | bytearray
    data: memoryview
    room: bytearray


class Preparer:
    """Prepares zones, of which one may be prepared ahead."""

    def __init__(self, device: BlockDevice, plan: Plan, converter: Converter, workers: int) -> None:
        """Prepare zones of ``plan`` on ``device`` with as many threads as ``workers``."""
        self._device = device
        self._plan = plan
        self._converter = converter
        self._workers = workers
        self._ahead: tuple[Zone, Future[Prepared]] | None = None
        # To allocate large memory for each zone would take as long as to encrypt it.
        self._rooms: list[bytearray] = []
        self._pool = ThreadPoolExecutor(1, "reencryption")
        self._slices = ThreadPoolExecutor(workers, "reencryption") if workers > 1 else None

    def take(self, zone: Zone) -> Prepared:
        """Return a zone, prepared now or before.

        Raises:
            DeviceError: It could not be read.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == zone:
            return ahead[1].result()
        return self._prepare(zone)

    def begin(self, zone: Zone) -> None:
        """Begin to prepare a zone that nothing writes to before `take` or `forget`."""
        if self._ahead is None:
            self._ahead = zone, self._pool.submit(self._prepare, zone)

    def forget(self) -> None:
        """Drop what was prepared ahead: the payload has been written to."""
        self._ahead = None

    def give_back(self, prepared: Prepared) -> None:
        """Use the memory of a zone, which is not needed any more, for another one."""
        if len(self._rooms) < _ROOMS:
            self._rooms.append(prepared.room)

    def close(self) -> None:
        """Wait for the threads, which use the keys."""
        self._ahead = None
        self._pool.shutdown(cancel_futures=True)
        if self._slices is not None:
            self._slices.shutdown(cancel_futures=True)

    def _prepare(self, zone: Zone) -> Prepared:
        try:
            room = self._rooms.pop()
        except IndexError:
            room = bytearray()
        if len(room) < zone.size:
            room = bytearray(zone.size)
        view = memoryview(room)[: zone.size]
        self._device.read_into(self._plan.source(zone), view)
        protection: bytes | bytearray = b""
        kind = self._plan.protection(zone)
        if kind == "journal":
            protection = bytes(view)
        if self._slices is None:
            sums = self._convert(zone.first_sector, view, with_sums=kind == "checksum")
        else:
            # Checksums and IVs are those of whole blocks.
            step = -(-zone.size // self._workers)
            step += -step % self._plan.step_size
            parts = [
                self._slices.submit(
                    self._convert,
                    zone.first_sector + at // SECTOR_SIZE,
                    view[at : at + step],
                    with_sums=kind == "checksum",
                )
                for at in range(0, zone.size, step)
            ]
            sums = bytearray().join(part.result() for part in parts)
        return Prepared(zone, protection or sums, view, room)

    def _convert(self, first_sector: int, data: memoryview, *, with_sums: bool) -> bytearray:
        """Convert a part of a zone in place; return the checksums of its old form."""
        record = self._plan.record
        sums = bytearray()
        if with_sums:
            sums = checksums(data, record.sector_size, record.hash_name)
        self._converter.convert(first_sector, data)
        return sums
