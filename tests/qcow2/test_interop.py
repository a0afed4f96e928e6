"""What we write QEMU reads, and what QEMU writes we read: versions, cluster sizes, widths."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from formats.devices.file import FileDevice
from formats.errors import UnsupportedError
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.files import BackingFiles
from formats.qcow2.measure import measure
from formats.qcow2.opening import open_image
from formats.qcow2.preallocation import preallocate
from tests.qcow2.support import assert_clean, assert_same, qemu_check, qemu_img, qemu_io

if TYPE_CHECKING:
    from pathlib import Path

    from formats.qcow2.device import Qcow2Device

pytestmark = pytest.mark.interop

SIZE = 5 << 20
#: version, cluster size, bits of a refcount
MATRIX = [
    (2, 512, 16),
    (2, 65536, 16),
    (3, 512, 1),
    (3, 512, 64),
    (3, 1024, 4),
    (3, 4096, 2),
    (3, 65536, 8),
    (3, 65536, 16),
    (3, 131072, 32),
    (3, 2 << 20, 64),
]


def churn(disk: Qcow2Device, model: bytearray, seed: int, *, steps: int = 60) -> None:
    """Write, discard and read at random; the model follows."""
    generator = random.Random(seed)
    size = len(model)
    for _ in range(steps):
        offset = generator.randrange(size)
        length = min(generator.choice((1, 512, 5000, 70_000, 400_000)), size - offset)
        choice = generator.random()
        if choice < 0.65:
            data = generator.randbytes(length)
            disk.write(offset, data)
            model[offset : offset + length] = data
        elif choice < 0.85:
            disk.discard(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            assert disk.read(offset, length) == model[offset : offset + length]


@pytest.mark.parametrize(("version", "cluster_size", "refcount_bits"), MATRIX)
def test_qemu_reads_what_we_write(
    version: int, cluster_size: int, refcount_bits: int, tmp_path: Path
) -> None:
    """Q2, Q3, Q11 to Q15."""
    path = tmp_path / "image.qcow2"
    path.touch()
    options = Qcow2Options(version=version, cluster_size=cluster_size, refcount_bits=refcount_bits)
    model = bytearray(SIZE)
    with FileDevice(path, read_only=False) as device:
        create(device, SIZE, options)
    assert_clean(path)
    for seed in range(2):
        with (
            FileDevice(path, read_only=False) as device,
            open_image(device, read_only=False) as disk,
        ):
            churn(disk, model, seed)
            disk.flush()
        assert_clean(path)
    assert_same(path, bytes(model))
    with FileDevice(path) as device:
        ours, theirs = check(device), qemu_check(path)
    assert ours.ok
    assert ours.image_end_offset == theirs["image-end-offset"]
    assert ours.allocated_clusters == theirs.get("allocated-clusters", 0)
    assert ours.fragmented_clusters == theirs.get("fragmented-clusters", 0)
    assert ours.total_clusters == theirs["total-clusters"]


@pytest.mark.parametrize(("version", "cluster_size", "refcount_bits"), MATRIX)
def test_we_read_and_change_what_qemu_writes(
    version: int, cluster_size: int, refcount_bits: int, tmp_path: Path
) -> None:
    path = tmp_path / "image.qcow2"
    options = f"compat={'0.10' if version == 2 else '1.1'},cluster_size={cluster_size}"
    if version == 3:
        options += f",refcount_bits={refcount_bits}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, SIZE)
    zeros = "write -z 4M 512k" if version == 3 else "write -P 0 4M 512k"
    first = ("write -P 65 0 1M", "write -P 66 1000k 300k", "write -P 67 2M 3M")
    qemu_io(path, *first, "discard 2M 2M", zeros)
    model = bytearray(b"A" * 1024000 + b"B" * 307200).ljust(SIZE, b"\0")
    model[4608 << 10 :] = b"C" * (512 << 10)
    with FileDevice(path) as device, open_image(device) as disk:
        assert disk.size == SIZE
        assert disk.read(0, SIZE) == model
    with FileDevice(path, read_only=False) as device, open_image(device, read_only=False) as disk:
        churn(disk, model, 5)
    assert_clean(path)
    assert_same(path, bytes(model))
    qemu_io(path, "write -P 67 512k 2M")
    model[512 << 10 : (512 << 10) + (2 << 20)] = b"C" * (2 << 20)
    assert_clean(path)
    with FileDevice(path) as device, open_image(device) as disk:
        assert disk.read(0, SIZE) == model


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", [512, 65536, 2 << 20])
def test_compressed_clusters_are_read_and_overwritten(
    kind: str, cluster_size: int, tmp_path: Path
) -> None:
    """Q17"""
    generator = random.Random(3)
    model = bytearray(
        b"".join(generator.randbytes(1) * 997 + generator.randbytes(100) for _ in range(3000))
    )
    del model[len(model) // 4096 * 4096 :]
    raw, path = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(model)
    options = f"cluster_size={cluster_size},compression_type={kind}"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    with FileDevice(path) as device, open_image(device) as disk:
        assert disk.header.compression_type == (kind == "zstd")
        assert disk.read(0, disk.size) == model
        assert check(device).compressed_clusters == qemu_check(path)["compressed-clusters"]
    with FileDevice(path, read_only=False) as device, open_image(device, read_only=False) as disk:
        churn(disk, model, 7, steps=25)
    assert_clean(path)
    assert_same(path, bytes(model))


@pytest.mark.parametrize("version", [2, 3])
def test_chains_of_backing_files(version: int, tmp_path: Path) -> None:
    """Q6: raw below qcow2 below qcow2, each larger than what is below it."""
    base, middle, top = (tmp_path / name for name in ("base.raw", "middle.qcow2", "top.qcow2"))
    base.write_bytes(b"B" * 700_416)
    compat = "compat=0.10" if version == 2 else "compat=1.1"
    backed = ("create", "-q", "-f", "qcow2", "-o", f"{compat},cluster_size=4096")
    qemu_img(*backed, "-F", "raw", "-b", "base.raw", middle, "1M")
    qemu_io(middle, "write -P 77 600k 200k")
    top.touch()
    options = Qcow2Options(
        version=version,
        cluster_size=8192,
        backing_name="middle.qcow2",
        backing_format="qcow2",
    )
    model = bytearray(b"B" * 614400 + b"M" * 204800).ljust(2 << 20, b"\0")
    with FileDevice(top, read_only=False) as device:
        create(device, len(model), options)
        with open_image(device, read_only=False, open_backing=BackingFiles()) as disk:
            assert disk.read(0, len(model)) == model
            churn(disk, model, 11)
            assert disk.read(0, len(model)) == model
            known = bytearray(model)
            for offset, length in disk.data_ranges(0, disk.size):
                known[offset : offset + length] = bytes(length)
            assert not any(known)
            assert sum(length for _, length in disk.data_ranges(0, disk.size)) < len(model)
    assert_clean(top)
    assert_same(top, bytes(model))


def test_backing_files_are_off_unless_asked_for(tmp_path: Path) -> None:
    """Q6"""
    path = tmp_path / "image.qcow2"
    (tmp_path / "base").write_bytes(bytes(1 << 20))
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", path)
    with (
        FileDevice(path) as device,
        pytest.raises(UnsupportedError, match=r"none is permitted \[Q6\]"),
    ):
        open_image(device)


@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
def test_images_that_qemu_preallocated(preallocation: str, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"preallocation={preallocation}", path, "3M")
    model = bytearray(3 << 20)
    with FileDevice(path, read_only=False) as device, open_image(device, read_only=False) as disk:
        assert disk.read(0, disk.size) == model
        churn(disk, model, 2)
    assert_clean(path)
    assert_same(path, bytes(model))


@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_images_that_we_preallocate(cluster_size: int, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    path.touch()
    size = (1 << 20) + 512
    with FileDevice(path, read_only=False) as device:
        create(device, size, Qcow2Options(cluster_size=cluster_size))
        with open_image(device, read_only=False) as disk:
            disk.write(5000, b"already there")
            preallocate(disk)
            end = device.size
            disk.write(0, bytes(5000))
            disk.write(size - 5, b"hello")
            assert disk.read(0, size) == (
                bytes(5000) + b"already there" + bytes(size - 5018) + b"hello"
            )
            assert device.size == end
        assert check(device).allocated_clusters == -(-size // cluster_size)
    assert_clean(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_growing_and_shrinking(version: int, cluster_size: int, tmp_path: Path) -> None:
    """Q21"""
    path = tmp_path / "image.qcow2"
    path.touch()
    model = bytearray(100 << 10)
    with FileDevice(path, read_only=False) as device:
        create(device, len(model), Qcow2Options(version=version, cluster_size=cluster_size))
        with open_image(device, read_only=False) as disk:
            for number, kib in enumerate((101, 3000, 10_000, 80, 10_000, 11_111, 1)):
                churn(disk, model, number, steps=20)
                disk.resize(kib << 10)
                model = bytearray(model[: kib << 10].ljust(kib << 10, b"\0"))
                assert disk.read(0, disk.size) == model
                disk.flush()
                assert check(device).ok
    assert_clean(path)
    assert_same(path, bytes(model))


@pytest.mark.parametrize("source", [0, 512, 1 << 20, (1 << 20) + 512, 5 << 30, 1 << 40])
@pytest.mark.parametrize("options", [(65536, 16), (4096, 1), (2 << 20, 64)])
def test_measuring_says_what_qemu_says(source: int, options: tuple[int, int]) -> None:
    """Q24"""
    cluster_size, refcount_bits = options
    text = f"cluster_size={cluster_size},refcount_bits={refcount_bits}"
    said = _json(qemu_img("measure", "--output=json", "--size", source, "-O", "qcow2", "-o", text))
    ours = measure(source, Qcow2Options(cluster_size=cluster_size, refcount_bits=refcount_bits))
    assert ours == (said["required"], said["fully-allocated"])


def test_measuring_an_image_says_what_qemu_says(tmp_path: Path) -> None:
    """Q24"""
    path = tmp_path / "raw"
    with path.open("wb") as file:
        for offset in (4096, 500_000, 3_000_000, 3_070_000):
            file.seek(offset)
            file.write(b"data" * 3000)
        file.truncate(5 << 20)
    said = _json(qemu_img("measure", "--output=json", "-f", "raw", "-O", "qcow2", path))
    with FileDevice(path) as device:
        data = list(device.data_ranges(0, device.size))
    assert measure(5 << 20, data=data) == (said["required"], said["fully-allocated"])


def _json(text: bytes) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(text)
    return found
