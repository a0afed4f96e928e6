"""Images that are checked but not read, and numbers of a check, beside qemu-img. Q32, Q33."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from formats.devices.device import MemoryDevice
from formats.errors import UnsupportedError
from formats.qcow2.check import check
from formats.qcow2.header import read_header
from formats.qcow2.host import Host
from formats.qcow2.opening import open_image
from formats.qcow2.repair import repair
from formats.qcow2.snapshots import create_snapshot, list_snapshots
from formats.qcow2.tables import COPIED, OFFSET_MASK
from tests.qcow2.support import qemu_check, qemu_img, qemu_io

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

WAYS = {
    "extended L2 entries": "extended_l2=on,cluster_size=16k",
    "external data file": "data_file=data,cluster_size=4k",
    "neither": "cluster_size=4k",
    "clusters of 2 MiB": "cluster_size=2M",
}


def made(way: str, directory: Path) -> Path:
    path = directory / "image"
    options = WAYS[way].replace("data_file=", f"data_file={directory}/")
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "32M")
    qemu_io(path, "write -P 1 10k 300k", "write -P 2 5M 100k", "write -z 64k 64k")
    if way != "external data file":  # QEMU makes no snapshots of those
        qemu_img("snapshot", "-c", "first", path)
        qemu_io(path, "write -P 3 0 30k", "write -P 4 20M 3k", "discard 5M 32k")
    return path


def assert_same_numbers(path: Path) -> None:
    image = MemoryDevice(path.read_bytes())
    ours, theirs = check(image), qemu_check(path)
    for name in (
        "image_end_offset",
        "total_clusters",
        "allocated_clusters",
        "fragmented_clusters",
        "compressed_clusters",
        "corruptions",
        "leaks",
    ):
        assert getattr(ours, name) == theirs.get(name.replace("_", "-"), 0), (name, ours.findings)


def damage(path: Path, index: int, flip: int) -> None:
    """Change bits of an entry of the first L2 table, as words of 8 bytes are numbered."""
    image = MemoryDevice(path.read_bytes())
    header = read_header(image, (1 << 64) - 1)
    (entry,) = Host(image).read_table(header.l1_offset, 1)
    at = (entry & OFFSET_MASK) + 8 * index
    image.write(at, (int.from_bytes(image.read(at, 8)) ^ flip).to_bytes(8))
    path.write_bytes(image.content)


@pytest.mark.parametrize("way", WAYS)
def test_q32_q33_a_check_has_the_numbers_of_qemu_img(way: str, tmp_path: Path) -> None:
    path = made(way, tmp_path)
    assert_same_numbers(path)
    assert check(MemoryDevice(path.read_bytes())).ok
    for index, flip in ((4, COPIED), (6, 1 << 22), (8, 1 << 60), (2, 512)):
        damage(path, index, flip)
        assert_same_numbers(path)
    assert not check(MemoryDevice(path.read_bytes())).ok


@pytest.mark.parametrize("way", ["extended L2 entries", "external data file"])
def test_q32_what_is_only_checked_is_refused_by_name(way: str, tmp_path: Path) -> None:
    path = made(way, tmp_path)
    listed = list_snapshots(MemoryDevice(path.read_bytes()))
    names = ["first"] if way == "extended L2 entries" else []
    assert [snapshot.name for snapshot in listed] == names
    damage(path, 4, COPIED)
    image = MemoryDevice(path.read_bytes())
    reading = () if way == "extended L2 entries" else (lambda: open_image(image).read(20480, 512),)
    for refused in (
        *reading,
        lambda: open_image(image, read_only=False),
        lambda: repair(image, leaks_only=True),
        lambda: repair(image, leaks_only=False),
        lambda: create_snapshot(image, "name"),
    ):
        with pytest.raises(UnsupportedError, match=way):
            refused()
    assert image.content == path.read_bytes()
