"""Images that end before what they refer to: cut anywhere, then repaired or written. Q25.

Whatever happens, a cluster has its content, zeros, or cannot be read.
"""

from __future__ import annotations

import os
import random
import subprocess
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pytest

from formats.devices.device import MemoryDevice
from formats.errors import CorruptImageError, StorageError, TruncatedImageError
from formats.qcow2 import features
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options
from formats.qcow2.header import read_header
from formats.qcow2.host import Host
from formats.qcow2.metadata import change_header
from formats.qcow2.opening import BackingFile, open_image
from formats.qcow2.repair import repair
from formats.qcow2.snapshots import (
    apply_snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
)
from formats.qcow2.tables import COPIED, OFFSET_MASK
from luks.crypto.ciphers import sector_cipher
from tests.qcow2.support import new_image, qemu_check, qemu_img, qemu_io
from tests.support.foreign import program
from tests.support.interrupts import EVERY_POINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from formats.devices.device import BlockDevice
    from formats.qcow2.device import Qcow2Device

SIZE = 200 << 10
CLUSTER = 512
#: Data written after the cut, at a place after all earlier data.
FREE = 160 << 10
KEY = bytes(range(64))
BACKING = b"B" * SIZE
WAYS = ["plain", "version 2", "encrypted", "backing", "compressed", "bitmaps"]


class Sample(NamedTuple):
    """An image, and what its disk has now and in each snapshot."""

    image: bytes
    disks: dict[str | None, bytes]


@cache
def sample(way: str) -> Sample:
    options = Qcow2Options(
        version=2 if way == "version 2" else 3,
        cluster_size=CLUSTER,
        luks_header_size=CLUSTER if way == "encrypted" else 0,
        backing_name="base" if way == "backing" else None,
        backing_format="raw" if way == "backing" else None,
    )
    image = new_image(SIZE, options)
    generator = random.Random(7)
    disks: dict[str | None, bytes] = {}
    for turn in range(3):
        with opened(image, way, read_only=False) as disk:
            for _ in range(12):
                data = generator.randbytes(generator.choice((500, 2000, 7000)))
                disk.write(generator.randrange(FREE - 8000), data)
            disks[None] = disk.read(0, SIZE)
        if turn < 2:
            create_snapshot(image, f"s{turn}", when=1)
            disks[f"s{turn}"] = disks[None]
    return Sample(bytes(image.content), disks)


@cache
def made_by_qemu(way: str, directory: Path) -> Sample:
    source, path = directory / f"{way}.raw", directory / f"{way}.qcow2"
    generator = random.Random(8)
    text = [f"line {generator.randrange(10**9)}\n".encode() * 5 for _ in range(1200)]
    data = b"".join(text)[:FREE].ljust(SIZE, b"\0")
    source.write_bytes(data)
    options = ("-c",) if way == "compressed" else ()
    qemu_img("convert", *options, "-O", "qcow2", "-o", f"cluster_size={CLUSTER * 8}", source, path)
    if way == "bitmaps":
        qemu_img("bitmap", "--add", path, "one")
        qemu_io(path, "write -P 7 0 4k")
        data = b"\7" * 4096 + data[4096:]
    return Sample(path.read_bytes(), {None: data})


def opened(
    image: MemoryDevice, way: str, *, read_only: bool = True, snapshot: str | None = None
) -> Qcow2Device:
    def open_backing(backing: BackingFile, referrer: BlockDevice, /) -> BlockDevice:
        del backing, referrer
        return MemoryDevice(BACKING)

    return open_image(
        image,
        read_only=read_only,
        cipher=sector_cipher("aes-xts-plain64", KEY, 512) if way == "encrypted" else None,
        open_backing=open_backing if way == "backing" else None,
        snapshot=snapshot,
    )


def assert_nothing_false(image: MemoryDevice, way: str, expected: Sample) -> int:
    """Read all that was written before the cut; return how many clusters cannot be read."""
    unreadable = 0
    step = CLUSTER * (8 if way in ("compressed", "bitmaps") else 1)
    for name, content in expected.disks.items():
        try:
            disk = opened(image, way, snapshot=name)
        except StorageError:
            unreadable += FREE // step
            continue
        with disk:
            for at in range(0, FREE, step):
                try:
                    found = disk.read(at, step)
                except StorageError:
                    unreadable += 1
                    continue
                wanted = content[at : at + step]
                false = [i for i in range(step) if found[i] not in (0, wanted[i])]
                assert found == wanted or not false, (name, at, found[false[0] :][:40])
    return unreadable


