"""AF splitting, key derivation and AES-XTS against numbers of others, and each other."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luks import ciphers, xts
from luks.af import af_merge, af_split
from luks.errors import LuksHeaderError, PolicyError, UnsupportedError
from luks.hashes import is_known, lookup
from luks.kdf import KdfLimits, derive
from luks.model import Argon2, Pbkdf2
from tests.luks.support import vectors

# Hashes that cryptsetup 2.6 has and this interpreter may lack.
OPTIONAL_HASHES = {"ripemd160", "whirlpool"}


@pytest.mark.parametrize(
    "vector", vectors("af.json"), ids=lambda v: f"{v['hash']}-{v['key_length']}"
)
def test_af_merge_gives_the_key_of_each_vector(vector: dict[str, Any]) -> None:
    def merge() -> str:
        return af_merge(
            bytes.fromhex(vector["split"]),
            key_size=vector["key_length"],
            stripes=vector["stripes"],
            hash_name=vector["hash"],
        ).hex()

    if vector["hash"] in OPTIONAL_HASHES and vector["hash"] not in hashlib.algorithms_available:
        with pytest.raises(UnsupportedError, match=vector["hash"]):
            merge()
    else:
        assert merge() == vector["key"]


@given(
    key=st.binary(min_size=1, max_size=80),
    stripes=st.integers(1, 6),
    hash_name=st.sampled_from(["sha1", "sha256", "sha512", "sha3-224", "blake2s-256"]),
)
@settings(deadline=None)
def test_af_split_is_undone_by_merge(key: bytes, stripes: int, hash_name: str) -> None:
    material = af_split(key, stripes=stripes, hash_name=hash_name)
    assert len(material) == len(key) * stripes
    merged = af_merge(material, key_size=len(key), stripes=stripes, hash_name=hash_name)
    assert merged == key


@given(bit=st.integers(0, 8 * 32 * 5 - 1))
@settings(deadline=None)
def test_each_bit_of_the_material_matters(bit: int) -> None:
    key = bytes(range(32))
    material = af_split(key, stripes=5, hash_name="sha256")
    material[bit // 8] ^= 1 << bit % 8
    assert af_merge(material, key_size=32, stripes=5, hash_name="sha256") != key


def test_two_splits_of_one_key_have_nothing_in_common() -> None:
    first, second = (af_split(bytes(32), stripes=4000, hash_name="sha256") for _ in range(2))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 128_000 / 256 * 1.3


def test_af_merge_refuses_material_of_another_size() -> None:
    with pytest.raises(LuksHeaderError, match="stripes"):
        af_merge(bytes(99), key_size=10, stripes=10, hash_name="sha256")
    with pytest.raises(LuksHeaderError, match="stripes"):
        af_merge(b"", key_size=10, stripes=0, hash_name="sha256")


def _cost(vector: dict[str, Any]) -> Pbkdf2 | Argon2:
    if vector["type"] == "pbkdf2":
        return Pbkdf2(vector["hash"], vector["iterations"])
    return Argon2(vector["type"], vector["iterations"], vector["memory_kib"], vector["parallelism"])


@pytest.mark.parametrize("vector", vectors("kdf.json"), ids=lambda v: f"{v['type']}-{v['hash']}")
def test_key_derivation_gives_the_output_of_each_vector(vector: dict[str, Any]) -> None:
    def output() -> str:
        password, salt = bytes.fromhex(vector["password"]), bytes.fromhex(vector["salt"])
        with derive(_cost(vector), password, salt, len(vector["output"]) // 2) as key:
            return key.view().hex()

    if vector["hash"] in OPTIONAL_HASHES and vector["hash"] not in hashlib.algorithms_available:
        with pytest.raises(UnsupportedError, match=vector["hash"]):
            output()
    else:
        assert output() == vector["output"]


@pytest.mark.parametrize(
    ("name", "openssl_name"),
    [
        ("sha1", "sha1"),
        ("sha224", "sha224"),
        ("sha256", "sha256"),
        ("sha384", "sha384"),
        ("sha512", "sha512"),
        ("sha3-224", "sha3_224"),
        ("sha3-256", "sha3_256"),
        ("sha3-384", "sha3_384"),
        ("sha3-512", "sha3_512"),
        ("blake2b-512", "blake2b"),
        ("blake2s-256", "blake2s"),
        ("ripemd160", "ripemd160"),
    ],
)
def test_pbkdf2_is_the_same_in_both_libraries(name: str, openssl_name: str) -> None:
    """All hashes that cryptsetup has with OpenSSL, sha1 to blake2."""
    if name in OPTIONAL_HASHES and name not in hashlib.algorithms_available:
        with pytest.raises(UnsupportedError, match=name):
            lookup(name)
        return
    expected = hashlib.pbkdf2_hmac(openssl_name, b"secret", b"salt", 3, 100)
    with derive(Pbkdf2(name, 3), b"secret", b"salt", 100) as key:
        assert bytes(key.view()) == expected
    assert lookup(name).new(b"x").digest() == hashlib.new(openssl_name, b"x").digest()
    assert is_known(name)


@pytest.mark.parametrize(
    "name", ["", "sha257", "sha3_256", "SHA256", "shake_128", "new", "whirlpoo"]
)
def test_names_that_are_no_luks_hash_are_refused(name: str) -> None:
    assert not is_known(name)
    with pytest.raises(UnsupportedError) as caught:
        lookup(name)
    assert caught.value.feature == f"hash {name}"


@pytest.mark.parametrize(
    "cost",
    [
        Pbkdf2("sha256", 0),
        Argon2("argon2id", 0, 32, 1),
        Argon2("argon2id", 4, 7, 1),
        Argon2("argon2i", 4, 32, 0),
        Argon2("argon2i", 4, 32, 5),
    ],
)
def test_costs_that_make_no_sense_are_header_errors(cost: Pbkdf2 | Argon2) -> None:
    with pytest.raises(LuksHeaderError):
        derive(cost, b"secret", bytes(32), 32)


@pytest.mark.parametrize(
    "cost",
    [
        Pbkdf2("sha256", 2**31),
        Pbkdf2("sha256", 2**64 - 1),
        Argon2("argon2id", 2**32, 32, 1),
        Argon2("argon2id", 4, 2**32, 1),
        Argon2("argon2id", 4, 2**31, 2**24),
    ],
)
def test_costs_beyond_the_implementation_are_unsupported(cost: Pbkdf2 | Argon2) -> None:
    """Whatever limits the caller set: OpenSSL's binding panics on some of these."""
    with pytest.raises(UnsupportedError):
        derive(cost, b"secret", bytes(32), 32)


