"""Keys of volumes whose payload cannot be opened here (L76), with cryptsetup as the judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import luks
from tests.luks.programs import accepts, key_file
from tests.luks.support import PASSPHRASE, PBKDF2, json_of, template, with_json

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

_TAGS = {"journal_encryption": "none", "journal_integrity": "none"}
SEGMENTS: dict[str, dict[str, Any]] = {
    "integrity": {"integrity": {"type": "hmac(sha256)", **_TAGS}},
    "aead": {"encryption": "aegis128-random", "integrity": {"type": "aead", **_TAGS}},
    "kernel notation": {"encryption": "capi:xts(aes)-plain64"},
    "adiantum": {"encryption": "xchacha12,aes-adiantum-plain64"},
    "unknown cipher": {"encryption": "foo-bar-plain64"},
    "null": {"encryption": "cipher_null-ecb"},
    "unknown type": {"type": "foo"},
}
REQUIREMENTS = ["foo-v1", "online-reencrypt-v999"]


def image_with(directory: Path, change: dict[str, Any], requirement: str = "") -> Path:
    base = template(key_size=64, keyslots_size=1 << 20, data_offset=None)
    root = json_of(base.header)
    root["segments"]["0"].update(change)
    if requirement:
        root["config"]["requirements"] = {"mandatory": [requirement]}
    image = directory / "image"
    image.write_bytes(with_json(base, root).content)
    return image


def exported_key(image: Path, secret: bytes) -> bytes:
    with (
        luks.open_header(image) as (device, header),
        luks.unlock(device, header, secret).key as key,
    ):
        return bytes(key.view())


@pytest.mark.parametrize("change", SEGMENTS.values(), ids=SEGMENTS)
def test_keys_are_tested_added_changed_and_exported(change: dict[str, Any], tmp_path: Path) -> None:
    image = image_with(tmp_path, change)
    with pytest.raises((luks.UnsupportedError, luks.PolicyError)):
        luks.open(image, PASSPHRASE)
    key = exported_key(image, PASSPHRASE)
    added = luks.add_keyslot(image, PASSPHRASE, b"new", kdf=PBKDF2)
    luks.change_keyslot(image, PASSPHRASE, b"changed", kdf=PBKDF2)
    assert exported_key(image, b"new") == exported_key(image, b"changed") == key
    for secret in (b"new", b"changed"):
        assert accepts(image, key_file(tmp_path, secret))
    with luks.edit(image) as edit:
        edit.unlock(luks.verify_volume_key(edit.header, key))
        edit.add_keyslot(b"by volume key", kdf=PBKDF2)
        edit.remove_keyslot(added)
    assert accepts(image, key_file(tmp_path, b"by volume key"))
    assert not accepts(image, key_file(tmp_path, b"new"))


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_unknown_requirements_permit_reading(requirement: str, tmp_path: Path) -> None:
    image = image_with(tmp_path, {}, requirement)
    assert len(exported_key(image, PASSPHRASE)) == 64
    luks.describe_header(luks.load_header(image))
    luks.backup_header(image, tmp_path / "backup")
    before = image.read_bytes()
    with pytest.raises(luks.UnsupportedError, match=requirement):
        luks.add_keyslot(image, PASSPHRASE, b"new", kdf=PBKDF2)
    assert image.read_bytes() == before


def test_a_key_of_a_wrong_size_is_refused_if_the_cipher_is_known(tmp_path: Path) -> None:
    """L65: no secret is used where the key could not be the payload's."""
    base = template(key_size=64, keyslots_size=1 << 20, data_offset=None)
    root = json_of(base.header)
    root["segments"]["0"]["encryption"] = "aes-cbc-essiv:sha256"
    image = tmp_path / "image"
    image.write_bytes(with_json(base, root).content)
    with (
        luks.open_header(image) as (device, header),
        pytest.raises(luks.UnsupportedError, match="64 bytes"),
    ):
        luks.unlock(device, header, PASSPHRASE)


@pytest.mark.parametrize(
    "cipher",
    [
        "xchacha12,aes-adiantum-plain64",
        "xchacha20,aes-adiantum-plain64",
        "capi:adiantum(xchacha12,aes)-plain64",
    ],
)
def test_l142_adiantum_is_refused_by_name(cipher: str, tmp_path: Path) -> None:
    image = image_with(tmp_path, {"encryption": cipher})
    with pytest.raises(luks.UnsupportedError, match="is Adiantum") as caught:
        luks.open(image, PASSPHRASE)
    assert caught.value.feature == "Adiantum"
    assert "cryptsetup reencrypt" in str(caught.value.hint)


def test_l142_adiantum_in_a_keyslot_is_refused_by_name() -> None:
    base = template(key_size=32, keyslots_size=1 << 20, data_offset=None)
    root = json_of(base.header)
    adiantum = "xchacha12,aes-adiantum-plain64"
    root["keyslots"]["0"]["area"].update({"encryption": adiantum, "key_size": 32})
    with pytest.raises(luks.UnsupportedError, match="is Adiantum"):
        luks.open(with_json(base, root), PASSPHRASE)
