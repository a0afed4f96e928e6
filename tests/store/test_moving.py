"""A store that gets another key while its windows are open, cut short anywhere: O213."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, get_args

import pytest

from blobstore.container.protection import finish_change
from blobstore.store.moving import protect
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, StorageError
from tests.support.devices import FaultyDevice, Operation
from tests.support.interrupts import InterruptPoints
from tests.support.stores import CORRUPT, contents, image, open_store, spec

if TYPE_CHECKING:
    from blobstore.store.store import Store
    from blobstore.store.windows.window import Window
    from formats.devices.device import BlockDevice

SPECS = [spec("a", 900, b"old a"), spec("buffered", 1024), spec("direct", 1024)]


def start() -> bytes:
    device = MemoryDevice(image(SPECS[:1], free=32 << 10, encrypted=True))
    with open_store(device) as store:
        store.put("a", b"newer a")
        for name in ("buffered", "direct"):
            store.register(name, 1024, "window")
    return bytes(device.content)


def opened(device: BlockDevice, stack: ExitStack) -> tuple[Store, Window, Window]:
    store = open_store(device)
    stack.callback(lambda: closed(store))
    return store, store.window("buffered"), store.window("direct", in_place=True)


def closed(store: Store) -> None:
    with contextlib.suppress(StorageError, ValueError):
        store.close()


def test_o213_windows_go_on_under_another_key() -> None:
    memory = MemoryDevice(start())
    with ExitStack() as stack:
        store, buffered, direct = opened(memory, stack)
        buffered.write(0, b"before")
        direct.write(0, b"before")
        with store.changes() as watch:
            generation = next(watch).generation
            before = store.session.container
            protect(store.session, encrypted=True)
            assert store.session.container is before
            buffered.write(100, b"after")
            direct.write(100, b"after")
            assert store.put("a", b"newest a") > generation
        buffered.flush()
        direct.flush()
        store.put("a", b"newest of all")
    store = open_store(memory)
    assert store.get("a") == b"newest of all"
    for name in ("buffered", "direct"):
        blob = store.get(name)
        assert (blob[:6], blob[100:105]) == (b"before", b"after")
    assert store.verify().ok


def used(store: Store) -> None:
    """Do what comes after a change that was cut short: it works, or says why not."""
    with contextlib.suppress(StorageError, ValueError):
        store.put("a", b"afterwards")


def sound(memory: MemoryDevice) -> None:
    finish_change(memory)
    store = open_store(bytes(memory.content))
    found = contents(store)
    assert found["a"] in (b"newer a", b"afterwards")
    # It was being written in place, and may be so still (C62).
    assert store.verify().ok or found["direct"] == CORRUPT
    store.put("a", b"and on")
    assert store.get("a") == b"and on"


def test_o213_an_interrupt_at_any_bytecode_leaves_a_store_that_goes_on() -> None:
    content = start()
    memory = MemoryDevice(content)
    with ExitStack() as stack:
        store, *_ = opened(memory, stack)
        points = InterruptPoints(lambda: protect(store.session, encrypted=True))
    for point in points.chosen(40):
        memory = MemoryDevice(content)
        with ExitStack() as stack:
            store, buffered, _ = opened(memory, stack)
            with contextlib.suppress(KeyboardInterrupt), points.interrupted_at(point):
                protect(store.session, encrypted=True)
            used(store)
            assert store.get("a") == b"afterwards", f"interrupted at bytecode {point}"
            # A window that does not know what became of the store writes nothing more.
            with contextlib.suppress(StorageError, ValueError):
                buffered.write(0, b"x")
                buffered.flush()
        sound(memory)


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("kind", [one for one in get_args(Operation) if one != "resize"])
def test_o213_every_failing_request(kind: Operation, persistent: bool) -> None:
    content = start()
    number = 0
    while True:
        number += 1
        memory = MemoryDevice(content)
        device = FaultyDevice(memory, kind, 1 << 30, persistent=persistent)
        with ExitStack() as stack:
            store, *_ = opened(device, stack)
            device.arm(number)
            with contextlib.suppress(StorageError):
                protect(store.session, encrypted=True)
            failed = device.failed
            used(store)
            if failed and not persistent:
                assert store.get("a") in (b"newer a", b"afterwards")
        sound(memory)
        if not failed:
            break
    assert number > 3


def test_o212_an_error_before_anything_was_changed_leaves_everything_open() -> None:
    memory = MemoryDevice(start())
    device = FaultyDevice(memory, "read", 1 << 30)
    with ExitStack() as stack:
        store, buffered, _ = opened(device, stack)
        device.arm(1)
        with pytest.raises(DeviceError, match="injected"):
            protect(store.session, encrypted=True)
        buffered.write(0, b"goes on")
        buffered.flush()
        assert store.put("a", b"on")
        assert store.get("buffered")[:7] == b"goes on"
