"""Many sectors in bulk give what they give one by one, and NumPy comes only when it is worth it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luks.crypto import ciphers
from luks.crypto.blockcipher import CryptographyCipher
from luks.crypto.fast import bulk, bulk_ivs, cbc_bulk, wide_aes, xts, xts_bulk
from luks.crypto.spec import parse

SECTOR_SIZES = [512, 1024, 2048, 4096]
CIPHERS = {
    "aes-xts-plain64": (32, 48, 64),
    "aes-xts-plain": (64,),
    "aes-xts-plain64be": (32,),
    "aes-xts-benbi": (64,),
    "aes-xts-null": (64,),
    "aes-xts-essiv:sha256": (64,),
    "camellia-xts-plain64": (48,),
    "aes-cbc-plain": (16,),
    "aes-cbc-plain64": (24,),
    "aes-cbc-plain64be": (32,),
    "aes-cbc-benbi": (16,),
    "aes-cbc-null": (32,),
    "aes-cbc-eboiv": (32,),
    "aes-cbc-essiv:sha256": (16, 32),
    "sm4-cbc-plain64": (16,),
}
CASES = [(text, size) for text, sizes in CIPHERS.items() for size in sizes]


def one_by_one(text: str, key: bytes, sector_size: int) -> ciphers._ModeCipher:
    """The way of `luks.crypto.modes`, whatever the size."""
    spec, view = parse(text), memoryview(key)
    generate = ciphers._iv_generator(spec, view, 16, sector_size)
    return ciphers._ModeCipher(ciphers._mode(spec, view), generate, sector_size)


def in_bulk(text: str, key: bytes, sector_size: int) -> bulk.Bulk:
    path = bulk.bulk_path(parse(text), memoryview(key), sector_size, bulk.OTHER_XTS)
    assert path is not None
    return path._make()


def check(
    text: str, key: bytes, sector_size: int, first: int, content: bytes, offset: int = 0
) -> None:
    """Compare both ways, in place and not, in memory that begins at an odd address."""
    slow, fast = one_by_one(text, key, sector_size), in_bulk(text, key, sector_size)
    step, size = sector_size // 512, len(content)
    for to_compare, run in ((slow.encrypt, fast.encrypt), (slow.decrypt, fast.decrypt)):
        expected = bytearray(size)
        to_compare(first, content, expected)
        memory = bytearray(offset) + content + b"guard"
        view = memoryview(memory)[offset : offset + size]
        other = bytearray(offset + size + 5)
        run(first, step, view.toreadonly(), memoryview(other)[offset : offset + size])
        assert other == bytes(offset) + expected + bytes(5)
        assert view == content
        run(first, step, view, view)
        assert memory == bytes(offset) + expected + b"guard"


@settings(max_examples=200, deadline=None)
@given(
    case=st.sampled_from(CASES),
    sector_size=st.sampled_from(SECTOR_SIZES),
    first=st.one_of(
        st.integers(0, 2**64 - 1), st.integers(2**64 - 300, 2**64 - 1), st.integers(2**63, 2**63)
    ),
    sectors=st.integers(1, 70),
    offset=st.integers(0, 17),
    seed=st.integers(0, 2**32),
)
def test_any_sectors_are_the_same_both_ways(
    case: tuple[str, int], sector_size: int, first: int, sectors: int, offset: int, seed: int
) -> None:
    generator = random.Random(seed)
    text, key_size = case
    content = generator.randbytes(sectors * sector_size)
    check(text, generator.randbytes(key_size), sector_size, first, content, offset)


@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
@pytest.mark.parametrize("text", ["aes-xts-plain64", "aes-cbc-essiv:sha256"])
def test_more_than_a_batch_is_the_same_both_ways(text: str, sector_size: int) -> None:
    """Several work areas' worth, and a part of one; two kinds of them in one request."""
    for rest in (1, 3, 300_000 // sector_size):
        content = os.urandom((2 << 20) + rest * sector_size)
        check(text, os.urandom(32), sector_size, 2**64 - 100, content)


@settings(max_examples=50, deadline=None)
@given(
    key_size=st.sampled_from([32, 64]),
    sector_size=st.sampled_from(SECTOR_SIZES),
    first=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**64 - 1),
    sectors=st.integers(1, 9),
)
def test_sectors_of_any_distance(
    key_size: int, sector_size: int, first: int, step: int, sectors: int
) -> None:
    """The step between sector numbers, modulo 2**64."""
    key = os.urandom(key_size)
    content = os.urandom(sectors * sector_size)
    out, single = bytearray(len(content)), bytearray(sector_size)
    in_bulk("aes-xts-plain64", key, sector_size).encrypt(first, step, content, out)
    cipher = xts.AesXts(key, sector_size)
    for index in range(sectors):
        part = slice(index * sector_size, (index + 1) * sector_size)
        cipher.encrypt((first + index * step) % 2**64, content[part], single)
        assert out[part] == single


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["plain", "plain64", "plain64be", "benbi", "null"]),
    first=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**64 - 1),
    count=st.integers(1, 20),
)
def test_l70_generators_are_the_same_both_ways(
    name: str, first: int, step: int, count: int
) -> None:
    spec = parse(f"aes-cbc-{name}")
    generate = ciphers._iv_generator(spec, memoryview(bytes(32)), 16, 512)
    room = bulk_ivs.IvRoom(count + 1)
    room.data[:] = b"\xaa" * len(room.data)  # as another generator leaves it
    generator = bulk_ivs.bulk_ivs(spec, memoryview(bytes(32)), 512)
    expected = generate([first + index * step for index in range(count)])
    assert generator.put(room, count, first, step) == expected


