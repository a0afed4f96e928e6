"""A payload never lies where its own header is: detached headers taken for images (L52, L111)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.errors import ArgumentError
from tests.luks.programs import cryptsetup, key_file
from tests.luks.support import (
    PASSPHRASE,
    PBKDF2,
    json_of,
    small_volume,
    template,
    with_json,
)
from tests.support.cli import fails, succeeds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 1 << 20


def detached(directory: Path, version: int, **options: Any) -> tuple[Path, Path]:
    """Make a volume whose payload starts at byte 0; return its image and its header."""
    image, header = directory / "image", directory / "header"
    kdf = {"kdf": PBKDF2, "version": version, **options}
    luks.format(image, PASSPHRASE, header=header, size=SIZE, **kdf).close()
    assert luks.load_header(header).data_offset == 0
    return image, header


def as_path(path: Path) -> Path:
    return path


def as_link(path: Path) -> Path:
    link = path.with_name("link")
    link.symlink_to(path)
    return link


def as_hard_link(path: Path) -> Path:
    link = path.with_name("hard-link")
    os.link(path, link)
    return link


def as_device(path: Path) -> FileDevice:
    return FileDevice(path, lock=False)


def as_memory(path: Path) -> MemoryDevice:
    return MemoryDevice(path.read_bytes())


WAYS = (as_path, as_link, as_hard_link, as_device, as_memory)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", [1, 2])
def test_l52_a_detached_header_is_not_the_image(
    tmp_path: Path, version: int, way: Callable[[Path], Any]
) -> None:
    image, header = detached(tmp_path, version)
    before = header.read_bytes()
    place = way(header)
    for read_only in (True, False):
        for also in ({}, {"header": header}, {"header": place}):
            with pytest.raises(luks.LuksHeaderError, match="L52") as caught:
                luks.open(place, PASSPHRASE, read_only=read_only, **also)
            assert "detached header" in (caught.value.hint or "")
    assert header.read_bytes() == before
    luks.open(image, PASSPHRASE, header=header).close()


@pytest.mark.parametrize("version", [1, 2])
def test_l52_the_wrong_secret_is_not_tried(tmp_path: Path, version: int) -> None:
    """It is refused before the secret is used: any would do to find out."""
    _, header = detached(tmp_path, version)
    with pytest.raises(luks.LuksHeaderError, match="L52"):
        luks.open(header, b"wrong")


@pytest.mark.parametrize("version", [1, 2])
def test_l52_a_volume_is_not_opened_over_a_header_by_hand(tmp_path: Path, version: int) -> None:
    image, header = detached(tmp_path, version)
    loaded = luks.load_header(header)
    with FileDevice(header, lock=False) as device, FileDevice(image, lock=False) as data:
        key = luks.unlock(device, loaded, PASSPHRASE)
        volume = luks.Volume(data, loaded, key)
        with volume, pytest.raises(luks.LuksHeaderError, match="L52"):
            volume.over(device)
        key = luks.unlock(device, loaded, PASSPHRASE)
        with key.key, pytest.raises(luks.LuksHeaderError, match="L52"):
            luks.Volume(device, loaded, key)


@pytest.mark.parametrize("damaged", [0, 16384])
def test_l52_a_damaged_header_is_still_one(tmp_path: Path, damaged: int) -> None:
    _, header = detached(tmp_path, 2)
    with header.open("r+b") as file:
        file.seek(damaged + 4096 + 8)
        file.write(b"damage")
    with pytest.raises(luks.LuksHeaderError, match="L52"):
        luks.open(header, PASSPHRASE, read_only=False)
    with pytest.raises(luks.LuksHeaderError, match="L52"):
        luks.open(as_memory(header), PASSPHRASE, header=header)


@pytest.mark.parametrize("way", [as_path, as_link, as_hard_link, as_device])
def test_l52_the_image_is_not_its_own_detached_header(
    tmp_path: Path, way: Callable[[Path], Any]
) -> None:
    image = tmp_path / "image"
    luks.format(image, PASSPHRASE, size=SIZE, kdf=PBKDF2).close()
    with pytest.raises(ArgumentError, match="L52"):
        luks.open(image, PASSPHRASE, header=way(image))


def test_l52_one_device_twice_is_an_attached_header() -> None:
    device = small_volume()
    with luks.open(device, PASSPHRASE, header=device) as volume:
        assert volume.header.data_offset


def test_l52_nothing_is_formatted_as_its_own_header(tmp_path: Path) -> None:
    for place in (tmp_path / "new", MemoryDevice(8 << 20)):
        with pytest.raises(ArgumentError, match="L52"):
            luks.format(place, PASSPHRASE, header=place, size=SIZE, kdf=PBKDF2)
    assert not (tmp_path / "new").exists()


def test_l52_a_detached_volume_is_not_made_over_its_own_header(tmp_path: Path) -> None:
    """A header of the same UUID on the image would be taken for this one."""
    old = small_volume()
    before = bytes(old.content)
    header = tmp_path / "header"
    uuid = luks.load_header(old).uuid
    options: dict[str, Any] = {"header": header, "kdf": PBKDF2, "overwrite": True}
    with pytest.raises(luks.LuksHeaderError, match="L52"):
        luks.format(old, PASSPHRASE, uuid=uuid, **options)
    assert bytes(old.content) == before
    assert not header.exists()
    luks.format(old, PASSPHRASE, **options).close()  # another UUID is another volume


def test_l52_a_second_segment_at_the_start_is_refused() -> None:
    """Segments have any order on the device; here the second would lie over the header."""
    base = template()
    root = json_of(base.header)
    segment = root["segments"]["0"]
    root["segments"] = {
        "0": {**segment, "size": "4096"},
        "1": {**segment, "offset": "0", "size": "4096", "iv_tweak": "8"},
    }
    root["digests"]["0"]["segments"] = ["0", "1"]
    device = with_json(base, root)
    assert len(luks.load_header(device).segments) == 2
    with pytest.raises(luks.LuksHeaderError, match="L52"):
        luks.open(device, PASSPHRASE)


@pytest.mark.parametrize("version", [1, 2])
def test_l52_cryptsetups_detached_headers_open_with_their_image(
    tmp_path: Path, version: int
) -> None:
    image, header = tmp_path / "image", tmp_path / "header"
    image.write_bytes(bytes(SIZE))
    key = key_file(tmp_path, PASSPHRASE)
    cheap = ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", f"--type=luks{version}")
    cryptsetup("luksFormat", *cheap, "--align-payload=0", "--header", header, image, key)
    assert luks.load_header(header).data_offset == 0
    with luks.open(image, PASSPHRASE, header=header, read_only=False) as volume:
        volume.write(0, b"payload")
    with luks.open(image, PASSPHRASE, header=header) as volume:
        assert volume.read(0, 7) == b"payload"
    with pytest.raises(luks.LuksHeaderError, match="L52"):
        luks.open(header, PASSPHRASE)


@pytest.mark.parametrize("version", [1, 2])
def test_l111_a_detached_header_does_not_overwrite_a_payload(tmp_path: Path, version: int) -> None:
    image, header = detached(tmp_path, version)
    image.write_bytes(os.urandom(8 << 20))
    attached = tmp_path / "attached"
    luks.format(attached, PASSPHRASE, size=SIZE, kdf=PBKDF2, version=version).close()
    for target in (image, attached):
        before = target.read_bytes()
        for force in (False, True):
            with pytest.raises(luks.HeaderMismatchError, match="L111"):
                luks.restore_header(target, header, force=force)
        assert target.read_bytes() == before


@pytest.mark.parametrize("version", [1, 2])
def test_l111_what_is_left_of_a_detached_header_is_restored(tmp_path: Path, version: int) -> None:
    image, header = detached(tmp_path, version)
    backup = tmp_path / "backup"
    luks.backup_header(header, backup)
    whole = header.read_bytes()
    for damage in (bytes(len(whole)), bytes(65536) + whole[65536:], os.urandom(len(whole))):
        header.write_bytes(damage)
        luks.restore_header(header, backup, force=True)
        luks.open(image, PASSPHRASE, header=header).close()


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_l52_no_command_takes_a_detached_header_for_the_image(
    tmp_path: Path, image_format: str
) -> None:
    image, header = tmp_path / "image", tmp_path / "header"
    key = key_file(tmp_path, PASSPHRASE)
    options: dict[str, Any] = {"kdf": PBKDF2, "header": header, "image_format": image_format}
    blobstore.create(image, {"tpm": 5000}, PASSPHRASE, **options).close()
    data = tmp_path / "data"
    data.write_bytes(b"payload" * 1000)
    before = header.read_bytes()
    secret = ("--key-file", key)
    refused: tuple[tuple[object, ...], ...] = (
        ("convert", data, header, "--no-create", "--from", "raw", "--new-key-file", key),
        ("convert", header, tmp_path / "out", *secret, "--new-key-file", key),
        ("get", header, "tpm", *secret),
        ("put", header, "tpm", data, *secret),
        ("ls", header, *secret),
        ("verify", header, *secret),
        ("verify", header, "--repair", *secret),
        ("info", header, *secret),
        ("grow", header, "16MiB", *secret),
    )
    for command in refused:
        assert fails(*command) == 35, command
    misused: tuple[tuple[object, ...], ...] = (
        ("ls", image, "--header", image, *secret),
        ("key", "list", image, "--header", image),
        ("create", tmp_path / "new", "--section", "a=1", "--header", tmp_path / "new", *secret),
    )
    for command in misused:
        assert fails(*command) in {2, 32}, command
    assert header.read_bytes() == before
    succeeds("key", "list", header)  # its keys are managed there
