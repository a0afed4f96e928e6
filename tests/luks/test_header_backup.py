"""Headers as a whole: backed up, restored, moved, destroyed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2, opens, small_volume
from tests.support.devices import RecordingDevice, Write

if TYPE_CHECKING:
    from pathlib import Path

THIRD = b"third"
BOTH = pytest.mark.parametrize("version", [1, 2])


def volume(version: int = 2, keyslots: int = 4, **options: Any) -> MemoryDevice:
    """A volume whose keyslot 0 opens with `PASSPHRASE`, with room for some."""
    size = keyslots * (128 << 10)
    room = {"keyslots_size": size, "data_offset": size + (32 << 10)} if version == 2 else {}
    return small_volume(version=version, size=4096, **{**room, **options})


def change(device: MemoryDevice, old: bytes, new: bytes) -> None:
    luks.change_keyslot(device, old, new, kdf=PBKDF2)


@BOTH
def test_a_backup_opens_the_volume_as_a_detached_header(version: int, tmp_path: Path) -> None:
    """L110."""
    device = volume(version)
    with luks.open(device, PASSPHRASE, read_only=False) as opened:
        opened.write(0, b"payload")
    path = tmp_path / "backup"
    header = luks.backup_header(device, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == header.keyslots_offset + header.keyslots_size
    change(device, PASSPHRASE, OTHER)
    with luks.open(device, PASSPHRASE, header=path) as opened:
        assert opened.read(0, 7) == b"payload"
    with pytest.raises(FileExistsError):
        luks.backup_header(device, path)
    luks.backup_header(device, path, overwrite=True)
    assert not opens(MemoryDevice(path.read_bytes()), PASSPHRASE)


def test_a_backup_has_two_sound_copies(tmp_path: Path) -> None:
    """L110: what was damaged is not backed up."""
    device = volume()
    device.content[5000] ^= 1
    before = bytes(device.content)
    assert luks.backup_header(device, tmp_path / "backup").stale_copy is None
    assert luks.load_header(tmp_path / "backup").stale_copy is None
    assert bytes(device.content) == before


@BOTH
def test_a_restored_header_has_the_passphrases_of_its_day(version: int, tmp_path: Path) -> None:
    """L112, L113."""
    device = volume(version)
    luks.add_keyslot(device, PASSPHRASE, OTHER, kdf=PBKDF2)
    backup = tmp_path / "backup"
    luks.backup_header(device, backup)
    change(device, PASSPHRASE, THIRD)
    luks.remove_keyslot(device, secret=OTHER)
    if version == 2:
        with luks.edit(device) as header:
            header.set_token({"type": "later", "keyslots": []})
    seqid = luks.load_header(device).seqid
    restored = luks.restore_header(device, backup)
    assert [opens(device, s) for s in (PASSPHRASE, OTHER, THIRD)] == [True, True, False]
    assert luks.load_header(device) == restored
    assert not restored.tokens
    if version == 2:
        assert restored.seqid == seqid + 1
    assert luks.restore_header(device, backup).keyslots.keys() == {0, 1}  # again is fine
    assert [opens(device, s) for s in (PASSPHRASE, OTHER, THIRD)] == [True, True, False]


def test_key_material_never_overwrites_what_is_in_use(tmp_path: Path) -> None:
    """L112: it goes to another place, or nothing happens."""
    device = volume(keyslots=2)
    backup = tmp_path / "backup"
    luks.backup_header(device, backup)
    for new, old in ((OTHER, PASSPHRASE), (THIRD, OTHER), (OTHER, THIRD)):
        change(device, old, new)
        used = luks.load_header(device).keyslots[0].area
        recorder = RecordingDevice(device.content)
        luks.restore_header(recorder, backup)
        flushed = recorder.log.index(next(e for e in recorder.log if not isinstance(e, Write)))
        for write in recorder.writes[:flushed]:
            assert write.offset >= used.end or write.offset + len(write.data) <= used.offset
        assert opens(MemoryDevice(recorder.content), PASSPHRASE)
    luks.add_keyslot(device, OTHER, THIRD, kdf=PBKDF2)
    before = bytes(device.content)
    with pytest.raises(luks.KeyslotsFullError, match="beside"):
        luks.restore_header(device, backup)
    assert bytes(device.content) == before


@BOTH
def test_l111_a_backup_of_another_volume_is_refused(version: int, tmp_path: Path) -> None:
    device = volume(version)
    uuid = luks.load_header(device).uuid
    others = {
        "UUID": volume(version),
        "digests": volume(version, uuid=uuid),
        "LUKS": volume(3 - version, uuid=uuid),
    }
    before = bytes(device.content)
    for number, (reason, other) in enumerate(others.items()):
        backup = tmp_path / str(number)
        luks.backup_header(other, backup)
        with pytest.raises(luks.HeaderMismatchError, match=reason) as caught:
            luks.restore_header(device, backup)
        assert caught.value.exit_code == 58
    assert bytes(device.content) == before
    # A caller who knows better can force it.
    luks.restore_header(device, tmp_path / "0", force=True)
    assert luks.load_header(device).uuid == luks.load_header(tmp_path / "0").uuid


def test_l111_layout_and_segments_belong_to_a_volume(tmp_path: Path) -> None:
    key, uuid = bytes(range(32)), "12345678-1234-1234-1234-123456789abc"
    device = volume(volume_key=key, uuid=uuid)
    digest = luks.load_header(device).digests[0]
    for number, options in enumerate(({"data_offset": 1 << 20}, {"keyslots": 3})):
        other = volume(volume_key=key, uuid=uuid, **options)
        with luks.edit(other) as header:
            changed = {0: digest}
            header.header = _with_digests(header.header, changed)
        luks.backup_header(other, tmp_path / str(number))
        with pytest.raises(luks.HeaderMismatchError, match="otherwise"):
            luks.restore_header(device, tmp_path / str(number))


def _with_digests(header: luks.Header, digests: dict[int, luks.Digest]) -> luks.Header:
    from formats.frozen import replace

    return replace(header, digests=digests)


@BOTH
@pytest.mark.parametrize("lost", ["zeros", "noise"])
def test_l111_without_a_header_it_is_restored_on_demand(
    version: int, lost: str, tmp_path: Path
) -> None:
    device = volume(version)
    with luks.open(device, PASSPHRASE, read_only=False) as opened:
        opened.write(0, b"payload")
    backup = tmp_path / "backup"
    luks.backup_header(device, backup)
    device.content[:65536] = bytes(65536) if lost == "zeros" else os.urandom(65536)
    with pytest.raises(luks.HeaderMismatchError, match="no sound header"):
        luks.restore_header(device, backup)
    luks.restore_header(device, backup, force=True)
    with luks.open(device, PASSPHRASE) as opened:
        assert opened.read(0, 7) == b"payload"
    small = MemoryDevice(65536)
    with pytest.raises(luks.TruncatedImageError):
        luks.restore_header(small, backup, force=True)


@BOTH
def test_a_backup_that_is_not_whole_is_refused(version: int, tmp_path: Path) -> None:
    device = volume(version)
    backup = tmp_path / "backup"
    luks.backup_header(device, backup)
    backup.write_bytes(backup.read_bytes()[: 64 << 10])
    before = bytes(device.content)
    with pytest.raises(luks.TruncatedImageError):
        luks.restore_header(device, backup)
    with pytest.raises(luks.TruncatedImageError):
        luks.backup_header(backup, tmp_path / "other")
    assert bytes(device.content) == before


@BOTH
def test_a_header_is_detached_and_attached(version: int, tmp_path: Path) -> None:
    """L120, L121."""
    device = volume(version)
    with luks.open(device, PASSPHRASE, read_only=False) as opened:
        opened.write(0, b"payload")
    header = luks.load_header(device)
    payload = bytes(device.content[header.data_offset :])
    path = tmp_path / "header"
    assert luks.detach_header(device, path) == header
    assert not luks.is_luks(device)
    assert bytes(device.content[header.data_offset :]) == payload
    material = path.read_bytes()[header.keyslots_offset :][:4096]
    assert material not in device.content
    with luks.open(device, PASSPHRASE, header=path) as opened:
        assert opened.read(0, 7) == b"payload"
    # A detached header is a header like any other.
    luks.change_keyslot(path, PASSPHRASE, OTHER, kdf=PBKDF2)
    attached = luks.attach_header(device, path)
    assert attached.keyslots == luks.load_header(path).keyslots
    with luks.open(device, OTHER) as opened:
        assert opened.read(0, 7) == b"payload"
    with pytest.raises(luks.LuksExistsError):
        luks.attach_header(device, path)
    with pytest.raises(FileExistsError):
        luks.detach_header(device, path)
    assert opens(device, OTHER)
    assert luks.detach_header(device, path, overwrite=True).uuid == header.uuid


@BOTH
def test_a_detached_header_is_restored_on_demand(version: int, tmp_path: Path) -> None:
    device, header, backup = volume(version), tmp_path / "header", tmp_path / "backup"
    luks.detach_header(device, header)
    luks.backup_header(header, backup)
    header.write_bytes(bytes(header.stat().st_size))
    luks.restore_header(header, backup, force=True)
    luks.open(device, PASSPHRASE, header=header).close()
    with pytest.raises(luks.TruncatedImageError, match="before its payload"):
        luks.attach_header(MemoryDevice(device.content[:4096]), header)


def test_l121_without_room_a_header_is_not_attached(tmp_path: Path) -> None:
    payload, path = MemoryDevice(0), tmp_path / "header"
    luks.format(payload, PASSPHRASE, header=path, size=1 << 20, kdf=PBKDF2, key_size=32).close()
    before = bytes(payload.content)
    with pytest.raises(luks.UnsupportedError, match="no room"):
        luks.attach_header(payload, path)
    assert bytes(payload.content) == before


def test_l121_what_lies_in_its_place_is_not_overwritten(tmp_path: Path) -> None:
    device, path = volume(), tmp_path / "header"
    luks.detach_header(device, path)
    device.content[510:512] = b"\x55\xaa"
    with pytest.raises(luks.ForeignImageError):
        luks.attach_header(device, path)


@BOTH
def test_l114_destroyed_keys_are_gone(version: int, tmp_path: Path) -> None:
    device = volume(version)
    luks.add_keyslot(device, PASSPHRASE, OTHER, kdf=PBKDF2)
    backup = tmp_path / "backup"
    header = luks.backup_header(device, backup)
    areas = [slot.area for slot in header.keyslots.values()]
    parts = [bytes(device.content[a.offset + at :][:512]) for a in areas for at in (0, 4096, 65536)]
    luks.destroy_keys(device)
    assert not luks.load_header(device).keyslots
    assert not any(part in device.content for part in parts)
    luks.restore_header(device, backup)
    assert opens(device, OTHER)
