"""Names of hashes as cryptsetup's cryptographic libraries know them (L75)."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

import pytest

import luks
from luks.crypto import gcrypt, kdf
from luks.crypto.hashes import canonical, lookup
from luks.crypto.spec import check_spec, parse
from tests.luks.programs import cryptsetup, key_file
from tests.luks.support import PASSPHRASE, small_volume, template, with_luks1

if TYPE_CHECKING:
    from pathlib import Path

STORED = [
    *("SHA256", "Sha512", "sha-256", "SHA-1", "sha2-256", "SHA2-512", "sha512-256", "sha512-224"),
    *("SHA3-256", "Whirlpool", "RIPEMD160", "rmd160", "ripemd", "ripemd-160", "blake2b512"),
    *("BLAKE2B-512", "blake2s-256", "SM3", "2.16.840.1.101.3.4.2.1"),
]
#: Those that only LUKS2 takes: their digest is shorter than that of LUKS1.
STORED_IN_LUKS2 = ["md4", "MD5"]


@pytest.mark.interop
@pytest.mark.parametrize(
    ("version", "name"),
    [
        *((version, name) for version in (1, 2) for name in STORED),
        *((2, name) for name in STORED_IN_LUKS2),
    ],
)
def test_what_cryptsetup_stores_opens_and_stays(version: int, name: str, tmp_path: Path) -> None:
    image, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    image.write_bytes(bytes(20 << 20))
    cost = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", 1000]
    options = ["--type", f"luks{version}", *cost, "--hash", name, "--key-file", key]
    cryptsetup("luksFormat", *options, image)
    stored = luks.load_header(image).digests[0].kdf
    assert stored is not None
    with luks.open(image, PASSPHRASE, policy=luks.Policy(hashes={canonical(name)})):
        pass
    luks.add_keyslot(image, PASSPHRASE, b"new", kdf=luks.Pbkdf2(name, 1000), hash_name=name)
    assert luks.load_header(image).digests[0].kdf == stored
    cryptsetup("open", "--test-passphrase", "--key-file", key_file(tmp_path, b"new"), image)


@pytest.mark.parametrize("version", [1, 2])
def test_new_names_are_those_of_luks(version: int) -> None:
    device = small_volume(version=version, hash_name="SHA-512", kdf=luks.Pbkdf2("SHA2-512", 1000))
    keyslot = luks.load_header(device).keyslots[0]
    assert (keyslot.kdf, keyslot.af_hash) == (luks.Pbkdf2("sha512", 1000), "sha512")


@pytest.mark.parametrize("version", [1, 2])
def test_a_changed_keyslot_keeps_its_hash(version: int) -> None:
    base: dict[str, Any] = {"keyslots_size": 1 << 20, "data_offset": None} if version == 2 else {}
    sha512 = luks.Pbkdf2("sha512", 1000)
    device = small_volume(version=version, hash_name="sha512", kdf=sha512, **base)
    number = luks.change_keyslot(device, PASSPHRASE, b"new", kdf="pbkdf2", iter_time=1)
    keyslot = luks.load_header(device).keyslots[number]
    assert isinstance(keyslot.kdf, luks.Pbkdf2)
    assert (keyslot.kdf.hash_name, keyslot.af_hash) == ("sha512", "sha512")


def test_luks1_keeps_the_spelling_of_its_one_hash() -> None:
    device = with_luks1(template(1), hash_spec="SHA-256")
    luks.add_keyslot(device, PASSPHRASE, b"new", kdf=luks.Pbkdf2("sha256", 1000))
    header = luks.load_header(device)
    assert {slot.af_hash for slot in header.keyslots.values()} == {"SHA-256"}
    luks.open(device, b"new").close()


def test_essiv_takes_them_too() -> None:
    check_spec(parse("aes-cbc-essiv:SHA256"), 32)


@pytest.mark.parametrize(("name", "size"), [("wp256", 32), ("WP384", 48), ("wp512", 64)])
def test_whirlpool_cut_short(name: str, size: int) -> None:
    hash_ = lookup(name)
    assert hash_.new(b"abc").digest() == gcrypt.GcryptHash("whirlpool", b"abc").digest()[:size]
    started = hash_.new(b"a")
    started.update(b"bc")
    assert started.digest() == hash_.new(b"abc").digest()


@pytest.mark.parametrize("secret", [b"secret", b"longer than a block of the hash, " * 3])
def test_pbkdf2_by_hand_is_pbkdf2(secret: bytes) -> None:
    """With the whole digest, what is computed for a truncated one is what libgcrypt computes."""
    by_hand, by_library = bytearray(100), bytearray(100)
    whirlpool = lookup("whirlpool")
    kdf._pbkdf2_of_truncated(whirlpool, secret, b"salt", 3, by_hand)
    gcrypt.pbkdf2("whirlpool", secret, b"salt", 3, by_library)
    assert by_hand == by_library


def test_hmac_of_a_truncated_hash_uses_it_inside_as_well() -> None:
    with kdf.derive(luks.Pbkdf2("wp256", 1), b"key", b"salt", 32) as derived:
        inner, outer = (bytes(byte ^ pad for byte in b"key".ljust(64, b"\0")) for pad in (54, 92))
        wp256 = lookup("wp256").new
        expected = wp256(outer + wp256(inner + b"salt" + b"\0\0\0\1").digest()).digest()
        assert hmac.compare_digest(derived.view(), expected)
