"""Failing I/O: a clean error, nothing acknowledged lost, nothing written on uncertainty (C51).

Every operation of a scenario is run again for each n with the nth read, write or
flush failing, once or from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest

from blobstore.container.initialise import container_size, initialise
from blobstore.errors import DamagedHeadError, PoisonedStoreError
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, DeviceFullError, FormatError
from tests.support.devices import FaultyDevice, Operation, RecordingDevice
from tests.support.stores import Contents, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.store.store import Store

SPECS = [spec("a", 700, b"old a"), spec("b", 100, b"old b")]


def everything(store: Store) -> None:
    with store.transaction() as changes:
        changes.register("c", 300)
        changes.put("c", b"new c")
        changes.put("a", b"new a")
        changes.rename("a", "z")
        changes.resize("b", 500)


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("a", b"new a" * 100),
    "create": lambda store: store.register("c", 300),
    "resize": lambda store: store.register("a", 3000),
    "rename": lambda store: store.rename("a", "z"),
    "delete": lambda store: store.delete("a"),
    "compact": lambda store: store.compact(),
    "grow": lambda store: store.grow(60_000),
    "register beyond the end": lambda store: store.register("c", 30_000),
    "transaction": everything,
    "close": lambda store: store.close(),
    "verify": lambda store: store.verify(),
    "get": lambda store: store.get("a"),
}


def unclean(before: bytes) -> bytes:
    """Return the store with one more put and without a close."""
    device = MemoryDevice(before)
    open_store(device).put("b", b"unclean b")
    return bytes(device.content)


def torn(before: bytes) -> bytes:
    """Return the store with a put that only landed in part: there is something to recover."""
    device = RecordingDevice(before)
    open_store(device).put("a", b"torn a" * 100)
    content = bytearray(before)
    write = device.writes[0]
    content[write.offset : write.offset + 512] = write.data[:512]
    return bytes(content)


STARTS: dict[str, Callable[[bytes], bytes]] = {"clean": bytes, "unclean": unclean, "torn": torn}


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("kind", get_args(Operation))
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_failing_request(name: str, start: str, kind: Operation, persistent: bool) -> None:
    before = STARTS[start](image(SPECS, free=20_000))
    old = contents(open_store(before, read_only=True))
    new = _after(before, name)
    number = 0
    failures = 0
    while True:
        number += 1
        memory = MemoryDevice(before)
        device = FaultyDevice(memory, kind, number, persistent=persistent)
        acknowledged = _run(device, name)
        if not device.failed:
            break
        failures += 1
        found = contents(open_store(bytes(memory.content)))
        assert found in ([new] if acknowledged else [old, new])
    if kind in ("read", "flush"):
        assert failures


def _after(before: bytes, name: str) -> Contents:
    memory = MemoryDevice(before)
    store = open_store(memory)
    OPERATIONS[name](store)
    return contents(open_store(memory))


def _run(device: FaultyDevice, name: str) -> bool:
    """Run one operation; return whether it was acknowledged."""
    try:
        store = open_store(device)
    except (DeviceError, FormatError):
        # A header that cannot be read is tolerated, both are not.
        return False
    try:
        OPERATIONS[name](store)
    except (DeviceError, PoisonedStoreError, DamagedHeadError):
        # A head that cannot be read is damage (C43).
        return False
    return True


def _poisoned() -> tuple[Store, MemoryDevice, FaultyDevice]:
    memory = MemoryDevice(image(SPECS, free=20_000))
    device = FaultyDevice(memory, "flush", 2, persistent=True)
    store = open_store(device)
    with pytest.raises(DeviceError, match="injected"):
        store.put("a", b"new")
    return store, memory, device


def test_c51_a_poisoned_store_writes_nothing_more() -> None:
    store, memory, device = _poisoned()
    content = bytes(memory.content)
    counts = dict(device.counts)
    for change in (
        lambda: store.put("b", b"new"),
        lambda: store.register("c", 10),
        lambda: store.register("b", 5000),
    ):
        with pytest.raises(PoisonedStoreError):
            change()
    store.close()
    assert bytes(memory.content) == content
    assert (device.counts["write"], device.counts["flush"]) == (counts["write"], counts["flush"])


def test_c51_a_poisoned_store_reads_only_what_is_not_in_doubt() -> None:
    store, memory, _ = _poisoned()
    assert store.get("b") == b"old b"
    with pytest.raises(PoisonedStoreError):
        store.get("a")
    with pytest.raises(PoisonedStoreError):
        store.get("unknown")
    assert contents(open_store(memory))["a"] in (b"old a", b"new")


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_c51_the_same_bytes_are_written_again(kind: Operation) -> None:
    """One failure is survived, by repeating the write and the flush together."""
    memory = MemoryDevice(image(SPECS))
    device = FaultyDevice(memory, kind, 1 if kind == "write" else 2)
    store = open_store(device)
    assert device.counts["flush"] == 1
    store.put("a", b"new a")
    assert device.failed == 1
    assert device.counts["write"] == 2
    assert device.counts["flush"] == (2 if kind == "write" else 3)
    store.put("b", b"new b")
    store.close()
    assert contents(open_store(memory)) == {"a": b"new a", "b": b"new b"}


def test_c51_a_lone_flush_is_not_repeated() -> None:
    """The flush that starts recovery has written nothing that could be repeated."""
    memory = MemoryDevice(unclean(image(SPECS)))
    device = FaultyDevice(memory, "flush", 1)
    with pytest.raises(DeviceError, match="injected"):
        open_store(device)
    assert device.counts["flush"] == 1


@pytest.mark.parametrize("damaged", [0, 1])
def test_c58_the_damaged_header_copy_is_written_before_the_other(damaged: int) -> None:
    """So the only good one is never at risk."""
    content = bytearray(unclean(image(SPECS)))
    content[damaged * 512 + 100] ^= 1
    device = RecordingDevice(bytes(content))
    store = open_store(device)
    written = [write.offset // 512 for write in device.writes if write.offset < 1024]
    assert written[:2] == [damaged, 1 - damaged]
    store.put("a", b"new a")
    store.close()
    assert contents(open_store(device.content)) == {"a": b"new a", "b": b"unclean b"}


def test_a_full_disk_is_named_and_loses_nothing() -> None:
    memory = MemoryDevice(image(SPECS))
    store = open_store(FaultyDevice(memory, "write", 1, persistent=True, error=DeviceFullError))
    with pytest.raises(DeviceFullError):
        store.put("a", b"new")
    store.close()
    assert contents(open_store(memory))["a"] in (b"old a", b"new")
    assert contents(open_store(memory))["b"] == b"old b"


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_c59_initialise_fails_cleanly_at_every_request(kind: Operation) -> None:
    size = container_size(SPECS, block_size=512)
    for number in range(1, 20):
        memory = MemoryDevice(size)
        device = FaultyDevice(memory, kind, number, persistent=True)
        try:
            initialise(device, SPECS, encrypted=True, block_size=512)
        except DeviceError:
            try:
                found = contents(open_store(memory))
            except FormatError:
                continue
            assert found == {"a": b"old a", "b": b"old b"}
        else:
            assert not device.failed
            assert number > 3
            return
    pytest.fail("initialise never succeeded")