@pytest.mark.parametrize("distance", [32, 64, 128, 256])
def test_masks_are_powers_of_x(distance: int) -> None:
    """Each is the one before, doubled as often as the distance says."""
    masks = wide_aes.whitening(32, distance, 3)
    value = int.from_bytes(masks[:16], "little")
    for start in (16, 32):
        for _ in range(distance):
            value = value << 1 ^ (value >> 127) * ((1 << 128) | 0x87)
        assert masks[start : start + 16] == value.to_bytes(16, "little")


# The XTS context as a cipher of many blocks, and what may be wrong with it.


class _Continuing:
    """A context that continues with its tweak, as XTS over one long unit would."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._calls = 0

    def update_into(self, data: memoryview, out: memoryview) -> int:
        size: int = self._context.update_into(data, out)
        self._calls += 1
        if self._calls > 1:
            out[0] ^= 1
        return size


class _WrongWhenLong:
    """A context with a fault in what serves many blocks."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def update_into(self, data: memoryview, out: memoryview) -> int:
        size: int = self._context.update_into(data, out)
        if size > 8192:
            out[size - 1] ^= 0x80
        return size


class _Short:
    """A context that holds blocks back."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def update_into(self, data: memoryview, out: memoryview) -> int:
        size: int = self._context.update_into(data, out)
        return size - 16


@pytest.mark.parametrize("broken", [_Continuing, _WrongWhenLong, _Short])
@pytest.mark.parametrize("direction", ["encryptor", "decryptor"])
def test_a_context_that_does_something_else_is_found_and_not_used(
    broken: type, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = wide_aes.WideAes._context

    def context(wide: wide_aes.WideAes, asked: str) -> Any:
        made = original(wide, asked)
        return broken(made) if asked == direction else made

    wide_aes.is_whitened.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(wide_aes.WideAes, "_context", context)
            assert not wide_aes.is_whitened()
            cipher = in_bulk("aes-xts-plain64", os.urandom(64), 512)
            assert isinstance(cipher, xts_bulk.BulkXts)
            assert isinstance(cipher._blocks, CryptographyCipher)
            check("aes-xts-plain64", os.urandom(64), 512, 7, os.urandom(40 * 512))
    finally:
        wide_aes.is_whitened.cache_clear()


def test_this_openssl_passes_the_check() -> None:
    """Not a promise of the library; if this fails, bulk only takes longer."""
    assert wide_aes.is_whitened()


def test_the_check_has_no_part_in_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With XTS and with ECB, the same."""
    key, content = os.urandom(64), os.urandom(100 * 1024)
    outs = [bytearray(len(content)) for _ in range(2)]
    in_bulk("aes-xts-plain64", key, 1024).encrypt(3, 2, content, outs[0])
    monkeypatch.setattr(xts_bulk, "is_whitened", lambda: False)
    in_bulk("aes-xts-plain64", key, 1024).encrypt(3, 2, content, outs[1])
    assert outs[0] == outs[1]


def test_no_key_stays_where_contexts_are_made() -> None:
    wide = wide_aes.WideAes(memoryview(b"k" * 32))
    wide.encryptor()
    wide.decryptor()
    assert [room[:32] for room, _ in wide._spare] == [bytes(32)]


# Threads and work areas.