def cuts(size: int, way: str) -> list[int]:
    """Return lengths: at each boundary of clusters, and within; a sample unless told."""
    generator = random.Random(f"{way} {size}")
    found = [at for cluster in range(1, size // CLUSTER) for at in (cluster * CLUSTER,)]
    found += [at + generator.randrange(1, CLUSTER) for at in found]
    if not os.environ.get(EVERY_POINT):
        found = generator.sample(found, 30)
    return sorted(found)


def tried(change: Callable[[], object]) -> bool:
    try:
        change()
    except StorageError:
        return False
    return True


def changes(image: MemoryDevice, way: str) -> Iterator[tuple[str, Callable[[], object]]]:
    def write() -> None:
        with opened(image, way, read_only=False) as disk:
            for at in range(FREE, SIZE, 8192):
                disk.write(at, b"W" * 4096)
                disk.flush()

    def write_what_is_left() -> None:
        with opened(image, way, read_only=False) as disk:
            for at in range(FREE, SIZE, CLUSTER):
                tried(lambda at=at: disk.write(at, b"W" * 100))  # type: ignore[misc]
            disk.flush()

    def grow() -> None:
        with opened(image, way, read_only=False) as disk:
            disk.resize(16 * SIZE)

    def dirty() -> None:
        if way != "version 2":
            change_header(Host(image), read_header(image), incompatible=features.DIRTY)
        write()

    yield "repair", lambda: repair(image, leaks_only=False)
    yield "free", lambda: repair(image, leaks_only=True)
    yield "write", write
    yield "write what is left", write_what_is_left
    yield "grow", grow
    yield "dirty", dirty
    yield "create", lambda: create_snapshot(image, "new", when=1)
    yield "apply", lambda: apply_snapshot(image, "s0")
    yield "delete", lambda: delete_snapshot(image, "s1")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.mark.parametrize("way", WAYS)
def test_a_cluster_has_its_content_or_zeros_or_cannot_be_read_q25(
    way: str, directory: Path
) -> None:
    expected = made_by_qemu(way, directory) if way in ("compressed", "bitmaps") else sample(way)
    cut = done = 0
    for size in cuts(len(expected.image), way):
        names = [name for name, _ in changes(MemoryDevice(0), way)]
        for index, name in enumerate(names):
            image = MemoryDevice(expected.image[:size])
            change = list(changes(image, way))[index][1]
            worked = tried(change)
            done += worked
            if name == "apply" and worked:
                continue  # the disk is another one then
            cut += bool(assert_nothing_false(image, way, expected))
            # And what follows a repair, as the repaired image permits it.
            if name == "repair" and worked:
                tried(list(changes(image, way))[3][1])
                assert_nothing_false(image, way, expected)
    assert cut
    assert done


def test_a_repair_after_a_cut_makes_the_image_one_that_qemu_and_we_agree_on(
    tmp_path: Path,
) -> None:
    expected = sample("plain")
    path, repaired = tmp_path / "image", 0
    for size in cuts(len(expected.image), "plain")[::2]:
        image = MemoryDevice(expected.image[:size])
        try:
            report = repair(image, leaks_only=False)
        except StorageError:
            assert image.content == expected.image[:size]
            continue
        path.write_bytes(image.content)
        theirs = qemu_check(path)
        if not any("not repaired" in finding for finding in report.findings):
            assert (report.corruptions, report.leaks) == (theirs.get("corruptions", 0), 0), size
            repaired += 1
        if report.ok:
            assert theirs.get("leaks", 0) == 0
            raw = tmp_path / "raw"
            with open_image(image) as disk:
                raw.write_bytes(disk.read(0, SIZE))
            qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, path)
    assert repaired


def cut_image() -> MemoryDevice:
    """Return an image that ends before two of its three clusters of data."""
    image = new_image(64 << 20)
    with open_image(image, read_only=False) as disk:
        disk.write(0, random.Random(1).randbytes(65536))
        disk.write(1 << 20, random.Random(2).randbytes(131_072))
    image.resize(393_216)
    return image


def test_the_tables_of_a_repair_are_not_read_as_data_q25() -> None:
    image = cut_image()
    with open_image(image) as disk, pytest.raises(TruncatedImageError):
        disk.read(1 << 20, 65536)
    report = repair(image, leaks_only=False)
    assert (report.corruptions, report.leaks, report.corruptions_fixed) == (0, 0, 2)
    with open_image(image) as disk:
        assert disk.read(1 << 20, 131_072) == bytes(131_072)


def test_an_image_is_not_repaired_unasked_where_more_than_counts_is_wrong_q5() -> None:
    for change in (
        lambda image: open_image(image, read_only=False),
        lambda image: create_snapshot(image, "name"),
    ):
        image = cut_image()
        change_header(Host(image), read_header(image), incompatible=features.DIRTY)
        before = bytes(image.content)
        with pytest.raises(
            CorruptImageError, match=r"2 corruptions .*automatically \[Q5\]"
        ) as caught:
            change(image)
        assert "blobstore check" in (caught.value.hint or "")
        assert image.content == before


def test_a_truncated_image_is_written_only_where_it_need_not_grow_q25() -> None:
    image = cut_image()
    with open_image(image, read_only=False) as disk:
        disk.write(0, b"in place")
        disk.flush()
        with pytest.raises(TruncatedImageError, match="cannot be made longer") as caught:
            disk.write(2 << 20, b"new")
        assert "copy the image again" in (caught.value.hint or "")
        disk.discard(1 << 20, 131_072)  # it is no longer needed
        disk.flush()
        disk.write(2 << 20, b"new")
    assert check(image).ok


def test_nothing_is_put_where_an_entry_points_that_counts_nowhere_q25() -> None:
    """A bit flip, or another program's repair: the counts know nothing of the entry."""
    image = new_image(1 << 20, Qcow2Options(cluster_size=4096))
    with open_image(image, read_only=False) as disk:
        disk.write(0, b"x" * 4096)
    header = read_header(image)
    table = Host(image).read_table(header.l1_offset, 1)[0] & OFFSET_MASK
    image.write(table + 8 * 7, (image.size + 4096 | COPIED).to_bytes(8))
    with open_image(image, read_only=False) as disk:
        disk.write(100 * 4096, b"W" * 4096)  # the cluster before that one
        disk.flush()
        with pytest.raises(TruncatedImageError, match="Q25"):
            disk.write(101 * 4096, b"W" * 4096)
        with pytest.raises(TruncatedImageError):
            disk.read(7 * 4096, 1)
    repair(image, leaks_only=False)
    assert check(image).ok
    with open_image(image, read_only=False) as disk:
        disk.write(101 * 4096, b"W" * 4096)
        assert disk.read(7 * 4096, 4096) == bytes(4096)


def test_a_crash_while_lost_counts_are_made_anew_leaves_a_mark_q25() -> None:
    """A longer image would have zeros for counts; what finds it so must not write."""
    image = new_image(1 << 20, Qcow2Options(cluster_size=CLUSTER))
    with open_image(image, read_only=False) as disk:
        disk.write(0, random.Random(1).randbytes(300 << 10))
    header = read_header(image)
    last = max(Host(image).read_table(header.refcount_table_offset, 8))
    image.resize(last)
    states: list[bytes] = []

    class Recorder(MemoryDevice):
        def write(self, offset: int, data: bytes | bytearray | memoryview, /) -> None:
            super().write(offset, data)
            states.append(bytes(self.content))

    repair(Recorder(image.content), leaks_only=False)
    assert len(states) > 5
    for state in states:
        crashed = MemoryDevice(state)
        longer = crashed.size > last
        corrupt = bool(read_header(crashed).incompatible & features.CORRUPT)
        report = check(crashed)
        assert corrupt or not longer or report.corruptions == report.damage


def test_too_much_is_missing_for_a_repair() -> None:
    """Q25: no place is left that nothing refers to, as far as references are counted."""
    image = new_image(64 << 20, Qcow2Options(cluster_size=4096))
    with open_image(image, read_only=False) as disk:
        for at in range(0, 40 << 20, 2 << 20):
            disk.write(at, b"x")  # the tables come first
        disk.write(0, b"x" * (40 << 20))
    image.resize(50 * 4096)
    before = bytes(image.content)
    report = repair(image, leaks_only=False)
    assert "not repaired" in report.findings[0]
    assert image.content == before


@pytest.mark.interop
def test_a_killed_qemu_that_only_counted_is_no_truncation(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "1M")
    commands = ["-c", "write -P 65 0 64k", "-c", "flush", "-c", "sigraise 9"]
    subprocess.run([program("qemu-io"), *commands, path], check=False, timeout=60)
    image = MemoryDevice(path.read_bytes())
    with open_image(image, read_only=False) as disk:
        disk.write(512 << 10, b"more")
    assert check(image).ok
    assert not list_snapshots(image)
