"""The payload as a BlockDevice: any range, whole sectors below, several threads."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import luks
from formats.devices.device import BlockDevice, MemoryDevice
from formats.errors import DeviceError
from luks.crypto.fast.xts import AesXts
from luks.payload.segment import CryptSegment
from tests.luks.support import (
    PASSPHRASE,
    Template,
    json_of,
    template,
    with_json,
)
from tests.support.devices import FaultyDevice, RecordingDevice

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from formats.devices.device import WritableBuffer

SECTOR_SIZES = [512, 1024, 2048, 4096]
SIZE = 1 << 16
KEY = bytes(range(64))


@cache
def base(sector_size: int = 4096) -> Template:
    return template(sector_size=sector_size, size=SIZE)


def segment(device: BlockDevice, sector_size: int, *, first_sector: int = 0) -> CryptSegment:
    return CryptSegment(
        device,
        AesXts(KEY, sector_size),
        offset=4096,
        size=SIZE,
        sector_size=sector_size,
        first_sector=first_sector,
    )


@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_volume_is_a_block_device(sector_size: int) -> None:
    with luks.open(base(sector_size).device, PASSPHRASE) as volume:
        assert isinstance(volume, BlockDevice)
        assert (volume.size, volume.block_size) == (SIZE, sector_size)
        assert volume.header.sector_size == sector_size
        assert volume.header.cipher == "aes-xts-plain64"


@settings(max_examples=60, deadline=None)
@given(
    sector_size=st.sampled_from(SECTOR_SIZES),
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, 10_000)), max_size=12
    ),
    seed=st.integers(0, 2**32),
)
def test_any_range_reads_as_it_was_written(
    sector_size: int, steps: list[tuple[bool, int, int]], seed: int
) -> None:
    generator = random.Random(seed)
    expected = bytearray(generator.randbytes(SIZE))
    device = segment(MemoryDevice(4096 + SIZE), sector_size)
    device.write(0, expected)
    for is_write, offset, size in steps:
        data = generator.randbytes(min(size, SIZE - offset))
        if is_write:
            device.write(offset, data)
            expected[offset : offset + len(data)] = data
        else:
            assert device.read(offset, len(data)) == expected[offset : offset + len(data)]
    assert device.read(0, SIZE) == expected


@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_each_sector_is_encrypted_by_itself(sector_size: int) -> None:
    memory = MemoryDevice(4096 + SIZE)
    device = segment(memory, sector_size, first_sector=32)
    plain = os.urandom(SIZE)
    device.write(0, plain)
    sector = bytearray(sector_size)
    for start in range(0, SIZE, sector_size):
        data = plain[start : start + sector_size]
        AesXts(KEY, sector_size).encrypt(32 + start // 512, data, sector)
        assert memory.content[4096 + start : 4096 + start + sector_size] == sector


@pytest.mark.parametrize(
    ("offset", "size", "reads"),
    [
        (0, 4096, []),
        (4096, 32768, []),
        (0, SIZE, []),
        (1, 4095, [0]),
        (0, 4095, [0]),
        (100, 100, [0]),
        (4095, 2, [0, 4096]),
        (4096, 4097, [8192]),
        (1, SIZE - 2, [0, SIZE - 4096]),
        (5, 0, []),
    ],
)
def test_l72_only_the_sectors_at_the_edges_are_read_before_a_write(
    offset: int, size: int, reads: list[int]
) -> None:
    below = RecordingDevice(4096 + SIZE)
    device = segment(below, 4096)
    device.write(offset, os.urandom(size))
    assert sorted(below.reads) == [(4096 + start, 4096) for start in reads]
    end = -(-(offset + size) // 4096) * 4096
    start = offset // 4096 * 4096
    assert [(w.offset, len(w.data)) for w in below.writes] == (
        [(4096 + start, end - start)] if size else []
    )
    assert below.flushes == 0
    device.flush()
    assert below.flushes == 1


def test_l72_large_requests_go_down_in_pieces_of_one_mib() -> None:
    below = RecordingDevice(4096 + (3 << 20))
    device = CryptSegment(
        below, AesXts(KEY, 4096), offset=4096, size=3 << 20, sector_size=4096, first_sector=0
    )
    data = os.urandom((3 << 20) - 10)
    device.write(5, data)
    assert [len(write.data) for write in below.writes] == [1 << 20] * 3
    assert [size for _, size in below.reads] == [4096, 4096]
    assert device.read(5, len(data)) == data


def test_buffers_are_filled_in_place_and_data_is_not_modified() -> None:
    device = segment(MemoryDevice(4096 + SIZE), 512)
    data = bytearray(os.urandom(8192))
    before = bytes(data)
    device.write(512, data)
    device.write(513, memoryview(data))
    assert data == before
    buffer = bytearray(10_000)
    device.read_into(1536, memoryview(buffer)[100:1124])
    assert buffer[:100] == bytes(100)
    assert buffer[100:1124] == before[1023 : 1023 + 1024]
    assert buffer[1124:] == bytes(10_000 - 1124)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, SIZE + 1), (SIZE, 1), (SIZE + 1, 0)])
def test_ranges_outside_are_the_callers_mistake(offset: int, size: int) -> None:
    with luks.open(base().copy(), PASSPHRASE, read_only=False) as volume:
        with pytest.raises(ValueError, match="outside"):
            volume.read(offset, size)
        with pytest.raises(ValueError, match="outside"):
            volume.write(offset, bytes(size))
        assert volume.read(SIZE, 0) == b""
        volume.write(SIZE, b"")


def test_a_volume_that_is_read_only_is_not_written() -> None:
    device = RecordingDevice(base().device.content)
    with luks.open(device, PASSPHRASE) as volume:
        with pytest.raises(luks.ReadOnlyError):
            volume.discard(0, 4096)
        with pytest.raises(luks.ReadOnlyError):
            volume.resize(4096)
        with pytest.raises(luks.ReadOnlyError) as caught:
            volume.write(0, b"x")
        assert caught.value.exit_code == 22
        assert volume.read_only
        volume.flush()
    assert device.writes == []


def test_a_file_that_is_read_only_is_not_opened_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(base().device.content)
    with luks.open(path, PASSPHRASE) as volume, pytest.raises(luks.ReadOnlyError):
        volume.write(0, b"x")
    with luks.open(path, PASSPHRASE, read_only=False) as volume:
        volume.write(0, b"x")
        with pytest.raises(luks.DeviceBusyError):
            luks.open(path, PASSPHRASE, read_only=False)
        with pytest.raises(luks.DeviceBusyError):
            luks.open(path, PASSPHRASE)
    luks.open(path, PASSPHRASE).close()


def test_what_open_fails_at_stays_unlocked(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(base().device.content)
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(path, b"wrong", read_only=False)
    luks.open(path, PASSPHRASE, read_only=False).close()


def test_a_closed_volume_refuses_everything() -> None:
    volume = luks.open(base().copy(), PASSPHRASE, read_only=False)
    volume.close()
    uses: list[Callable[[], object]] = [
        lambda: volume.read(0, 1),
        lambda: volume.write(0, b"x"),
        lambda: volume.discard(0, 4096),
        lambda: volume.resize(4096),
        volume.flush,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_device_stays_its_openers_to_close() -> None:
    class Closing(MemoryDevice):
        closed = False

        def close(self) -> None:
            self.closed = True

    device = Closing(base().device.content)
    luks.open(device, PASSPHRASE).close()
    assert not device.closed


@pytest.mark.parametrize("extra", [0, 1, 200, 511, 4095])
def test_what_is_less_than_a_sector_belongs_to_nobody(extra: int) -> None:
    device = MemoryDevice(bytes(base().device.content) + bytes(extra))
    with luks.open(device, PASSPHRASE) as volume:
        assert volume.size == SIZE


@pytest.mark.parametrize("iv_tweak", [0, 8, 2**32 - 8, 2**64 - 8])
def test_the_iv_tweak_is_added_to_the_sector_number(iv_tweak: int) -> None:
    """L50: modulo 2**64, as the kernel adds."""
    root = json_of(base().header)
    root["segments"]["0"]["iv_tweak"] = str(iv_tweak)
    device = with_json(base(), root)
    with luks.open(device, PASSPHRASE, read_only=False) as volume:
        volume.write(0, b"x" * 8192)
        key = luks.unlock(device, volume.header, PASSPHRASE).key
        offset = volume.header.data_offset
        sector = bytearray(4096)
        for index in range(2):
            number = (iv_tweak + 8 * index) % 2**64
            AesXts(key.view(), 4096).encrypt(number, b"x" * 4096, sector)
            assert device.content[offset + 4096 * index :][:4096] == sector


def test_a_segment_of_fixed_size_ends_there() -> None:
    root = json_of(base().header)
    root["segments"]["0"]["size"] = "32768"
    device = with_json(base(), root)
    with luks.open(device, PASSPHRASE, read_only=False) as volume:
        assert volume.size == 32768
        volume.write(32767, b"x")
    assert device.content[163840 + 32768 :] == base().device.content[163840 + 32768 :]


def test_segments_side_by_side_are_one_payload() -> None:
    """L51: the same data as one segment, if the numbering continues."""
    root = json_of(base(512).header)
    first = root["segments"]["0"]
    root["segments"]["1"] = {**first, "offset": str(163840 + 10_240), "iv_tweak": "20"}
    first["size"] = "10240"
    root["digests"]["0"]["segments"] = ["0", "1"]
    device = with_json(base(512), root)
    data = os.urandom(SIZE)
    with luks.open(device, PASSPHRASE, read_only=False) as volume:
        assert volume.size == SIZE
        volume.write(0, data)
        volume.write(10_239, b"ab")
        assert volume.read(10_000, 1000) == data[10_000:10_239] + b"ab" + data[10_241:11_000]
    single = base(512).copy()
    single.content[163840:] = device.content[163840:]
    with luks.open(single, PASSPHRASE) as volume:
        assert volume.read(0, SIZE) == data[:10_239] + b"ab" + data[10_241:]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_segments_may_lie_in_any_order_on_the_device(order: list[int]) -> None:
    root = json_of(base().header)
    segments = root["segments"]
    places = [163840, 163840 + 32768]
    first = segments["0"]
    for index, place in enumerate(order):
        segments[str(index)] = {**first, "offset": str(places[place]), "size": "32768"}
    root["digests"]["0"]["segments"] = ["0", "1"]
    device = with_json(base(), root)
    with luks.open(device, PASSPHRASE, read_only=False) as volume:
        before = device.content[places[order[1]] :][:4096]
        volume.write(32768, b"second")
        assert device.content[places[order[1]] :][:4096] != before
        assert volume.read(32768, 6) == b"second"


@pytest.mark.parametrize("operation", ["read", "write", "flush"])
def test_errors_of_the_device_come_through(operation: Any) -> None:
    device = segment(FaultyDevice(MemoryDevice(4096 + SIZE), operation, 1), 4096)

    def use() -> None:
        device.write(100, b"x")
        device.flush()

    with pytest.raises(luks.DeviceError, match="injected"):
        use()
    use()
    assert device.read(100, 1) == b"x"


@pytest.mark.parametrize("version", [1, 2])
def test_a_detached_payload_is_nothing_but_payload(version: int) -> None:
    header, payload = MemoryDevice(0), MemoryDevice(SIZE)
    luks.format(
        payload,
        PASSPHRASE,
        version=version,
        header=header,
        kdf=luks.Pbkdf2("sha256", 1000),
    ).close()
    assert payload.content == bytes(SIZE)
    with luks.open(payload, PASSPHRASE, header=header, read_only=False) as volume:
        assert volume.size == SIZE
        volume.write(0, b"x")
    assert payload.content[4096:] == bytes(SIZE - 4096)
    with pytest.raises(luks.ForeignImageError):
        luks.open(payload, PASSPHRASE)


@pytest.mark.parametrize("kind", ["linear", "null"])
def test_l62_what_is_not_encrypted_is_refused_and_can_be_served(kind: str) -> None:
    """A segment in plain text before an encrypted one, where that is permitted."""
    root = json_of(base().header)
    second = root["segments"]["0"]
    start = int(second["offset"])
    first = {"type": "linear", "offset": str(start), "size": "8192"}
    if kind == "null":
        first = {**second, **first, "type": "crypt", "encryption": "cipher_null-ecb"}
    root["segments"] = {"0": first, "1": {**second, "offset": str(start + 8192)}}
    root["digests"]["0"]["segments"] = ["1"] if kind == "linear" else ["0", "1"]
    device = with_json(base(), root)
    header = luks.load_header(device)
    key = luks.unlock(base().device, base().header, PASSPHRASE)
    with pytest.raises(luks.PolicyError, match="not encrypted"):
        luks.Volume(device, header, key)
    policy = luks.Policy(allow_unencrypted=True)
    with luks.Volume(device, header, key, read_only=False, policy=policy) as volume:
        volume.write(8000, b"x" * 400)
        assert device.content[start + 8000 : start + 8192] == b"x" * 192
        assert volume.read(8000, 400) == b"x" * 400
        assert b"xxxx" not in device.content[start + 8192 :]


def test_threads_write_their_own_bytes_from_the_room_they_share() -> None:
    below = MemoryDevice(4096 + SIZE)
    device = segment(below, 4096)
    part = SIZE // 4

    def work(number: int) -> None:
        for size in (part, 4096, 100, 9000):  # the room grows, and is too large then
            device.write(number * part, bytes([number + 1]) * size)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for number in range(4):
        assert device.read(number * part, part) == bytes([number + 1]) * part


def test_no_plaintext_stays_where_a_write_fails() -> None:
    below = RecordingDevice(4096 + SIZE)
    device = segment(below, 4096)
    device.write(0, b"secret" * 4000)
    assert b"secret" not in device._room

    read_into = below.read_into

    def failing_read(offset: int, buffer: WritableBuffer) -> None:
        if offset >= 4096 + 8192:
            raise DeviceError("failed")
        read_into(offset, buffer)

    below.read_into = failing_read  # type: ignore[method-assign]
    with pytest.raises(DeviceError):
        device.write(100, b"hidden" * 2000)
    assert not any(device._room[: 3 * 4096])
