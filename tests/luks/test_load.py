"""Which header is read: which format, which copy, and the rest of a damaged one."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from functools import cache
from typing import TYPE_CHECKING

import pytest

import luks
from formats.devices.device import MemoryDevice
from luks.header import luks2
from luks.header.luks2_binary import METADATA_SIZES
from tests.luks.support import (
    PASSPHRASE,
    Template,
    fix_checksum,
    image,
    json_of,
    opens,
    put_copy,
    small_volume,
    template,
)

if TYPE_CHECKING:
    from pathlib import Path

PRIMARY, SECONDARY = 0, 16384


@cache
def base() -> Template:
    return template()


def with_copy(device: MemoryDevice, which: int, seqid: int, label: bytes) -> None:
    text = json.dumps(json_of(base().header)).encode()
    offset = which * SECONDARY
    put_copy(device, base().header, text, which, offset, seqid=seqid, label=label.ljust(48, b"\0"))


@pytest.mark.parametrize(
    ("primary", "secondary", "label", "stale"),
    [
        (5, 5, "primary", None),
        (6, 5, "primary", luks2.SECONDARY),
        (5, 6, "secondary", luks2.PRIMARY),
        (0, 0, "primary", None),
        (2**64 - 1, 2**64 - 2, "primary", luks2.SECONDARY),
    ],
)
def test_the_newer_copy_wins(
    primary: int, secondary: int, label: str, stale: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """L22."""
    device = base().copy()
    with_copy(device, luks2.PRIMARY, primary, b"primary")
    with_copy(device, luks2.SECONDARY, secondary, b"secondary")
    header = luks.load_header(device)
    assert (header.label, header.stale_copy) == (label, stale)
    assert header.seqid == max(primary, secondary)
    assert len(caplog.records) == (stale is not None)


@pytest.mark.parametrize("which", [luks2.PRIMARY, luks2.SECONDARY])
@pytest.mark.parametrize(
    "bit", [0, 8 * 7, 8 * 8, 8 * 20, 8 * 150, 8 * 448, 8 * 600, 8 * 4100, 8 * 16383 + 7]
)
def test_a_damaged_copy_is_not_used(which: int, bit: int, caplog: pytest.LogCaptureFixture) -> None:
    """L21: bit flips in magic, version, size, seqid, salt, checksum, padding, JSON."""
    device = base().copy()
    device.content[which * SECONDARY + bit // 8] ^= 1 << bit % 8
    with caplog.at_level(logging.WARNING, "luks"):
        header = luks.load_header(device)
    assert header == base().header
    assert header.stale_copy == which
    name = ("primary", "secondary")[which]
    assert f"the {name} header copy is not used" in caplog.text
    assert opens(device)


@pytest.mark.parametrize("size", METADATA_SIZES)
def test_a_lost_primary_is_found_through_the_secondary(size: int) -> None:
    """L20: at every place where one may be."""
    device = small_volume(metadata_size=size, data_offset=None)
    header = luks.load_header(device)
    device.content[:size] = bytes(size)
    recovered = luks.load_header(device)
    assert recovered == header
    assert recovered.stale_copy == luks2.PRIMARY
    assert opens(device)


def test_a_secondary_in_another_place_is_none() -> None:
    device = base().copy()
    copy = bytes(device.content[SECONDARY : SECONDARY + 16384])
    device.content[: 2 * SECONDARY] = bytes(2 * SECONDARY)
    device.content[32768 : 32768 + 16384] = copy
    with pytest.raises(luks.ForeignImageError):
        luks.load_header(_cut_magic(device))
    with pytest.raises(luks.LuksHeaderError, match=r"\[L20\]"):
        luks.load_header(_pretend_primary(device))


def _cut_magic(device: MemoryDevice) -> MemoryDevice:
    device = MemoryDevice(device.content)
    device.content[32768:32774] = b"NOLUKS"
    return device


def _pretend_primary(device: MemoryDevice) -> MemoryDevice:
    device = MemoryDevice(device.content)
    device.content[:8] = b"LUKS\xba\xbe\x00\x02"
    return device


def test_without_a_sound_copy_the_header_is_damaged() -> None:
    device = base().copy()
    for place in (PRIMARY, SECONDARY):
        device.content[place + 5000] ^= 1
    with pytest.raises(luks.LuksHeaderError, match="checksum") as caught:
        luks.load_header(device)
    assert caught.value.offset == 0


def test_a_copy_that_breaks_a_rule_is_no_better_than_a_damaged_one() -> None:
    device = base().copy()
    put_copy(device, base().header, b'{"keyslots":{}}', luks2.PRIMARY, 0, seqid=99)
    header = luks.load_header(device)
    assert header.stale_copy == luks2.PRIMARY
    assert header == base().header


@pytest.mark.parametrize("name", ["sha1", "sha384", "sha512", "sha3-256", "md5", "blake2b-512"])
def test_any_hash_serves_for_the_checksum(name: str) -> None:
    device = base().copy()
    text = json.dumps(json_of(base().header)).encode()
    put_copy(device, base().header, text, luks2.PRIMARY, 0, checksum_hash=name, seqid=7)
    assert luks.load_header(device).seqid == 7


@pytest.mark.parametrize("name", ["", "sha257", "shake_128", "x" * 32, "sha\xff"])
def test_an_unknown_hash_makes_a_copy_useless(name: str) -> None:
    device = base().copy()
    for place in (PRIMARY, SECONDARY):
        device.content[place + 72 : place + 104] = name.encode("latin1").ljust(32, b"\0")
    with pytest.raises(luks.UnsupportedError, match="hash"):
        luks.load_header(device)


@pytest.mark.parametrize("version", [0, 3, 0xFFFF])
def test_unknown_versions_are_unsupported(version: int) -> None:
    device = base().copy()
    device.content[6:8] = version.to_bytes(2, "big")
    # The checksum is wrong and the secondary copy whole, so this is damage.
    assert luks.load_header(device).stale_copy == luks2.PRIMARY
    lone = MemoryDevice(device.content)
    lone.content[SECONDARY : SECONDARY + 6] = bytes(6)
    with pytest.raises(luks.UnsupportedError, match=f"version {version}"):
        luks.load_header(lone)
    fix_checksum(device, 0)
    with pytest.raises(luks.UnsupportedError, match=f"version {version}"):
        luks.load_header(device)


def test_a_luks_header_is_one_damaged_or_not() -> None:
    device = base().copy()
    assert luks.is_luks(device)
    device.content[100] ^= 1
    device.content[SECONDARY + 100] ^= 1
    assert luks.is_luks(device)
    device.content[0] ^= 1
    assert luks.is_luks(device)
    device.content[SECONDARY] ^= 1
    assert not luks.is_luks(device)
    assert not luks.is_luks(MemoryDevice(0))
    assert luks.is_luks(small_volume(version=1))


@pytest.mark.parametrize("size", [0, 1, 511, 4096, 5 << 20])
def test_nothing_is_an_empty_image(size: int) -> None:
    with pytest.raises(luks.EmptyImageError):
        luks.load_header(MemoryDevice(size))
    with pytest.raises(luks.EmptyImageError):
        luks.open(MemoryDevice(size), PASSPHRASE)


@pytest.mark.parametrize(
    "content", [b"x", b"LUKS", b"QFI\xfb" + bytes(600), bytes(1 << 20) + b"x", b"SKUL\xba\xbe"]
)
def test_something_else_is_a_foreign_image(content: bytes) -> None:
    with pytest.raises(luks.ForeignImageError):
        luks.load_header(MemoryDevice(content))


@pytest.mark.parametrize("size", [8, 100, 4095, 4096, 16383])
def test_an_image_that_ends_inside_the_header_says_so(size: int) -> None:
    device = MemoryDevice(base().device.content[:size])
    with pytest.raises(luks.FormatError):
        luks.load_header(device)
    if size >= 4096:
        with pytest.raises(luks.TruncatedImageError, match="ends inside a header copy"):
            luks.load_header(device)


@pytest.mark.parametrize("size", [16384, 20000, 32768, 40000, 163839])
def test_an_image_that_ends_behind_a_copy_loads_and_does_not_open(size: int) -> None:
    device = MemoryDevice(base().device.content[:size])
    assert luks.load_header(device) == base().header
    with pytest.raises(luks.TruncatedImageError):
        luks.open(device, PASSPHRASE)


def test_a_path_is_read_while_somebody_else_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with luks.format(path, PASSPHRASE, size=4096, kdf=luks.Pbkdf2("sha256", 1000)) as volume:
        assert luks.load_header(path) == luks.load_header(str(path)) == volume.header


def test_a_path_that_cannot_be_read_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(luks.DeviceError, match="No such file"):
        luks.load_header(tmp_path / "missing")
    with pytest.raises(luks.DeviceError, match="neither a regular file"):
        luks.load_header(tmp_path)


@pytest.mark.parametrize("name", ["e-xts-ss512.img.xz", "c1-aes-xts-plain64-256.img.xz"])
def test_headers_of_cryptsetup_load_from_bytes(name: str) -> None:
    header = luks.load_header(MemoryDevice(image(name)))
    assert header.cipher == "aes-xts-plain64"
    assert header.volume_digest == 0


def test_an_image_that_does_not_load_is_not_kept() -> None:
    """Not until the collector comes by: an image in memory may be large."""
    device = base().copy()
    for copy in (PRIMARY, SECONDARY):
        device.content[copy + 5000] ^= 1
    collecting = gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(luks.FormatError):
            luks.load_header(device)
        gone = weakref.ref(device)
        del device
        assert gone() is None
    finally:
        if collecting:
            gc.enable()
