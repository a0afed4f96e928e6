"""The volume key has one length, whatever a digest confirms (L65)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from formats.errors import ArgumentError
from formats.frozen import replace
from luks.crypto.kdf import confirms
from luks.header.writer import write_header
from luks.keys.enroll import enroll_key
from luks.keys.keyslots import seal
from tests.luks.programs import accepts, key_file
from tests.luks.support import (
    KEY,
    OTHER,
    PASSPHRASE,
    PBKDF2,
    known_volume,
    with_luks1,
    with_slot,
)
from tests.support.cli import QUICK, fails, succeeds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from luks.header import luks1
    from tests.luks.support import Template

#: Of the 32 bytes that the volume key has, up to the next length that AES-XTS takes.
APPENDED = (1, 16, 32, 64)
PADDED = KEY + bytes(32)
ROOM: dict[str, Any] = {"keyslots_size": 4 << 20}


def volume(version: int) -> Template:
    base = known_volume(version, **ROOM)
    assert base.header.cipher == "aes-xts-plain64"
    return base


def two_lengths(**fields: Any) -> MemoryDevice:
    """A LUKS2 volume with the key in keyslot 0, and with zeros appended in keyslot 1."""
    base = volume(2)
    device = base.copy()
    header, material = enroll_key(
        base.header, 1, kdf=PBKDF2, secret=PASSPHRASE, key=PADDED, hash_name="sha256"
    )
    keyslots = {**header.keyslots, 1: replace(header.keyslots[1], **fields)}
    write_header(device, replace(header, keyslots=keyslots), material)
    return device


@pytest.mark.parametrize("zeros", APPENDED)
@pytest.mark.parametrize("version", [1, 2])
def test_l65_a_key_with_zeros_is_not_the_volume_key(version: int, zeros: int) -> None:
    base = volume(version)
    padded = KEY + bytes(zeros)
    if len(padded) <= 64:  # what a block of SHA-256 has
        assert confirms(base.header.digests[0], padded, luks.KdfLimits()), "else this tests nothing"
    with pytest.raises(luks.UnlockError, match="L65"):
        luks.verify_volume_key(base.header, padded)
    with luks.verify_volume_key(base.header, KEY).key as key:
        assert key.view() == KEY


@pytest.mark.parametrize("size", [0, 1, 16, 31])
@pytest.mark.parametrize("version", [1, 2])
def test_l65_a_shorter_key_is_not_asked_for(version: int, size: int) -> None:
    with pytest.raises(luks.UnlockError, match="L65"):
        luks.verify_volume_key(volume(version).header, KEY[:size])


@pytest.mark.parametrize("version", [1, 2])
def test_l65_without_keyslots_the_length_is_still_known(version: int) -> None:
    """In LUKS1 from the header, in LUKS2 from the cipher, which takes 32 and 64 bytes."""
    device = volume(version).copy()
    luks.destroy_keys(device)
    header = luks.load_header(device)
    assert not header.keyslots
    for zeros in APPENDED:
        with pytest.raises(luks.UnlockError, match="not the volume key"):
            luks.verify_volume_key(header, KEY + bytes(zeros))
    with luks.open(device, luks.verify_volume_key(header, KEY)) as opened:
        assert opened.volume_key_size == len(KEY)
    # A key whose second half is not zeros is not a shorter key.
    whole = MemoryDevice(0)
    options: dict[str, Any] = {"kdf": PBKDF2, "size": 4096, "version": version}
    luks.format(whole, OTHER, volume_key=KEY + KEY[::-1], key_size=64, **options).close()
    luks.destroy_keys(whole)
    luks.verify_volume_key(luks.load_header(whole), KEY + KEY[::-1]).key.wipe()


@pytest.mark.parametrize("version", [1, 2])
def test_l65_no_keyslot_is_made_of_a_padded_key(version: int) -> None:
    base = volume(version)
    device = base.copy()
    forged = luks.VolumeKey(luks.Secret(PADDED), None)
    with pytest.raises(luks.UnlockError, match="L65"):
        luks.add_keyslot(device, forged, PASSPHRASE, kdf=PBKDF2)
    with pytest.raises(luks.UnlockError, match="L65"):
        luks.amend(device, state="active", secret=forged, new_secret=PASSPHRASE, kdf=PBKDF2)
    with pytest.raises(luks.UnlockError, match="L65"):
        luks.open(device, forged)
    with pytest.raises(ArgumentError, match="L65"):
        luks.Volume(device, base.header, forged)
    with pytest.raises(ValueError, match="L65"):
        seal(base.header.keyslots[0], PASSPHRASE, PADDED)
    assert device.content == base.device.content
    assert luks.Secret(PADDED).view() == forged.key.view(), "it stays the caller's"


def test_l65_a_luks1_keyslot_has_room_for_its_key_only() -> None:
    """More would lie in the neighbour's area: this destroyed it."""
    base = volume(1)
    with pytest.raises(ValueError, match="L65"):
        enroll_key(base.header, 1, kdf=PBKDF2, secret=OTHER, key=PADDED, hash_name="sha256")


@pytest.mark.parametrize("keyslot", [None, 1])
def test_l65_a_keyslot_with_a_padded_key_does_not_open(keyslot: int | None) -> None:
    device = two_lengths()
    with pytest.raises(luks.StorageError, match="L65"):
        luks.open(device, PASSPHRASE, keyslot=keyslot)
    with pytest.raises(luks.StorageError, match="L65"), luks.edit(device) as header:
        header.unlock(PASSPHRASE)
    with luks.edit(device) as header:
        assert header.matching(PASSPHRASE) == ()
    with luks.open(device, OTHER) as opened:
        assert (opened.keyslot, opened.volume_key_size) == (0, len(KEY))
    assert luks.remove_keyslot(device, 1) == 1
    luks.open(device, OTHER).close()


