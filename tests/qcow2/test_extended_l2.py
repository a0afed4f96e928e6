"""Images with extended L2 entries or a data file are read as QEMU reads them (Q35, Q36)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import blobstore
from formats.devices.device import MemoryDevice, read_exactly
from formats.devices.file import FileDevice
from formats.errors import FormatError, UnsupportedError
from formats.qcow2.check import check
from formats.qcow2.files import BackingFiles
from formats.qcow2.header import read_header
from formats.qcow2.host import Host
from formats.qcow2.opening import open_image
from formats.qcow2.repair import repair
from formats.qcow2.tables import OFFSET_MASK
from tests.qcow2.support import qemu_check, qemu_img, qemu_io

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

SIZE = 40 << 20
WRITES = (
    *("write -P 1 10k 300k", "write -P 2 5M 100k", "write -z 5M 8k", "write -P 3 5122k 512"),
    *("write -z 8M 1M", "write -P 4 8200k 3k", "discard 64k 128k", "write -P 5 40959k 1k"),
)


def made(directory: Path, cluster: str) -> Path:
    path = directory / "image"
    options = f"extended_l2=on,cluster_size={cluster}"
    base = directory / "base"
    qemu_img("create", "-q", "-f", "qcow2", base, "39M")
    qemu_io(base, "write -P 7 0 1M", "write -P 8 4M 3M", "write -P 9 38M 1M")
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", "base", "-F", "qcow2", path, "40M")
    qemu_io(path, "write -c -P 6 24M 2M", *WRITES[:4])
    qemu_img("snapshot", "-c", "first", path)
    qemu_io(path, *WRITES[4:])
    return path


def ours(path: Path, snapshot: str | None = None) -> bytes:
    from formats.devices.file import FileDevice

    with (
        FileDevice(path) as file,
        open_image(file, open_backing=BackingFiles(), snapshot=snapshot) as disk,
    ):
        return read_exactly(disk, 0, disk.size)


@pytest.mark.parametrize("cluster", ["16k", "64k", "2M"])
def test_q35_the_disk_is_that_of_qemu_img(cluster: str, tmp_path: Path) -> None:
    path = made(tmp_path, cluster)
    for snapshot in (None, "first"):
        which = () if snapshot is None else ("-l", f"snapshot.name={snapshot}")
        qemu_img("convert", "-O", "raw", *which, path, tmp_path / "raw")
        assert ours(path, snapshot) == (tmp_path / "raw").read_bytes()
    said = json.loads(qemu_img("measure", "--output=json", "-O", "qcow2", path))
    found = blobstore.measure(path, open_backing=blobstore.BackingFiles())
    assert (found.required, found.fully_allocated) == (said["required"], said["fully-allocated"])


@pytest.mark.parametrize(
    "options",
    [
        *("cluster_size=4k", "cluster_size=64k,data_file_raw=on"),
        "extended_l2=on,cluster_size=16k",
    ],
)
def test_q36_clusters_are_read_from_a_data_file(options: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    options += f",data_file={tmp_path}/data"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "8M")
    qemu_io(path, "write -P 1 0 10k", "write -P 2 5M 100k", "write -z 5M 8k", "write -P 3 8191k 1k")
    qemu_img("convert", "-O", "raw", path, tmp_path / "raw")
    opener = BackingFiles(anywhere=True)
    with FileDevice(path) as file, open_image(file, open_backing=opener) as disk:
        assert read_exactly(disk, 0, disk.size) == (tmp_path / "raw").read_bytes()
    opener_again = BackingFiles(anywhere=True)
    blobstore.convert(path, tmp_path / "copy", to="raw", open_backing=opener_again)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "raw").read_bytes()
    with FileDevice(path) as file, open_image(file) as disk:
        with pytest.raises(UnsupportedError, match="external data file"):
            disk.read(0, 512)
        if "data_file_raw" not in options:
            assert disk.read(1 << 20, 512) == bytes(512)
    if "data_file_raw" not in options:  # QEMU counts all of such a file
        said = json.loads(qemu_img("measure", "--output=json", "-O", "qcow2", path))
        assert blobstore.measure(path).required == said["required"]


def test_q35_an_entry_that_contradicts_itself_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, "1M")
    qemu_io(path, "write -P 1 0 6k", "write -z 8k 2k")
    sound = path.read_bytes()
    image = MemoryDevice(sound)
    header = read_header(image, (1 << 64) - 1)
    (entry,) = Host(image).read_table(header.l1_offset, 1)
    table = entry & OFFSET_MASK
    for word, value in ((1, 1 << 32 | 1), (3, 1)):
        image = MemoryDevice(sound)
        image.write(table + 8 * word, value.to_bytes(8))
        with open_image(image) as disk, pytest.raises(FormatError, match="Q35"):
            disk.read(0, disk.size)
        path.write_bytes(image.content)
        with pytest.raises(AssertionError):
            assert b"read failed" not in qemu_io_read(path)


def qemu_io_read(path: Path) -> bytes:
    import subprocess

    done = subprocess.run(
        ["qemu-io", "-r", "-c", "read 0 1M", path], capture_output=True, check=False
    )
    return done.stdout + done.stderr


def test_q35_it_is_not_written(tmp_path: Path) -> None:
    path = made(tmp_path, "64k")
    before = path.read_bytes()
    with pytest.raises(UnsupportedError, match="extended L2"):
        open_image(MemoryDevice(before), read_only=False)
    assert path.read_bytes() == before


def test_q35_a_store_in_one_is_read(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    with blobstore.create(raw, {"a": 100}, encrypted=False) as store:
        store.put("a", b"content")
    path = tmp_path / "image"
    qemu_img("convert", "-O", "qcow2", "-o", "extended_l2=on", raw, path)
    with blobstore.open(path, read_only=True) as store:
        assert store.get("a") == b"content"
    with pytest.raises(UnsupportedError, match="extended L2"):
        blobstore.open(path)


@pytest.mark.parametrize("options", ["cluster_size=16k", "cluster_size=64k,data_file=DATA"])
def test_q35_a_check_finds_impossible_bitmaps_as_qemu_img_does(
    options: str, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    options = options.replace("DATA", str(tmp_path / "data"))
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"extended_l2=on,{options}", path, "4M")
    qemu_io(path, "write -P 1 0 30k", "write -z 128k 8k")
    if "data" not in options:
        qemu_io(path, "write -c -P 2 1M 64k")
    sound = path.read_bytes()
    image = MemoryDevice(sound)
    header = read_header(image, (1 << 64) - 1)
    (entry,) = Host(image).read_table(header.l1_offset, 1)
    table = entry & OFFSET_MASK
    indices = (0, 1, (128 << 10) // header.cluster_size, (1 << 20) // header.cluster_size, 40)
    found = 0
    for index in indices:
        for bitmap in (0, 1, 1 << 32, 1 << 32 | 1, 1 << 63 | 1 << 31, 0xFFFFFFFF):
            image = MemoryDevice(sound)
            image.write(table + 16 * index + 8, bitmap.to_bytes(8))
            path.write_bytes(image.content)
            ours, theirs = check(image), qemu_check(path)
            assert ours.corruptions == theirs.get("corruptions", 0), (index, hex(bitmap))
            found += ours.corruptions
    assert found


@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=64k,refcount_bits=1"])
@pytest.mark.parametrize("flip", [1, 8, 256, 511])
def test_q37_reserved_bits_of_the_refcount_table_count_as_in_qemu_img(
    options: str, flip: int, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "4M")
    qemu_io(path, "write -P 1 100k 300k")
    content = bytearray(path.read_bytes())
    table = int.from_bytes(content[48:56])
    entry = int.from_bytes(content[table : table + 8])
    content[table : table + 8] = (entry ^ flip).to_bytes(8)
    path.write_bytes(content)
    image = MemoryDevice(bytes(content))
    ours, theirs = check(image), qemu_check(path)
    assert (ours.corruptions, ours.leaks) == (1, 1)
    assert (theirs["corruptions"], theirs["leaks"]) == (1, 1)
    assert ours.image_end_offset == theirs["image-end-offset"]
    repair(image, leaks_only=False)
    assert check(image).ok
    path.write_bytes(image.content)
    assert not qemu_check(path).get("corruptions", 0)
    assert not qemu_check(path).get("leaks", 0)
