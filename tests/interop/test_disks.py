"""What `blobstore` does with whole qcow2 images by path, beside `qemu-img`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest

import blobstore
import luks
from formats.qcow2.header import read_header
from formats.qcow2.host import Host
from tests.qcow2.support import assert_clean, qemu_check, qemu_img, qemu_io

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

SIZE = 8 << 20
KDF = luks.Pbkdf2("sha256", 1000)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, str(SIZE))
    qemu_io(path, "write -P 7 0 300k")
    return path


def leak(path: Path) -> None:
    """Count a cluster that nothing uses."""
    from formats.devices.file import FileDevice

    with FileDevice(path, read_only=False) as device:
        (block,) = Host(device).read_table(read_header(device).refcount_table_offset, 1)
        device.resize(101 * 65536)
        device.write(block + 2 * 100, b"\0\1")


def test_check_finds_what_qemu_finds_and_frees_it(image: Path) -> None:
    report = blobstore.check(image)
    assert isinstance(report, blobstore.CheckReport)
    assert report.ok
    assert report.allocated_clusters == qemu_check(image)["allocated-clusters"] == 5
    leak(image)
    before = image.read_bytes()
    report = blobstore.check(image)
    assert (report.ok, report.leaks, report.corruptions) == (False, 1, 0)
    assert image.read_bytes() == before
    report = blobstore.check(image, repair="leaks")
    assert (report.ok, report.leaks_fixed) == (True, 1)
    assert_clean(image)


def test_check_refuses_what_it_is_not_for(image: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'leaks' or of 'all'"):
        blobstore.check(image, repair=cast("Any", "some"))
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(4096))
    with pytest.raises(blobstore.StorageError, match="qcow2"):
        blobstore.check(raw)
    with (
        blobstore.create(tmp_path / "store", {"a": 10}, encrypted=False, image_format="qcow2"),
        pytest.raises(luks.DeviceBusyError),
    ):
        blobstore.check(tmp_path / "store", repair="all")


def measured(*arguments: object) -> tuple[int, int]:
    said = json.loads(qemu_img("measure", "--output=json", "-O", "qcow2", *arguments))
    return said["required"], said["fully-allocated"]


def test_measure_says_what_qemu_says(image: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.write(b"x" * 70_000)
        file.truncate(SIZE)
    assert tuple(blobstore.measure(image)) == measured(image)
    assert tuple(blobstore.measure(raw)) == measured("-f", "raw", raw)
    assert tuple(blobstore.measure(SIZE)) == measured("--size", SIZE)
    small = blobstore.Qcow2Options(cluster_size=4096, refcount_bits=8)
    options = ("-o", "cluster_size=4096,refcount_bits=8")
    assert tuple(blobstore.measure(SIZE, small)) == measured("--size", SIZE, *options)
    encrypted = blobstore.measure(SIZE, encrypted=True)
    assert encrypted.required > blobstore.measure(SIZE).required + (1 << 20)
    with pytest.raises(ValueError, match="cannot have -1 bytes"):
        blobstore.measure(-1)


def test_measure_follows_backing_files_only_if_asked(image: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    qemu_img("create", "-q", "-f", "qcow2", "-b", image.name, "-F", "qcow2", overlay)
    with pytest.raises(luks.UnsupportedError):
        blobstore.measure(overlay)
    found = blobstore.measure(overlay, open_backing=blobstore.BackingFiles())
    assert tuple(found) == measured(overlay)


def test_a_snapshot_is_made_applied_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with blobstore.create(path, {"a": 100}, encrypted=False, image_format="qcow2") as store:
        store.put("a", b"old")
    made = blobstore.create_snapshot(path, "before")
    assert blobstore.list_snapshots(path) == [made]
    assert b"before" in qemu_img("snapshot", "-l", path)
    with pytest.raises(luks.StorageError) as caught:
        blobstore.create_snapshot(path, "before")
    assert caught.value.exit_code == 42
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        blobstore.create_snapshot(path, "")
    with blobstore.open(path) as store:
        store.put("a", b"new")
        with pytest.raises(luks.DeviceBusyError):
            blobstore.apply_snapshot(path, "before")
    assert blobstore.apply_snapshot(path, blobstore.SnapshotKey(name="before")) == made
    with blobstore.open(path, read_only=True) as store:
        assert store.get("a") == b"old"
    assert blobstore.delete_snapshot(path, made.id) == made
    assert blobstore.list_snapshots(path) == []
    with pytest.raises(luks.StorageError) as caught:
        blobstore.delete_snapshot(path, "before")
    assert caught.value.exit_code == 41
    assert_clean(path)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_header_leaves_its_image_and_comes_back(tmp_path: Path, image_format: str) -> None:
    path, header = tmp_path / "image", tmp_path / "header"
    options: dict[str, Any] = {"image_format": image_format, "kdf": KDF}
    with blobstore.create(path, {"a": 100}, b"key", **options) as store:
        store.put("a", b"1")
    with blobstore.luks_place(path) as place:
        uuid = luks.load_header(place).uuid
    header.touch()
    with pytest.raises(blobstore.OutputExistsError):
        blobstore.detach_header(path, header)
    assert blobstore.detach_header(path, header, overwrite=True).uuid == uuid
    assert not blobstore.is_encrypted(path)
    with blobstore.luks_place(path, header) as place:
        assert luks.load_header(place).uuid == uuid
    assert blobstore.attach_header(path, header).uuid == uuid
    with blobstore.open(path, b"key", read_only=True) as store:
        assert store.get("a") == b"1"


def test_a_header_is_not_written_over_a_store_in_the_clear(tmp_path: Path) -> None:
    path, clear, header = tmp_path / "image", tmp_path / "clear", tmp_path / "header"
    blobstore.create(path, {"a": 100}, b"key", kdf=KDF).close()
    blobstore.detach_header(path, header)
    blobstore.create(clear, {"a": 100}, encrypted=False, size=16 << 20).close()
    before = clear.read_bytes()
    with pytest.raises(luks.ForeignImageError, match="store in the clear"):
        blobstore.attach_header(clear, header)
    assert clear.read_bytes() == before


def test_a_header_is_changed_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blobstore.create(path, {"a": 100}, b"key", kdf=KDF, image_format="qcow2").close()
    with blobstore.luks_place(path, write=True) as place:
        luks.add_keyslot(place, b"key", b"another", kdf=KDF)
    blobstore.open(path, b"another", read_only=True).close()
    with pytest.raises(ValueError, match="both the image and its LUKS header"):
        blobstore.luks_place(path, path).__enter__()
