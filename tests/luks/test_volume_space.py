"""A volume's size and space: resized with its image, given back to it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

import luks
from formats.devices.device import MemoryDevice, SliceDevice
from tests.luks.programs import key_file, qemu_read
from tests.luks.support import PASSPHRASE, PBKDF2, json_of, with_json
from tests.luks.test_volume import SIZE, base
from tests.support.devices import FaultyDevice, RecordingDevice
from tests.support.foreign import run

if TYPE_CHECKING:
    from pathlib import Path


def test_l73_a_volume_is_resized_with_its_image(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(base().device.content)
    head = path.stat().st_size - SIZE
    with luks.open(path, PASSPHRASE, read_only=False) as volume:
        volume.write(SIZE - 4096, b"x" * 4096)
        volume.resize(3 * SIZE)
        assert path.stat().st_size == head + 3 * SIZE
        volume.write(SIZE - 1, b"yz")
    with luks.open(path, PASSPHRASE, read_only=False) as volume:
        assert volume.size == 3 * SIZE
        assert volume.read(SIZE - 4096, 4098) == b"x" * 4095 + b"yz" + volume.read(SIZE + 1, 1)
        volume.resize(4096)
        for use in (lambda: volume.read(4096, 1), lambda: volume.write(4095, b"xx")):
            with pytest.raises(ValueError, match="outside"):
                use()
    assert path.stat().st_size == head + 4096
    with luks.open(path, PASSPHRASE) as volume:
        assert volume.size == 4096


@pytest.mark.parametrize("size", [0, -4096, 4095, 4097, SIZE + 512])
def test_l73_a_payload_is_whole_sectors(size: int) -> None:
    with luks.open(base().copy(), PASSPHRASE, read_only=False) as volume:
        with pytest.raises(ValueError, match="whole sectors"):
            volume.resize(size)
        assert volume.size == SIZE


def test_l73_a_size_that_the_header_fixes_stays() -> None:
    root = json_of(base().header)
    root["segments"]["0"]["size"] = "32768"
    with luks.open(with_json(base(), root), PASSPHRASE, read_only=False) as volume:
        with pytest.raises(luks.UnsupportedError, match="fixes the size") as caught:
            volume.resize(65536)
        assert caught.value.feature == "resize"
        assert volume.size == 32768


def test_l73_what_the_device_refuses_changes_nothing() -> None:
    faulty = FaultyDevice(base().copy(), "resize", 1)
    with luks.open(faulty, PASSPHRASE, read_only=False) as volume:
        with pytest.raises(luks.DeviceError, match="injected"):
            volume.resize(2 * SIZE)
        assert volume.size == volume._segments[-1].size == SIZE
        volume.resize(2 * SIZE)
        assert volume.size == 2 * SIZE
    fixed = SliceDevice(base().copy(), 0, base().device.size)
    with luks.open(fixed, PASSPHRASE, read_only=False) as volume:
        with pytest.raises(luks.UnsupportedError, match="cannot be resized"):
            volume.resize(2 * SIZE)
        assert volume.size == SIZE


def test_l73_only_the_last_segment_is_resized() -> None:
    root = json_of(base(512).header)
    first = root["segments"]["0"]
    root["segments"]["1"] = {**first, "offset": str(163840 + 10_240), "sector_size": 4096}
    first["size"] = "10240"
    root["digests"]["0"]["segments"] = ["0", "1"]
    device = with_json(base(512), root)
    with luks.open(device, PASSPHRASE, read_only=False) as volume:
        volume.write(10_000, b"x" * 1000)
        volume.resize(10_240 + 8192)
        assert volume.read(10_000, 1000) == b"x" * 1000
        assert device.size == 163840 + 10_240 + 8192
        with pytest.raises(ValueError, match="more than 10240"):
            volume.resize(10_240)


@pytest.mark.parametrize(
    ("offset", "size", "discarded"),
    [
        (0, 4096, (0, 4096)),
        (4096, 8192, (4096, 8192)),
        (1, 12287, (4096, 8192)),
        (4095, 8194, (4096, 8192)),
        (0, 8191, (0, 4096)),
        (1, 4096, None),
        (1, 8190, None),
        (4096, 0, None),
    ],
)
def test_l74_whole_sectors_are_discarded(
    offset: int, size: int, discarded: tuple[int, int] | None
) -> None:
    calls: list[tuple[int, int]] = []

    class Discarding(MemoryDevice):
        def discard(self, offset: int, size: int, /) -> None:
            calls.append((offset, size))
            super().discard(offset, size)

    device = Discarding(base().device.content)
    with luks.open(device, PASSPHRASE, read_only=False) as volume:
        volume.write(0, b"x" * SIZE)
        start = volume.header.data_offset
        volume.discard(offset, size)
        assert calls == ([] if discarded is None else [(start + discarded[0], discarded[1])])
        first, length = discarded or (0, 0)
        after = volume.read(0, SIZE)
        assert after[:first] + after[first + length :] == b"x" * (SIZE - length)
        noise = after[first : first + length]
        assert len(set(noise)) > 200 if length else not noise  # noise, not zeros
        assert device.content[start + first :][:length] == bytes(length)


def test_l74_what_cannot_discard_says_so() -> None:
    with luks.open(RecordingDevice(base().device.content), PASSPHRASE, read_only=False) as volume:
        before = volume.read(0, SIZE)
        with pytest.raises(luks.UnsupportedError, match="cannot discard") as caught:
            volume.discard(0, SIZE)
        assert caught.value.feature == "discard"
        assert volume.read(0, SIZE) == before


def test_l74_discarding_gives_the_space_of_the_file_back(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with luks.format(path, PASSPHRASE, size=1 << 20, kdf=PBKDF2) as volume:
        volume.write(0, bytes(1 << 20))
        volume.flush()
        before = path.stat().st_blocks
        volume.discard(0, 1 << 20)
        volume.flush()
        assert path.stat().st_blocks <= before - (1 << 20) // 512


@pytest.mark.interop
def test_l73_l74_qemu_sees_the_new_size_and_the_hole(tmp_path: Path) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    data = os.urandom(96 << 10)
    with luks.format(path, PASSPHRASE, version=1, size=64 << 10, kdf=PBKDF2) as volume:
        volume.resize(96 << 10)
        volume.write(0, data)
    assert qemu_read(path, key, tmp_path / "plain") == data
    with luks.open(path, PASSPHRASE, read_only=False) as volume:
        volume.resize(80 << 10)
        volume.discard(8 << 10, 64 << 10)
        volume.flush()
        after = volume.read(0, volume.size)
        hole = volume.header.data_offset + (8 << 10)
    assert after[: 8 << 10] == data[: 8 << 10]
    assert after[72 << 10 :] == data[72 << 10 : 80 << 10]
    assert qemu_read(path, key, tmp_path / "plain") == after
    extents = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", path))
    assert any(
        extent["zero"]
        and extent["start"] <= hole
        and extent["start"] + extent["length"] >= hole + (64 << 10)
        for extent in extents
    )


def test_space_is_asked_for_in_the_image(tmp_path: Path) -> None:
    """`reserve` and `backed_ranges` mean the payload's bytes, the image's file has them."""
    path = tmp_path / "image"
    with luks.format(path, b"secret", size=1 << 20, kdf=luks.Pbkdf2("sha256", 1000)) as volume:
        start = volume.header.data_offset
        volume.write(64 << 10, bytes(4096))
        volume.flush()
        assert list(volume.backed_ranges(0, volume.size)) == [(64 << 10, 4096)]
        volume.reserve(512 << 10, 8192)
        with path.open("r+b") as file:  # what is reserved shows as data once it is written
            file.seek(start + (512 << 10))
            file.write(bytes(8192))
        assert list(volume.backed_ranges(0, volume.size))[1:] == [(512 << 10, 8192)]
        blocks = path.stat().st_blocks
        volume.reserve(0, volume.size)
        assert path.stat().st_blocks >= blocks + (1 << 20) // 512 - 64