def test_argon2_refuses_a_short_salt() -> None:
    with pytest.raises(LuksHeaderError, match="salt of 7"):
        derive(Argon2("argon2id", 4, 32, 1), b"secret", bytes(7), 32)


@pytest.mark.parametrize(
    ("cost", "name"),
    [
        (Pbkdf2("sha256", 2**27 + 1), "iterations"),
        (Argon2("argon2id", 4, 2**20 + 1, 1), "memory_kib"),
        (Argon2("argon2id", 2**16 + 1, 32, 1), "time"),
        (Argon2("argon2id", 65, 2**20, 1), "work_kib"),
        (Argon2("argon2id", 4, 2**20, 17), "lanes"),
    ],
)
def test_default_limits_refuse_and_larger_ones_permit(cost: Pbkdf2 | Argon2, name: str) -> None:
    """L61."""
    with pytest.raises(PolicyError, match=f"{name}="):
        KdfLimits().check(cost)
    KdfLimits(2**40, 2**40, 2**40, 2**40, 2**40).check(cost)


def test_default_limits_permit_what_cryptsetup_chooses_at_most() -> None:
    KdfLimits().check(Argon2("argon2id", 20, 2**20, 4))
    KdfLimits().check(Pbkdf2("sha256", 50_000_000))


@pytest.mark.parametrize("vector", vectors("xts.json"), ids=lambda v: f"sector-{v['sector']}")
@pytest.mark.parametrize("late", [True, False], ids=["one-cipher", "cipher-per-sector"])
def test_xts_gives_the_ciphertext_of_each_vector(
    vector: dict[str, Any], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xts, "_tweak_is_read_late", lambda: late)
    cipher = xts.AesXts(bytes.fromhex(vector["key"]), 512)
    plaintext = bytes.fromhex(vector["plaintext"])
    out = bytearray(len(plaintext))
    cipher.encrypt(vector["sector"], plaintext, out)
    if "ciphertext" in vector:
        assert out.hex() == vector["ciphertext"]
    else:
        assert hashlib.sha256(out).hexdigest() == vector["ciphertext_sha256"]
    cipher.decrypt(vector["sector"], out, out)
    assert out == plaintext


