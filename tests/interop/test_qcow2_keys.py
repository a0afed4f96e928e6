"""Keys and LUKS headers of qcow2 images, in the disk and beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from blobstore.image.luks_header import luks_place
from formats.errors import DeviceBusyError
from tests.luks.programs import key_file
from tests.support.cli import QUICK, fails, succeeds
from tests.support.foreign import run
from tests.support.qcow2_images import OTHER, SECRET, check, make, qemu_sees

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("way", ["own", "luks1", "luks2"])
def test_keys_of_qcow2_images(tmp_path: Path, way: str) -> None:
    path, key, other = tmp_path / "image", key_file(tmp_path, SECRET), key_file(tmp_path, OTHER)
    with make(path, way) as store:
        store.put("a", b"kept")
    with_key, with_other = ("--key-file", key), ("--key-file", other)
    listed = succeeds("key", "list", path)
    assert len(listed.splitlines()) == 2
    succeeds("key", "add", path, *with_key, "--new-key-file", other, *QUICK)
    succeeds("key", "remove", path, *with_key)
    assert fails("get", path, "a", *with_key) == 51
    assert succeeds("get", path, "a", *with_other) == b"kept"
    succeeds("key", "change", path, *with_other, "--new-key-file", key, *QUICK)
    assert succeeds("get", path, "a", *with_key) == b"kept"
    check(path, way, key)
    volume_key = tmp_path / "volume-key"
    succeeds("key", "export", path, "-o", volume_key, "--force", *with_key)
    assert succeeds("get", path, "a", "--volume-key-file", volume_key) == b"kept"
    if way == "own":
        run("qemu-io", *qemu_sees(path, way, key), "-c", "read 0 4k")


@pytest.mark.parametrize("way", ["luks1", "luks2"])
def test_the_header_in_the_disk_of_a_qcow2_image_moves_out_and_back(
    tmp_path: Path, way: str
) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    header, with_key = tmp_path / "header", ("--key-file", key)
    with make(path, way) as store:
        store.put("a", b"kept")
        assert fails("header", "detach", path, header) == 23
    succeeds("header", "detach", path, header)
    assert fails("get", path, "a", *with_key) == 32
    assert succeeds("get", path, "a", "--header", header, *with_key) == b"kept"
    check(path, way, key)
    succeeds("header", "attach", path, header)
    assert succeeds("get", path, "a", *with_key) == b"kept"
    check(path, way, key)


def test_a_header_that_cannot_move_is_left_alone(tmp_path: Path) -> None:
    own, clear, header = tmp_path / "own", tmp_path / "clear", tmp_path / "header"
    make(own, "own").close()
    make(clear, "clear").close()
    make(tmp_path / "luks2", "luks2").close()
    succeeds("header", "backup", tmp_path / "luks2", header)
    before = own.read_bytes(), clear.read_bytes()
    assert fails("header", "detach", own, tmp_path / "out") == 40
    assert fails("header", "attach", own, header) == 40
    assert fails("header", "detach", clear, tmp_path / "out") == 32
    assert fails("header", "attach", clear, header) == 32
    assert not (tmp_path / "out").exists()
    assert (own.read_bytes(), clear.read_bytes()) == before


def test_keys_of_qcow2_own_luks_change_while_it_is_in_use(tmp_path: Path) -> None:
    path, key, other = tmp_path / "image", key_file(tmp_path, SECRET), key_file(tmp_path, OTHER)
    with make(path, "own") as store:
        store.put("a", b"1")
        succeeds("key", "change", path, "--key-file", key, "--new-key-file", other, *QUICK)
        store.put("a", b"2")
    assert succeeds("get", path, "a", "--key-file", other) == b"2"
    disk = tmp_path / "disk"
    # A header in the disk lies in clusters, which belong to who has the image.
    with (
        make(disk, "luks2"),
        pytest.raises(DeviceBusyError),
        luks_place(disk, None, write=True),
    ):
        pass
