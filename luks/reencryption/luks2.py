"""A LUKS2 re-encryption in progress: its steps, their order on disk, and recovery.

A step moves one zone (L151):

1. what restores the zone is written to the area of the re-encryption keyslot; flush;
2. the header says that the zone is being moved: first copy, flush; second copy, flush;
3. the new form of the zone is written; flush;
4. the header says that it has been moved, likewise; after the last zone it is the final
   header, and the old keys are erased.

A step is in doubt from before its first byte until memory has followed it, whatever
interrupts it. What it writes is kept until then, and the stage that was interrupted is
repeated with the same bytes before anything else happens (L161): after a failed flush
nothing that is read back shows what is durable.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.devices.device import read_exactly
from formats.frozen import replace
from formats.process import Owned, OwnedLock, Owner
from luks.errors import DeviceBusyError, UnfinishedReencryptionError
from luks.header.load import read_header
from luks.header.lock import exclusive
from luks.header.writer import erase_unused, next_header, rewrite_header
from luks.model import SECTOR_SIZE
from luks.reencryption.ahead import Prepared, Preparer
from luks.reencryption.headers import finished, taken_back, with_progress
from luks.reencryption.interface import Reencryption, ReencryptionStatus
from luks.reencryption.payload import Payload
from luks.reencryption.plan import MovedPlan, Progress, Zone
from luks.reencryption.resilience import ChecksumRecovery, Converter, capacity, payload_cipher
from luks.reencryption.tidying import tidy

if TYPE_CHECKING:
    import os
    from contextlib import AbstractContextManager

    from formats.devices.device import BlockDevice
    from luks.header.luks2_reencrypt_rules import ReencryptRecord
    from luks.keys.reencryption import VolumeKeys
    from luks.model import Header
    from luks.reencryption.headers import KeyDigests
    from luks.reencryption.interface import (
        Direction,
        Mode,
        ReencryptionOptions,
        Resilience,
    )
    from luks.reencryption.plan import Plan

#: Bytes that a step moves unless the caller says otherwise; a step has them in memory.
DEFAULT_ZONE: Final = 12 << 20
#: Bytes that recovery reads at a time; a multiple of every block that a checksum covers.
_CHUNK: Final = 4 << 20

_NO_LIMIT: Final = 2**63

# What a step does, in order.
_PROTECT, _MARK, _MOVE, _COMMIT, _CLEAN = range(5)


class Places(NamedTuple):
    """Where an image and its header are.

    Attributes:
        image: Holds the payload.
        header: Holds the header; the same device if that is attached.
        header_path: Its path, if the header's lock is to be taken.
        owned: Devices to be closed at the end.
    """

    image: BlockDevice
    header: BlockDevice
    header_path: str | os.PathLike[str] | None = None
    owned: tuple[BlockDevice, ...] = ()

    def locked(self) -> AbstractContextManager[object]:
        """Keep cryptsetup from changing the header in the block."""
        return nullcontext() if self.header_path is None else exclusive(self.header_path)

    def close(self) -> None:
        """Close the devices that were opened for it."""
        for device in self.owned:
            device.close()


class _Step:
    """A step in doubt: all that it writes, and the stage that it has reached."""

    def __init__(self, prepared: Prepared, stage: int = _PROTECT) -> None:
        self.prepared = prepared
        self.zone = prepared.zone
        self.stage = stage
        self.final: Header | None = None


class _Memory(NamedTuple):
    """What is known: replaced as a whole, so that an interrupt sees the old or the new one."""

    progress: Progress
    step: _Step | None = None


class Luks2Reencryption(Owned, Reencryption):
    """A `Reencryption` of a LUKS2 volume, also an encryption or a decryption."""

    def __init__(
        self,
        places: Places,
        header: Header,
        plan: Plan,
        progress: Progress,
        keys: VolumeKeys,
        digests: KeyDigests,
        options: ReencryptionOptions,
    ) -> None:
        """Continue from ``progress``; nothing is read or written yet.

        Args:
            places: Image and header; `close` closes what they own.
            header: As it is on the device.
            plan: What it describes.
            progress: How far it says that it is.
            keys: Those of its digests, verified; `close` wipes them.
            digests: Of the old and the new key.
            options: Only `hotzone_size` and `workers` count here.
        """
        self._places = places
        self._plan = plan
        self._keys = keys
        self._digests = digests
        self._owner = Owner("the re-encryption")
        self._lock = OwnedLock(self._owner)
        self._header = header
        self._doubtful: tuple[Header, ...] = ()  # those that may be on the device instead
        self._is_closed = False
        # A crash may have come after the last zone was moved, before the final header.
        end = Zone(plan.size, plan.size)
        self._memory = _Memory(progress, _moved(end) if progress.done == plan.size else None)
        by_digest = keys.by_digest
        # After the last zone the old key is not needed any more, and may be gone.
        gone = progress.done == plan.size
        old = None if digests.old is None or gone else by_digest[digests.old].key
        new = None if digests.new is None else by_digest[digests.new].key
        self._converter = Converter(payload_cipher(plan.old, old), payload_cipher(plan.new, new))
        self._limit = zone_size(plan, options.hotzone_size)
        self._preparer = Preparer(places.image, plan, self._converter, options.workers)
        self._payload = Payload(places.image, plan, self._converter, self)
        self._sealed: list[bytes] = []  # the beginnings of both header copies, if known

    @property
    def status(self) -> ReencryptionStatus:
        return status_of(self._plan, self.progress)

    @property
    def volume(self) -> BlockDevice:
        return self._payload

    @property
    def lock(self) -> OwnedLock:
        """Held while the payload is read or written, and during a step."""
        return self._lock

    @property
    def progress(self) -> Progress:
        """How far it is, by what is durable."""
        return self._memory.progress

    def step(self) -> bool:
        with self._lock:
            self._check_open()
            if self.settle():
                return True
            if self.progress.done == self._plan.size:
                return False
            zone = self._plan.zone(self.progress, self._limit)
            self._payload.make_durable()
            step = _Step(self._preparer.take(zone))
            after = Progress(self.progress.done + zone.size)
            if after.done < self._plan.size:
                self._preparer.begin(self._plan.zone(after, self._limit))
            self._memory = self._memory._replace(step=step)
            self.settle()
            return True

    def payload_changes(self) -> None:
        """Forget what was read ahead, because the payload is about to be written to."""
        self._preparer.forget()

    def settle(self) -> bool:
        """Finish a step that an error, an interrupt or a crash has left unfinished.

        The caller holds the lock.

        Returns:
            Whether there was one.

        Raises:
            DeviceError: A read, write or flush failed; try again.
        """
        self._check_open()
        if self._memory.step is None:
            if not self.progress.hot:
                return False
            zone = self._plan.zone(self.progress, self._limit)
            self._restore(zone)
            self._memory = self._memory._replace(step=_moved(zone))
        self._carry_out()
        return True

    def take_back(self) -> None:
        """Make the header what it was before, if nothing has been moved.

        Raises:
            UnfinishedReencryptionError: Something has.
            DeviceError: Writing failed; the header says what holds.
        """
        with self._lock:
            self._check_open()
            moved = isinstance(self._plan, MovedPlan)
            if self._memory != _Memory(Progress(0)) or moved:
                raise UnfinishedReencryptionError(
                    "a part of the payload has been moved already: what was begun cannot be taken"
                    " back [L163]",
                    hint="resume it to its end",
                )
            self._write_header(taken_back(self._header, self._plan, self._digests))
            erase_unused(self._places.header, self._header)

    def close(self) -> None:
        if self._is_closed:
            return
        if self._owner.is_other:
            self._is_closed = True
            self._keys.wipe()
            return
        with self._lock:
            self._is_closed = True
            self._preparer.close()
            self._keys.wipe()
            self._places.close()

    def _check_open(self) -> None:
        self._owner.require()
        if self._is_closed:
            raise ValueError("the re-encryption is closed")

    def _carry_out(self) -> None:
        """Do the stages of the step in doubt, from the one on that it has reached."""
        step = self._memory.step
        assert step is not None
        plan, places = self._plan, self._places
        done = self._memory.progress.done
        after = Progress(done + step.zone.size)
        if step.stage == _PROTECT:
            if step.prepared.protection:
                places.header.write(plan.record.area.offset, step.prepared.protection)
                places.header.flush()
            step.stage = _MARK
        if step.stage == _MARK:
            if plan.protection(step.zone) != "none":
                self._write_progress(Progress(done, step.zone.size))
            step.stage = _MOVE
        if step.stage == _MOVE:
            places.image.write(plan.target(step.zone), step.prepared.data)
            places.image.flush()
            step.stage = _COMMIT
        if step.stage == _COMMIT:
            if after.done < plan.size:
                self._write_progress(after)
            else:
                # It is computed once: the first try may have written it.
                step.final = step.final or finished(self._header, plan, self._digests)
                self._write_header(step.final)
            step.stage = _CLEAN
        if step.final is not None:
            erase_unused(places.header, self._header)
            tidy(places.image, plan)
        self._memory = _Memory(after)
        self._preparer.give_back(step.prepared)

    def _restore(self, zone: Zone) -> None:
        """Write the new form of a whole zone, durably.

        Sectors that are new already are written again: they need not be durable (L160).
        """
        plan, places = self._plan, self._places
        area, target = plan.record.area, plan.target(zone)
        protection = plan.protection(zone)
        checks = ChecksumRecovery(plan, self._converter) if protection == "checksum" else None
        for at in range(0, zone.size, _CHUNK):
            data = bytearray(min(_CHUNK, zone.size - at))
            view = memoryview(data)
            sector = (zone.start + at) // SECTOR_SIZE
            if checks is not None:
                places.image.read_into(target + at, view)
                sums = bytearray(checks.size_for(len(data)))
                places.header.read_into(area.offset + checks.size_for(at), sums)
                checks.restore(sector, view, memoryview(sums))
            else:
                if protection == "journal":
                    places.header.read_into(area.offset + at, view)
                else:
                    places.image.read_into(plan.source(zone) + at, view)
                self._converter.convert(sector, view)
            places.image.write(target + at, view)
        places.image.flush()

    def _write_progress(self, progress: Progress) -> None:
        self._write_header(with_progress(self._header, self._plan, progress, self._digests))

    def _write_header(self, header: Header) -> None:
        """Durably replace the header on the device, unless another program has changed it."""
        with ExitStack() as stack:
            stack.enter_context(self._places.locked())
            there = self._there()
            if there not in (self._header, *self._doubtful):
                raise DeviceBusyError(
                    "another program has changed the header of the re-encryption meanwhile [L162]",
                    hint="close this one, and resume it",
                )
            new = replace(
                header, seqid=there.seqid, source=there.source, stale_copy=there.stale_copy
            )
            # From here on until memory has followed, any of these may be there (L161).
            self._doubtful = (*self._doubtful, next_header(new))
            self._sealed = []
            self._header = rewrite_header(self._places.header, new)
            self._doubtful = ()
            self._sealed = self._beginnings()

    def _there(self) -> Header:
        """Return the header on the device."""
        if self._sealed and self._sealed == self._beginnings():
            return self._header  # without decoding it again
        return read_header(self._places.header)

    def _beginnings(self) -> list[bytes]:
        """Return the first sectors of both header copies, which hold their checksums."""
        places = (0, self._header.metadata_size)
        return [read_exactly(self._places.header, at, SECTOR_SIZE) for at in places]


def _moved(zone: Zone) -> _Step:
    """Return the step of which only the header is left to be written."""
    return _Step(Prepared(zone, b"", memoryview(b""), bytearray()), _COMMIT)


def zone_size(plan: Plan, wanted: int | None) -> int:
    """Return the most bytes that a step of ``plan`` may move.

    Args:
        plan: Of the re-encryption.
        wanted: What the caller asks for.
    """
    size = DEFAULT_ZONE if wanted is None else wanted
    size = min(size, protected_size(plan.record, plan.record.resilience))
    return max(plan.step_size, size // plan.step_size * plan.step_size)


def protected_size(record: ReencryptRecord, resilience: str) -> int:
    """Return the bytes of a zone for which the area of a record has room.

    Args:
        record: Of the re-encryption.
        resilience: ``"checksum"`` or ``"journal"``; others need no room.
    """
    if resilience == "checksum":
        return capacity(record.area.size, record.hash_name, record.sector_size)
    return record.area.size if resilience == "journal" else _NO_LIMIT


def status_of(plan: Plan, progress: Progress) -> ReencryptionStatus:
    """Return the status of a re-encryption."""
    record = plan.record
    mode: Mode = record.mode  # type: ignore[assignment]  # the header was validated
    direction: Direction = record.direction  # type: ignore[assignment]
    resilience: Resilience = record.resilience  # type: ignore[assignment]
    return ReencryptionStatus(
        mode=mode,
        direction=direction,
        resilience=resilience,
        position=progress.done,
        size=plan.size,
        old_cipher=plan.old.cipher,
        new_cipher=plan.new.cipher,
        old_sector_size=plan.old.sector_size,
        new_sector_size=plan.new.sector_size,
        needs_recovery=progress.hot > 0,
    )
