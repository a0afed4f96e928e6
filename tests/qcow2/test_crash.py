"""Power cuts at every moment: the image stays sound, and keeps what was acknowledged."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from formats.devices.device import MemoryDevice
from formats.errors import FormatError
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.header import read_header
from formats.qcow2.host import Host
from formats.qcow2.opening import open_image
from formats.qcow2.preallocation import preallocate
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.snapshots import (
    apply_snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
)
from tests.qcow2.support import qemu_check
from tests.support.devices import RecordingDevice, crash_states

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from formats.qcow2.device import Qcow2Device

SECTOR = 512
SMALL = Qcow2Options(cluster_size=1024)
NARROW = Qcow2Options(cluster_size=512, refcount_bits=64)
OLD = Qcow2Options(version=2, cluster_size=4096)


@dataclass
class History:
    """A disk that is changed, and everything it was.

    ``states`` are all contents of the disk; one is acknowledged once its number is a
    mark in the device's log.
    """

    disk: Qcow2Device
    device: RecordingDevice
    states: list[bytes]
    snapshots: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    @property
    def now(self) -> bytes:
        return self.states[-1]

    def _became(self, content: bytes, snapshots: dict[str, bytes] | None = None) -> None:
        self.states.append(content)
        self.snapshots.append(dict(self.snapshots[-1] if snapshots is None else snapshots))

    def acknowledge(self) -> None:
        self.device.mark(len(self.states) - 1)

    def write(self, sector: int, data: bytes) -> None:
        start = sector * SECTOR
        self._became(self.now[:start] + data + self.now[start + len(data) :])
        self.disk.write(start, data)

    def discard(self, sector: int, sectors: int) -> None:
        start, size = sector * SECTOR, sectors * SECTOR
        self._became(self.now[:start] + bytes(size) + self.now[start + size :])
        self.disk.discard(start, size)

    def flush(self) -> None:
        self.disk.flush()
        self.acknowledge()

    def resize(self, size: int) -> None:
        if size < len(self.now):  # what is to be cut off may be gone before the size changes
            self._became(self.now[:size].ljust(len(self.now), b"\0"))
        self._became(self.now[:size].ljust(size, b"\0"))
        self.disk.resize(size)
        self.acknowledge()

    def create(self, name: str) -> None:
        self._became(self.now, {**self.snapshots[-1], name: self.now})
        self.disk.rewrite(lambda device: create_snapshot(device, name, when=1))
        self.acknowledge()

    def apply(self, name: str) -> None:
        self._became(self.snapshots[-1][name])
        self.disk.rewrite(lambda device: apply_snapshot(device, name))
        self.acknowledge()

    def delete(self, name: str) -> None:
        rest = {key: value for key, value in self.snapshots[-1].items() if key != name}
        self._became(self.now, rest)
        self.disk.rewrite(lambda device: delete_snapshot(device, name))
        self.acknowledge()


def filled(number: int, sectors: int) -> bytes:
    return b"".join(
        number.to_bytes(2) + index.to_bytes(2) + bytes([number % 251]) * (SECTOR - 4)
        for index in range(sectors)
    )


def begin(options: Qcow2Options, size: int, prepare: Callable[[History], None]) -> History:
    """Make an image on a plain device; then record every operation on it."""
    memory = RecordingDevice(0, resizable=True)
    create(memory, size, options)
    with open_image(memory, read_only=False) as disk:
        before = History(disk, memory, [bytes(size)])
        prepare(before)
        disk.flush()
    device = RecordingDevice(memory.content, resizable=True)
    disk = open_image(device, read_only=False)
    history = History(disk, device, [before.now], [before.snapshots[-1]])
    history.acknowledge()
    return history


def judge(history: History, path: Path, *, samples: int, stride: int = 40) -> int:
    """Check every state that a crash may leave; ask qemu-img about every so manieth."""
    number = 0
    log = history.device.log
    for state in crash_states(history.device.before, log, exhaustive=3, samples=samples):
        number += 1
        marks = [mark for mark in state.marks if isinstance(mark, int)]
        image = MemoryDevice(state.content)
        report = check(image)
        assert not report.corruptions, (state.point, report.findings)
        possible = history.states[max(marks, default=0) :]
        with open_image(image) as disk:
            found = disk.read(0, disk.size)
        assert len(found) in {len(one) for one in possible}
        for at in range(0, len(found), SECTOR):
            sector = found[at : at + SECTOR]
            assert any(sector == one[at : at + SECTOR] for one in possible), (state.point, at)
        names = {snapshot.name for snapshot in list_snapshots(image)}
        kept = history.snapshots[max(marks, default=0) :]
        assert any(names == one.keys() for one in kept)
        for name in names:
            with open_image(image, snapshot=name) as disk:
                content = disk.read(0, disk.size)
            assert any(one.get(name) == content for one in kept)
        if number % stride == 0:
            path.write_bytes(state.content)
            said = qemu_check(path)
            assert (said.get("corruptions", 0), said["check-errors"]) == (0, 0), state.point
            assert said.get("leaks", 0) == report.leaks
    return number


def nothing(_: History) -> None:
    pass


def half_full(history: History) -> None:
    history.write(3, filled(1, 40))
    history.write(70, filled(2, 9))


@pytest.mark.parametrize("options", [SMALL, NARROW, OLD], ids=["small", "narrow", "old"])
@pytest.mark.parametrize("prepare", [nothing, half_full])
def test_writes_and_discards(
    options: Qcow2Options, prepare: Callable[[History], None], tmp_path: Path
) -> None:
    """Q11 to Q14."""
    history = begin(options, 120 * SECTOR, prepare)
    history.write(0, filled(10, 2))
    history.write(50, filled(11, 30))
    history.flush()
    history.write(55, filled(12, 3))
    history.discard(10, 44)
    history.write(12, filled(13, 5))
    history.flush()
    history.discard(0, 120)
    history.write(80, filled(14, 20))
    history.disk.close()
    history.acknowledge()
    assert judge(history, tmp_path / "image", samples=4) > 100


@pytest.mark.parametrize("options", [SMALL, NARROW, OLD], ids=["small", "narrow", "old"])
def test_snapshots(options: Qcow2Options, tmp_path: Path) -> None:
    """Q10, Q19: there or not, and whole; nothing leaks."""
    history = begin(options, 100 * SECTOR, half_full)
    history.create("one")
    history.write(5, filled(20, 10))
    history.flush()
    history.create("two")
    history.write(0, filled(21, 4))
    history.apply("one")
    history.write(90, filled(22, 10))
    history.delete("one")
    history.write(1, filled(23, 1))
    history.delete("two")
    assert judge(history, tmp_path / "image", samples=3) > 100


@pytest.mark.parametrize("options", [SMALL, NARROW, OLD], ids=["small", "narrow", "old"])
def test_other_sizes(options: Qcow2Options, tmp_path: Path) -> None:
    """Q21: the old size or the new one, each with its content."""
    history = begin(options, 99 * SECTOR, half_full)
    history.write(90, filled(30, 9))
    history.resize(601 * SECTOR)
    history.write(300, filled(31, 5))
    history.flush()
    history.resize(301 * SECTOR)
    assert judge(history, tmp_path / "image", samples=2) > 30


def test_an_l1_table_that_moves(tmp_path: Path) -> None:
    """Q21: a table of 65 entries takes two clusters."""
    history = begin(NARROW, 99 * SECTOR, half_full)
    before = history.disk.header.l1_offset
    history.resize((2 << 20) + SECTOR)
    assert history.disk.header.l1_offset != before
    history.write(4000, filled(31, 5))
    history.flush()
    assert judge(history, tmp_path / "image", samples=1, stride=20) > 20


def test_a_refcount_table_that_moves(tmp_path: Path) -> None:
    """Q12: it fills up at two MiB of these clusters, and L1 grows as well."""
    size = (2 << 20) + (512 << 10)

    def prepare(history: History) -> None:
        history.write(0, filled(1, (1900 << 10) // SECTOR))

    history = begin(NARROW, size, prepare)
    entries = history.disk.header.refcount_table_clusters
    history.write(1900 << 1, filled(7, 300))
    history.flush()
    assert history.disk.header.refcount_table_clusters > entries
    assert judge(history, tmp_path / "image", samples=1, stride=20) > 20


def test_an_l1_table_that_fills_the_clusters_of_several_refcount_blocks(tmp_path: Path) -> None:
    """Q12: blocks that do not count themselves are reachable after those that count them."""
    before = begin(NARROW, 99 * SECTOR, half_full).device.content
    device = RecordingDevice(before, resizable=True)
    with open_image(device, read_only=False) as disk:
        disk.resize(192 << 20)  # 96 clusters of L1 entries, and 64 clusters a block
    assert not all(_count_themselves(device))
    sizes = set()
    for number, state in enumerate(crash_states(before, device.log, exhaustive=3, samples=2)):
        image = MemoryDevice(state.content)
        assert not check(image).corruptions, state.point
        with open_image(image) as disk:
            sizes.add(disk.size)
            assert disk.read(0, 99 * SECTOR)[3 * SECTOR :][: 40 * SECTOR] == filled(1, 40)
        if number % 10 == 0:
            (tmp_path / "image").write_bytes(state.content)
            assert qemu_check(tmp_path / "image").get("corruptions", 0) == 0
    assert sizes == {99 * SECTOR, 192 << 20}


def _count_themselves(device: RecordingDevice) -> list[bool]:
    header = read_header(device)
    refcounts = Refcounts(Host(device), header)
    return [
        (entry >> header.cluster_bits) // refcounts.region == region
        for region, entry in enumerate(refcounts.table)
        if entry
    ]


def test_preallocation(tmp_path: Path) -> None:
    history = begin(SMALL, 400 * SECTOR, half_full)
    preallocate(history.disk)
    history.write(200, filled(40, 3))
    history.flush()
    assert judge(history, tmp_path / "image", samples=3) > 30


def test_creation(tmp_path: Path) -> None:
    """Q15: there is no image before there is a whole one."""
    del tmp_path
    old = bytes(random.Random(1).randbytes(50_000))
    for before in (b"", old):
        device = RecordingDevice(before, resizable=True)
        create(device, 1 << 20, SMALL)
        device.mark("made")
        whole = 0
        for state in crash_states(before, device.log, exhaustive=3, samples=4):
            image = MemoryDevice(state.content)
            try:
                report = check(image)
            except FormatError:
                assert "made" not in state.marks
                continue
            assert report.ok
            whole += 1
        assert whole


def test_a_leak_is_found_and_reclaimed(tmp_path: Path) -> None:
    """Q14, Q20: what a crash leaves, the next check finds and repairs."""
    from formats.qcow2.repair import repair

    history = begin(SMALL, 100 * SECTOR, half_full)
    history.write(60, filled(50, 5))
    history.flush()
    history.discard(3, 30)
    history.flush()
    leaky = 0
    for state in crash_states(history.device.before, history.device.log, exhaustive=3, samples=4):
        image = MemoryDevice(state.content)
        with open_image(image) as disk:
            content = disk.read(0, disk.size)
        leaks = check(image).leaks
        leaky += bool(leaks)
        report = repair(image, leaks_only=True)
        assert report.ok
        assert report.leaks_fixed == leaks
        with open_image(image) as disk:
            assert disk.read(0, disk.size) == content
    assert leaky
    del tmp_path
