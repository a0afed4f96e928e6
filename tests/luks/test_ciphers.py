"""Ciphers, modes and IV generators against numbers of others, and each other."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.devices.device import MemoryDevice
from luks.crypto import blockcipher, ciphers, gcrypt, ivs, modes, nettle
from luks.crypto.fast import xts
from luks.crypto.spec import check_spec, parse
from luks.payload.segment import CryptSegment
from tests.luks.support import vectors

#: Everything that is served, with the bytes of each key it takes.
SERVED = {
    "aes-xts-plain64": (32, 48, 64),
    "aes-xts-plain": (32, 48, 64),
    "aes-xts-plain64be": (32, 48, 64),
    "aes-xts-benbi": (64,),
    "aes-xts-null": (64,),
    "aes-xts-essiv:sha256": (32, 64),
    "aes-cbc-plain": (16, 24, 32),
    "aes-cbc-plain64": (16, 24, 32),
    "aes-cbc-plain64be": (16,),
    "aes-cbc-essiv:sha256": (16, 24, 32),
    "aes-cbc-essiv:md5": (16,),
    "aes-cbc-benbi": (16, 24, 32),
    "aes-cbc-null": (32,),
    "aes-cbc-eboiv": (16, 32),
    "aes-ctr-plain64": (16, 24, 32),
    "aes-ctr-plain64be": (16,),
    "aes-ctr-essiv:sha256": (32,),
    "aes-ecb": (16, 24, 32),
    "aes-ecb-plain64": (32,),
    "aes-lrw-benbi": (32, 40, 48),
    "aes-lrw-plain64": (32,),
    "camellia-xts-plain64": (32, 48, 64),
    "camellia-cbc-essiv:sha256": (32,),
    "cast5-cbc-plain64": (16,),
    "cast5-cbc-benbi": (16,),
    "cast5-ctr-plain64": (16,),
    "cast5-ecb": (16,),
    "des3_ede-cbc-plain64": (24,),
    "serpent-xts-plain64": (32, 48, 64),
    "serpent-cbc-essiv:sha256": (16, 24, 32),
    "serpent-lrw-benbi": (32,),
    "sm4-xts-plain64": (32,),
    "sm4-cbc-plain64": (16,),
    "twofish-xts-plain64": (32, 48, 64),
    "twofish-cbc-plain": (16, 24, 32),
    "twofish-ctr-plain64": (24,),
}
CASES = [(text, size) for text, sizes in SERVED.items() for size in sizes]
SECTOR_SIZES = [512, 1024, 2048, 4096]

Maker = type[gcrypt.GcryptCipher] | type[nettle.NettleCipher]


def encrypted(text: str, key: bytes, number: int, data: bytes, sector_size: int = 512) -> bytes:
    out = bytearray(len(data))
    ciphers.sector_cipher(text, key, sector_size).encrypt(number, data, out)
    return bytes(out)


def random_key(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# Numbers of others.


@pytest.mark.parametrize(
    "vector",
    vectors("ciphers.json"),
    ids=lambda v: f"{v['cipher']}-{v['mode']}-{len(v['key']) * 4}",
)
def test_each_mode_gives_the_ciphertext_of_each_vector(vector: dict[str, Any]) -> None:
    key, data = bytes.fromhex(vector["key"]), bytes.fromhex(vector["plaintext"])
    iv = bytes.fromhex(vector["iv"] or "")
    mode = ciphers._mode(parse(f"{vector['cipher']}-{vector['mode']}"), memoryview(key))
    assert mode.iv_size == len(iv)
    assert mode.encrypt(iv, data, len(data)).hex() == vector["ciphertext"]
    assert mode.decrypt(iv, bytes.fromhex(vector["ciphertext"]), len(data)) == data


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "vector", vectors("sectors.json"), ids=lambda v: f"{v['spec']}-{v['sector']}"
)
def test_l70_a_sector_of_zeros_encrypts_to_what_each_vector_says(vector: dict[str, Any]) -> None:
    key = bytes.fromhex(vector["key"])
    out = encrypted(vector["spec"], key, vector["sector"], bytes(512))
    assert out[:16].hex() == vector["first_16"]
    assert hashlib.sha256(out).hexdigest() == vector["zero_sector_ciphertext_sha256"]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "vector",
    vectors("sector_ivs.json"),
    ids=lambda v: f"{v['iv']}-{v['sector_size']}-{v['iv_large_sectors']}",
)
def test_l50_l70_large_sectors_are_numbered_as_dm_crypt_numbers_them(
    vector: dict[str, Any],
) -> None:
    """LUKS has no iv_large_sectors: for those, the number of each sector is given."""
    text = f"{vector['cipher']}-{vector['mode']}-{vector['iv']}"
    key, size = bytes.fromhex(vector["key"]), vector["sector_size"]
    start = vector["start_sector_512"]
    data = bytes(vector["data_length"])
    if vector["iv_large_sectors"]:
        step = size // 512
        out = b"".join(
            encrypted(text, key, (start + at // 512) // step, data[at : at + size], size)
            for at in range(0, len(data), size)
        )
    else:
        out = encrypted(text, key, start, data, size)
    assert hashlib.sha256(out).hexdigest() == vector["ciphertext_sha256"]


@pytest.mark.parametrize(
    "vector", vectors("ivs.json"), ids=lambda v: f"{v['iv_generator']}-{v['sector']}"
)
def test_l70_each_generator_gives_the_iv_of_each_vector(vector: dict[str, Any]) -> None:
    spec = parse(vector["iv_generator"])
    key = bytes.fromhex(vector["key"] or "")
    generate = ciphers._iv_generator(spec, memoryview(key), 16, 512)
    assert generate([vector["sector"]]).hex() == vector["iv"]


@pytest.mark.parametrize(
    ("key", "number", "ciphertext"),
    [
        (
            "4562ac25f828176d4c268414b5680185258e2a05e73e9d03ee5a830ccc094c87",
            1,
            "f1b273cd65a3df5fe95d489254634eb8",
        ),
        (
            "59704714f557478cd779e80f548879440d48f0b7b15a53ea1caa6b29c2cafbaf",
            2,
            "00c82bae95bbcde5274f0769b260e136",
        ),
    ],
)
def test_lrw_gives_the_ciphertext_of_the_draft(key: str, number: int, ciphertext: str) -> None:
    """IEEE P1619, draft of LRW-AES, vectors 1 and 2."""
    raw = bytes.fromhex(key)
    mode = modes.Lrw(blockcipher.block_cipher("aes", raw[:16]), raw[16:])
    assert mode.encrypt(number.to_bytes(16), b"0123456789ABCDEF", 16).hex() == ciphertext


# One implementation against another.


def test_lrw_numbers_blocks_across_carries() -> None:
    """Block by block with a multiplication of its own, also over the last number."""
    key = random_key(32)
    mode = modes.Lrw(blockcipher.block_cipher("aes", key[:16]), key[16:])

    def product(number: int) -> int:
        result, power = 0, int.from_bytes(key[16:])
        for place in range(128):
            if number >> place & 1:
                result ^= power
            power = power << 1 if power < 1 << 127 else (power << 1) ^ (1 << 128) ^ 0x87
        return result

    blocks = blockcipher.block_cipher("aes", key[:16]).encryptor()
    for first in (0, 1, 2**64 - 3, 2**128 - 5):
        expected = []
        for number in range(first, first + 32):
            tweak = product(number % 2**128)
            expected.append(
                (int.from_bytes(blocks.update(tweak.to_bytes(16))) ^ tweak).to_bytes(16)
            )
        assert mode.encrypt(first.to_bytes(16), bytes(512), 512) == b"".join(expected)


@pytest.mark.parametrize("iv", [bytes(16), b"\xff" * 16, b"\0" * 8 + b"\xff" * 8])
def test_ctr_counts_as_openssl_does(iv: bytes) -> None:
    """The whole block, big-endian, and round at its end."""
    key, data = os.urandom(32), os.urandom(1024)
    mode = modes.Ctr(blockcipher.block_cipher("aes", key))
    expected = Cipher(algorithms.AES(key), CTR(iv)).encryptor().update(data[:512])
    assert mode.encrypt(iv * 2, data, 512)[:512] == expected


@pytest.mark.parametrize("text", ["aes-xts-plain", "aes-xts-plain64", "aes-xts-plain64be"])
@pytest.mark.parametrize("key_size", [32, 64])
def test_both_implementations_of_xts_agree(text: str, key_size: int) -> None:
    key, data = os.urandom(key_size), os.urandom(8192)
    spec = parse(text)
    mode = ciphers._mode(spec, memoryview(key))
    slow = ciphers._ModeCipher(mode, ciphers._iv_generator(spec, memoryview(key), 16, 1024), 1024)
    fast = xts.AesXts(key, 1024, spec.iv)
    for number in (0, 5, 2**32 - 3, 2**64 - 1):
        outs = [bytearray(8192) for _ in range(4)]
        slow.encrypt(number, data, outs[0])
        fast.encrypt(number, data, outs[1])
        assert outs[0] == outs[1]
        slow.decrypt(number, data, outs[2])
        fast.decrypt(number, data, outs[3])
        assert outs[2] == outs[3]


@pytest.mark.parametrize(
    ("cipher", "key_size"),
    [
        ("camellia", 16),
        ("camellia", 24),
        ("camellia", 32),
        ("cast5", 16),
        ("des3_ede", 24),
        ("sm4", 16),
    ],
)
def test_libgcrypt_and_openssl_agree(cipher: str, key_size: int) -> None:
    key, data = os.urandom(key_size), os.urandom(4096)
    size = blockcipher.block_size(cipher)
    theirs = gcrypt.GcryptCipher(cipher, key, size)
    ours = blockcipher.block_cipher(cipher, key)
    assert isinstance(ours, blockcipher.CryptographyCipher)
    assert theirs.encryptor().update(data) == ours.encryptor().update(data)
    assert theirs.decryptor().update(data) == ours.decryptor().update(data)
    chains: list[blockcipher.Stream] = [theirs.cbc_encryptor(), ours.cbc_encryptor()]
    for part in (data[:512], data[512:]):
        assert chains[0].update(part) == chains[1].update(part)


def test_nettle_s_cbc_is_that_of_its_blocks() -> None:
    key, data = os.urandom(24), os.urandom(1024)
    cipher = nettle.NettleCipher("twofish", key, 16)
    stream = cipher.cbc_encryptor()
    out = stream.update(data[:512]) + stream.update(data[512:])
    plain = cipher.decryptor().update(out)
    before = bytes(16) + out[:-16]
    assert bytes(a ^ b for a, b in zip(plain, before, strict=True)) == data


# What holds for every cipher.


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("text", "key_size"), CASES)
def test_each_cipher_decrypts_what_it_encrypted(text: str, key_size: int) -> None:
    """Each sector by itself, in place or not, also more than pass through at a time."""
    key = random_key(key_size)
    check_spec(parse(text), key_size)
    for sector_size in SECTOR_SIZES:
        cipher = ciphers.sector_cipher(text, key, sector_size)
        data = os.urandom(3 * sector_size)
        out = bytearray(len(data))
        cipher.encrypt(40, data, out)
        for index in range(3):
            part = slice(index * sector_size, (index + 1) * sector_size)
            number = 40 + index * sector_size // 512
            assert encrypted(text, key, number, data[part], sector_size) == out[part]
        cipher.decrypt(40, memoryview(out), out)
        assert out == data


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("text", ["aes-cbc-essiv:sha256", "serpent-xts-plain64", "aes-ctr-plain64"])
def test_what_is_longer_than_a_chunk_is_numbered_on(text: str) -> None:
    key, data = random_key(32), os.urandom(ciphers._CHUNK + 8192)
    out = encrypted(text, key, 7, data, 4096)
    last = len(data) - 4096
    assert out[last:] == encrypted(text, key, 7 + last // 512, data[last:], 4096)


@pytest.mark.usefixtures("way")
@settings(max_examples=150, deadline=None)
@given(
    case=st.sampled_from(CASES),
    sector_size=st.sampled_from(SECTOR_SIZES),
    first_sector=st.integers(0, 2**61).map(lambda n: 8 * n),
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 16384), st.integers(0, 6000)), max_size=8
    ),
    seed=st.integers(0, 2**32),
)
def test_any_range_reads_as_it_was_written_with_every_cipher(
    case: tuple[str, int],
    sector_size: int,
    first_sector: int,
    steps: list[tuple[bool, int, int]],
    seed: int,
) -> None:
    generator = random.Random(seed)
    expected = bytearray(generator.randbytes(16384))
    text, key_size = case
    device = CryptSegment(
        MemoryDevice(16384),
        ciphers.sector_cipher(text, random_key(key_size), sector_size),
        offset=0,
        size=16384,
        sector_size=sector_size,
        first_sector=first_sector,
    )
    device.write(0, expected)
    for is_write, offset, size in steps:
        data = generator.randbytes(min(size, 16384 - offset))
        if is_write:
            device.write(offset, data)
            expected[offset : offset + len(data)] = data
        else:
            assert device.read(offset, len(data)) == expected[offset : offset + len(data)]
    assert device.read(0, 16384) == expected


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("text", "key_size"), CASES)
def test_wiping_the_key_ends_its_use(text: str, key_size: int) -> None:
    key = bytearray(random_key(key_size))
    cipher = ciphers.sector_cipher(text, key, 512)
    first, second = bytearray(512), bytearray(512)
    cipher.encrypt(1, bytes(512), first)
    # Not zeros: of XTS, OpenSSL refuses two halves that are equal.
    key[:] = bytes(range(key_size))
    cipher.encrypt(1, bytes(512), second)
    assert second != first
    assert second == encrypted(text, bytes(range(key_size)), 1, bytes(512))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("text", "key_size"), CASES)
def test_a_cipher_may_be_used_in_several_threads(text: str, key_size: int) -> None:
    cipher = ciphers.sector_cipher(text, random_key(key_size), 1024)
    data = [os.urandom(16384) for _ in range(3)]
    expected = [encrypted(text, random_key(key_size), 8 * n, data[n], 1024) for n in range(3)]
    results: list[bool] = []

    def use(number: int) -> None:
        for _ in range(3):
            out = bytearray(16384)
            cipher.encrypt(8 * number, data[number], out)
            results.append(out == expected[number])
            cipher.decrypt(8 * number, out, out)
            results.append(out == data[number])

    threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 18


def test_l70_numbers_wrap_as_their_generator_does() -> None:
    for make, wrap in ((ivs.plain, 2**32), (ivs.plain64, 2**64), (ivs.plain64be, 2**64)):
        for size in (8, 16):
            generate = make(size)
            assert generate([wrap - 1, wrap, wrap + 5]) == generate([wrap - 1, 0, 5])
            assert generate([wrap - 1]) != generate([wrap - 2])
    assert ivs.benbi(16, 16)([3, 2**59]) == (97).to_bytes(16) + (1).to_bytes(16)
    assert ivs.benbi(8, 8)([3]) == (193).to_bytes(8)
