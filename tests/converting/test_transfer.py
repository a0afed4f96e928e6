"""A store that moves to another payload stays the same store, with a key of its own."""

from __future__ import annotations

from contextlib import suppress

import pytest

from blobstore.container.open_container import open_container
from blobstore.container.scan import scan
from blobstore.container.verification import verify
from blobstore.copies.convert_store import transfer
from blobstore.errors import CorruptBlobError, DamagedHeadError, StoreError
from formats.container.model import HEAD_SIZE, Authentication, State
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, FormatError
from tests.support.devices import FaultyDevice, Flush, Operation, RecordingDevice, crash_states
from tests.support.stores import CORRUPT, contents, image, open_store, spec

SPECS = [
    spec("a", 9000),
    spec("unwritten", 600),
    spec("p", 6000, b"p" * 900, copies=1),
    spec("gone", 700),
]


def used(*, encrypted: bool, block_size: int = 512, close: bool = False) -> bytes:
    """Return a store with older blobs, free items and, unless closed, a commit in doubt."""
    device = MemoryDevice(image(SPECS, free=16384, block_size=block_size, encrypted=encrypted))
    store = open_store(device)
    store.put("a", b"one" * 1000)
    store.put("gone", b"gone")
    store.delete("gone")
    store.put("p", b"new p")
    store.put("a", b"two" * 500)
    if close:
        store.close()
    return bytes(device.content)


def carried(content: bytes, *, encrypted: bool) -> MemoryDevice:
    target = MemoryDevice(len(content))
    transfer(open_container(MemoryDevice(content)), target, encrypted=encrypted, blank=True)
    return target


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_c80_everything_stays_but_key_and_flag(
    before: bool, after: bool, close: bool, block_size: int
) -> None:
    content = used(encrypted=before, block_size=block_size, close=close)
    old, target = open_store(content), carried(content, encrypted=after)
    found = scan(target)
    assert found.header.encrypted is after
    expected = Authentication.HMAC_SHA256 if after else Authentication.SHA256
    assert found.header.authentication is expected
    assert bool(found.header.key) is after
    assert not after or found.header.key not in content
    assert found.header.store_id == scan(MemoryDevice(content)).header.store_id
    report = verify(open_container(target))
    assert not report.problems
    assert not report.notes
    assert report.closed
    new = open_store(target)
    assert contents(new) == contents(old)
    assert new.sections() == old.sections()
    assert new.digest().generation == old.digest().generation
    assert new.get("a", previous=True) == old.get("a", previous=True) == b"one" * 1000
    new.put("a", b"three")
    new.register("more", 3000)
    new.close()
    assert open_store(target).get("a") == b"three"


def test_c80_a_torn_newest_commit_is_left_behind() -> None:
    device = RecordingDevice(used(encrypted=False))
    open_store(device).put("a", b"torn" * 2000)
    [write] = device.writes[-1:]
    content = bytearray(device.content)
    content[write.offset + 4096] ^= 1
    old = open_store(bytes(content), read_only=True)
    new = open_store(carried(bytes(content), encrypted=True))
    assert contents(new) == contents(old)
    assert new.get("a") == b"two" * 500
    assert new.verify().ok


def test_c80_an_older_blob_that_does_not_verify_is_left_behind() -> None:
    content = bytearray(used(encrypted=True, close=True))
    older = open_container(MemoryDevice(content)).directory.sections["a"].older
    content[older.offset + HEAD_SIZE] ^= 1
    target = carried(bytes(content), encrypted=True)
    section = open_container(target).directory.sections["a"]
    assert section.older.version.state is State.VOID
    assert open_store(target).get("a") == b"two" * 500
    assert not verify(open_container(target)).notes


def test_c80_a_newest_blob_that_does_not_verify_ends_it() -> None:
    content = bytearray(used(encrypted=True, close=True))
    newest = open_container(MemoryDevice(content)).directory.sections["a"].newest
    content[newest.offset + HEAD_SIZE] ^= 1
    target = MemoryDevice(len(content))
    with pytest.raises(CorruptBlobError, match=r"'a' is corrupt.*C23"):
        transfer(open_container(MemoryDevice(content)), target, encrypted=False)
    with pytest.raises(FormatError):
        open_container(target)


