"""A Ctrl-C at every bytecode of whatever writes an image. Q26.

Afterwards the image is sound and has what was acknowledged. Who goes on with the open device
changes it, or is told to open it again; a flush that succeeds then covers all that was
written before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import pytest

from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options
from formats.qcow2.header import read_header
from formats.qcow2.host import Host
from formats.qcow2.opening import BackingFile, open_image
from formats.qcow2.preallocation import preallocate
from formats.qcow2.repair import repair
from formats.qcow2.snapshots import (
    apply_snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
)
from tests.qcow2.support import new_image, qemu_check
from tests.support.interrupts import InterruptPoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from formats.devices.device import BlockDevice, WritableBuffer
    from formats.qcow2.device import Qcow2Device

    Interrupt = AbstractContextManager[object]

SIZE = 96 << 10
#: In the disk, and in every snapshot, before and after everything.
KEPT = range(30_000, 31_744)
#: What the interrupted call writes to, in two tables where clusters are small.
AIM = range(31_744, 34_816)
#: What was written before it, and not flushed.
WAITING = range(35_000, 36_000)
#: What is written after it.
LATER = range(40_000, 41_000)
#: Points of each call, unless all are asked for.
SAMPLE = 12

OPTIONS = {
    "512": Qcow2Options(cluster_size=512, refcount_bits=64),
    "version 2": Qcow2Options(version=2, cluster_size=1024),
    "backing": Qcow2Options(cluster_size=512, backing_name="base", backing_format="raw"),
}


@dataclass(frozen=True)
class Call:
    """A call that writes, of an open disk or of the device that holds a closed one."""

    run: Callable[[Any], object]
    waiting: bool = False
    discarded: bool = False
    closed: bool = False
    start: str = "sound"


def write(disk: Qcow2Device) -> None:
    disk.write(AIM.start, b"N" * len(AIM))


def discard(disk: Qcow2Device) -> None:
    disk.discard(AIM.start, len(AIM))


def snapshot(change: Callable[..., object], *name: str) -> Callable[[Qcow2Device], object]:
    return lambda disk: disk.rewrite(lambda device: change(device, *name))


CALLS: dict[str, Call] = {
    "write": Call(write),
    "write after others": Call(write, waiting=True),
    "write in place": Call(lambda disk: disk.write(AIM.start, b"N" * 700)),
    "write until a table moves": Call(write, start="large"),
    "flush": Call(lambda disk: disk.flush(), waiting=True),
    "flush a discard": Call(lambda disk: disk.flush(), waiting=True, discarded=True),
    "flush nothing": Call(lambda disk: disk.flush()),
    "discard": Call(discard),
    "discard after others": Call(discard, waiting=True),
    "grow": Call(lambda disk: disk.resize(SIZE * 40), waiting=True),
    "shrink": Call(lambda disk: disk.resize(80 << 10), waiting=True),
    "preallocate": Call(preallocate),
    "create a snapshot": Call(snapshot(create_snapshot, "new"), waiting=True),
    "apply a snapshot": Call(snapshot(apply_snapshot, "one")),
    "delete a snapshot": Call(snapshot(delete_snapshot, "one"), waiting=True),
    "close": Call(lambda disk: disk.close(), waiting=True),
    "create one in a closed image": Call(lambda file: create_snapshot(file, "new"), closed=True),
    "apply one": Call(lambda file: apply_snapshot(file, "one"), closed=True),
    "delete one": Call(lambda file: delete_snapshot(file, "one"), closed=True),
    "repair": Call(lambda file: repair(file, leaks_only=False), closed=True, start="damaged"),
    "free leaks": Call(lambda file: repair(file, leaks_only=True), closed=True, start="leaking"),
}


@cache
def prepared(way: str, start: str) -> bytes:
    options = OPTIONS[way]
    image = new_image(4 << 20 if start == "large" else SIZE, options)
    with opened(image) as disk:
        disk.write(KEPT.start, b"K" * len(KEPT))
        disk.write(AIM.start, b"A" * 600)
    for name in ("one", "two"):
        create_snapshot(image, name, when=1)
    with opened(image) as disk:
        disk.write(AIM.start + 512, b"A" * 500)
        at = SIZE
        while start == "large" and image.size < _reach(image) - 2 * options.cluster_size:
            disk.write(at, b"x" * 512)
            at += 512
    header, host = read_header(image), Host(image)
    width = header.refcount_bits // 8
    if start in ("damaged", "leaking"):
        image.resize(image.size + 3 * header.cluster_size)
        for cluster in range(image.size // header.cluster_size)[-3:]:
            region, index = divmod(cluster, header.cluster_size // width)
            block = host.read_table(header.refcount_table_offset, region + 1)[region]
            image.write(block + index * width, (1).to_bytes(width))
    if start == "damaged":
        block = host.read_table(header.refcount_table_offset, 1)[0]
        image.write(block + (header.l1_offset // header.cluster_size) * width, bytes(width))
    return bytes(image.content)


def _reach(image: MemoryDevice) -> int:
    """Return how large an image can become with the refcount table that it has."""
    header = read_header(image)
    entries = header.refcount_table_clusters * header.cluster_size // 8
    return entries * header.cluster_size * 8 // header.refcount_bits * header.cluster_size


def opened(
    image: BlockDevice, *, read_only: bool = False, snapshot: str | None = None
) -> Qcow2Device:
    def open_backing(backing: BackingFile, referrer: BlockDevice, /) -> BlockDevice:
        del backing, referrer
        return MemoryDevice(b"Z" * SIZE)

    return open_image(image, read_only=read_only, snapshot=snapshot, open_backing=open_backing)


def assert_sound(image: MemoryDevice, *acknowledged: tuple[range, bytes]) -> None:
    disk = sound_disk(bytes(image.content))
    for place, data in acknowledged:
        assert disk[place.start : place.stop] == data * len(place)


@lru_cache(64)  # interrupts at neighbouring points leave the same
def sound_disk(content: bytes) -> bytes:
    """Check an image and its snapshots; return the first bytes of its disk."""
    image = MemoryDevice(content)
    report = check(image)
    assert not report.corruptions, report.findings
    found = b""
    for name in (*(one.name for one in list_snapshots(image)), None):
        with opened(image, read_only=True, snapshot=name) as disk:
            found = disk.read(0, LATER.stop)
        assert found[KEPT.start : KEPT.stop] == b"K" * len(KEPT), name
        assert set(found[AIM.start : AIM.stop]) <= set(b"ANZ\0"), name
    return found


def check_closed(call: Call, image: MemoryDevice) -> None:
    if call.start == "sound":
        assert_sound(image)
    else:
        repair(image, leaks_only=False)


def begun(call: Call, image: MemoryDevice) -> Qcow2Device:
    disk = opened(image)
    if call.discarded:
        discard(disk)
    if call.waiting:
        disk.write(WAITING.start, b"W" * len(WAITING))
    return disk


def interrupt_open(call: Call, image: MemoryDevice, interrupt: Interrupt) -> bool:
    """Return whether the device that was open could go on."""
    disk = begun(call, image)
    with interrupt, pytest.raises(KeyboardInterrupt):
        call.run(disk)
    acknowledged = [(LATER, b"L")]
    if call.waiting:
        acknowledged.append((WAITING, b"W"))
    try:
        assert disk.read(KEPT.start, len(KEPT)) == b"K" * len(KEPT)
        disk.write(LATER.start, b"L" * len(LATER))
        disk.flush()
        for place, data in acknowledged:
            assert disk.read(place.start, len(place)) == data * len(place)
        assert_sound(image, *acknowledged)
        disk.write(AIM.start, b"N")
        disk.close()
    except DeviceError as error:
        refused = error
        assert_sound(image)
        try:
            disk.close()
        except DeviceError:
            pass
        else:
            assert_sound(image, *acknowledged[1:])  # nothing was waiting any more
    except ValueError:
        assert disk._closed  # by the call
        assert_sound(image, *acknowledged[1:])
        return False
    else:
        assert_sound(image, *acknowledged)
        return True
    assert "open the image again" in (refused.hint or "")
    return False


@pytest.mark.parametrize(
    ("way", "name"),
    # Version 2 with snapshots keeps its size (Q21); with a backing file nothing is preallocated;
    # with refcounts of 16 bits the table reaches far.
    sorted(
        {(way, name) for way in OPTIONS for name in CALLS}
        - {("version 2", "grow"), ("version 2", "shrink"), ("backing", "preallocate")}
        - {(way, "write until a table moves") for way in ("version 2", "backing")}
    ),
)
def test_an_interrupt_at_any_bytecode_loses_and_falsifies_nothing_q26(
    way: str, name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    call = CALLS[name]
    start = prepared(way, call.start)
    image = MemoryDevice(start)
    header = read_header(image)
    target: Any = image if call.closed else begun(call, image)
    points = InterruptPoints(lambda: call.run(target))
    if call.start == "large":
        target.close()
        assert read_header(image).refcount_table_offset != header.refcount_table_offset
    (tmp_path / "base").write_bytes(b"Z" * SIZE)
    went_on = checked = 0
    chosen = points.chosen(SAMPLE)
    seen: set[bytes] = set()
    for point in chosen:
        image = MemoryDevice(start)
        interrupt = points.interrupted_at(point)
        if call.closed:
            with interrupt, pytest.raises(KeyboardInterrupt):
                call.run(image)
            went_on += 1
            # Nothing but the image is left of the call.
            if (content := bytes(image.content)) in seen:
                continue
            seen.add(content)
            check_closed(call, image)
        else:
            went_on += interrupt_open(call, image, interrupt)
        with opened(image) as disk:
            disk.write(LATER.start, b"L" * len(LATER))
        assert_sound(image, (LATER, b"L"))
        checked += 1
        if checked % 15 == 1:
            path = tmp_path / "image"
            path.write_bytes(image.content)
            assert not qemu_check(path).get("corruptions", 0)
    assert went_on or (call.waiting and name in ("write after others", "discard after others"))
    record_property("points", f"{len(chosen)} of {points}, {went_on} went on")
    print(f"{way}, {name}: {len(chosen)} of {points}, {went_on} went on")


def test_a_change_of_the_whole_whose_outcome_cannot_be_read_is_in_doubt_q26() -> None:
    """The image has other tables then, and memory those of before: nothing is written by them."""

    class Device(MemoryDevice):
        fails = False

        def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
            if self.fails:
                self.fails = False
                raise DeviceError("cannot be read just now")
            super().read_into(offset, buffer)

    memory = Device(prepared("512", "sound"))
    disk = opened(memory)

    def change(file: BlockDevice) -> None:
        apply_snapshot(file, "one")
        memory.fails = True

    with pytest.raises(DeviceError):
        disk.rewrite(change)
    disk.write(LATER.start, b"L" * len(LATER))
    disk.write(AIM.start, b"N" * len(AIM))
    disk.close()
    assert_sound(memory, (LATER, b"L"), (AIM, b"N"))
