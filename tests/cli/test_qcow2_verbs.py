"""`check`, `measure` and `snapshot`: what they print, change, and end with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from formats.devices.file import FileDevice
from formats.qcow2.creation import create
from formats.qcow2.header import read_header
from formats.qcow2.host import Host
from formats.qcow2.opening import open_image
from tests.qcow2.support import assert_clean, qemu_check, qemu_img
from tests.support.cli import blobstore, fails, succeeds

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    path.touch()
    with FileDevice(path, read_only=False) as device:
        create(device, SIZE)
        with open_image(device, read_only=False) as disk:
            disk.write(0, b"first" * 50_000)
    return path


def leak(path: Path) -> None:
    """Count one cluster twice more than it is used, and one that is not used."""
    with FileDevice(path, read_only=False) as device:
        header = read_header(device)
        (block,) = Host(device).read_table(header.refcount_table_offset, 1)
        device.write(block + 2 * 200, b"\0\1")
        device.resize(201 * 65536)


def test_check_says_what_qemu_img_says(image: Path) -> None:
    said = json.loads(succeeds("check", image, "--json"))
    theirs = qemu_check(image)
    assert {key: said[key] for key in theirs} == theirs
    assert b"no corruptions, no leaks" in succeeds("check", image)


def test_leaks_are_found_and_freed(image: Path) -> None:
    leak(image)
    done = blobstore("check", image, "--json")
    assert done.returncode == 39
    assert json.loads(done.stdout)["leaks"] == qemu_check(image)["leaks"] == 1
    assert b"--repair leaks" in done.stderr
    done = blobstore("check", image, "--repair", "leaks")
    assert (done.returncode, b"repaired: 0 corruptions, 1 leaks" in done.stdout) == (0, True)
    assert_clean(image)


def test_corruptions_are_found_and_repaired(image: Path) -> None:
    with FileDevice(image, read_only=False) as device:
        header = read_header(device)
        (block,) = Host(device).read_table(header.refcount_table_offset, 1)
        device.write(block + 2 * 5, b"\0\0")
    before = image.read_bytes()
    assert fails("check", image) == 38
    assert image.read_bytes() == before
    assert fails("check", image, "--repair", "leaks") == 38
    done = blobstore("check", image, "--repair", "all", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["corruptions-fixed"] >= 1
    assert_clean(image)


def test_what_is_no_qcow2_image_is_not_checked(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"something else" * 100)
    assert fails("check", tmp_path / "raw") == 32
    assert fails("snapshot", "list", tmp_path / "raw") == 32
    assert fails("check", tmp_path / "missing") == 20


def test_snapshots_come_and_go(image: Path) -> None:
    succeeds("snapshot", "create", image, "before")
    with FileDevice(image, read_only=False) as device, open_image(device, read_only=False) as disk:
        disk.write(0, b"other" * 50_000)
    assert fails("snapshot", "create", image, "before") == 42
    (listed,) = json.loads(succeeds("snapshot", "list", image, "--json"))
    (theirs,) = json.loads(qemu_img("info", "--output=json", image))["snapshots"]
    assert listed.pop("disk-size") == SIZE
    theirs.pop("icount", None)
    assert listed == theirs
    assert b"before" in succeeds("snapshot", "list", image)
    succeeds("snapshot", "apply", image, "before")
    with FileDevice(image) as device, open_image(device) as disk:
        assert disk.read(0, 10) == b"firstfirst"
    succeeds("snapshot", "delete", image, "1")
    assert json.loads(succeeds("snapshot", "list", image, "--json")) == []
    assert fails("snapshot", "delete", image, "before") == 41
    assert_clean(image)


def test_a_snapshot_is_meant_by_its_id_or_by_its_name_q18(image: Path) -> None:
    for name in ("first", "1"):
        qemu_img("snapshot", "-c", name, image)
    before = image.read_bytes()
    for verb in ("apply", "delete"):
        done = blobstore("snapshot", verb, image, "1")
        assert done.returncode == 43
        assert b"--id" in done.stderr
        assert fails("snapshot", verb, image) == 2
        assert fails("snapshot", verb, image, "1", "--id", "1") == 2
        assert fails("snapshot", verb, image, "--id", "first") == 41
    assert fails("snapshot", "create", image, "2") == 42
    assert image.read_bytes() == before
    succeeds("snapshot", "apply", image, "--id", "1")
    succeeds("snapshot", "delete", image, "--name", "1")
    (left,) = json.loads(succeeds("snapshot", "list", image, "--json"))
    assert (left["id"], left["name"]) == ("1", "first")
    succeeds("snapshot", "delete", image, "1")
    assert_clean(image)


def test_a_truncated_image_is_made_whole_or_left_alone_q25(image: Path) -> None:
    with FileDevice(image, read_only=False) as device:
        device.resize(6 * 65536)
    assert fails("check", image) == 38
    assert fails("snapshot", "create", image, "name") == 33
    done = blobstore("check", image, "--repair", "all")
    assert (done.returncode, b"repaired: " in done.stdout) == (0, True)
    assert_clean(image)
    with FileDevice(image) as device, open_image(device) as disk:
        assert disk.read(0, 65536) == (b"first" * 20_000)[:65536]
        assert disk.read(65536, 180_000) == bytes(180_000)


def test_names_that_would_talk_to_a_terminal_are_shown_without(image: Path) -> None:
    qemu_img("snapshot", "-c", "\x1b[31mred", image)
    assert b"\x1b" not in succeeds("snapshot", "list", image)
    assert b"red" in succeeds("snapshot", "list", image, "--json")


def test_an_image_in_use_is_left_alone(image: Path) -> None:
    with FileDevice(image, read_only=False):
        assert fails("check", image) == 23
        assert fails("snapshot", "create", image, "name") == 23


@pytest.mark.parametrize(
    "options", [(), ("--cluster-size", "4KiB"), ("--refcount-bits", "1"), ("--luks",)]
)
def test_measure_says_what_qemu_img_says(options: tuple[str, ...], image: Path) -> None:
    said = json.loads(succeeds("measure", "--size", "5GiB", "--json", *options))
    same = {
        (): (),
        ("--cluster-size", "4KiB"): ("-o", "cluster_size=4k"),
        ("--refcount-bits", "1"): ("-o", "refcount_bits=1"),
        ("--luks",): (
            *("--object", "secret,id=s,data=abc"),
            *("-o", "encrypt.format=luks,encrypt.key-secret=s"),
        ),
    }[options]
    expected = qemu_img("measure", "--output=json", "--size", "5G", "-O", "qcow2", *same)
    assert said == json.loads(expected)
    if not options:
        said = json.loads(succeeds("measure", image, "--json"))
        theirs = json.loads(qemu_img("measure", "--output=json", "-O", "qcow2", image))
        assert said == {key: theirs[key] for key in said}
        assert b"required size: " in succeeds("measure", image)


def test_measure_wants_one_thing_to_measure(image: Path) -> None:
    assert fails("measure") == 2
    assert fails("measure", image, "--size", "1MiB") == 2
    assert fails("measure", "--size", "1MiB", "--cluster-size", "1000") == 2
