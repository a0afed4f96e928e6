"""Copying the bytes of an image: crashes, failing devices, interrupts, changes meanwhile."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from blobstore.copies.passes import ImageCopy, complete_hand_over, is_being_handed_over
from blobstore.image.markers import (
    MARK_SIZE,
    SECTOR,
    CopyMarker,
    first_bytes,
    moved_to,
    require_unmarked,
)
from formats.devices.device import Device, MemoryDevice
from formats.errors import DeviceError, DeviceFullError, StorageError
from tests.support import stores
from tests.support.devices import (
    FaultyDevice,
    Flush,
    RecordingDevice,
    Resize,
    Write,
    _Disk,
    _sectors,
    _subsets,
    crash_states,
)
from tests.support.effort import cases
from tests.support.interrupts import InterruptPoints

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer
    from tests.support.devices import Event, Operation

KINDS = ("clear", "clear-512", "luks1", "luks2", "qcow2")


def make(kind: str, directory: Path, content: bytes = b"state") -> bytes:
    path = directory / f"{kind}-{len(content)}.img"
    with blobstore.create(
        path,
        {"a": 5000},
        None if kind.startswith("clear") or kind == "qcow2" else b"passphrase",
        encrypted=kind.startswith("luks"),
        image_format="qcow2" if kind == "qcow2" else "raw",
        block_size=512 if kind == "clear-512" else 4096,
        luks_version=1 if kind == "luks1" else 2,
        kdf="pbkdf2" if kind.startswith("luks") else None,
        iter_time=1,
        free=0,
    ) as store:
        store.put("a", content)
    return path.read_bytes()


@pytest.fixture(scope="module", params=KINDS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(request.param, tmp_path_factory.mktemp("image"))


def copied(
    source: BlockDevice | bytes, destination: BlockDevice, *, hand_over: bool = False
) -> ImageCopy:
    device = MemoryDevice(source) if isinstance(source, bytes) else source
    copy = ImageCopy(device, destination)
    copy.begin()
    copy.run()
    copy.settle()
    if hand_over:
        copy.hand_over()
    else:
        copy.finish()
    return copy


def is_image(content: bytes) -> bool:
    """Say whether a program that does not know markers finds an image in it."""
    device = MemoryDevice(content)
    if content[:4] == b"QFI\xfb":
        return True
    try:
        luks.load_header(device)
    except StorageError:
        pass
    else:
        return True
    try:
        with blobstore.Store.on_device(
            device, encrypted=False, read_only=True, allow_unprotected=True
        ):
            return True
    except StorageError:
        return False


def is_refused(content: bytes | bytearray) -> bool:
    try:
        require_unmarked(bytes(content[:SECTOR]))
    except (blobstore.UnfinishedCopyError, blobstore.MovedImageError):
        return True
    return False


def require_never_half(content: bytes, image: bytes, before: bytes) -> None:
    """Check that what a crash left is the image, what was there before, or nothing that opens."""
    if is_refused(content):
        # All but the first sector may be there, with a second copy of a header.
        assert content[SECTOR:] in (image[SECTOR:], before[SECTOR:]) or not is_image(content)
    elif content != image:
        assert content == before or not is_image(content)


@pytest.mark.parametrize("how", ["new", "over another", "changing"])
def test_no_crash_leaves_half_an_image_and_each_is_resumed_p41_p43_p45(
    image: bytes, tmp_path: Path, how: str
) -> None:
    before = b""
    if how == "over another":
        before = make("luks2", tmp_path, b"x" * 3000)[: len(image)]
    disk = RecordingDevice(before, resizable=True)
    source = MemoryDevice(image)
    if how == "changing":
        for start in (1024, 4096 + SECTOR, len(image) - 4096):
            source.write(start, b"\x5a" * SECTOR)
    copy = ImageCopy(source, disk)
    copy.begin()
    copy.run()
    source.write(0, image)
    copy.settle()
    copy.finish()
    assert disk.content == image
    resumed = 0
    states = crash_states(before, disk.log, exhaustive=3, samples=cases(2, 64))
    for number, state in enumerate(states):
        require_never_half(state.content, image, before)
        if number % cases(5, 1) == 0 and (is_refused(state.content) or not state.content):
            again = MemoryDevice(state.content)
            copied(image, again)
            assert again.content == image
            resumed += 1
    assert resumed


def test_what_is_resumed_is_not_written_again_p45() -> None:
    image = random.Random(1).randbytes(3 << 20)
    disk = MemoryDevice(0)
    first = ImageCopy(MemoryDevice(image), disk)
    first.begin()
    first.run()
    assert first.copied == len(image)
    changed = image[:70000] + b"new" + image[70003:]
    second = ImageCopy(MemoryDevice(changed), disk)
    second.begin()
    second.run()
    assert second.copied == 64 << 10
    second.settle()
    second.finish()
    assert disk.content == changed


class _Changing(Device):
    """A source that is written, and grows, while it is read."""

    def __init__(self, content: bytes, changes: int) -> None:
        self.memory = MemoryDevice(content)
        self.left = changes
        self._chance = random.Random(7)

    @property
    def size(self) -> int:
        return self.memory.size

    @property
    def block_size(self) -> int:
        return 512

    def measure(self) -> None:
        pass

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self.memory.read_into(offset, buffer)
        if self.left:
            self.left -= 1
            at = self._chance.randrange(self.size)
            data = self._chance.choice((self._chance.randbytes(5000), bytes(5000)))
            if at + len(data) > self.size:
                self.memory.resize(at + len(data))
            self.memory.write(at, data)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self.memory.write(offset, data)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(cases(20, 1000)))
def test_the_copy_is_what_the_image_is_in_the_last_pass_p44(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.choice((512, 5000, 70_000, 3_000_000))
    source = _Changing(chance.choice((bytes(size), chance.randbytes(size))), chance.randrange(9))
    disk = MemoryDevice(chance.choice((0, 512, 5_000_000)))
    copy = ImageCopy(source, disk)
    copy.begin()
    copy.run()
    source.left = 0
    copy.settle()
    copy.finish()
    assert disk.content == source.memory.content


def test_an_image_that_never_holds_still_is_not_copied_p44() -> None:
    source = _Changing(random.Random(3).randbytes(1 << 20), 1000)
    disk = MemoryDevice(0)
    copy = ImageCopy(source, disk)
    copy.begin()
    copy.run()
    with pytest.raises(blobstore.StoreBusyError, match="each of 10 passes"):
        copy.settle(still=False)
    assert is_refused(disk.content)


@pytest.mark.parametrize("operation", ["write", "flush", "resize"])
@pytest.mark.parametrize("persistent", [False, True])
def test_each_failure_of_the_destination_is_an_error_and_resumed_p45(
    tmp_path: Path, operation: Operation, persistent: bool
) -> None:
    image = make("clear", tmp_path)
    number = 0
    while True:
        number += 1
        disk = MemoryDevice(0)
        faulty = FaultyDevice(disk, operation, number, persistent=persistent)
        with suppress(DeviceError):
            copied(image, faulty)
        if not faulty.failed:
            break
        if not (operation == "write" and persistent and disk.content[MARK_SIZE:] != b""):
            require_never_half(bytes(disk.content), image, b"")
        assert not is_image(bytes(disk.content)) or disk.content[SECTOR:] == image[SECTOR:]
        copied(image, disk)
        assert disk.content == image
    assert number > 1


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_read_that_fails_is_an_error(tmp_path: Path, side: str) -> None:
    image = make("clear", tmp_path)
    for number in (1, 2):
        disk = MemoryDevice(0)
        source: BlockDevice = MemoryDevice(image)
        faulty = FaultyDevice(source if side == "source" else disk, "read", number)
        with pytest.raises(DeviceError, match="injected"):
            copied(*((faulty, disk) if side == "source" else (source, faulty)))
        assert not is_image(bytes(disk.content))


class _Forgetful(Device):
    """A disk whose failed flush loses what was written, while it still reads as written.

    So do files on Linux, until their pages are dropped.
    """

    def __init__(self, fails_at: int) -> None:
        self.seen, self.durable = MemoryDevice(0), MemoryDevice(0)
        self._pending: list[tuple[int, bytes]] = []
        self.flushes, self._fails_at = 0, fails_at

    @property
    def size(self) -> int:
        return self.seen.size

    @property
    def block_size(self) -> int:
        return 512

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self.seen.read_into(offset, buffer)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self.seen.write(offset, data)
        self._pending.append((offset, bytes(data)))

    def resize(self, size: int, /) -> None:
        self.seen.resize(size)
        self.durable.resize(size)

    def flush(self) -> None:
        self.flushes += 1
        pending, self._pending = self._pending, []
        if self.flushes == self._fails_at:
            raise DeviceError("injected: the flush fails")
        for offset, data in pending:
            self.durable.write(offset, data)


def test_what_a_failed_flush_has_lost_is_written_again_p45(tmp_path: Path) -> None:
    image = make("clear", tmp_path)
    whole = _Forgetful(0)
    copied(image, whole)
    for number in range(1, whole.flushes + 1):
        disk = _Forgetful(number)
        with pytest.raises(DeviceError, match="injected"):
            copied(image, disk)
        copied(image, disk)
        assert disk.durable.content == image, number


def test_an_interrupt_leaves_no_half_image_p45(tmp_path: Path) -> None:
    image = make("clear", tmp_path)

    def run(disk: MemoryDevice) -> None:
        copied(image, disk)

    points = InterruptPoints(lambda: run(MemoryDevice(0)))
    for point in points.chosen(cases(60, 2000)):
        disk = MemoryDevice(0)
        with pytest.raises(KeyboardInterrupt), points.interrupted_at(point):
            run(disk)
            raise KeyboardInterrupt  # where the call ends before the point
        require_never_half(bytes(disk.content), image, b"")
        if bytes(disk.content) != image:
            copied(image, disk)
        assert disk.content == image


def test_the_destination_must_be_large_enough_p48() -> None:
    class Fixed(MemoryDevice):
        def resize(self, size: int, /) -> None:
            Device.resize(self, size)

    image = random.Random(1).randbytes(5000)
    with pytest.raises(DeviceFullError, match="5000 bytes, and the destination 4096"):
        copied(image, Fixed(4096))
    larger = Fixed(8192)
    copied(image, larger)
    assert larger.content == image + bytes(8192 - 5000)


# ------------------------------------------------------------- hand-over


class _Log:
    """Two disks with one order of what was done to them."""

    def __init__(self, source: bytes, destination: bytes) -> None:
        self.events: list[tuple[int, Event]] = []
        self.before = (source, destination)
        self.disks = [RecordingDevice(one, resizable=True) for one in self.before]
        for number, disk in enumerate(self.disks):
            disk.log = _Shared(self.events, number)  # type: ignore[assignment]

    def states(self, point: int, samples: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield contents of both that a crash after so many events may leave."""
        models = [_Disk(bytearray(one), len(one)) for one in self.before]
        for which, event in self.events[:point]:
            if isinstance(event, Flush):
                models[which].flush()
            elif isinstance(event, Resize):
                models[which].size = event.size
            elif isinstance(event, Write):
                models[which].pending.extend(_sectors(event))
        chance = random.Random(point)
        found = [
            [
                bytes(model.content(chosen))
                for chosen in _subsets(len(model.pending), 3, samples, chance)
            ]
            for model in models
        ]
        for source in found[0]:
            for destination in found[1]:
                yield source, destination


