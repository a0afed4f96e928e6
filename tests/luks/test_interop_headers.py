"""Headers that we back up, restore, move and give tokens, in the hands of cryptsetup and QEMU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import luks
from tests.luks.programs import CHEAP, accepts, cryptsetup, key_file, qemu_io
from tests.luks.support import PBKDF2

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

ONE, TWO = b"one", b"two"
BOTH = pytest.mark.parametrize("version", [1, 2])


def volume(directory: Path, version: int) -> Path:
    image = directory / "image"
    room: dict[str, Any] = {"keyslots_size": 1 << 20} if version == 2 else {}
    with luks.format(
        image, ONE, version=version, size=64 << 10, key_size=32, kdf=PBKDF2, **room
    ) as opened:
        opened.write(0, b"payload")
    return image


def who_opens(image: Path, directory: Path, *options: object) -> set[bytes]:
    return {s for s in (ONE, TWO) if accepts(image, key_file(directory, s), *options)}


@BOTH
def test_cryptsetup_restores_our_backup_and_we_restore_its(version: int, tmp_path: Path) -> None:
    """L110."""
    image, ours, theirs = volume(tmp_path, version), tmp_path / "ours", tmp_path / "theirs"
    luks.backup_header(image, ours)
    cryptsetup("luksHeaderBackup", image, "--header-backup-file", theirs)
    assert ours.stat().st_size == theirs.stat().st_size
    luks.change_keyslot(image, ONE, TWO, kdf=PBKDF2)
    assert who_opens(image, tmp_path) == {TWO}
    cryptsetup("luksHeaderRestore", image, "--header-backup-file", ours)
    assert who_opens(image, tmp_path) == {ONE}
    luks.change_keyslot(image, ONE, TWO, kdf=PBKDF2)
    luks.restore_header(image, theirs)
    assert who_opens(image, tmp_path) == {ONE}
    assert "UUID" in cryptsetup("luksDump", image)
    cryptsetup("repair", image)
    # What was put elsewhere is a keyslot like any other.
    key, new = key_file(tmp_path, ONE), key_file(tmp_path, TWO)
    cryptsetup("luksAddKey", "--key-file", key, *CHEAP["pbkdf2"], image, new)
    cryptsetup("luksKillSlot", "--key-file", new, image, "0")
    assert who_opens(image, tmp_path) == {TWO}
    with luks.open(image, TWO) as opened:
        assert opened.read(0, 7) == b"payload"


@BOTH
def test_cryptsetup_opens_headers_that_were_moved(version: int, tmp_path: Path) -> None:
    """L120, L121."""
    image, header = volume(tmp_path, version), tmp_path / "header"
    luks.detach_header(image, header)
    assert who_opens(image, tmp_path, "--header", header) == {ONE}
    luks.add_keyslot(header, ONE, TWO, kdf=PBKDF2)
    assert who_opens(image, tmp_path, "--header", header) == {ONE, TWO}
    luks.attach_header(image, header)
    assert who_opens(image, tmp_path) == {ONE, TWO}
    cryptsetup("luksDump", image)


@BOTH
def test_cryptsetup_finds_no_keyslot_in_a_destroyed_header(version: int, tmp_path: Path) -> None:
    """L114."""
    image = volume(tmp_path, version)
    luks.destroy_keys(image)
    dump = cryptsetup("luksDump", image)
    assert "ENABLED" not in dump
    assert "0: luks2" not in dump


def test_qemu_opens_what_was_restored_and_moved(tmp_path: Path) -> None:
    image, backup = tmp_path / "image", tmp_path / "backup"
    luks.format(image, ONE, size=1 << 20, kdf=PBKDF2, **luks.PROFILES["qemu"]).close()
    one, two = key_file(tmp_path, ONE), key_file(tmp_path, TWO)
    qemu_io(image, one, "write -P 0x11 0 512")
    luks.backup_header(image, backup)
    luks.change_keyslot(image, ONE, TWO, kdf=PBKDF2)
    qemu_io(image, two, "read -P 0x11 0 512")
    luks.restore_header(image, backup)
    qemu_io(image, one, "read -P 0x11 0 512")
    header = tmp_path / "header"
    luks.detach_header(image, header)
    luks.attach_header(image, header)
    qemu_io(image, one, "read -P 0x11 0 512")


def test_l125_cryptsetup_exports_our_tokens_and_we_parse_its(tmp_path: Path) -> None:
    image = volume(tmp_path, 2)
    acme = {"type": "acme", "keyslots": ["0"], "text": "é☃", "deep": {"x": [1, None]}}
    with luks.edit(image) as header:
        header.set_token(luks.keyring_token("a key", [0]), number=3)
        header.set_token(acme, number=4)
    exported = cryptsetup("token", "export", "--token-id=3", image)
    assert json.loads(exported) == {
        "type": "luks2-keyring",
        "keyslots": ["0"],
        "key_description": "a key",
    }
    assert luks.parse_token(exported.encode())["key_description"] == "a key"
    with luks.edit(image) as header:
        header.unlock(ONE)
        header.add_keyslot(TWO, kdf=PBKDF2)
        header.assign_token(4, 1)
        header.assign_token(4, 0, assigned=False)
    exported = cryptsetup("token", "export", "--token-id=4", image)
    assert json.loads(exported) == {**acme, "keyslots": ["1"]}
    dump = cryptsetup("luksDump", image)
    assert "3: luks2-keyring" in dump
    cryptsetup("token", "add", "--key-description=theirs", "--key-slot=1", image)
    tokens = luks.load_header(image).tokens
    assert luks.token_name(tokens[0]) == "kernel keyring: theirs"


def test_a_dump_says_what_cryptsetup_stores(tmp_path: Path) -> None:
    image = volume(tmp_path, 2)
    cryptsetup("token", "add", "--key-description=theirs", "--key-slot=0", image)
    described = luks.describe_header(luks.load_header(image))
    theirs = json.loads(cryptsetup("luksDump", "--dump-json-metadata", image))
    assert json.loads(json.dumps(described))["metadata"] == theirs
    assert described["uuid"] == cryptsetup("luksUUID", image).strip()