@pytest.mark.parametrize("text", ["aes-xts-plain64", "aes-cbc-plain64"])
def test_threads_share_no_work_area(text: str) -> None:
    """Requests of different sizes and sector sizes at once, with one cipher per size."""
    key = os.urandom(32)
    requests = []
    for sector_size in (512, 4096):
        cipher = in_bulk(text, key, sector_size)
        for sectors in (16, 100, 300):
            content, out = os.urandom(sectors * sector_size), bytearray(sectors * sector_size)
            one_by_one(text, key, sector_size).decrypt(9, content, out)
            requests.append((cipher, sector_size // 512, content, bytes(out)))
    wrong = []

    def use(number: int) -> None:
        for turn in range(20):
            cipher, step, content, expected = requests[(turn + number) % len(requests)]
            out = bytearray(content)
            cipher.decrypt(9, step, out, out)
            if out != expected:
                wrong.append(number)
            cipher.encrypt(9, step, out, out)
            if out != content:
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_work_areas_are_used_again() -> None:
    cipher = in_bulk("aes-xts-plain64", os.urandom(64), 2048)
    data = bytearray(40 * 2048)
    cipher.encrypt(0, 4, data, data)
    areas = xts_bulk._free[2048, 64, 32]
    before = list(areas)
    cipher.encrypt(0, 4, data, data)
    assert areas == before


@pytest.mark.parametrize("sectors", [5, 700])
def test_work_areas_keep_nothing_that_was_decrypted(sectors: int) -> None:
    """Neither where they were full nor where a shorter part came last."""
    for text, sector_size in (("aes-xts-plain64", 2048), ("aes-cbc-plain64", 2048)):
        cipher = in_bulk(text, os.urandom(32), sector_size)
        data = bytearray(os.urandom(sectors * sector_size))
        cipher.decrypt(0, 4, data, data)
    assert not any(area._data.any() for areas in xts_bulk._free.values() for area in areas)
    assert not any(memory.any() for areas in cbc_bulk._free.values() for memory in areas)


# When NumPy is imported.


def run(code: str) -> None:
    preamble = "import sys\nfrom luks.crypto.ciphers import sector_cipher\n"
    subprocess.run([sys.executable, "-c", preamble + code], check=True)


@pytest.mark.parametrize("text", ["aes-xts-plain64", "aes-cbc-essiv:sha256"])
def test_requests_of_one_blob_do_not_import_numpy(text: str) -> None:
    run(
        f"cipher = sector_cipher({text!r}, bytes(range(32)), 512)\n"
        "data = bytearray(1 << 20)\n"
        "cipher.encrypt(0, data, data)\n"
        "cipher.decrypt(0, data, data)\n"
        "assert 'numpy' not in sys.modules\n"
    )


@pytest.mark.parametrize("size", [512, 64 << 10, 128 << 20])
def test_numpy_is_imported_when_it_would_have_paid(size: int) -> None:
    """Never for single sectors, at once for much, and else when it has added up."""
    run(
        "cipher = sector_cipher('aes-xts-plain64', bytes(range(64)), 512)\n"
        f"data = bytearray({size})\n"
        f"for _ in range({(128 << 20) // size}):\n"
        "    cipher.encrypt(0, data, data)\n"
        f"assert ('numpy' in sys.modules) is ({size} > 512)\n"
    )


def test_where_numpy_is_there_it_is_used() -> None:
    cipher = xts.AesXts(os.urandom(64), 512)
    assert cipher._bulk is not None
    data = bytearray((bulk.AES_XTS.encrypt[512] - 1) * 512)
    cipher.encrypt(0, data, data)
    assert cipher._bulk._bulk is None
    data += bytes(512)
    cipher.encrypt(0, data, data)
    assert isinstance(cipher._bulk._bulk, xts_bulk.BulkXts)


@pytest.mark.parametrize(
    ("text", "key_size"),
    [
        ("aes-ctr-plain64", 32),
        ("aes-ecb", 32),
        ("aes-lrw-benbi", 32),
        ("cast5-cbc-plain64", 16),
        ("serpent-xts-plain64", 64),
    ],
)
def test_other_ciphers_have_no_such_way(text: str, key_size: int) -> None:
    spec = parse(text)
    assert bulk.bulk_path(spec, memoryview(bytes(key_size)), 512, bulk.OTHER_XTS) is None


def test_there_is_none_on_machines_with_the_other_byte_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    spec = parse("aes-xts-plain64")
    assert bulk.bulk_path(spec, memoryview(bytes(64)), 512, bulk.OTHER_XTS) is None
