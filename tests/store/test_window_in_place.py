"""Windows that are written in place, and what is left of them when they are not closed (C62)."""

from __future__ import annotations

import pytest

from blobstore.errors import (
    CorruptBlobError,
    NoPreviousBlobError,
    PoisonedStoreError,
)
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from tests.reference.reader import IN_PLACE, LIVE
from tests.reference.samples import sample
from tests.support.devices import FaultyDevice, RecordingDevice
from tests.support.stores import open_store
from tests.support.windows import manual_alarms, window_image, written_bytes

SIZE = 5000


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What time does is in `test_window_time`."""
    manual_alarms(monkeypatch)


@pytest.fixture
def device() -> RecordingDevice:
    return RecordingDevice(window_image(SIZE))


def test_c62_in_place_writes_go_to_the_image_at_once() -> None:
    size = 100 << 10
    device = RecordingDevice(window_image(size, b"start" * 20_000, block_size=4096))
    store = open_store(device)
    before = store.get("w").ljust(size, b"\0")
    device.log.clear()
    window = store.window("w", in_place=True)
    assert window.in_place
    # The blob was shorter: each copy is written whole, then the head alone.
    assert [len(write.data) for write in device.writes] == [26 * 4096, 26 * 4096, 4096]
    assert device.flushes == 3
    device.log.clear()
    window.write(50_001, b"in place")
    assert [write.data for write in device.writes] == [b"in place"]
    assert device.flushes == 0
    window.flush()
    window.flush()
    assert device.flushes == 1
    assert store.get("w", previous=True) == before
    device.log.clear()
    window.close()
    assert written_bytes(device) == 2 * 4096
    after = before[:50_001] + b"in place" + before[50_009:]
    assert store.get("w") == after
    with pytest.raises(NoPreviousBlobError):
        store.get("w", previous=True)
    with store.window("w", in_place=True) as window:
        assert written_bytes(device) == 26 * 4096 + 4096
        assert window.read(0, size) == after
    assert store.verify().ok
    store.close()
    assert open_store(device, read_only=True).get("w") == after


def test_c62_in_place_after_an_unclean_end(device: RecordingDevice) -> None:
    store = open_store(device)
    store.put("w", b"before")
    window = store.window("w", in_place=True)
    window.write(100, b"in place")
    for reader in (store, open_store(device, read_only=True), open_store(device)):
        with pytest.raises(CorruptBlobError, match="C62"):
            reader.get("w")
        assert reader.get("w", previous=True) == b"before".ljust(SIZE, b"\0")
        (problem,) = reader.verify().problems
        assert "unverified [C62]" in problem.message
        assert reader.section("w").crc32 is None
    store = open_store(device)
    for change in (
        lambda: store.window("w"),
        lambda: store.window("w", in_place=True),
        lambda: store.rename("w", "z"),
        lambda: store.resize("w", SIZE + 1),
        lambda: store.register("w", SIZE + 1, "window"),
    ):
        with pytest.raises(CorruptBlobError, match="C62"):
            change()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("touch", [False, True])
def test_c62_going_on_with_what_is_unverified(
    device: RecordingDevice, in_place: bool, touch: bool
) -> None:
    store = open_store(device)
    window = store.window("w", in_place=True)
    window.write(100, b"in place")
    store = open_store(device)
    expected = bytes(100) + b"in place" + bytes(SIZE - 108)
    with store.window("w", in_place=in_place, accept_unverified=True) as window:
        assert window.in_place is in_place
        assert window.read(0, SIZE) == expected
        if touch:
            window.write(0, b"on")
            expected = b"on" + expected[2:]
    assert store.get("w") == expected
    assert store.verify().ok


def test_c62_a_reader_may_look_at_what_is_unverified(device: RecordingDevice) -> None:
    window = open_store(device).window("w", in_place=True)
    window.write(100, b"in place")
    device.log.clear()
    store = open_store(device, read_only=True)
    with store.window("w", accept_unverified=True) as window:
        assert window.read(100, 8) == b"in place"
    store.close()
    assert not device.log


def test_c10_the_crc32_of_what_is_in_place_means_nothing() -> None:
    forged = sample()
    (record,) = forged.commit(window={"state": IN_PLACE})
    record.crc32 = b"junk"
    record.root = forged.root()
    for _ in range(2):
        store = open_store(forged.encode(), read_only=True)
        problems = store.verify().problems + store.verify().notes
        assert not any("crc32" in problem.message for problem in problems)
        forged.commit(window={"state": LIVE, "blob": b"anyth", "crc32": None})


def test_c62_restore_ends_what_was_in_place(device: RecordingDevice) -> None:
    store = open_store(device)
    store.put("w", b"before")
    store.window("w", in_place=True).write(0, b"AFTER")
    store = open_store(device)
    store.restore("w")
    assert store.get("w") == b"before".ljust(SIZE, b"\0")
    assert store.verify().ok


def test_c51_what_was_written_in_place_is_not_flushed_by_a_second_attempt() -> None:
    """A put could write its own bytes again; those of the window are gone."""
    memory = MemoryDevice(window_image(SIZE, bytes(SIZE)))
    counting = FaultyDevice(memory, "flush", 10**9)
    open_store(counting).window("w", in_place=True)
    opening = counting.counts["flush"]
    faulty = FaultyDevice(MemoryDevice(window_image(SIZE, bytes(SIZE))), "flush", opening + 1)
    store = open_store(faulty)
    window = store.window("w", in_place=True)
    window.write(0, b"text")
    with pytest.raises(DeviceError, match="injected"):
        store.put("b", b"new")
    for call in (window.flush, lambda: window.write(0, b"x"), window.close):
        with pytest.raises(PoisonedStoreError):
            call()
    store.close()


def test_c51_a_flush_of_a_put_makes_the_window_durable(device: RecordingDevice) -> None:
    store = open_store(device)
    window = store.window("w", in_place=True)
    window.write(0, b"text")
    store.put("b", b"new")
    device.log.clear()
    window.flush()
    assert not device.log
