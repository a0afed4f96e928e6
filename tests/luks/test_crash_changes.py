"""Power cuts and failing devices while keyslots and the like are changed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pytest

import luks
from formats.devices.device import MemoryDevice
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2, known_volume
from tests.support.devices import SECTOR, FaultyDevice, RecordingDevice, crash_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from formats.devices.device import BlockDevice, ReadableBuffer
    from tests.support.devices import Operation

pytestmark = pytest.mark.slow

KEEP = b"kept"


class Case(NamedTuple):
    """An operation that needs to be all or nothing.

    Attributes:
        version: Of the volume.
        run: The operation.
        before: Secrets that open the volume before it.
        after: Those that do afterwards.
        prepare: What brings the volume about.
    """

    version: int
    run: Callable[[BlockDevice], object]
    before: set[bytes]
    after: set[bytes]
    prepare: Callable[[MemoryDevice], object] | None = None


@cache
def base(version: int) -> bytes:
    return bytes(
        known_volume(version, keyslots_size=384 << 10, data_offset=416 << 10).device.content
    )


def add(number: int | None = None, secret: bytes = PASSPHRASE) -> Callable[[BlockDevice], object]:
    return lambda device: luks.add_keyslot(device, OTHER, secret, keyslot=number, kdf=PBKDF2)


def change(secret: bytes = OTHER) -> Callable[[BlockDevice], object]:
    return lambda device: luks.change_keyslot(device, secret, PASSPHRASE, kdf=PBKDF2)


def remove(number: int) -> Callable[[BlockDevice], object]:
    return lambda device: luks.remove_keyslot(device, number)


def exchange(new: int, old: int) -> Callable[[BlockDevice], object]:
    """Add one keyslot and remove another at once."""

    def run(device: BlockDevice) -> None:
        with luks.edit(device) as header:
            header.unlock(OTHER)
            header.add_keyslot(PASSPHRASE, keyslot=new, kdf=PBKDF2)
            header.remove_keyslot(old)

    return run


def everything(device: BlockDevice) -> None:
    with luks.edit(device) as header:
        header.unlock(OTHER)
        header.add_keyslot(PASSPHRASE, kdf=PBKDF2)
        header.remove_keyslot(0)
        header.set_labels(label="new")
        header.set_flags(["allow-discards"])
        header.set_token({"type": "acme", "keyslots": []})
        header.set_uuid("12345678-1234-1234-1234-123456789abc")


def label(device: BlockDevice) -> None:
    with luks.edit(device) as header:
        header.set_labels(label="new")


def uuid(device: BlockDevice) -> None:
    with luks.edit(device) as header:
        header.set_uuid("12345678-1234-1234-1234-123456789abc")


def damage(which: int) -> Callable[[MemoryDevice], object]:
    def run(device: MemoryDevice) -> None:
        device.content[which * 16384 + 5000] ^= 1

    return run


def reopen(device: BlockDevice) -> None:
    luks.open(device, OTHER, read_only=False).close()


OLD, NEW, BOTH = {OTHER}, {PASSPHRASE}, {OTHER, PASSPHRASE}
CASES = {
    "add": Case(2, add(), OLD, BOTH),
    "change": Case(2, change(), OLD, NEW),
    "remove": Case(2, remove(0), BOTH, NEW, add()),
    "everything": Case(2, everything, OLD, NEW),
    "label": Case(2, label, OLD, OLD),
    "add, primary damaged": Case(2, add(), OLD, BOTH, damage(0)),
    "change, secondary damaged": Case(2, change(), OLD, NEW, damage(1)),
    "repair, primary damaged": Case(2, luks.repair, OLD, OLD, damage(0)),
    "open, secondary damaged": Case(2, reopen, OLD, OLD, damage(1)),
    "open, primary damaged": Case(2, reopen, OLD, OLD, damage(0)),
    "luks1 add": Case(1, add(), OLD, BOTH),
    "luks1 add 6": Case(1, add(6), OLD, BOTH),
    "luks1 add 7": Case(1, add(7), OLD, BOTH),
    "luks1 change": Case(1, change(), OLD, NEW),
    "luks1 change 6": Case(1, change(KEEP), OLD | {KEEP}, BOTH, add(6, KEEP)),
    "luks1 remove 6": Case(1, remove(6), OLD | {KEEP}, OLD, add(6, KEEP)),
    "luks1 remove 7": Case(1, remove(7), OLD | {KEEP}, OLD, add(7, KEEP)),
    "luks1 0 to 6": Case(1, exchange(6, 0), OLD, NEW),
    "luks1 0 to 7": Case(1, exchange(7, 0), OLD, NEW),
    "luks1 6 to 7": Case(1, exchange(7, 6), OLD | {KEEP}, BOTH, add(6, KEEP)),
    "luks1 7 to 6": Case(1, exchange(6, 7), OLD | {KEEP}, BOTH, add(7, KEEP)),
    "luks1 uuid": Case(1, uuid, OLD, OLD),
}


def prepared(case: Case) -> bytes:
    device = MemoryDevice(base(case.version))
    if case.prepare is not None:
        case.prepare(device)
    return bytes(device.content)


def opening(content: bytes, secrets: set[bytes]) -> set[bytes]:
    """Those of ``secrets`` that open; anything but a wrong secret is a failure."""
    found = set()
    for secret in secrets:
        try:
            luks.open(MemoryDevice(content), secret).close()
        except luks.NoKeyslotMatchError:
            continue
        found.add(secret)
    return found


def expected(case: Case) -> Iterator[set[bytes]]:
    yield case.before
    yield case.after
    if case.version == 1:
        # Two sectors: what comes is there before what goes is gone (L92).
        yield case.before | case.after


@pytest.mark.parametrize("name", CASES)
def test_a_crash_leaves_the_old_header_or_the_new_one(name: str) -> None:
    """L10 to L12, L91, L92, L94."""
    case = CASES[name]
    before = prepared(case)
    device = RecordingDevice(before)
    case.run(device)
    allowed = list(expected(case))
    found = []
    last = len(device.log)
    for state in crash_states(before, device.log, exhaustive=4, samples=3):
        secrets = opening(state.content, case.before | case.after)
        assert secrets in allowed, (state.point, state.landed)
        if secrets not in found:
            found.append(secrets)
        if state.point == last:
            assert secrets == case.after
    assert case.before in found
    assert case.after in found


@pytest.mark.parametrize("name", ["add", "change", "remove", "luks1 change", "luks1 6 to 7"])
def test_what_a_crash_leaks_is_erased_by_the_next_transaction(name: str) -> None:
    """L91: key material of either header that neither needs any more."""
    case = CASES[name]
    before = prepared(case)
    device = RecordingDevice(before)
    case.run(device)
    materials = [
        content[slot.area.offset : slot.area.end]
        for content in (before, device.content)
        for slot in luks.load_header(MemoryDevice(content)).keyslots.values()
    ]
    leaks = 0
    for state in crash_states(before, device.log, exhaustive=0, samples=2):
        left = MemoryDevice(state.content)
        luks.repair(left)
        header = luks.load_header(left)
        for material in materials:
            if any(
                left.content[slot.area.offset : slot.area.end] == material
                for slot in header.keyslots.values()
            ):
                continue  # it is in use
            parts = [material[place : place + 512] for place in range(0, 65536, 4096)]
            leaks += any(part in state.content for part in parts)
            assert not any(part in left.content for part in parts)
    assert leaks


class LosesWrites(FaultyDevice):
    """Leaves nothing of a failed write."""

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._count("write")
        self._device.write(offset, data)


class TornBetweenSectors(LosesWrites):
    """Leaves nothing of a failed write of one sector: L12 relies on that."""

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        if len(data) > SECTOR:
            FaultyDevice.write(self, offset, data)
        else:
            super().write(offset, data)


def test_l98_a_crash_after_a_failed_commit_never_goes_back_two_steps() -> None:
    """The copy that the failed commit left old is written first: the other one is the header."""
    before = base(2)
    recording = RecordingDevice(before)
    transaction = luks.HeaderEdit(LosesWrites(recording, "write", 2))
    transaction.set_labels(label="first")
    with pytest.raises(luks.DeviceError):
        transaction.commit()
    assert luks.load_header(MemoryDevice(recording.content)).label == "first"
    start = len(recording.log)
    transaction.set_labels(label="second")
    transaction.set_flags(["allow-discards"])  # another sector of the copy: it can be torn
    transaction.commit()
    found = {
        luks.load_header(MemoryDevice(state.content)).label
        for state in crash_states(before, recording.log, exhaustive=4, samples=8)
        if state.point >= start
    }
    assert found == {"first", "second"}


@pytest.mark.parametrize("name", CASES)
def test_a_failing_device_leaves_the_old_header_or_the_new_one(name: str) -> None:
    """Every read, write and flush fails in turn, once or permanently."""
    case = CASES[name]
    before = prepared(case)
    allowed = list(expected(case))
    operations: tuple[Operation, ...] = ("read", "write", "flush")
    for operation in operations:
        for persistent in (False, True):
            for number in range(1, 100):
                memory = MemoryDevice(before)
                device = TornBetweenSectors(memory, operation, number, persistent=persistent)
                try:
                    case.run(device)
                except (luks.DeviceError, luks.NoKeyslotMatchError):
                    assert device.failed
                else:
                    assert opening(bytes(memory.content), case.after) == case.after
                    if not device.failed:
                        break
                content = bytes(memory.content)
                secrets = opening(content, case.before | case.after)
                assert secrets in allowed, (operation, number)
            else:
                pytest.fail("it never ends")
