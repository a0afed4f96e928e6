"""Damaged tables: found as QEMU finds them, and repaired so that QEMU is content. Q20."""

from __future__ import annotations

import json
import random
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest

from formats.devices.device import MemoryDevice
from formats.errors import CorruptImageError, StorageError
from formats.qcow2 import features
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options
from formats.qcow2.header import read_header
from formats.qcow2.host import Host
from formats.qcow2.metadata import change_header
from formats.qcow2.opening import open_image
from formats.qcow2.repair import repair
from formats.qcow2.snapshots import create_snapshot, list_snapshots
from formats.qcow2.tables import OFFSET_MASK
from tests.qcow2.support import assert_clean, content, new_image, qemu_check, qemu_img
from tests.support.foreign import program

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = [
    Qcow2Options(cluster_size=1024),
    Qcow2Options(cluster_size=4096, refcount_bits=8),
    Qcow2Options(version=2, cluster_size=4096),
    Qcow2Options(),
]


@cache
def sample(number: int) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """Return an image with a snapshot, and where its tables' entries are: offset, width."""
    generator = random.Random(number)
    image = new_image(600 << 10, OPTIONS[number])
    for turn in range(2):
        with open_image(image, read_only=False) as disk:
            for _ in range(8):
                data = generator.randbytes(generator.choice((100, 5000, 20_000)))
                disk.write(generator.randrange(500 << 10), data)
            if turn:
                disk.discard(0, 100 << 10)
        if not turn:
            create_snapshot(image, "one", when=1)
    return bytes(image.content), tuple(_entries(image))


def _entries(image: MemoryDevice) -> list[tuple[int, int]]:
    header, host = read_header(image), Host(image)
    width = header.refcount_bits // 8
    (block,) = host.read_table(header.refcount_table_offset, 1)
    found = [(block + index * width, width) for index in range(200)]
    for offset, size in (
        (header.l1_offset, header.l1_size),
        *((one.l1_offset, one.l1_size) for one in list_snapshots(image)),
    ):
        found += [(offset + 8 * index, 8) for index in range(size)] * 5
        for entry in host.read_table(offset, size):
            if entry & OFFSET_MASK:
                first = entry & OFFSET_MASK
                found += [(first + 8 * index, 8) for index in range(0, header.l2_entries, 3)]
    return found


def damaged(seed: int) -> MemoryDevice:
    generator = random.Random(seed)
    original, entries = sample(seed % len(OPTIONS))
    image = MemoryDevice(original)
    for _ in range(generator.choice((1, 1, 2, 4))):
        offset, width = generator.choice(entries)
        old = int.from_bytes(image.read(offset, width))
        step = OPTIONS[seed % len(OPTIONS)].cluster_size
        new = generator.choice(
            (
                old ^ 1 << generator.randrange(width * 8),
                0,
                generator.randrange(200) * step | generator.randrange(2) << 63,
                generator.getrandbits(width * 8),
            )
        )
        image.write(offset, new.to_bytes(8)[-width:])
    return image


@pytest.mark.interop
@pytest.mark.parametrize("batch", range(4))
def test_findings_are_those_of_qemu_img(batch: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    compared = wrong = 0
    for seed in range(batch * 20, batch * 20 + 20):
        image = damaged(seed)
        path.write_bytes(image.content)
        theirs, ours = qemu_check(path), check(image)
        if any("L1 table has an entry with reserved" in text for text in ours.findings):
            continue  # QEMU takes the header for an L2 table then
        found = ours.corruptions, ours.leaks
        assert found == (theirs.get("corruptions", 0), theirs.get("leaks", 0)), seed
        compared += 1
        assert bool(ours) == ours.ok == (found == (0, 0))
        wrong += not ours
        repaired = MemoryDevice(image.content)
        after = repair(repaired, leaks_only=False)
        path.write_bytes(repaired.content)
        left = qemu_check(path)
        assert (after.corruptions, after.leaks) == (left.get("corruptions", 0), 0), seed
        assert left.get("leaks", 0) == 0, seed
    assert compared > 10
    assert wrong > 3


def test_freeing_leaks_changes_nothing_else() -> None:
    for seed in range(60):
        image = damaged(seed)
        before = check(image)
        try:
            disk = content(image)
        except StorageError:
            continue
        after = repair(image, leaks_only=True)
        assert after.leaks == 0
        assert after.leaks_fixed == before.leaks
        assert content(image) == disk


@pytest.mark.interop
def test_counts_that_were_left_for_later(tmp_path: Path) -> None:
    """Q5: QEMU writes lazily and is killed; before a write here, the counts are rebuilt."""
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "1M")
    killed = [program("qemu-io"), "-c", "write -P 65 0 512k", "-c", "flush", "-c", "sigraise 9"]
    done = subprocess.run([*killed, path], capture_output=True, check=False, timeout=60)
    assert done.returncode == -9
    image = MemoryDevice(path.read_bytes())
    assert read_header(image).incompatible & features.DIRTY
    assert not check(image).ok
    expected = (b"A" * (512 << 10)).ljust(1 << 20, b"\0")
    assert content(image) == expected
    with open_image(image, read_only=False) as disk:
        disk.write(600 << 10, b"more")
    assert not read_header(image).incompatible & features.DIRTY
    assert read_header(image).compatible & features.LAZY_REFCOUNTS
    path.write_bytes(image.content)
    assert_clean(path)


def test_an_image_marked_as_corrupt_is_not_written_before_it_is_repaired() -> None:
    """Q5"""
    image = MemoryDevice(sample(0)[0])
    change_header(Host(image), read_header(image), incompatible=features.CORRUPT)
    content(image)
    with pytest.raises(CorruptImageError, match="marked as corrupt"):
        open_image(image, read_only=False)
    with pytest.raises(CorruptImageError, match="marked as corrupt"):
        create_snapshot(image, "two")
    assert check(image).findings == ["the image is marked as corrupt"]
    repair(image, leaks_only=True)
    assert read_header(image).incompatible == features.CORRUPT
    assert repair(image, leaks_only=False).ok
    assert read_header(image).incompatible == 0
    open_image(image, read_only=False).close()


@pytest.mark.interop
def test_persistent_bitmaps_stay_and_are_marked(tmp_path: Path) -> None:
    """Q8: QEMU finds the one that recorded to be incomplete, and the other as it was."""
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("bitmap", "--add", path, "recording")
    qemu_img("bitmap", "--add", "--disable", path, "frozen")
    image = MemoryDevice(path.read_bytes())
    assert check(image).ok
    before = bytes(image.content)
    with open_image(image, read_only=False) as disk:
        disk.read(0, 1000)
    assert image.content == before
    with open_image(image, read_only=False) as disk:
        disk.write(0, b"change")
    create_snapshot(image, "name")
    assert check(image).ok
    path.write_bytes(image.content)
    assert_clean(path)
    info = json.loads(qemu_img("info", "--output=json", path))
    flags = {
        bitmap["name"]: bitmap["flags"] for bitmap in info["format-specific"]["data"]["bitmaps"]
    }
    assert flags == {"recording": ["in-use", "auto"], "frozen": []}


def test_unknown_autoclear_features_are_cleared_before_the_first_change() -> None:
    """Q8"""
    image = MemoryDevice(sample(0)[0])
    change_header(Host(image), read_header(image), autoclear=1 << 40)
    with open_image(image, read_only=False) as disk:
        disk.read(0, 100)
    assert read_header(image).autoclear == 1 << 40
    with open_image(image, read_only=False) as disk:
        disk.write(0, b"x")
    assert read_header(image).autoclear == 0
