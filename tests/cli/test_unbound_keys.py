"""L141: keyslots whose key is not the volume's, with cryptsetup as the judge."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import luks
from tests.luks.programs import CHEAP, accepts, cryptsetup
from tests.support.cli import QUICK, blobstore, fails, succeeds

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(40))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    luks.format(path, b"one", size=1 << 20, kdf=luks.Pbkdf2("sha256", 1000)).close()
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "stored").write_bytes(KEY)
    return path


def test_l141_cryptsetup_reads_the_unbound_keys_that_are_added(image: Path, tmp_path: Path) -> None:
    one, two, stored = (tmp_path / name for name in ("one", "two", "stored"))
    new = ("--unbound", "--new-key-file", two, *QUICK)
    done = succeeds("key", "add", image, *new, "--unbound-key-file", stored, "--key-slot", 4)
    assert done == b"keyslot 4\n"
    assert succeeds("key", "add", image, *new, "--key-size", 256) == b"keyslot 1\n"
    dump = cryptsetup("luksDump", image)
    assert "4: luks2 (unbound)" in dump
    assert "1: luks2 (unbound)" in dump
    assert accepts(image, two, "--key-slot", 4)
    assert not accepts(image, one, "--key-slot", 4)
    shown = cryptsetup("luksDump", "--unbound", "--key-slot", 4, "--key-file", two, image)
    assert KEY[:16].hex(" ") in shown


def test_l141_an_unbound_key_of_cryptsetup_is_tested_and_given_out(
    image: Path, tmp_path: Path
) -> None:
    one, two, stored = (tmp_path / name for name in ("one", "two", "stored"))
    key = ("--unbound", "--key-size", len(KEY) * 8, "--volume-key-file", stored)
    cryptsetup("luksAddKey", *key, *CHEAP["argon2id"], "--key-slot", 3, image, two)
    assert succeeds("key", "test", image, "--key-slot", 3, "--key-file", two) == b"keyslot 3\n"
    assert fails("key", "test", image, "--key-slot", 3, "--key-file", one) == 51
    assert fails("key", "test", image, "--key-file", two) == 51
    listed = json.loads(succeeds("key", "list", image, "--json"))
    assert [(slot["keyslot"], slot["holds_volume_key"]) for slot in listed] == [
        (0, True),
        (3, False),
    ]
    assert b"another key" in succeeds("key", "list", image)
    out = tmp_path / "out"
    export = ("key", "export", image, "--key-slot", 3, "-o", out, "--force")
    assert fails(*export, "--key-file", one) == 51
    assert not out.exists()
    succeeds(*export, "--key-file", two)
    assert out.read_bytes() == KEY
    # It is removed as it was added: without a passphrase, and nothing is lost with it.
    assert succeeds("key", "remove", image, "--key-slot", 3) == b"keyslot 3\n"
    assert accepts(image, one)


def test_l141_unbound_keys_are_not_those_of_the_volume(image: Path, tmp_path: Path) -> None:
    two, stored = tmp_path / "two", tmp_path / "stored"
    new = ("--new-key-file", two, *QUICK)
    succeeds("key", "add", image, "--unbound", "--unbound-key-file", stored, *new)
    with luks.open_header(image) as (device, header):
        assert header.unbound_keyslots == (1,)
        with luks.unbound_key(device, header, b"two", 1) as key:
            assert bytes(key.view()) == KEY
        with pytest.raises(luks.UnlockError):
            luks.unbound_key(device, header, b"one", 0)
        with pytest.raises(luks.UnlockError):
            luks.unbound_key(device, header, b"one", 7)
        low = luks.KdfLimits(iterations=999)
        with pytest.raises(luks.PolicyError):
            luks.unbound_key(device, header, b"two", 1, limits=low)
        with pytest.raises(luks.UnlockError):
            luks.unlock(device, header, b"two", keyslot=1)


@pytest.mark.parametrize(
    "options",
    [
        ("--unbound",),
        ("--unbound", "--key-size", 256, "--unbound-key-file", "stored"),
        ("--unbound", "--key-size", 100),
        ("--unbound", "--key-size", 256, "--key-file", "one"),
        ("--key-size", 256),
        ("--unbound-key-file", "stored"),
    ],
)
def test_l141_options_that_do_not_go_together(
    image: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    before = image.read_bytes()
    done = blobstore("key", "add", image, "--new-key-file", "two", *QUICK, *options, cwd=tmp_path)
    assert done.returncode == 2, done
    assert image.read_bytes() == before


def test_l141_luks1_has_none(tmp_path: Path) -> None:
    image, key = tmp_path / "image", tmp_path / "key"
    key.write_bytes(b"one")
    luks.format(image, b"one", size=1 << 20, version=1, kdf=luks.Pbkdf2("sha256", 1000)).close()
    assert luks.load_header(image).unbound_keyslots == ()
    done = blobstore("key", "add", image, "--unbound", "--key-size", 64, "--new-key-file", key)
    assert done.returncode == 2, done
    assert b"LUKS1" in done.stderr