class _Shared:
    def __init__(self, events: list[tuple[int, Event]], which: int) -> None:
        self._events, self._which = events, which

    def append(self, event: Event) -> None:
        self._events.append((self._which, event))


def can_open(content: bytes) -> bool:
    return not is_refused(content) and is_image(content)


def test_a_hand_over_never_leaves_two_images_and_always_one_that_can_be_had_p46(
    image: bytes,
) -> None:
    log = _Log(image, b"")
    copied(log.disks[0], log.disks[1], hand_over=True)
    assert log.disks[1].content == image
    assert not is_image(log.disks[0].content)
    assert moved_to(log.disks[0].content[:MARK_SIZE]) is not None
    first = next(n for n, (which, _) in enumerate(log.events) if which == 0)
    kinds = set()
    for point in range(max(0, first - 8), len(log.events) + 1):
        for source, destination in log.states(point, cases(4, 16)):
            is_source, is_copy = can_open(source), can_open(destination)
            assert not (is_source and is_copy)
            kinds.add((is_source, is_copy))
            if is_copy:
                assert destination == image
                continue
            ends = MemoryDevice(source), MemoryDevice(destination)
            if is_source:
                assert source == image
                copied(*ends, hand_over=True)
            else:
                assert is_being_handed_over(*ends)
                complete_hand_over(*ends)
            assert ends[1].content == image
            assert not is_image(bytes(ends[0].content))
    assert kinds == {(True, False), (False, False), (False, True)}


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("operation", ["write", "flush"])
def test_a_hand_over_that_fails_is_completed_p46(
    tmp_path: Path, side: int, operation: Operation
) -> None:
    image = make("clear", tmp_path)
    number = 0
    while True:
        number += 1
        ends = [MemoryDevice(image), MemoryDevice(0)]
        faulty = FaultyDevice(ends[side], operation, number)
        used: list[BlockDevice] = [*ends]
        used[side] = faulty
        with suppress(DeviceError):
            copied(*used, hand_over=True)
        if not faulty.failed:
            break
        source, destination = (bytes(one.content) for one in ends)
        assert not (can_open(source) and can_open(destination))
        if is_being_handed_over(*ends):
            complete_hand_over(*ends)
        else:
            assert can_open(source)
            copied(*ends, hand_over=True)
        assert ends[1].content == image
        assert not is_image(bytes(ends[0].content))
    assert number > 2


def test_markers_are_what_they_say_p41_p46() -> None:
    marker = CopyMarker(
        b"12345678", doubted=True, first=b"sixteen bytes...", origin=b"and a digest ..."
    )
    sector = marker.encode()
    assert (len(sector), CopyMarker.decode(sector)) == (SECTOR, marker)
    assert CopyMarker.decode(bytes(SECTOR)) is None
    assert CopyMarker.decode(sector[:100]) is None
    assert CopyMarker.decode(CopyMarker(b"12345678").encode()) == CopyMarker(b"12345678")
    assert moved_to(b"LUKS\xba\xbe") is None
    assert first_bytes(MemoryDevice(b"short")) == b"short"
    assert stores.image()[:MARK_SIZE] != sector[:MARK_SIZE]
