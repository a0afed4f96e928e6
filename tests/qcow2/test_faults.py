"""The device below fails, once or for good: clean errors, and an image that stays sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, DeviceFullError
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.opening import open_image
from formats.qcow2.snapshots import (
    apply_snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
)
from tests.qcow2.support import content, new_image
from tests.support.devices import FaultyDevice

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import BlockDevice
    from formats.qcow2.device import Qcow2Device
    from tests.support.devices import Operation

SIZE = 200 << 10
OPTIONS = [Qcow2Options(cluster_size=512, refcount_bits=64), Qcow2Options(cluster_size=4096)]
OPERATIONS: tuple[Operation, ...] = ("read", "write", "flush", "resize")


def prepared(options: Qcow2Options) -> bytes:
    image = new_image(SIZE, options)
    with open_image(image, read_only=False) as disk:
        disk.write(10_000, b"A" * 50_000)
    create_snapshot(image, "kept", when=1)
    return bytes(image.content)


BEFORE = (bytes(10_000) + b"A" * 50_000).ljust(SIZE, b"\0")
#: The content of the disk after each step.
STEPS: list[tuple[Callable[[Qcow2Device], None], bytes]] = []


def step(after: bytes) -> Callable[[Callable[[Qcow2Device], None]], None]:
    return lambda function: STEPS.append((function, after))


@step(BEFORE[:20_000] + b"B" * 70_000 + BEFORE[90_000:])
def _write(disk: Qcow2Device) -> None:
    disk.write(20_000, b"B" * 70_000)
    disk.flush()


@step(BEFORE[:20_000] + b"B" * 20_480 + bytes(40_960) + b"B" * 8560 + BEFORE[90_000:])
def _discard(disk: Qcow2Device) -> None:
    disk.discard(40_480, 40_960)
    disk.flush()


@step(b"C" * SIZE)
def _write_all(disk: Qcow2Device) -> None:
    disk.write(0, b"C" * SIZE)
    disk.flush()


@pytest.mark.parametrize("options", OPTIONS, ids=["512", "4096"])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_failure_is_reported_and_loses_nothing(
    operation: Operation, persistent: bool, options: Qcow2Options
) -> None:
    """Q16"""
    start = prepared(options)
    number = 0
    while True:
        number += 1
        memory = MemoryDevice(start)
        device = FaultyDevice(memory, operation, number, persistent=persistent)
        acknowledged, failed = _run(device, retry=not persistent and operation != "flush")
        report = check(memory)
        assert not report.corruptions, (number, report.findings)
        if not device.failed:
            assert acknowledged == len(STEPS)
            break
        assert failed
        found = content(memory)
        possible = [BEFORE, *(after for _, after in STEPS)][acknowledged : acknowledged + 2]
        assert mixed(found, possible), number
        with open_image(memory, snapshot="kept") as snapshot:
            assert snapshot.read(0, SIZE) == BEFORE
    assert number > (2 if operation == "resize" else 5)


def mixed(found: bytes, possible: list[bytes]) -> bool:
    """Say whether each byte is one of the possible ones; a failing write may be torn."""
    for at in range(0, SIZE, 512):
        sector, sectors = found[at : at + 512], [one[at : at + 512] for one in possible]
        if sector not in sectors and any(
            byte not in bytes_ for byte, *bytes_ in zip(sector, *sectors, strict=True)
        ):
            return False
    return True


def _run(device: FaultyDevice, *, retry: bool) -> tuple[int, bool]:
    """Take all steps; return how many were acknowledged, and whether one failed."""
    failed = False
    acknowledged = 0
    try:
        disk = open_image(device, read_only=False)
    except DeviceError:
        return 0, True
    for function, _ in STEPS:
        try:
            function(disk)
        except DeviceError:
            failed = True
            if not retry:
                break
            function(disk)  # the same again works
        acknowledged += 1
    try:
        disk.close()
    except DeviceError:
        failed = True
    return acknowledged, failed


def test_after_a_flush_that_failed_nothing_is_written_until_it_is_opened_again() -> None:
    """Q16"""
    memory = MemoryDevice(prepared(OPTIONS[1]))
    device = FaultyDevice(memory, "flush", 1)
    disk = open_image(device, read_only=False)
    disk.write(0, b"x")
    with pytest.raises(DeviceError, match="injected"):
        disk.flush()
    before = bytes(memory.content)
    with pytest.raises(DeviceError, match="earlier flush failed"):
        disk.write(0, b"y")
    with pytest.raises(DeviceError, match="earlier flush failed"):
        disk.flush()
    with pytest.raises(DeviceError, match="earlier flush failed"):
        disk.close()
    assert memory.content == before
    assert not check(memory).corruptions
    with open_image(memory, read_only=False) as disk:
        disk.write(0, b"y")
    assert check(memory).corruptions == 0


CHANGES: list[tuple[str, Callable[[BlockDevice], object]]] = [
    ("create", lambda device: create_snapshot(device, "new", when=2)),
    ("apply", lambda device: apply_snapshot(device, "kept")),
    ("delete", lambda device: delete_snapshot(device, "kept")),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=["512", "4096"])
def test_snapshots_are_changed_or_not(
    options: Qcow2Options, operation: Operation, change: tuple[str, Callable[[BlockDevice], object]]
) -> None:
    """Q10"""
    base = MemoryDevice(prepared(options))
    with open_image(base, read_only=False) as disk:
        disk.write(0, b"D" * 30_000)
    now = content(base)
    number = 0
    while True:
        number += 1
        memory = MemoryDevice(base.content)
        device = FaultyDevice(memory, operation, number)
        try:
            change[1](device)
        except DeviceError:
            assert device.failed
        else:
            assert not device.failed
            break
        assert check(memory).ok
        names = [snapshot.name for snapshot in list_snapshots(memory)]
        if change[0] == "apply":
            assert content(memory) in (now, BEFORE)
        else:
            assert content(memory) == now
            assert names in (["kept"], ["kept", "new"], [])
    assert number > 1


@pytest.mark.parametrize("options", OPTIONS, ids=["512", "4096"])
def test_a_full_device_loses_nothing(options: Qcow2Options) -> None:
    """A device that cannot grow: `DeviceFullError`, and what fits is there."""
    start = prepared(options)
    image = MemoryDevice(start)
    number = 2 if options.cluster_size == 512 else 1
    device = FaultyDevice(image, "resize", number, persistent=True, error=DeviceFullError)
    disk = open_image(device, read_only=False)
    with pytest.raises(DeviceFullError):
        disk.write(0, b"E" * SIZE)
    done = disk.read(0, SIZE)
    disk.flush()
    assert check(image).ok
    assert content(image) == done
    with open_image(image, snapshot="kept") as snapshot:
        assert snapshot.read(0, SIZE) == BEFORE


def test_a_full_device_loses_nothing_when_the_refcount_table_must_move() -> None:
    """Q12: a longer one that finds no place is none, neither here nor on the device."""
    options = Qcow2Options(cluster_size=512, refcount_bits=64)
    image = new_image(2200 << 10, options)
    reach = 64 * 64 * 512  # entries of the table, counts of a block, bytes of a cluster
    with open_image(image, read_only=False) as disk:
        disk.write(0, b"x" * (written := 1800 << 10))
        while image.size < reach - 4 * 512:
            disk.write(written, b"x" * 512)
            written += 512
    start = bytes(image.content)
    full = 0
    for free in range(0, 42 * 512, 3 * 512):
        image = MemoryDevice(start)
        device = Limited(image, len(start) + free)
        with open_image(device, read_only=False) as disk:
            try:
                disk.write(written, b"N" * 4096)
            except DeviceFullError:
                full += 1
            device.limit = 1 << 30
            disk.write(written + 8192, b"L" * 4096)
        assert check(image).ok, free
        found = content(image)
        assert found[:written] == b"x" * written
        assert found[written + 8192 :][:4096] == b"L" * 4096
    assert 3 < full < 14


class Limited(MemoryDevice):
    """Memory that becomes no larger than a limit."""

    def __init__(self, image: MemoryDevice, limit: int) -> None:
        super().__init__(0)
        self.content = image.content
        self.limit = limit

    def resize(self, size: int, /) -> None:
        if size > self.limit:
            raise DeviceFullError("there is no space")
        super().resize(size)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_failing_creation_leaves_no_image_or_a_whole_one(operation: Operation) -> None:
    """Q15"""
    number = 0
    while True:
        number += 1
        memory = MemoryDevice(b"x" * 5000)
        device = FaultyDevice(memory, operation, number)
        try:
            create(device, SIZE)
        except DeviceError:
            assert device.failed
            if memory.content[:4] == b"QFI\xfb":  # it was the last write, or the flush of it
                assert check(memory).ok
        else:
            break
    assert not device.failed
    assert check(memory).ok
