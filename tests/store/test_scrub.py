"""Scrub renews both copies and wipes what is not used; no blob changes (C78, C79)."""

from __future__ import annotations

from contextlib import suppress

import pytest

from blobstore.container.open_container import open_container
from blobstore.container.scan import scan
from blobstore.errors import DamagedHeadError, PoisonedStoreError
from formats.container.model import HEAD_SIZE
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, FormatError
from tests.support.devices import FaultyDevice, Operation, RecordingDevice, crash_states
from tests.support.stores import CORRUPT, contents, image, open_store, spec

SECRET = b"an old secret, long gone"
SPECS = [
    spec("a", 9000),
    spec("unwritten", 600),
    spec("p", 6000, b"p" * 900, copies=1),
    spec("gone", 700),
]


def used(*, block_size: int = 512) -> bytes:
    """Return a killed store with old secrets in older copies, rooms and free space."""
    device = MemoryDevice(image(SPECS, free=16384, block_size=block_size))
    store = open_store(device)
    for name, times in (("a", 300), ("a", 290), ("p", 240), ("gone", 20), ("gone", 20)):
        store.put(name, SECRET * times)
    store.put("a", b"new a")
    store.put("p", b"new p")
    store.delete("gone")
    store.put("a", b"newest a" * 70)
    return bytes(device.content)


@pytest.mark.parametrize("block_size", [512, 4096])
def test_c78_nothing_old_is_left_and_both_copies_are_new(block_size: int) -> None:
    content = used(block_size=block_size)
    assert content.count(SECRET) > 100
    device = MemoryDevice(content)
    store = open_store(device)
    truth = contents(store)
    calls: list[tuple[int, int]] = []
    done = store.scrub(lambda number, total: calls.append((number, total)))
    assert (done.rewritten, done.skipped) == (3, ())
    assert done.wiped > 1000
    assert contents(store) == truth
    assert store.get("a", previous=True) == truth["a"]
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
    assert store.verify().ok
    store.close()
    assert bytes(device.content).count(SECRET) == 0
    for region in open_store(device, read_only=True).regions():
        if "room" in region.use:
            assert not any(device.content[region.offset : region.offset + region.size])
    assert contents(open_store(device)) == truth
    # What is blank already is not written again.
    again = open_store(device)
    assert again.scrub().wiped == 0


def test_c78_an_older_copy_that_does_not_verify_is_renewed() -> None:
    bad = bytearray(used())
    older = open_container(MemoryDevice(bad)).directory.sections["a"].older
    bad[older.offset + HEAD_SIZE] ^= 1
    store = open_store(MemoryDevice(bad))
    assert store.verify().notes
    store.scrub()
    assert not store.verify().notes


def test_c78_a_corrupt_section_is_left_alone_and_named() -> None:
    device = MemoryDevice(used())
    open_store(device).close()
    newest = open_container(device).directory.sections["a"].newest
    device.content[newest.offset + HEAD_SIZE] ^= 1
    store = open_store(device)
    previous = store.get("a", previous=True)
    done = store.scrub()
    assert [problem.name for problem in done.skipped] == ["a"]
    assert done.rewritten == 2
    assert contents(store)["a"] == CORRUPT
    assert store.get("a", previous=True) == previous


def test_c61_a_store_with_a_damaged_head_is_not_scrubbed() -> None:
    device = MemoryDevice(used())
    offset, _ = scan(device).items[0]
    device.content[offset : offset + HEAD_SIZE] = bytes(HEAD_SIZE)
    content = bytes(device.content)
    with pytest.raises(DamagedHeadError):
        open_store(device).scrub()
    assert bytes(device.content) == content


def test_c78_scrub_can_crash_anywhere() -> None:
    before = used()
    truth = contents(open_store(before, read_only=True))
    device = RecordingDevice(before)
    store = open_store(device)
    store.scrub()
    store.close()
    states = 0
    for crash in crash_states(before, device.log, exhaustive=5, samples=12):
        states += 1
        store = open_store(crash.content)
        assert contents(store) == truth
        assert store.verify().ok
    assert states > 150


@pytest.mark.parametrize("kind", ["read", "write", "flush"])
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for ever"])
def test_c79_scrub_fails_cleanly_at_every_request(kind: Operation, persistent: bool) -> None:
    before = used()
    truth = contents(open_store(before, read_only=True))
    number = failures = 0
    while True:
        number += 1
        memory = MemoryDevice(before)
        device = FaultyDevice(memory, kind, number, persistent=persistent)
        # A head that cannot be read is damage (C43).
        with suppress(DeviceError, FormatError, PoisonedStoreError, DamagedHeadError):
            open_store(device).scrub()
        if not device.failed:
            break
        failures += 1
        assert contents(open_store(bytes(memory.content))) == truth
    assert failures > 5