def test_this_cryptography_reads_the_tweak_late() -> None:
    """Not a promise of the library; if this fails, sectors only take longer."""
    assert xts._tweak_is_read_late()


@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("key_size", [32, 64])
def test_large_sectors_are_numbered_in_512_byte_units(sector_size: int, key_size: int) -> None:
    """L50: the number of each sector is that of its first 512 bytes."""
    key, data = os.urandom(key_size), os.urandom(4 * sector_size)
    whole, single = bytearray(len(data)), bytearray(sector_size)
    cipher = xts.AesXts(key, sector_size)
    cipher.encrypt(5, data, whole)
    for index in range(4):
        part = slice(index * sector_size, (index + 1) * sector_size)
        cipher.encrypt(5 + index * sector_size // 512, data[part], single)
        assert whole[part] == single


def test_sector_numbers_wrap_at_64_bits() -> None:
    key = os.urandom(32)
    out, zero = bytearray(1024), bytearray(512)
    xts.AesXts(key, 512).encrypt(2**64 - 1, bytes(1024), out)
    xts.AesXts(key, 512).encrypt(0, bytes(512), zero)
    assert out[512:] == zero


def test_equal_key_halves_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="halves"):
        xts.AesXts(bytes(64), 512)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("aes-xts-plain64", ("aes", "xts", "plain64", "")),
        ("aes-cbc-essiv:sha256", ("aes", "cbc", "essiv", "sha256")),
        ("aes-ecb", ("aes", "ecb", "", "")),
        ("cipher_null-ecb", ("cipher_null", "ecb", "", "")),
        ("capi:xts(ecb(aes-generic))-plain64", ("capi", "", "plain64", "")),
        ("xchacha12,aes-adiantum-plain64", ("xchacha12,aes", "adiantum", "plain64", "")),
        ("", ("", "", "", "")),
    ],
)
def test_cipher_strings_are_taken_apart(text: str, parts: tuple[str, str, str, str]) -> None:
    spec = ciphers.parse(text)
    assert (spec.cipher, spec.mode, spec.iv, spec.iv_option) == parts


@pytest.mark.parametrize(
    ("text", "key_size"),
    [
        ("aes-cbc-essiv:sha256", 32),
        ("aes-cbc-essiv:sha256", 16),
        ("aes-xts-plain64", 48),
        ("aes-xts-plain64", 16),
        ("aes-xts-plain", 64),
        ("serpent-xts-plain64", 64),
        ("twofish-cbc-plain64", 16),
        ("capi:xts(ecb(aes-generic))-plain64", 64),
        ("AES-xts-plain64", 64),
        ("", 64),
    ],
)
def test_ciphers_that_are_not_implemented_are_named(text: str, key_size: int) -> None:
    with pytest.raises(UnsupportedError) as caught:
        ciphers.sector_cipher(text, os.urandom(key_size), 512)
    assert repr(text) in str(caught.value)
    assert caught.value.feature == f"cipher {text}"


@pytest.mark.parametrize("text", ["cipher_null-ecb", "capi:ecb(cipher_null)-plain"])
def test_null_ciphers_are_refused(text: str) -> None:
    """L62."""
    with pytest.raises(PolicyError, match="encrypts nothing"):
        ciphers.sector_cipher(text, bytes(32), 512)


@pytest.mark.parametrize(
    ("text", "key_size"),
    [
        ("aes-xfs-plain64", 64),
        ("aes-", 32),
        ("aes-cbc", 32),
        ("aes-cbc-plain65", 32),
        ("aes-cbc-essiv:", 32),
        ("aes-cbc-essiv:sha257", 32),
        ("aes-xts-plain64", 33),
        ("aes-cbc-plain64", 33),
        ("nonsense-xts-plain64", 64),
    ],
)
def test_ciphers_that_nobody_has_are_told_from_those_missing_here(text: str, key_size: int) -> None:
    with pytest.raises(UnsupportedError):
        ciphers.check_spec(ciphers.parse(text), key_size)


@pytest.mark.parametrize(
    ("text", "key_size"),
    [
        ("aes-xts-plain64", 64),
        ("aes-cbc-essiv:sha256", 32),
        ("aes-ecb", 16),
        ("cast5-ecb-plain64", 16),
        ("aes-lrw-plain64", 32),
        ("serpent-xts-plain64", 32),
        ("cipher_null-ecb", 32),
    ],
)
def test_ciphers_of_other_programs_are_known(text: str, key_size: int) -> None:
    ciphers.check_spec(ciphers.parse(text), key_size)
