"""Internal snapshots, made here and by QEMU. Q18, Q19."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.errors import (
    AmbiguousSnapshotError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    UnsupportedError,
)
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.difference import differing_ranges
from formats.qcow2.header import read_header
from formats.qcow2.opening import open_image
from formats.qcow2.snapshot_table import encode_snapshots
from formats.qcow2.snapshots import (
    SnapshotKey,
    apply_snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
)
from tests.qcow2.support import (
    assert_clean,
    assert_same,
    content,
    new_disk,
    new_image,
    qemu_img,
    qemu_io,
)
from tests.qcow2.test_interop import churn
from tests.support.foreign import program

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
MATRIX = [(2, 512, 16), (2, 65536, 16), (3, 512, 64), (3, 4096, 4), (3, 65536, 16), (3, 2 << 20, 8)]


@pytest.mark.interop
@pytest.mark.parametrize(("version", "cluster_size", "refcount_bits"), MATRIX)
def test_qemu_sees_and_uses_our_snapshots(
    version: int, cluster_size: int, refcount_bits: int, tmp_path: Path
) -> None:
    path, out = tmp_path / "image.qcow2", tmp_path / "out"
    path.touch()
    kept: dict[str, bytes] = {}
    model = bytearray(SIZE)
    options = Qcow2Options(version=version, cluster_size=cluster_size, refcount_bits=refcount_bits)
    with FileDevice(path, read_only=False) as device:
        create(device, SIZE, options)
        for number in range(3):
            with open_image(device, read_only=False) as disk:
                churn(disk, model, number, steps=15)
            create_snapshot(device, f"s{number}")
            kept[f"s{number}"] = bytes(model)
        with open_image(device, read_only=False) as disk:
            churn(disk, model, 9, steps=15)
        assert check(device).ok
    assert_clean(path)
    assert_same(path, bytes(model))
    for name, data in kept.items():
        qemu_img("convert", "-f", "qcow2", "-l", f"snapshot.name={name}", "-O", "raw", path, out)
        assert out.read_bytes() == data
    qemu_img("snapshot", "-d", "s1", path)
    assert_clean(path)
    qemu_img("snapshot", "-a", "s0", path)
    assert_clean(path)
    with FileDevice(path) as device:
        assert [found.name for found in list_snapshots(device)] == ["s0", "s2"]
        with open_image(device) as disk:
            assert disk.read(0, SIZE) == kept["s0"]
        with open_image(device, snapshot="s2") as disk:
            assert disk.read(0, SIZE) == kept["s2"]


@pytest.mark.interop
@pytest.mark.parametrize(("version", "cluster_size", "refcount_bits"), MATRIX)
def test_we_see_and_use_qemu_s_snapshots(
    version: int, cluster_size: int, refcount_bits: int, tmp_path: Path
) -> None:
    path = tmp_path / "image.qcow2"
    options = f"compat={'0.10' if version == 2 else '1.1'},cluster_size={cluster_size}"
    if version == 3:
        options += f",refcount_bits={refcount_bits}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, SIZE)
    for number, name in enumerate(("one", "two", "three")):
        qemu_io(path, f"write -P {number + 65} {number * 100}k 300k")
        qemu_img("snapshot", "-c", name, path)
    three = bytearray(b"A" * 102400 + b"B" * 102400 + b"C" * 307200).ljust(SIZE, b"\0")
    two = bytearray(b"A" * 102400 + b"B" * 307200).ljust(SIZE, b"\0")
    qemu_io(path, "write -P 90 0 1M")
    with FileDevice(path, read_only=False) as device:
        found = list_snapshots(device)
        assert [(one.id, one.name) for one in found] == [("1", "one"), ("2", "two"), ("3", "three")]
        assert {one.disk_size for one in found} == {SIZE}
        with open_image(device, snapshot="3") as disk:
            assert disk.read(0, SIZE) == three
        delete_snapshot(device, "one")
    assert_clean(path)
    with FileDevice(path, read_only=False) as device:
        apply_snapshot(device, "two")
    assert_clean(path)
    assert_same(path, bytes(two))
    with FileDevice(path, read_only=False) as device:
        with open_image(device, read_only=False) as disk:
            churn(disk, two, 4, steps=15)
        create_snapshot(device, "four")
        assert list_snapshots(device)[-1].id == "4"
        delete_snapshot(device, "two")
        delete_snapshot(device, "three")
        delete_snapshot(device, "four")
    assert_clean(path)
    assert_same(path, bytes(two))


@pytest.mark.interop
def test_a_machine_s_state_stays_as_it_is(tmp_path: Path) -> None:
    """Q18: QEMU saves it, and loads it when we have changed everything around it."""
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    qemu_io(path, "write -P 65 0 512k")
    machine(path, "savevm saved")
    first = (b"A" * (512 << 10)).ljust(SIZE, b"\0")
    with FileDevice(path, read_only=False) as device:
        (saved,) = list_snapshots(device)
        assert saved.vm_state_size
        create_snapshot(device, "disk only")
        with open_image(device, read_only=False) as disk:
            disk.write(0, b"x" * 300_000)
            disk.resize(600 << 20)  # the state lay where this disk now is
            assert disk.read(0, 700_000) == b"x" * 300_000 + first[300_000:700_000]
            assert not any(length for _, length in disk.data_ranges(SIZE, (600 << 20) - SIZE))
            disk.write(512 << 20, b"y" * 300_000)
        apply_snapshot(device, "saved")
        with open_image(device) as disk:
            assert disk.read(0, disk.size) == first
        delete_snapshot(device, "disk only")
        assert list_snapshots(device) == [saved]
        assert check(device).ok
    assert_clean(path)
    machine(path, "info version", "-loadvm", "saved")
    assert_clean(path)


def machine(path: Path, command: str, *options: str) -> None:
    """Run a command of QEMU's monitor in a machine that has only this image."""
    done = subprocess.run(
        [
            *(program("qemu-system-x86_64"), "-machine", "none", "-nodefaults", "-S"),
            *("-display", "none", "-monitor", "stdio"),
            *("-drive", f"file={path},if=none,id=d,format=qcow2", *options),
        ],
        input=f"{command}\nquit\n".encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done
    assert b"Error" not in done.stdout, done


def test_no_snapshot_gets_the_name_or_the_id_of_another_q18() -> None:
    image = new_image(SIZE)
    assert create_snapshot(image, "2").id == "1"
    assert create_snapshot(image, "other").id == "3"  # 2 is the name of the first
    for name in ("other", "2", "1", "3"):
        with pytest.raises(SnapshotExistsError, match=f"'{name}' could mean either"):
            create_snapshot(image, name)
    with pytest.raises(SnapshotNotFoundError, match="nothing"):
        apply_snapshot(image, "nothing")
    assert delete_snapshot(image, "2").id == "1"
    assert delete_snapshot(image, "3").name == "other"
    assert create_snapshot(image, "1").id == "1"  # one and the same
    assert delete_snapshot(image, "1").name == "1"
    for name in ("", "x" * 256, "a\0b"):
        with pytest.raises(ValueError, match="name"):
            create_snapshot(image, name)
    assert list_snapshots(image) == []


@pytest.mark.interop
def test_what_could_mean_two_snapshots_of_qemu_s_is_refused_q18(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    for number, name in enumerate(("first", "1", "same", "same"), 1):
        qemu_io(path, f"write -P {number} 0 64k")
        qemu_img("snapshot", "-c", name, path)
    image = MemoryDevice(path.read_bytes())
    before = bytes(image.content)
    for which in ("1", "same"):
        with pytest.raises(AmbiguousSnapshotError, match=r"2 snapshots .*\[Q18\]") as caught:
            delete_snapshot(image, which)
        assert "--id" in (caught.value.hint or "")
        with pytest.raises(AmbiguousSnapshotError):
            apply_snapshot(image, which)
        with pytest.raises(AmbiguousSnapshotError):
            open_image(image, snapshot=which)
    with pytest.raises(AmbiguousSnapshotError, match="name 'same'"):
        delete_snapshot(image, name="same")
    for key in (SnapshotKey(id="2", name="first"), SnapshotKey(name="2"), SnapshotKey(id="first")):
        with pytest.raises(SnapshotNotFoundError):
            apply_snapshot(image, key)
    with pytest.raises(TypeError):
        delete_snapshot(image)
    with pytest.raises(TypeError):
        apply_snapshot(image, "1", id="1")
    with pytest.raises(ValueError, match="its ID, its name, or both"):
        delete_snapshot(image, SnapshotKey())
    assert image.content == before
    for key, value in (
        (SnapshotKey(id="1"), 1),
        (SnapshotKey(name="1"), 2),
        (SnapshotKey("3", "same"), 3),
        (SnapshotKey(id="4"), 4),
    ):
        with open_image(image, snapshot=key) as disk:
            assert disk.read(0, 10) == bytes([value]) * 10
    # As `qemu-img snapshot -d 1` does, and not as `-a 1` does.
    qemu_img("snapshot", "-d", "1", path)
    assert delete_snapshot(image, name="1").id == "2"
    listed = [(one.id, one.name) for one in list_snapshots(image)]
    assert listed == [(one.id, one.name) for one in list_snapshots(MemoryDevice(path.read_bytes()))]
    apply_snapshot(image, id="1")
    assert content(image)[:10] == b"\1" * 10


def test_an_id_that_is_no_number_we_count_with() -> None:
    """IDs have up to 65,535 bytes; Python turns no more than 4300 digits into a number."""
    image = new_image(SIZE, Qcow2Options(cluster_size=65536))
    create_snapshot(image, "one")
    header = read_header(image)
    (one,) = list_snapshots(image)
    table = encode_snapshots([replace(one, id="9" * 5000)])
    image.write(header.snapshots_offset, table)
    assert create_snapshot(image, "two").id == "1"


def test_refcounts_that_are_too_narrow_refuse_before_anything_changes() -> None:
    """Q3"""
    disk = new_disk(SIZE, Qcow2Options(refcount_bits=1))
    disk.write(0, b"content")
    with pytest.raises(UnsupportedError, match="1 bits"):
        disk.rewrite(lambda device: create_snapshot(device, "name"))
    disk.write(70_000, b"more")
    disk.flush()
    assert disk.rewrite(check).ok
    assert disk.read(0, 7) == b"content"
    assert disk.read(70_000, 4) == b"more"


def test_a_snapshot_has_its_own_size() -> None:
    """Q19"""
    disk = new_disk(SIZE)
    disk.write(SIZE - 4, b"end.")
    disk.rewrite(lambda device: create_snapshot(device, "small"))
    disk.resize(3 * SIZE)
    disk.write(2 * SIZE, b"more")
    disk.rewrite(lambda device: create_snapshot(device, "large"))
    disk.resize(SIZE // 2)
    disk.rewrite(lambda device: apply_snapshot(device, "small"))
    assert (disk.size, disk.read(SIZE - 4, 4)) == (SIZE, b"end.")
    disk.rewrite(lambda device: apply_snapshot(device, "large"))
    assert (disk.size, disk.read(2 * SIZE, 4)) == (3 * SIZE, b"more")
    assert disk.rewrite(check).ok


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
def test_what_two_snapshots_share_is_known_without_reading_it(cluster_size: int) -> None:
    image = new_image(SIZE, Qcow2Options(cluster_size=cluster_size))
    generator = random.Random(cluster_size)
    for number in range(4):
        with open_image(image, read_only=False) as disk:
            for _ in range(3):
                disk.write(generator.randrange(SIZE - 9000), generator.randbytes(9000))
            disk.discard(number * 100_000, 70_000)
            if number == 3:
                disk.resize(2 * SIZE)
        create_snapshot(image, f"s{number}")
    for one, other in (("s0", "s1"), ("s0", "s2"), ("s2", "s1"), ("s1", "s3"), ("s3", "s0")):
        with open_image(image, snapshot=one) as first, open_image(image, snapshot=other) as second:
            ranges = list(differing_ranges(first, second))
            left = bytearray(first.read(0, first.size).ljust(2 * SIZE, b"\0"))
            right = bytearray(second.read(0, second.size).ljust(2 * SIZE, b"\0"))
        assert ranges == sorted(ranges)
        assert left != right
        for offset, length in ranges:
            left[offset : offset + length] = right[offset : offset + length] = bytes(length)
        assert left == right
        assert sum(length for _, length in ranges) < 2 * SIZE
    with open_image(image, snapshot="s3") as first, open_image(image) as second:
        assert list(differing_ranges(first, second)) == []