def test_c80_a_damaged_head_ends_it() -> None:
    content = bytearray(used(encrypted=True, close=True))
    offset, _ = scan(MemoryDevice(content)).items[0]
    truth = contents(open_store(bytes(content), read_only=True))
    content[offset + 100] ^= 1  # which its check proves (C67)
    target = MemoryDevice(len(content))
    transfer(open_container(MemoryDevice(content)), target, encrypted=True)
    assert contents(open_store(target, read_only=True)) == truth
    assert verify(open_container(target)).ok
    content[offset : offset + HEAD_SIZE] = bytes(HEAD_SIZE)
    with pytest.raises(DamagedHeadError):
        transfer(open_container(MemoryDevice(content)), MemoryDevice(len(content)), encrypted=True)


def test_c80_an_unverified_window_stays_one() -> None:
    device = MemoryDevice(image([spec("w", 4096, kind=1)], free=8192))
    store = open_store(device)
    window = store.window("w", in_place=True)
    window.write(100, b"in the middle of it")
    window.flush()
    content = bytes(device.content)
    target = carried(content, encrypted=False)
    old, new = (open_container(MemoryDevice(bytes(c))) for c in (content, target.content))
    assert [
        (problem.message, problem.name, problem.offset) for problem in verify(old).problems
    ] == [(problem.message, problem.name, problem.offset) for problem in verify(new).problems]
    with open_store(target).window("w", accept_unverified=True) as again:
        assert again.read(100, 19) == b"in the middle of it"


@pytest.mark.parametrize("blank", [False, True])
def test_c81_there_is_no_store_until_the_last_write(blank: bool) -> None:
    source = used(encrypted=True)
    truth = contents(open_store(source, read_only=True))
    # What lies there is of the same store, by the same (hash) key: the worst case.
    before = bytes(len(source))
    old = None
    if not blank:
        device = carried(source, encrypted=False)
        with open_store(device) as earlier:
            earlier.put("a", b"what lay there")
        before, old = bytes(device.content), contents(open_store(device))
    target = RecordingDevice(before)
    transfer(open_container(MemoryDevice(source)), target, encrypted=False, blank=blank)
    states = finished = 0
    for crash in crash_states(before, target.log, exhaustive=4, samples=12):
        states += 1
        try:
            store = open_store(crash.content, read_only=True)
        except FormatError:
            continue
        found = contents(store)
        if found == truth:
            finished += 1
            assert all("header copy 0" in p.message for p in store.verify().problems)
        else:
            # Its header is half gone, or all of it is there; nothing reads as anything else.
            assert old is not None
            assert all(blob in (old[name], CORRUPT) for name, blob in found.items())
            assert not any(isinstance(event, Flush) for event in target.log[: crash.point])
    assert states > 100
    assert finished >= 2


def test_c81_nothing_of_what_lay_there_is_left() -> None:
    source = used(encrypted=True)
    target = MemoryDevice(b"\xa5" * len(source))
    transfer(open_container(MemoryDevice(source)), target, encrypted=False)
    for region in open_store(target, read_only=True).regions():
        if "room" in region.use or "free" in region.use:
            tail = target.content[region.offset + HEAD_SIZE : region.offset + region.size]
            assert b"\xa5" not in tail


@pytest.mark.parametrize("operation", ["read", "write", "flush"])
def test_c81_a_failing_device_leaves_no_half_of_a_store(operation: Operation) -> None:
    source = used(encrypted=True)
    truth = contents(open_store(source, read_only=True))
    for number in range(1, 60):
        target = MemoryDevice(len(source))
        memory = MemoryDevice(source)
        container = open_container(memory)
        faulty = FaultyDevice(
            memory if operation == "read" else target, operation, number, persistent=True
        )
        if operation == "read":
            container.device = faulty
        try:
            transfer(
                container,
                target if operation == "read" else faulty,
                encrypted=False,
                blank=True,
            )
        except (DeviceError, StoreError):
            with suppress(FormatError):
                assert contents(open_store(target, read_only=True)) == truth
        else:
            assert not faulty.failed
            break
    else:
        pytest.fail("it never got through")


def test_progress_ends_at_the_end() -> None:
    calls: list[tuple[int, int]] = []
    source = open_container(MemoryDevice(used(encrypted=True)))
    for blank in (False, True):
        calls.clear()
        target = MemoryDevice(source.device.size)
        transfer(
            source, target, encrypted=True, blank=blank, progress=lambda *call: calls.append(call)
        )
        assert calls == sorted(calls)
        assert calls[-1][0] == calls[-1][1] > 4500