def test_l65_another_length_in_a_header_takes_nothing_from_honest_keyslots() -> None:
    """A hostile keyslot claims a shorter key: the longer one does not end with zeros."""
    device = MemoryDevice(0)
    key = bytes(range(64))
    options: dict[str, Any] = {"kdf": PBKDF2, "size": 4096, **ROOM}
    luks.format(device, OTHER, volume_key=key, key_size=64, **options).close()
    header, material = enroll_key(
        luks.load_header(device), 1, kdf=PBKDF2, secret=PASSPHRASE, key=KEY, hash_name="sha256"
    )
    write_header(device, header, material)
    luks.open(device, OTHER).close()
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(device, PASSPHRASE)
    with pytest.raises(luks.UnlockError, match="not the volume key"):
        luks.verify_volume_key(luks.load_header(device), KEY)


def test_l65_a_keyslot_whose_size_no_cipher_takes_is_not_tried() -> None:
    device = two_lengths(key_size=40)
    with luks.open(device, OTHER) as opened:
        assert opened.keyslot == 0
    with pytest.raises(luks.UnsupportedError, match="does not take a key of 40 bytes"):
        luks.open(device, PASSPHRASE, keyslot=1)


def test_l65_unbound_keys_have_a_length_of_their_own(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(volume(2).device.content)
    with luks.edit(image) as header:
        for size in (1, 40, 512):
            header.add_keyslot(PASSPHRASE, kdf=PBKDF2, unbound_key=bytes(size))
        for size in (0, 513):
            with pytest.raises(ValueError, match="1 to 512 bytes"):
                header.add_keyslot(PASSPHRASE, kdf=PBKDF2, unbound_key=bytes(size))
        header.unlock(OTHER)
        header.add_keyslot(b"third", kdf=PBKDF2)
    assert [slot.key_size for slot in luks.load_header(image).keyslots.values()] == [
        *(32, 1, 40, 512, 32)
    ]
    with luks.open(image, b"third") as opened:
        assert opened.keyslot == 4
    assert accepts(image, key_file(tmp_path, b"third"), "--key-slot=4")


def other_stripes(raw: luks1.RawHeader) -> dict[str, Any]:
    slots = [replace(slot, stripes=3999) for slot in raw.keyslots]
    return {"keyslots": tuple(slots)}


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {"key_bytes": 64, "keyslots": _spread(_.keyslots)},
        lambda _: {"key_bytes": 16 * 2, "hash_spec": "sha512"},
        other_stripes,
    ],
)
def test_l111_a_backup_that_differs_in_its_key_is_of_another_volume(
    change: Callable[[luks1.RawHeader], dict[str, Any]],
) -> None:
    base = volume(1)
    backup = with_luks1(base, **change(base.header.source))
    backup.resize(8 << 20)
    luks.load_header(backup)
    device = base.copy()
    before = bytes(device.content)
    with pytest.raises(luks.HeaderMismatchError, match="L111"):
        luks.restore_header(device, backup)
    assert bytes(device.content) == before


def _spread(slots: tuple[luks1.RawKeyslot, ...]) -> tuple[luks1.RawKeyslot, ...]:
    """Keyslots at places where areas for keys of 64 bytes do not overlap."""
    return tuple(replace(slot, material_sector=8 + n * 504) for n, slot in enumerate(slots))


def test_l111_a_backup_with_a_keyslot_of_another_length_is_refused() -> None:
    device = two_lengths()
    whole = MemoryDevice(bytes(device.content))
    luks.remove_keyslot(device, 1)
    with pytest.raises(luks.HeaderMismatchError, match="length"):
        luks.restore_header(device, whole)
    luks.restore_header(device, device)


@pytest.mark.parametrize("size", [0, 513, 1 << 31])
def test_l43_a_luks1_key_has_at_most_512_bytes(size: int) -> None:
    """Before anything is computed or allocated from it; a null cipher takes any."""
    base = known_volume(1)
    with pytest.raises(luks.LuksHeaderError, match=rf"{size} bytes .*L43"):
        luks.load_header(with_luks1(base, key_bytes=size, cipher_name="cipher_null"))


@pytest.mark.parametrize("size", [1, 512])
def test_l43_a_luks1_key_of_up_to_512_bytes_is_one(size: int) -> None:
    base = known_volume(1)
    slots = with_slot(base.header.source, 0)
    slots = tuple(replace(s, material_sector=8 + n * 4096) for n, s in enumerate(slots))
    device = with_luks1(
        base,
        key_bytes=size,
        cipher_name="cipher_null",
        cipher_mode="ecb",
        keyslots=slots,
        payload_sector=0,
    )
    assert luks.load_header(device).keyslots[0].key_size == size


@pytest.mark.parametrize("version", [1, 2])
def test_l65_the_command_line_leaves_every_keyslot_whole(tmp_path: Path, version: int) -> None:
    """In LUKS1, `key add --volume-key-file` with such a key destroyed the next keyslot."""
    image, padded = tmp_path / "image", tmp_path / "padded"
    base = volume(version)
    image.write_bytes(base.device.content)
    padded.write_bytes(PADDED)
    new = key_file(tmp_path, PASSPHRASE)
    key = ("--volume-key-file", padded)
    assert fails("key", "add", image, *key, "--new-key-file", new, *QUICK) == 50
    assert fails("key", "test", image, *key) == 50
    assert fails("ls", image, *key) == 50
    assert image.read_bytes() == base.device.content
    padded.write_bytes(KEY)
    succeeds("key", "add", image, *key, "--new-key-file", new, *QUICK)
    assert accepts(image, new, "--key-slot=1")
    assert accepts(image, key_file(tmp_path, OTHER), "--key-slot=0")
