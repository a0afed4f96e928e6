"""Images made to harm: errors in bounded time and memory, and nothing is written elsewhere."""

from __future__ import annotations

import random
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.errors import ForeignImageError, FormatError, StorageError, UnsupportedError
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.files import BackingFiles
from formats.qcow2.header import is_qcow2, read_header
from formats.qcow2.host import Host
from formats.qcow2.opening import open_image
from formats.qcow2.repair import repair
from formats.qcow2.snapshots import apply_snapshot, create_snapshot, delete_snapshot
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK
from tests.qcow2.support import new_image, qemu_img

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Nothing here may take long or much memory."""
    tracemalloc.start()
    started = time.process_time()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 20
    assert peak < 200 << 20


def used_image(options: Qcow2Options | None = None) -> MemoryDevice:
    image = new_image(SIZE, options or Qcow2Options(cluster_size=4096))
    with open_image(image, read_only=False) as disk:
        disk.write(5000, bytes(range(256)) * 300)
    create_snapshot(image, "one", when=1)
    with open_image(image, read_only=False) as disk:
        disk.write(200_000, b"x" * 40_000)
    return image


def everything(image: MemoryDevice) -> None:
    """Do all there is with an image; only our errors may come of it."""
    for turn in (
        lambda: check(image),
        lambda: _read(image, None),
        lambda: _read(image, "one"),
        lambda: _write(image),
        lambda: create_snapshot(image, "two"),
        lambda: apply_snapshot(image, "one"),
        lambda: delete_snapshot(image, "one"),
        lambda: repair(image, leaks_only=True),
        lambda: repair(image, leaks_only=False),
    ):
        try:
            turn()
        except StorageError:
            continue


def _read(image: MemoryDevice, snapshot: str | None) -> None:
    with open_image(image, snapshot=snapshot) as disk:
        size = min(disk.size, 4 << 20)
        list(disk.data_ranges(0, size))
        disk.read(0, size)


def _write(image: MemoryDevice) -> None:
    with open_image(image, read_only=False) as disk:
        for at in range(0, min(disk.size, 1 << 20) - 9000, 30_000):
            disk.write(at, b"written" * 1000)
        disk.discard(0, min(disk.size, 100_000))
        disk.flush()


@pytest.mark.parametrize("seed", range(8))
def test_any_bytes_in_the_metadata_give_a_value_or_an_error(seed: int) -> None:
    generator = random.Random(seed)
    original = bytes(used_image().content)
    header = read_header(MemoryDevice(original))
    l2 = Host(MemoryDevice(original)).read_table(header.l1_offset, 1)[0] & OFFSET_MASK
    regions = [
        (0, 112),
        (112, 512),
        (header.l1_offset, 8),
        (header.refcount_table_offset, 64),
        (header.snapshots_offset, 80),
        (l2, 600),
    ]
    for _ in range(25):
        image = MemoryDevice(original)
        for _ in range(generator.choice((1, 2, 5))):
            start, size = generator.choice(regions)
            at = start + generator.randrange(size)
            width = generator.choice((1, 2, 4, 8))
            value = generator.choice((0, 1, 255, (1 << 64) - 1, generator.getrandbits(64)))
            image.write(at, (value & (1 << width * 8) - 1).to_bytes(width))
        everything(image)


@pytest.mark.parametrize("size", [0, 1, 4, 8, 71, 72, 103, 104, 111, 112, 500, 512, 5000, 20_000])
def test_images_that_were_cut_short(size: int) -> None:
    everything(MemoryDevice(used_image().content[:size]))
    assert is_qcow2(MemoryDevice(used_image().content[:size])) == (size >= 72)


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, b"QFI\0", ForeignImageError),
        (4, b"\0\0\0\4", UnsupportedError),
        (20, b"\0\0\0\x08", UnsupportedError),
        (20, b"\0\0\0\x3f", UnsupportedError),
        (24, b"\xff" * 8, FormatError),
        (32, b"\0\0\0\7", UnsupportedError),
        (36, b"\xff\xff\xff\xff", UnsupportedError),
        (36, b"\0\0\0\0", FormatError),
        (40, b"\0\0\0\0\0\0\0\1", FormatError),
        (40, b"\x7f" + bytes(7), FormatError),
        (48, b"\0\0\0\0\0\0\0\1", FormatError),
        (56, b"\xff\xff\xff\xff", UnsupportedError),
        (60, b"\xff\xff\xff\xff", UnsupportedError),
        (64, b"\0\0\0\0\0\0\0\7", FormatError),
        (72, b"\0\0\0\0\0\0\1\0", UnsupportedError),
        (96, b"\0\0\0\7", FormatError),
        (100, b"\0\0\0\1", FormatError),
        (104, b"\7", FormatError),
        (116, b"\xff\xff\xff\xff", FormatError),
    ],
)
def test_headers_that_cannot_be(at: int, value: bytes, error: type[StorageError]) -> None:
    """Q1 to Q4"""
    image = used_image()
    image.write(at, value)
    with pytest.raises(error):
        read_header(image)


def test_an_unknown_feature_is_named_by_the_image() -> None:
    """Q4"""
    image = used_image()
    image.write(72, (1 << 9).to_bytes(8))
    with pytest.raises(UnsupportedError, match="incompatible feature bit 9"):
        open_image(image)
    names = image.content.index(b"dirty bit") - 2
    image.write(names, b"\0\x09" + b"time travel\x1b[31m".ljust(46, b"\0"))
    with pytest.raises(UnsupportedError, match=r"time travel\?\[31m") as caught:
        open_image(image)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("target", ["header", "l1", "l2", "refcounts", "snapshots"])
def test_data_is_never_written_over_metadata(target: str) -> None:
    """Q9: an entry says that a table is data of its own."""
    image = used_image()
    header, host = read_header(image), Host(image)
    l2 = host.read_table(header.l1_offset, 1)[0] & OFFSET_MASK
    (block,) = host.read_table(header.refcount_table_offset, 1)
    offset = {
        "header": 0,
        "l1": header.l1_offset,
        "l2": l2,
        "refcounts": block,
        "snapshots": header.refcount_table_offset,
    }[target]
    image.write(l2 + 8 * 100, (offset | COPIED).to_bytes(8))
    before = image.read(offset, 4096)
    with open_image(image, read_only=False) as disk:
        if target == "header":
            disk.write(100 * 4096, b"guest")  # without an offset there is no cluster
        else:
            with pytest.raises(FormatError, match=r"its own metadata at byte .*\[Q9\]"):
                disk.write(100 * 4096, b"guest")
    after = image.read(offset, 4096)
    assert after[:512] == before[:512] or target in ("l1", "l2", "refcounts")
    assert b"guest" not in after


def test_an_entry_that_is_no_cluster_is_neither_read_nor_written() -> None:
    """Q9"""
    image = used_image()
    l2 = Host(image).read_table(read_header(image).l1_offset, 1)[0] & OFFSET_MASK
    image.write(l2 + 8 * 100, (30 * 4096 + 512 | COPIED).to_bytes(8))
    image.write(l2 + 8 * 101, (1 << 40 | COPIED).to_bytes(8))
    before = bytes(image.content)
    with open_image(image, read_only=False) as disk:
        for number, message in ((100, "which is not a cluster"), (101, "the image ends before")):
            with pytest.raises(FormatError, match=message):
                disk.read(number * 4096, 10)
            with pytest.raises(FormatError, match=message):
                disk.write(number * 4096, b"guest")
    assert image.content == before


def test_counts_that_call_everything_free_endanger_nothing() -> None:
    """Q9"""
    image = used_image()
    (block,) = Host(image).read_table(read_header(image).refcount_table_offset, 1)
    image.write(block, bytes(4096))
    before = bytes(image.content)
    disk = open_image(image, read_only=False)
    with pytest.raises(FormatError, match="its own metadata"):
        disk.write(900_000, b"new")
    assert image.content == before
    assert check(image).corruptions
    assert repair(image, leaks_only=False).ok


def test_one_table_for_everything_takes_no_longer() -> None:
    """An L1 table of four million entries that all refer to one L2 table."""
    image = new_image(SIZE, Qcow2Options(cluster_size=65536))
    with open_image(image, read_only=False) as disk:
        disk.write(0, b"x" * SIZE)
    header = read_header(image)
    entry = image.read(header.l1_offset, 8)
    l1_offset, entries = 64 << 20, 1 << 19
    image.resize(l1_offset + entries * 8)
    image.write(l1_offset, entry * entries)
    image.write(36, entries.to_bytes(4) + l1_offset.to_bytes(8))
    image.write(24, (entries << 29).to_bytes(8))
    report = check(image)
    assert report.corruptions > 10
    with open_image(image) as disk:
        assert disk.read(5 << 29, 100) == b"x" * 100


def test_a_table_that_refers_to_itself() -> None:
    image = used_image()
    header = read_header(image)
    l2 = Host(image).read_table(header.l1_offset, 1)[0] & OFFSET_MASK
    for index in range(512):
        image.write(l2 + 8 * index, (l2 | COPIED).to_bytes(8))
    everything(image)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_compressed_clusters_that_are_none(kind: str, tmp_path: Path) -> None:
    """Q17: noise, too little, and far more than a cluster."""
    import zlib

    from formats.qcow2.compression import decompress

    del tmp_path
    zstd = kind == "zstd"
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    large = bomb.compress(bytes(64 << 20)) + bomb.flush()
    if zstd:
        from backports.zstd import compress

        large = compress(bytes(64 << 20))
        wide = b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(20)  # a window of 2 GiB
        with pytest.raises(FormatError, match="damaged"):
            decompress(wide, 65536, 1)
    assert decompress(large, 65536, zstd) == bytes(65536)
    with pytest.raises(FormatError, match="Q17"):
        decompress(large[: len(large) // 5000], 2 << 20, zstd)
    for seed in range(200):
        noise = random.Random(seed).randbytes(3000)
        with pytest.raises(FormatError):
            decompress(noise, 65536, zstd)


def test_compressed_clusters_behind_the_end() -> None:
    image = used_image()
    l2 = Host(image).read_table(read_header(image).l1_offset, 1)[0] & OFFSET_MASK
    image.write(l2, (COMPRESSED | 1 << 40 | 1 << 58).to_bytes(8))
    with open_image(image) as disk, pytest.raises(FormatError):
        disk.read(0, 10)
    everything(image)


def test_backing_files_in_a_loop_are_refused(tmp_path: Path) -> None:
    """Q6"""
    one, two = tmp_path / "one", tmp_path / "two"
    for path, name in ((one, "two"), (two, "one")):
        path.touch()
        with FileDevice(path, read_only=False) as device:
            create(device, SIZE, Qcow2Options(backing_name=name, backing_format="qcow2"))
    with (
        FileDevice(one) as device,
        pytest.raises(FormatError, match=r"back to itself \[Q6\]"),
    ):
        open_image(device, open_backing=BackingFiles())
    with (
        FileDevice(one) as device,
        pytest.raises(FormatError, match="chain of backing files is too long"),
    ):
        open_image(device, open_backing=lambda *_: FileDevice(one))


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../secret", "nbd://host/export", 'json:{"driver":"raw"}', "sub/../../secret"],
)
def test_backing_files_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    """Q6"""
    (tmp_path / "secret").write_bytes(b"secret" * 100)
    directory = tmp_path / "images"
    (directory / "sub").mkdir(parents=True)
    path = directory / "image"
    path.touch()
    with FileDevice(path, read_only=False) as device:
        create(device, SIZE, Qcow2Options(backing_name=name, backing_format="raw"))
        with pytest.raises(UnsupportedError, match="Q6"):
            open_image(device, open_backing=BackingFiles())
        if ":" not in name:
            opener = BackingFiles(anywhere=True)
            with open_image(device, open_backing=opener) as disk:
                assert disk.read(0, 4) in (b"root", b"secr")


def test_a_symbolic_link_leads_nowhere_else(tmp_path: Path) -> None:
    """Q6"""
    (tmp_path / "secret").write_bytes(b"secret" * 100)
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / "base").symlink_to("../secret")
    path = directory / "image"
    path.touch()
    with FileDevice(path, read_only=False) as device:
        create(device, SIZE, Qcow2Options(backing_name="base", backing_format="raw"))
        with pytest.raises(UnsupportedError, match="not beside"):
            open_image(device, open_backing=BackingFiles())


@pytest.mark.interop
def test_the_format_of_a_backing_file_is_not_guessed(tmp_path: Path) -> None:
    """Q6: a guest that writes a qcow2 header to its raw disk does not become qcow2."""
    base, path = tmp_path / "base", tmp_path / "image"
    base.write_bytes(bytes(used_image().content).ljust(1 << 20, b"\0"))
    path.touch()
    with FileDevice(path, read_only=False) as device:
        create(device, SIZE, Qcow2Options(version=2, backing_name="base", backing_format="raw"))
        with open_image(device, open_backing=BackingFiles()) as disk:
            assert disk.read(0, 4) == b"QFI\xfb"
        # Without the extension: as old images are.
        at = device.read(0, 512).index(b"\xe2\x79\x2a\xca")
        device.write(at, bytes(4))
        with pytest.raises(UnsupportedError, match="does not name the format"):
            open_image(device, open_backing=BackingFiles())
        with open_image(device, open_backing=BackingFiles(probe=True)) as disk:
            assert disk.read(5000, 4) == bytes(range(4))
    qemu_img("check", "-f", "qcow2", path)
