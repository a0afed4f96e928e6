"""Changing the key and the flag of a store where it lies, cut short anywhere: O200 to O206."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, get_args

import pytest

from blobstore.container.open_container import open_container
from blobstore.container.protection import change_protection, finish_change, require_changeable
from blobstore.container.scan import read_header_copies, scan
from blobstore.errors import (
    CorruptBlobError,
    CorruptStoreError,
    DamagedHeadError,
    NoSpaceError,
    PoisonedStoreError,
)
from formats.container.model import CHANGING_PROTECTION, Authentication
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, UnsupportedError
from tests.reference.headers import Unsupported
from tests.reference.reader import read as read_by_reference
from tests.support.devices import (
    Event,
    FaultyDevice,
    Flush,
    Operation,
    RecordingDevice,
    Write,
    crash_states,
)
from tests.support.effort import cases
from tests.support.interrupts import InterruptPoints
from tests.support.stores import contents, image, open_store, spec

if TYPE_CHECKING:
    from blobstore.store.store import Store
    from formats.devices.device import BlockDevice

SPECS = [
    spec("a", 1800),
    spec("unwritten", 600),
    spec("p", 700, b"p" * 600, copies=1),
    spec("gone", 700),
]


def used(*, encrypted: bool, block_size: int = 512, close: bool = True) -> bytes:
    """Return a store with older blobs and several free items."""
    device = MemoryDevice(
        image(SPECS, free=32 * block_size, block_size=block_size, encrypted=encrypted)
    )
    store = open_store(device)
    store.put("a", b"one" * 400)
    store.put("gone", b"gone")
    store.delete("gone")
    store.put("a", b"two" * 300)
    if close:
        store.close()
    return bytes(device.content)


def change(device: BlockDevice, *, encrypted: bool) -> None:
    change_protection(open_container(device), encrypted=encrypted)


def changed(content: bytes, *, encrypted: bool) -> bytes:
    device = MemoryDevice(content)
    change(device, encrypted=encrypted)
    return bytes(device.content)


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_o200_everything_stays_but_key_and_flag(
    before: bool, after: bool, close: bool, block_size: int
) -> None:
    content = used(encrypted=before, block_size=block_size, close=close)
    old = open_store(content)
    device = MemoryDevice(content)
    change(device, encrypted=after)
    found = scan(device)
    assert found.header.encrypted is after
    expected = Authentication.HMAC_SHA256 if after else Authentication.SHA256
    assert found.header.authentication is expected
    assert bool(found.header.key) is after
    assert not after or found.header.key not in content
    assert found.copies[0] is not None
    assert found.copies[1] is not None
    assert found.header.incompatible == 0
    new = open_store(bytes(device.content))
    assert contents(new) == contents(old)
    assert new.sections() == old.sections()
    assert new.info().store_id == old.info().store_id
    assert new.digest().generation == old.digest().generation
    assert (new.digest() != old.digest()) is (before or after)
    assert new.get("a", previous=True) == old.get("a", previous=True) == b"one" * 400
    report = new.verify()
    assert (report.ok, report.closed, report.notes) == (True, True, ())
    if after:  # nothing but both header copies has the key
        assert bytes(device.content).count(found.header.key) == 2
    new.put("a", b"three")
    new.register("more", 3000)
    new.close()


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("before", [False, True])
def test_o201_o203_o204_a_crash_at_any_instant(before: bool, block_size: int) -> None:
    """The store is what it was, what it is to be, or refused and then finished."""
    content = used(encrypted=before, block_size=block_size)
    expected = contents(open_store(content, read_only=True))
    device = RecordingDevice(content)
    change(device, encrypted=not before)
    seen: set[bytes] = set()
    counts = {"old": 0, "unfinished": 0, "new": 0}
    for crash in crash_states(content, device.log, exhaustive=4, samples=cases(4, 32)):
        if crash.content in seen:
            continue
        seen.add(crash.content)
        if is_unfinished(crash.content):
            counts["unfinished"] += 1
            store = finished(crash.content)
            assert store.info().encrypted is not before
        else:
            store = open_store(crash.content, read_only=True)
            counts["old" if store.info().encrypted is before else "new"] += 1
            assert not finish_change(MemoryDevice(crash.content))
        assert contents(store) == expected
        assert store.verify().ok
    assert min(counts.values()) > 0, counts


def finished(content: bytes) -> Store:
    """Return a store whose change was cut short, and which all readers refuse until then."""
    with pytest.raises(UnsupportedError, match="O203") as refused:
        open_store(content, read_only=True)
    assert refused.value.hint is not None
    assert "--resume" in refused.value.hint
    with pytest.raises(Unsupported):  # so says the second reader
        read_by_reference(content)
    memory = MemoryDevice(content)
    assert finish_change(memory)
    assert not finish_change(memory)
    return open_store(bytes(memory.content))


@pytest.mark.parametrize("before", [False, True])
def test_o204_a_crash_while_it_is_finished(before: bool) -> None:
    """Finishing is cut short in turn, from a moment in the middle of each step."""
    content = used(encrypted=before)
    expected = contents(open_store(content, read_only=True))
    device = RecordingDevice(content)
    change(device, encrypted=not before)
    flushes = [n for n, event in enumerate(device.log) if isinstance(event, Flush)]
    for flush in flushes[:: cases(2, 1)]:
        partial = device.log[: flush + 1]
        start = written(content, partial)
        if not is_unfinished(start):
            continue
        again = RecordingDevice(start)
        finish_change(again)
        chosen = list(crash_states(start, again.log, exhaustive=2, samples=2))
        for crash in chosen[:: cases(5, 1)]:
            memory = MemoryDevice(crash.content)
            finish_change(memory)
            store = open_store(bytes(memory.content), read_only=True)
            assert contents(store) == expected
            assert store.info().encrypted is not before


def written(content: bytes, log: list[Event]) -> bytes:
    """Return what a device holds after these writes."""
    memory = MemoryDevice(content)
    for event in log:
        if isinstance(event, Write):
            memory.write(event.offset, event.data)
    return bytes(memory.content)


def is_unfinished(content: bytes) -> bool:
    _, attesting = read_header_copies(MemoryDevice(content))
    header = max(filter(None, attesting), key=lambda copy: copy.sequence)
    return header.incompatible == CHANGING_PROTECTION


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("kind", [one for one in get_args(Operation) if one != "resize"])
def test_o204_every_failing_request(kind: Operation, persistent: bool) -> None:
    content = used(encrypted=True)
    expected = contents(open_store(content, read_only=True))
    number = failures = 0
    while True:
        number += 1
        memory = MemoryDevice(content)
        device = FaultyDevice(memory, kind, number, persistent=persistent)
        acknowledged = False
        with contextlib.suppress(DeviceError, PoisonedStoreError, DamagedHeadError):
            change(device, encrypted=False)
            acknowledged = True
        if not device.failed:
            break
        failures += 1
        finished = finish_change(memory)
        store = open_store(bytes(memory.content))
        assert contents(store) == expected
        assert store.info().encrypted is not (acknowledged or finished) or not finished
        assert not acknowledged or not store.info().encrypted
    assert failures


def test_o204_an_interrupt_at_any_bytecode() -> None:
    content = used(encrypted=False)
    expected = contents(open_store(content, read_only=True))
    memory = MemoryDevice(content)
    points = InterruptPoints(lambda: change(memory, encrypted=True))
    for point in points.chosen(60):
        memory = MemoryDevice(content)
        with contextlib.suppress(KeyboardInterrupt), points.interrupted_at(point):
            change(memory, encrypted=True)
        finish_change(memory)
        store = open_store(bytes(memory.content))
        assert contents(store) == expected, f"interrupted at bytecode {point}"
        store.put("a", b"later")
        assert store.verify().ok


def test_o202_no_room_is_found_out_before_anything_is_written() -> None:
    content = image([spec("a", 700, b"a"), spec("b", 700, b"b")], free=512, encrypted=True)
    with pytest.raises(NoSpaceError, match="O202") as caught:
        require_changeable(open_container(MemoryDevice(content)))
    assert caught.value.hint is not None
    device = RecordingDevice(content)
    with pytest.raises(NoSpaceError):
        change(device, encrypted=False)
    assert not device.writes


def test_o200_a_corrupt_blob_ends_it_before_the_store_changes() -> None:
    content = bytearray(used(encrypted=True))
    newest = open_container(MemoryDevice(content)).directory.sections["a"].newest
    content[newest.offset + 600] ^= 1
    device = MemoryDevice(content)
    with pytest.raises(CorruptBlobError, match="C23"):
        change(device, encrypted=False)
    assert not is_unfinished(bytes(device.content))
    assert open_store(bytes(device.content)).info().encrypted


def unfinished(*, before: bool = True) -> bytes:
    """Return a store whose change was cut short when its first block was to be written."""
    content = used(encrypted=before)
    device = RecordingDevice(content)
    change(device, encrypted=not before)
    for number, event in enumerate(device.log):
        if isinstance(event, Flush):
            state = written(content, device.log[: number + 1])
            _, attesting = read_header_copies(MemoryDevice(state))
            if all(copy and copy.incompatible for copy in attesting):
                return state
    raise AssertionError("it was never unfinished")


def record_place(content: bytes | bytearray) -> int:
    return content.index(b"blobstore change")


@pytest.mark.parametrize("at", [0, 20, 40, 72, 100, 600, 2000])
def test_o205_a_record_that_does_not_verify_is_not_used(at: int) -> None:
    content = bytearray(unfinished())
    content[record_place(content) + at] ^= 1
    # The check under the new key is not looked at while the old one counts.
    if at == 72:
        assert finish_change(MemoryDevice(content))
        return
    memory = MemoryDevice(content)
    with pytest.raises(CorruptStoreError, match="O204"):
        finish_change(memory)
    assert bytes(memory.content) == content


def test_o205_a_record_at_another_place_or_of_another_time_is_not_used() -> None:
    """A copy of it elsewhere, and one that an earlier change left, mean nothing."""
    content = bytearray(unfinished())
    place = record_place(content)
    record = bytes(content[place : place + 6000])
    moved = bytearray(content)
    moved[place : place + 16] = bytes(16)
    moved[place + 6144 : place + 6144 + len(record)] = record
    with pytest.raises(CorruptStoreError, match="O204"):
        finish_change(MemoryDevice(moved))
    device = MemoryDevice(content)
    assert finish_change(device)
    later = MemoryDevice(device.content)
    later.content[place : place + len(record)] = record
    assert not finish_change(later)
    assert open_store(bytes(later.content)).verify().ok
    assert not scan(later).header.encrypted


def test_o203_no_block_changes_before_both_header_copies_say_so() -> None:
    """Also where only one did when it was cut short, and the damaged copy is written first."""
    whole = unfinished()
    for damaged in (0, 1):
        content = bytearray(whole)
        content[damaged * 512 + 40] ^= 0xFF
        content[damaged * 512 + 300] ^= 0xFF  # more than is mended
        device = RecordingDevice(content)
        assert finish_change(device)
        assert device.writes[0].offset == damaged * 512
        *_, state = [
            written(bytes(content), device.log[: number + 1])
            for number, event in enumerate(device.log)
            if isinstance(event, Flush)
        ][:1]
        copies, _ = read_header_copies(MemoryDevice(state))
        assert [copy and copy.incompatible for copy in copies] == [CHANGING_PROTECTION] * 2
        assert open_store(device.content).verify().ok


def cut_before_the_bit(content: bytes) -> bytes:
    """Return a store with a record of a change that no header tells of."""
    device = RecordingDevice(content)
    change(device, encrypted=False)
    before = content
    for number, event in enumerate(device.log):
        if isinstance(event, Flush):
            state = written(content, device.log[: number + 1])
            if is_unfinished(state):
                return before
            before = state
    raise AssertionError("it was never unfinished")


def test_o203_a_record_that_an_earlier_attempt_left_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has the older blob, and its check agrees; only its sequence number is another one."""
    memory = MemoryDevice(cut_before_the_bit(used(encrypted=True)))
    with open_store(memory) as store:
        store.put("a", b"since then")
    left = bytes(memory.content)
    place = record_place(left)
    device = RecordingDevice(left)
    monkeypatch.setattr("blobstore.container.protection._place", lambda _: place + 9216)
    change(device, encrypted=False)
    states = (written(left, device.log[:number]) for number in range(1, len(device.log)))
    state = next(filter(is_unfinished, states))
    assert record_place(state) == place
    first, second = (state[at + 16 : at + 24] for at in (place, place + 9216))
    assert first < second
    memory = MemoryDevice(state)
    assert finish_change(memory)
    assert scan(memory).header.sequence == int.from_bytes(second, "big") + 3
    store = open_store(bytes(memory.content))
    assert store.get("a") == b"since then"
    assert store.verify().ok


def test_o203_each_attempt_has_a_sequence_number_of_its_own() -> None:
    content = used(encrypted=True)
    numbers = []
    for _ in range(3):
        content = cut_before_the_bit(content)
        place = record_place(content)
        numbers.append(content[place + 16 : place + 24])
    assert numbers == sorted(set(numbers))
