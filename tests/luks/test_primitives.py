"""AF splitting, hashes, key derivation and AES-XTS against numbers of others, and each other."""

from __future__ import annotations

import hashlib
import hmac
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

import luks
from formats.devices.device import MemoryDevice
from luks.crypto import gcrypt
from luks.crypto.af import af_merge, af_split
from luks.crypto.ciphers import sector_cipher
from luks.crypto.fast import xts
from luks.crypto.hashes import is_known, lookup
from luks.crypto.kdf import KdfLimits, derive
from luks.errors import LuksHeaderError, PolicyError, UnsupportedError
from luks.model import Argon2, Pbkdf2
from tests.luks.support import vectors

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    "vector", vectors("af.json"), ids=lambda v: f"{v['hash']}-{v['key_length']}"
)
def test_af_merge_gives_the_key_of_each_vector(vector: dict[str, Any]) -> None:
    merged = af_merge(
        bytes.fromhex(vector["split"]),
        key_size=vector["key_length"],
        stripes=vector["stripes"],
        hash_name=vector["hash"],
    )
    assert merged.hex() == vector["key"]


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
    password, salt = bytes.fromhex(vector["password"]), bytes.fromhex(vector["salt"])
    with derive(_cost(vector), password, salt, len(vector["output"]) // 2) as key:
        assert key.view().hex() == vector["output"]


@pytest.mark.parametrize(
    "vector", vectors("hashes.json"), ids=lambda v: f"{v['hash']}-{len(v['data']) // 2}"
)
def test_hashes_give_the_digest_of_each_vector(vector: dict[str, Any]) -> None:
    hash_, data = lookup(vector["hash"]), bytes.fromhex(vector["data"])
    assert hash_.new(data).digest().hex() == vector["digest"]
    piecewise = hash_.new(data[:3])
    piecewise.update(data[3:])
    assert piecewise.digest().hex() == vector["digest"]
    assert piecewise.digest_size == hash_.digest_size


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
    expected = hashlib.pbkdf2_hmac(openssl_name, b"secret", b"salt", 3, 100)
    with derive(Pbkdf2(name, 3), b"secret", b"salt", 100) as key:
        assert bytes(key.view()) == expected
    assert lookup(name).new(b"x").digest() == hashlib.new(openssl_name, b"x").digest()
    assert is_known(name)


@pytest.mark.parametrize("name", ["", "sha257", "sha3_256", "shake_128", "new", "whirlpoo"])
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


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("vector", vectors("xts.json"), ids=lambda v: f"sector-{v['sector']}")
@pytest.mark.parametrize("late", [True, False], ids=["one-cipher", "cipher-per-sector"])
def test_xts_gives_the_ciphertext_of_each_vector(
    vector: dict[str, Any], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xts, "_tweak_is_read_late", lambda: late)
    cipher = xts.AesXts(bytes.fromhex(vector["key"]), 512)
    plaintext = bytes.fromhex(vector["plaintext"])
    plaintext += bytes(-len(plaintext) % 512)  # sectors are whole; some vectors are not
    out = bytearray(len(plaintext))
    cipher.encrypt(vector["sector"], plaintext, out)
    if "ciphertext" in vector:
        assert out.hex().startswith(vector["ciphertext"])
    else:
        assert hashlib.sha256(out).hexdigest() == vector["ciphertext_sha256"]
    cipher.decrypt(vector["sector"], out, out)
    assert out == plaintext


def test_this_cryptography_does_what_makes_sectors_fast() -> None:
    """Not a promise of the library; if this fails, sectors only take longer."""
    assert xts._tweak_is_read_late()
    assert xts._tweak_can_follow()


def one_by_one(key: bytes | bytearray, sector_size: int) -> xts.AesXts:
    """Return a cipher that never goes over many sectors in bulk."""
    cipher = xts.AesXts(key, sector_size)
    cipher._bulk = None
    return cipher


@pytest.mark.parametrize("follows", [True, False], ids=["one-context", "context-per-sector"])
@pytest.mark.parametrize("late", [True, False], ids=["one-cipher", "cipher-per-sector"])
@pytest.mark.parametrize(("key_size", "sector_size"), [(64, 512), (32, 4096)])
def test_each_sector_of_a_request_has_its_own_tweak(
    key_size: int, sector_size: int, late: bool, follows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xts, "_tweak_is_read_late", lambda: late)
    monkeypatch.setattr(xts, "_tweak_can_follow", lambda: follows)
    key, first, step = os.urandom(key_size), 2**64 - 3 * (sector_size // 512), sector_size // 512
    cipher = one_by_one(key, sector_size)
    for sectors in (1, 7, 2, 1, 5):  # with the same `Cipher`, whose mode comes and goes
        data = os.urandom(sectors * sector_size)
        expected = b"".join(
            Cipher(
                algorithms.AES(key),
                modes.XTS(((first + index * step) % 2**64).to_bytes(16, "little")),
            )
            .encryptor()
            .update(data[index * sector_size : (index + 1) * sector_size])
            for index in range(sectors)
        )
        out = bytearray(len(data))
        cipher.encrypt(first, data, out)
        assert out == expected
        cipher.decrypt(first, out, out)
        assert out == data
    assert [type(maker.mode) for maker in cipher._spare] == [modes.XTS]


def test_without_such_a_cryptography_the_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(modes.XTS):
        """What its context does not take for a mode with a nonce."""

    monkeypatch.setattr(modes, "ModeWithNonce", Other)
    assert not xts._tweak_can_follow.__wrapped__()


def test_wiping_the_key_ends_its_use() -> None:
    key = bytearray(os.urandom(64))
    cipher, data = one_by_one(key, 512), os.urandom(4096)
    before, after = bytearray(4096), bytearray(4096)
    cipher.encrypt(0, data, before)
    key[:] = bytes(range(64))
    cipher.encrypt(0, data, after)
    other = bytearray(4096)
    one_by_one(bytes(range(64)), 512).encrypt(0, data, other)
    assert after == other != before


def test_threads_that_share_a_cipher_share_no_context() -> None:
    key, data = os.urandom(64), os.urandom(17 * 4096)
    cipher = one_by_one(key, 4096)
    expected = [bytearray(len(data)) for _ in range(4)]
    for number, out in enumerate(expected):
        one_by_one(key, 4096).encrypt(1000 * number, data, out)

    def work(number: int) -> bool:
        out = bytearray(len(data))
        for _ in range(200):
            cipher.encrypt(1000 * number, data, out)
            if out != expected[number]:
                return False
            cipher.decrypt(1000 * number, out, out)
            if out != data:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@pytest.mark.usefixtures("way")
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


@pytest.mark.usefixtures("way")
def test_sector_numbers_wrap_at_64_bits() -> None:
    key = os.urandom(32)
    out, zero = bytearray(1024), bytearray(512)
    xts.AesXts(key, 512).encrypt(2**64 - 1, bytes(1024), out)
    xts.AesXts(key, 512).encrypt(0, bytes(512), zero)
    assert out[512:] == zero


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("key_size", [32, 48, 64])
def test_l71_equal_key_halves_are_served(key_size: int) -> None:
    """OpenSSL refuses them; by the letter of IEEE 1619 then."""
    key, data, out = os.urandom(key_size // 2) * 2, os.urandom(4096), bytearray(4096)
    cipher = sector_cipher("aes-xts-plain64", key, 512)
    cipher.encrypt(9, data, out)
    blocks = Cipher(algorithms.AES(key[: key_size // 2]), modes.ECB()).encryptor()
    for start in range(0, 4096, 512):
        tweak = blocks.update((9 + start // 512).to_bytes(16, "little"))
        block = bytes(a ^ b for a, b in zip(data[start : start + 16], tweak, strict=True))
        expected = bytes(a ^ b for a, b in zip(blocks.update(block), tweak, strict=True))
        assert out[start : start + 16] == expected
    cipher.decrypt(9, out, out)
    assert out == data


def test_l71_no_volume_is_made_with_equal_key_halves() -> None:
    with pytest.raises(UnsupportedError, match="halves"):
        luks.format(MemoryDevice(4 << 20), b"secret", volume_key=bytes(64))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("iv", "number", "tweak"),
    [
        ("plain", 2**32 + 5, (5).to_bytes(16, "little")),
        ("plain64", 2**32 + 5, (2**32 + 5).to_bytes(16, "little")),
        ("plain64be", 2**32 + 5, (2**32 + 5).to_bytes(16)),
    ],
)
def test_the_tweak_is_the_sector_number(iv: str, number: int, tweak: bytes) -> None:
    key, data = os.urandom(64), os.urandom(512)
    out = bytearray(512)
    xts.AesXts(key, 512, iv).encrypt(number, data, out)
    assert out == Cipher(algorithms.AES(key), modes.XTS(tweak)).encryptor().update(data)


@pytest.mark.parametrize("name", ["ripemd160", "whirlpool", "stribog256", "stribog512"])
def test_hashes_that_only_libgcrypt_has_name_the_remedy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L71: and so do all that use them."""
    monkeypatch.setattr(hashlib, "algorithms_available", frozenset({"sha256"}))

    def no_such_hash(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(hashlib, "new", no_such_hash)
    assert lookup(name).hashlib_name is None  # this machine has libgcrypt
    monkeypatch.setattr(gcrypt, "_library", lambda: None)
    uses: list[Callable[[], object]] = [
        lambda: lookup(name),
        lambda: derive(Pbkdf2(name, 1000), b"secret", bytes(32), 32),
        lambda: af_split(bytes(32), stripes=2, hash_name=name),
    ]
    for use in uses:
        with pytest.raises(UnsupportedError, match=name) as caught:
            use()
        assert caught.value.feature == f"hash {name}"
        assert caught.value.hint == gcrypt.REMEDY


@pytest.mark.parametrize(
    "bits", [("b", 384), ("b", 256), ("b", 160), ("s", 224), ("s", 160), ("s", 128)]
)
def test_short_blake2_is_that_of_hashlib(bits: tuple[str, int]) -> None:
    kind, size = bits
    expected = getattr(hashlib, f"blake2{kind}")(b"data", digest_size=size // 8).digest()
    assert lookup(f"blake2{kind}-{size}").new(b"data").digest() == expected
    with derive(Pbkdf2(f"blake2{kind}-{size}", 3), b"secret", b"salt", 32) as key:
        assert bytes(key.view()) == _pbkdf2(f"blake2{kind}", size // 8, 3)


def _pbkdf2(name: str, digest_size: int, iterations: int) -> bytes:
    """32 bytes of PBKDF2 of ``b"secret"`` and ``b"salt"``, by the letter of RFC 8018."""

    def new(data: bytes = b"") -> Any:
        return getattr(hashlib, name)(data, digest_size=digest_size)

    def mac(data: bytes) -> bytes:
        return hmac.digest(b"secret", data, new)

    out = b""
    for block in range(1, 4):
        value = mac(b"salt" + block.to_bytes(4))
        total = int.from_bytes(value)
        for _ in range(iterations - 1):
            value = mac(value)
            total ^= int.from_bytes(value)
        out += total.to_bytes(digest_size)
    return out[:32]


@pytest.mark.parametrize("size", [1, 20, 64, 65, 200])
@pytest.mark.parametrize("secret", [b"", b"secret", bytes(200)])
def test_pbkdf2_of_libgcrypt_is_that_of_openssl(size: int, secret: bytes) -> None:
    key = bytearray(size)
    gcrypt.pbkdf2("ripemd160", secret, b"salt" * 8, 7, key)
    assert key == hashlib.pbkdf2_hmac("ripemd160", secret, b"salt" * 8, 7, size)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("stribog512", "486f64c1917879417fef082b3381a4e211c324f074654c38823a7b76f830ad00"),
        ("stribog256", "00557be5e584fd52a449b16b0251d05d27f94ab76cbaa6da890b59d8ef1e159d"),
    ],
)
def test_streebog_gives_the_digests_of_its_standard(name: str, digest: str) -> None:
    """RFC 6986, example 1, which prints the last byte first."""
    message = b"012345678901234567890123456789012345678901234567890123456789012"
    assert lookup(name).new(message).digest()[::-1][:32].hex() == digest
