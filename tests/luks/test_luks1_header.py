"""LUKS1 headers: codec, and what is refused before it is used (L40 to L44)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from formats.frozen import replace
from luks.crypto import gcrypt
from luks.header import luks1
from tests.luks.support import PASSPHRASE, Template, opens, template, with_luks1, with_slot

if TYPE_CHECKING:
    from pathlib import Path


@cache
def base() -> Template:
    return template(version=1)


def raw() -> luks1.RawHeader:
    header: luks1.RawHeader = base().header.source
    return header


def test_the_header_is_592_bytes_as_specified() -> None:
    assert luks1.HEADER_SIZE == 592
    data = luks1.encode(raw())
    assert data[:8] == b"LUKS\xba\xbe\x00\x01"
    assert data[8:40] == b"aes".ljust(32, b"\0")
    assert data[40:72] == b"xts-plain64".ljust(32, b"\0")
    assert data[72:104] == b"sha256".ljust(32, b"\0")
    assert int.from_bytes(data[104:108], "big") == 4096
    assert int.from_bytes(data[108:112], "big") == 32
    assert data[168:204] == base().header.uuid.encode()
    assert data[208:212] == bytes.fromhex("00ac71f3")
    assert data[256:260] == bytes.fromhex("0000dead")


def test_decoding_undoes_encoding() -> None:
    data = luks1.encode(raw())
    assert luks1.decode(data) == raw()
    assert luks1.encode(luks1.decode(data)) == data
    assert luks1.from_model(luks1.to_model(raw())) == raw()


def test_the_model_shares_one_cipher_and_hash() -> None:
    header = base().header
    assert header.version == 1
    assert header.cipher == "aes-xts-plain64"
    assert header.sector_size == 512
    assert header.data_offset == 2 << 20
    (keyslot,) = header.keyslots.values()
    assert keyslot.area == luks.Area(4096, 128_000, "aes-xts-plain64", 32)
    assert (keyslot.kdf, keyslot.stripes, keyslot.af_hash) == (
        luks.Pbkdf2("sha256", 1000),
        4000,
        "sha256",
    )
    digest = header.digests[0]
    assert (digest.keyslots, digest.segments, len(digest.value)) == ((0,), (0,), 20)
    assert header.volume_digest == 0


def test_keyslots_change_through_the_model() -> None:
    header = base().header
    removed = luks1.from_model(replace(header, keyslots={}))
    assert not any(slot.active for slot in removed.keyslots)
    assert removed.keyslots[0].salt == bytes(32)
    assert removed.keyslots[0].material_sector == raw().keyslots[0].material_sector
    # Slot 7 differs from the template of slot 0 only in its area.
    moved = replace(header.keyslots[0], area=luks1.blank_keyslot(header, 7).area)
    added = luks1.from_model(replace(header, keyslots={**header.keyslots, 7: moved}))
    assert [slot.active for slot in added.keyslots] == [True, *[False] * 6, True]


@pytest.mark.parametrize(
    "fields",
    [
        {"kdf": luks.Argon2("argon2id", 4, 32, 1)},
        {"kdf": luks.Pbkdf2("sha512", 1000)},
        {"af_hash": "sha512"},
        {"stripes": 2000},
        {"area": luks.Area(8192, 128_000, "aes-xts-plain64", 32)},
    ],
)
def test_what_luks1_cannot_say_of_a_keyslot_is_refused(fields: dict[str, Any]) -> None:
    keyslot = replace(base().header.keyslots[0], **fields)
    with pytest.raises(ValueError, match="LUKS1"):
        luks1.from_model(replace(base().header, keyslots={0: keyslot}))


@pytest.mark.parametrize(
    "fields",
    [
        {"cipher_mode": "xfs-plain64"},
        {"cipher_mode": ""},
        {"cipher_mode": "xts-plain65"},
        {"cipher_mode": "cbc-essiv:"},
        {"cipher_mode": "cbc-essiv:sha257"},
        {"cipher_name": "rot13"},
        {"hash_spec": "sha2566"},
        {"key_bytes": 31},
    ],
)
def test_l41_what_is_unknown_loads_and_does_not_open(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    """Everything that needs no key works as with any other header."""
    image = tmp_path / "image"
    image.write_bytes(with_luks1(base(), **fields).content)
    before = luks.load_header(image)
    assert luks.describe_header(before)["keyslots"].keys() == {"0"}
    with pytest.raises(luks.UnsupportedError):
        luks.open(image, PASSPHRASE)
    luks.backup_header(image, tmp_path / "backup")
    with luks.edit(image) as edit:
        edit.remove_keyslot(0, force=True)
    assert not luks.load_header(image).keyslots
    luks.restore_header(image, tmp_path / "backup")
    assert luks.load_header(image) == before
    luks.destroy_keys(image)
    assert not luks.load_header(image).keyslots


@pytest.mark.parametrize(
    ("fields", "error", "rule"),
    [
        ({"key_bytes": 0}, luks.LuksHeaderError, "L43"),
        ({"key_bytes": 2**32 - 1}, luks.LuksHeaderError, "L43"),
        ({"mk_digest_iterations": 0}, luks.LuksHeaderError, "L43"),
        ({"payload_sector": 8}, luks.LuksHeaderError, "L44"),
        ({"payload_sector": 2049}, luks.LuksHeaderError, "L44"),
    ],
)
def test_fields_that_make_no_sense_are_refused(
    fields: dict[str, Any], error: type[luks.StorageError], rule: str | None
) -> None:
    device = with_luks1(base(), **fields)
    with pytest.raises(error) as caught:
        luks.load_header(device)
    assert getattr(caught.value, "rule", None) == rule


@pytest.mark.parametrize(
    ("number", "fields", "rule"),
    [
        (0, {"iterations": 0}, "L43"),
        (0, {"stripes": 0}, "L43"),
        (0, {"stripes": 2**32 - 1}, "L44"),
        (0, {"stripes": 3999}, "L43"),
        (7, {"stripes": 1}, "L43"),
        (7, {"stripes": 0}, "L43"),
        (0, {"material_sector": 0}, "L44"),
        (0, {"material_sector": 1}, "L44"),
        (0, {"material_sector": 2**32 - 1}, "L44"),
        (1, {"material_sector": 8}, "L44"),
        (1, {"material_sector": 257}, "L44"),
        (7, {"material_sector": 4000}, "L44"),
    ],
)
def test_keyslots_that_make_no_sense_are_refused(
    number: int, fields: dict[str, Any], rule: str
) -> None:
    """Inactive ones as well: their areas will be used."""
    device = with_luks1(base(), keyslots=with_slot(raw(), number, **fields))
    with pytest.raises(luks.LuksHeaderError) as caught:
        luks.load_header(device)
    assert caught.value.rule == rule
    assert rule in str(caught.value)


def test_an_area_as_large_as_a_detached_header_permits_is_bounded() -> None:
    """L44: without a payload after it, only this rule bounds an area."""
    device = with_luks1(base(), payload_sector=0, keyslots=with_slot(raw(), 7, stripes=2**32 - 1))
    with pytest.raises(luks.LuksHeaderError, match="keyslot 7"):
        luks.load_header(device)


@pytest.mark.parametrize(
    ("place", "content", "rule"),
    [
        (8, b"a" * 32, "L41"),
        (40, b"x" * 32, "L41"),
        (72, b"s" * 32, "L41"),
        (8, b"\xff\xfe\0", "L41"),
        (208, bytes(4), "L42"),
        (256, b"\0\xac\x71\xf2", "L42"),
    ],
)
def test_bytes_that_no_header_has_are_refused(place: int, content: bytes, rule: str) -> None:
    device = base().copy()
    device.content[place : place + len(content)] = content
    with pytest.raises(luks.LuksHeaderError) as caught:
        luks.load_header(device)
    assert caught.value.rule == rule


def test_headers_of_other_writers_open() -> None:
    """Old versions of cryptsetup wrote low counts, no UUID, a slot directly after the header."""
    device = with_luks1(base(), uuid=b"\xff" * 40)
    assert opens(device)
    assert luks.load_header(device).uuid == "�" * 40
    assert opens(with_luks1(base(), keyslots=with_slot(raw(), 3, iterations=0, salt=b"x" * 32)))
    moved = with_luks1(base(), keyslots=with_slot(raw(), 0, material_sector=2))
    moved.content[1024 : 1024 + 128_000] = base().device.content[4096 : 4096 + 128_000]
    assert opens(moved)


def test_a_hash_that_is_missing_here_does_not_damage_the_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gcrypt, "_library", lambda: None)
    device = with_luks1(base(), hash_spec="whirlpool")
    assert luks.load_header(device).digests[0].kdf == luks.Pbkdf2("whirlpool", 1000)
    with pytest.raises(luks.UnsupportedError, match="whirlpool"):
        luks.open(device, PASSPHRASE)


def test_a_header_without_active_keyslots_loads_and_does_not_open() -> None:
    device = with_luks1(base(), keyslots=with_slot(raw(), 0, active=False))
    assert not luks.load_header(device).keyslots
    with pytest.raises(luks.UnlockError, match="no keyslot is active"):
        luks.open(device, PASSPHRASE)


@pytest.mark.parametrize("size", [8, 100, 591])
def test_an_image_that_ends_inside_the_header_is_truncated(size: int) -> None:
    with pytest.raises(luks.TruncatedImageError):
        luks.load_header(MemoryDevice(base().device.content[:size]))


def test_what_does_not_fit_a_field_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        luks1.encode(replace(raw(), cipher_mode="x" * 32))
    with pytest.raises(ValueError, match="a LUKS1 header cannot hold"):
        luks1.encode(replace(raw(), payload_sector=2**32))
