"""`blobstore verify --repair` and `blobstore scrub` as people use them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import luks
from blobstore.container.open_container import open_container
from blobstore.errors import CorruptBlobError
from formats.devices.file import FileDevice
from tests.support.cli import QUICK, blobstore, fails, succeeds

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image in the clear, closed, whose section was put twice."""
    path = tmp_path / "image"
    succeeds("create", path, "--no-encryption", "--section", "tpm=2KiB", "--section", "vpd=1KiB")
    for blob in (b"older", b"newer"):
        succeeds("put", path, "tpm", "-", stdin=blob)
    return path


def lose_head(path: Path, *, older: bool = False) -> None:
    with FileDevice(path, read_only=False) as device:
        section = open_container(device).directory.sections["tpm"]
        device.write((section.older if older else section.newest).offset, bytes(512))
        device.flush()


def test_what_is_proved_is_repaired_and_told(image: Path) -> None:
    lose_head(image)
    assert fails("get", image, "tpm") == 66
    assert fails("verify", image) == CorruptBlobError.exit_code
    done = blobstore("verify", image, "--repair")
    assert done.returncode == 0, done.stderr
    assert b"repaired: section 'tpm'" in done.stdout
    assert b"no problems" in done.stdout
    assert succeeds("get", image, "tpm") == b"newer"
    report = json.loads(succeeds("verify", image, "--json"))
    assert report["ok"]
    assert report["repairs"] == []
    assert [item["what"] for item in report["items"]] == ["header"] * 2 + ["record"] * 4 + ["free"]
    assert b"live, verified" in succeeds("verify", image, "--items")


def test_what_is_not_proved_needs_a_name(image: Path) -> None:
    lose_head(image, older=True)
    done = blobstore("verify", image, "--repair")
    assert done.returncode == 65
    assert b"section 'tpm'" in done.stdout
    done = blobstore("verify", image, "--repair", "--accept-previous", "tpm")
    assert done.returncode == 0, done.stdout
    assert succeeds("get", image, "tpm") == b"newer"
    assert fails("verify", image, "--accept-previous", "tpm") == 2


def test_a_luks_header_copy_is_repaired_and_told(tmp_path: Path) -> None:
    key, path = tmp_path / "key", tmp_path / "image"
    key.write_bytes(b"key")
    succeeds("create", path, "--section", "a=1KiB", "--key-file", key, *QUICK)
    size = luks.load_header(path).metadata_size
    for copy, name in enumerate((b"primary", b"secondary")):
        with FileDevice(path, read_only=False) as device:
            device.write(copy * size + 512, b"damage")
            device.flush()
        assert fails("verify", path, "--key-file", key) == 65
        done = blobstore("verify", path, "--repair", "--key-file", key)
        assert done.returncode == 0, done.stderr
        assert b"repaired: the " + name + b" LUKS header copy" in done.stdout
        assert b"no problems" in succeeds("verify", path, "--key-file", key)


@pytest.mark.parametrize("detached", [False, True])
def test_l91_repair_erases_what_an_interrupted_change_of_keys_left(
    tmp_path: Path, detached: bool
) -> None:
    key, path, header = tmp_path / "key", tmp_path / "image", tmp_path / "header"
    key.write_bytes(b"key")
    options = ("--key-file", key, *(("--header", header) if detached else ()))
    succeeds("create", path, "--section", "a=1KiB", *options, *QUICK)
    place = header if detached else path
    there = luks.load_header(place)
    with FileDevice(place, read_only=False) as device:
        device.write(there.keyslots_offset + there.keyslots_size - 4096, b"leaked" * 100)
        device.flush()
    assert b"no problems" in succeeds("verify", path, *options)
    assert b"leaked" in place.read_bytes()
    succeeds("verify", path, "--repair", *options)
    assert b"leaked" not in place.read_bytes()
    assert luks.load_header(place) == there
    assert b"no problems" in succeeds("verify", path, *options)


def test_scrub_tells_what_it_did(image: Path) -> None:
    assert b"older" in image.read_bytes()
    assert b"2 sections rewritten" in succeeds("scrub", image)
    assert b"older" not in image.read_bytes()
    assert succeeds("get", image, "tpm") == b"newer"
    assert json.loads(succeeds("scrub", image, "--json"))["skipped"] == []


def test_c67_what_nothing_proves_is_read_by_permission_only(image: Path, tmp_path: Path) -> None:
    """And a bit that is flipped in the same head stops nobody."""
    succeeds("put", image, "vpd", "-", stdin=b"vpd")
    with FileDevice(image, read_only=False) as device:
        head = open_container(device).directory.sections["tpm"].newest.offset
        device.write(head + 400, b"\x01")
        device.flush()
    done = blobstore("get", image, "tpm")
    assert (done.returncode, done.stdout) == (0, b"newer")
    assert b"damaged; its check proves" in done.stderr
    assert fails("verify", image) == CorruptBlobError.exit_code
    lose_head(image)
    for verb in (("get", image, "vpd"), ("unpack", image, "-o", tmp_path / "refused")):
        done = blobstore(*verb)
        assert done.returncode == 66
        assert b"--allow-damaged" in done.stderr
    assert not (tmp_path / "refused").exists()
    assert fails("get", image, "vpd", "--at-least-generation", "1", "--allow-damaged") == 66
    done = blobstore("get", image, "vpd", "--allow-damaged")
    assert (done.returncode, done.stdout) == (0, b"vpd")
    assert fails("get", image, "tpm", "--allow-damaged") == 66
    assert blobstore("get", image, "tpm", "--previous").stdout == b"older"
    assert fails("unpack", image, "-o", tmp_path / "left", "--allow-damaged") == 66
    assert (tmp_path / "left" / "vpd.bin").read_bytes() == b"vpd"
    listed = json.loads(blobstore("ls", image, "--json").stdout)
    assert {section["name"]: bool(section["damage"]) for section in listed} == {
        "tpm": True,
        "vpd": False,
    }
    assert not json.loads(blobstore("info", image, "--json").stdout)["container"]["fresh"]
    assert fails("put", image, "vpd", "-", stdin=b"new") == 66
