"""`blobstore luks`, with cryptsetup as the judge; and hashes where keyslots are made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import luks
from tests.luks.programs import accepts, cryptsetup, key_file
from tests.support.cli import QUICK

pytestmark = pytest.mark.interop

VECTORS = Path(__file__).parents[1] / "vectors" / "luks"


def blobstore(*arguments: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "blobstore", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout


def made(directory: Path, *options: object) -> tuple[Path, Path]:
    """Make a volume; return its image and the key file that opens it."""
    image, key = directory / "image", key_file(directory, b"pass")
    blobstore("luks", "format", image, "--size", "64K", "--key-file", key, *QUICK, *options)
    return image, key


FORMATS: dict[str, tuple[tuple[object, ...], dict[str, Any]]] = {
    "the default": ((), {"version": 2, "cipher": "aes-xts-plain64", "sector_size": 4096}),
    "LUKS1": (("--type", 1, "--hash", "SHA512"), {"version": 1, "sector_size": 512}),
    "as QEMU": (("--like", "qemu"), {"version": 1, "data_offset": 2068480}),
    "as cryptsetup": (("--like", "cryptsetup"), {"version": 2, "data_offset": 16 << 20}),
    "another cipher": (
        ("--cipher", "aes-cbc-essiv:sha256", "--key-size", 256, "--sector-size", 512),
        {"cipher": "aes-cbc-essiv:sha256", "sector_size": 512},
    ),
    "layout and names": (
        (
            *("--luks2-metadata-size", "32K", "--luks2-keyslots-size", "1M", "--offset", "2M"),
            *("--label", "machine", "--subsystem", "test"),
            *("--uuid", "01234567-89ab-4def-8123-456789abcdef"),
        ),
        {
            "metadata_size": 32 << 10,
            "keyslots_size": 1 << 20,
            "data_offset": 2 << 20,
            "label": "machine",
            "subsystem": "test",
            "uuid": "01234567-89ab-4def-8123-456789abcdef",
        },
    ),
    "keyslots of their own": (
        ("--keyslot-cipher", "aes-cbc-essiv:sha256", "--keyslot-key-size", 256),
        {"cipher": "aes-xts-plain64"},
    ),
}


@pytest.mark.parametrize(("options", "expected"), FORMATS.values(), ids=FORMATS)
def test_what_format_makes_cryptsetup_opens(
    options: tuple[object, ...], expected: dict[str, Any], tmp_path: Path
) -> None:
    image, key = made(tmp_path, *options)
    assert accepts(image, key)
    header = luks.describe_header(luks.load_header(image))
    assert {name: header[name] for name in expected} == expected


def test_format_takes_a_volume_key_and_a_detached_header(tmp_path: Path) -> None:
    volume_key = key_file(tmp_path, bytes(range(64)))
    detached = tmp_path / "header"
    image, key = tmp_path / "image", tmp_path / "key"
    key.write_bytes(b"pass")
    options = ("--volume-key-file", volume_key, "--header", detached, "--key-file", key)
    blobstore("luks", "format", image, "--size", "64K", *options, *QUICK)
    assert image.stat().st_size == 64 << 10
    assert accepts(detached, key)
    with luks.open_header(detached) as (device, header):
        volume = luks.unlock(device, header, b"pass")
    assert bytes(volume.key.view()) == bytes(range(64))


def test_format_destroys_nothing_unasked(tmp_path: Path) -> None:
    image, key = made(tmp_path)
    before = image.read_bytes()
    blobstore("luks", "format", image, "--key-file", key, *QUICK, code=36)
    assert image.read_bytes() == before
    blobstore("luks", "format", image, "--key-file", key, *QUICK, "--force")
    assert luks.load_header(image).uuid != luks.load_header(image_of(before, tmp_path)).uuid


def image_of(content: bytes, directory: Path) -> Path:
    image = directory / "copy"
    image.write_bytes(content)
    return image


def luks2_with_everything(directory: Path) -> Path:
    image, key = made(directory, "--label", "a label")
    options = ("--key-file", key, "--pbkdf", "argon2i", "--pbkdf-memory", 32)
    more = ("--pbkdf-force-iterations", 4, "--pbkdf-parallel", 1)
    unbound = ("--unbound", "--key-size", 64, "-q")
    cryptsetup("luksAddKey", *options, *more, *unbound, image, key)
    cryptsetup("config", "--priority", "ignore", "--key-slot", 1, image)
    cryptsetup("token", "add", "--key-description", "name", "--key-slot", 0, image)
    with luks.edit(image) as header:
        header.set_token({"type": "x", "keyslots": ["0", "1"]})
        header.set_flags(["allow-discards", "no-read-workqueue"])
    return image


def cryptsetup_dump(image: Path) -> str:
    """What cryptsetup prints, without what it knows of its own tokens."""
    lines = cryptsetup("luksDump", image).splitlines()
    return "\n".join(line for line in lines if not line.startswith("\tKey description:"))


def test_dump_is_that_of_cryptsetup(tmp_path: Path) -> None:
    image = luks2_with_everything(tmp_path)
    assert blobstore("luks", "dump", image).rstrip("\n") == cryptsetup_dump(image)


@pytest.mark.parametrize("options", [(), ("--cipher", "aes-cbc-plain64", "--key-size", 128)])
def test_dump_of_luks1_is_that_of_cryptsetup(options: tuple[object, ...], tmp_path: Path) -> None:
    image, _ = made(tmp_path, "--type", 1, *options)
    assert blobstore("luks", "dump", image).rstrip("\n") == cryptsetup("luksDump", image).rstrip()


def test_config_changes_what_it_names_in_one_step(tmp_path: Path) -> None:
    image, key = made(tmp_path)
    before = luks.load_header(image)
    names = ("--label", "new", "--subsystem", "sub", "--flag", "allow-discards")
    blobstore("luks", "config", image, *names, "--key-slot", 0, "--priority", "prefer")
    header = luks.load_header(image)
    assert (header.label, header.subsystem, header.flags) == ("new", "sub", ("allow-discards",))
    assert (header.keyslots[0].priority, header.uuid) == (2, before.uuid)
    assert header.seqid == before.seqid + 1
    uuid = "01234567-89ab-4def-8123-456789abcdef"
    blobstore("luks", "config", image, "--uuid", uuid, "--no-flags", "--label", "")
    assert cryptsetup("luksUUID", image).strip() == uuid
    assert luks.load_header(image).flags == ()
    assert accepts(image, key)
    blobstore("luks", "config", image, code=2)
    blobstore("luks", "config", image, "--priority", "prefer", code=2)


def test_is_answers_by_its_exit_code(tmp_path: Path) -> None:
    image, _ = made(tmp_path, "--type", 1)
    blobstore("luks", "is", image)
    blobstore("luks", "is", image, "--type", 1)
    blobstore("luks", "is", image, "--type", 2, code=1)
    blobstore("luks", "is", sys.executable, code=1)


def test_repair_rewrites_a_damaged_copy(tmp_path: Path) -> None:
    image, key = made(tmp_path)
    assert "sound" in blobstore("luks", "repair", image)
    whole = luks.load_header(image)
    with image.open("r+b") as file:
        file.write(bytes(4096))
    assert "primary" in blobstore("luks", "repair", image)
    assert (luks.load_header(image), luks.load_header(image).stale_copy) == (whole, None)
    assert accepts(image, key)


def test_a_hash_is_kept_or_named_wherever_a_keyslot_is_made(tmp_path: Path) -> None:
    image, key = made(tmp_path, "--hash", "sha512")
    two = tmp_path / "two"
    two.write_bytes(b"two")
    keys = ("--key-file", key, "--new-key-file", two)
    blobstore("key", "change", image, *keys, *QUICK)
    assert hashes(image) == [("sha512", "sha512")]
    shutil.copy(two, key)
    blobstore("key", "change", image, *keys, *QUICK, "--hash", "sha384")
    assert hashes(image) == [("sha384", "sha384")]
    blobstore("key", "add", image, *keys, *QUICK, "--hash", "SHA-512")
    assert hashes(image) == [("sha384", "sha384"), ("sha512", "sha512")]


def hashes(image: Path) -> list[tuple[str, str]]:
    slots = json.loads(blobstore("key", "list", image, "--json"))
    return [(slot["kdf"]["hash"], slot["af_hash"]) for slot in slots]


def test_l200_convert_changes_the_version_and_cryptsetup_agrees(tmp_path: Path) -> None:
    image, key = made(tmp_path, "--type", 1)
    for version in (2, 2, 1):
        output = blobstore("luks", "convert", image, "--to", f"luks{version}")
        assert output == f"the header of {image} is LUKS{version}\n"
        cryptsetup("isLuks", "--type", f"luks{version}", image)
        assert accepts(image, key)
    blobstore("luks", "convert", image, "--to", "luks2")
    blobstore("luks", "config", image, "--label", "machine")
    blobstore("luks", "convert", image, "--to", "luks1", code=53)
    blobstore("luks", "convert", image, "--to", "luks1", "--force")


def test_l200_convert_of_headers_apart_and_in_qcow2(tmp_path: Path) -> None:
    header = tmp_path / "header"
    image, key = made(tmp_path, "--type", 1, "--header", header)
    blobstore("luks", "convert", image, "--to", "luks2", "--header", header)
    cryptsetup("isLuks", "--type", "luks2", header)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(1 << 20))
    for kind, code in (("luks1-in-qcow2", 0), ("qcow2-luks", 40)):
        disk = tmp_path / kind
        blobstore("convert", raw, disk, "--to", kind, "--new-key-file", key, *QUICK)
        blobstore("luks", "convert", disk, "--to", "luks2", code=code)
        assert blobstore("luks", "is", disk) == ""
        version = json.loads(blobstore("header", "dump", disk, "--json"))["version"]
        assert version == (2 if code == 0 else 1)
