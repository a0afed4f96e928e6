"""Crashes, failing devices and interrupts in the middle of what programs do with files.

Whatever they leave, each file has what one commit left, old or new (M10, M11, M20, M21).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from blobstore.errors import PoisonedStoreError
from blobstore.mount.settings import Layout
from formats.devices.device import MemoryDevice
from tests.support.devices import FaultyDevice, Operation, RecordingDevice, crash_states
from tests.support.interrupts import InterruptPoints
from tests.support.mounts import Programs
from tests.support.stores import Contents, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable


SPECS = [spec("a", 1500, b"old a" * 100), spec("b", 700, b"old b")]
OLD: Contents = {"a": b"old a" * 100, "b": b"old b"}
NEW = b"new" * 400


def save(programs: Programs) -> None:
    programs.save("a", NEW)


def save_with_fsync(programs: Programs) -> None:
    handle = programs.open("a", os.O_WRONLY)
    programs.tree.truncate(handle.file, 0, handle, 1)
    programs.write(handle, NEW)
    programs.tree.fsync(handle)
    programs.close(handle)


def save_in_pieces(programs: Programs) -> None:
    handle = programs.create("a")
    for offset in range(0, len(NEW), 300):
        programs.write(handle, NEW[offset : offset + 300], offset)
    programs.close(handle)


def save_new(programs: Programs) -> None:
    programs.save("c", NEW)


def outgrow(programs: Programs) -> None:
    programs.save("b", NEW)


def replace(programs: Programs) -> None:
    programs.replace("a", NEW)


def replace_section(programs: Programs) -> None:
    programs.tree.rename("a", "b", 0)


def rename_draft(programs: Programs) -> None:
    handle = programs.open("a", os.O_WRONLY | os.O_TRUNC)
    programs.write(handle, NEW)
    programs.tree.rename("a", "c", 0)
    programs.close(handle)


def remove(programs: Programs) -> None:
    programs.tree.unlink("a")


#: What programs do, and what there is then.
OPERATIONS: dict[str, tuple[Callable[[Programs], None], Contents]] = {
    "save": (save, {**OLD, "a": NEW}),
    "save with fsync": (save_with_fsync, {**OLD, "a": NEW}),
    "save in pieces": (save_in_pieces, {**OLD, "a": NEW}),
    "save new": (save_new, {**OLD, "c": NEW}),
    "outgrow": (outgrow, {**OLD, "b": NEW}),
    "replace": (replace, {**OLD, "a": NEW}),
    "replace section": (replace_section, {"b": OLD["a"]}),
    "rename draft": (rename_draft, {"b": OLD["b"], "c": NEW}),
    "remove": (remove, {"b": OLD["b"]}),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_m10_m11_m20_m21_a_crash_leaves_the_old_or_the_new_file(name: str) -> None:
    operation, new = OPERATIONS[name]
    device = RecordingDevice(image(SPECS, free=4 << 17))
    store = open_store(device)
    operation(Programs(store, new_file=1024))
    device.mark("returned")
    assert contents(store) == new
    count = 0
    for state in crash_states(device.before, device.log, exhaustive=6, samples=24):
        count += 1
        found = open_store(state.content)
        assert contents(found) in ([new] if state.marks else [OLD, new])
        assert found.verify().ok
    assert count >= 10


@pytest.mark.parametrize("way", ["fsync", "backup"])
def test_m3_m20_swtpm_finds_a_whole_state_after_each_crash(way: str) -> None:
    """As newer versions of swtpm write: with fsync, or with the state before as a backup."""
    device = RecordingDevice(image([], free=4 << 20))
    programs = Programs(open_store(device), layout=Layout.SWTPM)
    name, states = "tpm2-00.permall", [b"%d" % number * 3000 for number in range(4)]
    programs.save(name, states[0])
    device.before, device.log = device.content, []
    for number, state in enumerate(states[1:], 1):
        if way == "backup":
            programs.tree.rename(name, f"{name}.bak", 0)
        handle = programs.create(name if way == "backup" else "TMP2-00.permall")
        programs.write(handle, state)
        programs.tree.fsync(handle)
        programs.close(handle)
        if way == "fsync":
            programs.tree.rename("TMP2-00.permall", name, 0)
        device.mark(number)
    for crash in crash_states(device.before, device.log, exhaustive=4, samples=6):
        found = Programs(open_store(crash.content), layout=Layout.SWTPM)
        last = len(crash.marks)
        newest = name if name in found.names() else f"{name}.bak"
        assert found.read(newest) in states[last : last + 2]


@pytest.mark.parametrize("kind", ["read", "write", "flush"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_m11_a_device_that_fails_leaves_the_old_or_the_new_file(name: str, kind: Operation) -> None:
    operation, new = OPERATIONS[name]
    before = image(SPECS, free=4 << 17)
    for number in range(1, 100):
        memory = MemoryDevice(before)
        device = FaultyDevice(memory, kind, 10**9)
        programs = Programs(open_store(device), new_file=1024)
        device.arm(number)
        told = False
        try:
            operation(programs)
        except OSError:
            told = True
        found = contents(open_store(bytes(memory.content)))
        assert found in ([OLD, new] if told or device.failed else [new])
        if not device.failed:
            assert not told
            break
    else:
        pytest.fail("it uses the device too often")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["save", "replace", "replace section", "rename draft"])
def test_m11_an_interrupt_leaves_the_old_or_the_new_file(name: str) -> None:
    operation, new = OPERATIONS[name]
    before = image(SPECS, free=4 << 17)

    def begun(device: MemoryDevice) -> Programs:
        return Programs(open_store(device), new_file=1024)

    operation(begun(MemoryDevice(before)))  # what is imported now is not imported later
    programs = begun(MemoryDevice(before))
    points = InterruptPoints(lambda: operation(programs))
    for point in points.chosen(100):
        device = MemoryDevice(before)
        programs = begun(device)
        with points.interrupted_at(point), pytest.raises(KeyboardInterrupt):
            operation(programs)
        assert contents(open_store(bytes(device.content))) in (OLD, new)
        with contextlib.suppress(PoisonedStoreError):  # or it is known in this process, too
            assert contents(programs.store) in (OLD, new)
