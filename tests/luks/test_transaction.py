"""Changing headers: keyslots, tokens, labels, all of it or nothing."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from luks.header.lock import exclusive
from luks.model import PRIORITY_IGNORE, PRIORITY_PREFER
from tests.luks.support import (
    ARGON2ID,
    KEY,
    OTHER,
    PASSPHRASE,
    PBKDF2,
    Template,
    json_of,
    known_volume,
    opens,
    put_copy,
    with_json,
)
from tests.support.devices import FaultyDevice, RecordingDevice, Write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from luks.header import luks1
    from tests.support.devices import Operation

THIRD = b"third"
#: Room for four keyslots of a 32-byte key.
ROOM: dict[str, Any] = {"keyslots_size": 512 << 10, "data_offset": 544 << 10}


@cache
def base(version: int) -> Template:
    """A volume that `OTHER` opens."""
    return known_volume(version, **ROOM)


BOTH = pytest.mark.parametrize("version", [1, 2])


@BOTH
def test_a_keyslot_is_added_changed_and_removed(version: int) -> None:
    device = base(version).copy()
    assert luks.add_keyslot(device, OTHER, PASSPHRASE, kdf=PBKDF2) == 1
    assert opens(device, OTHER)
    assert opens(device, PASSPHRASE)
    changed = luks.change_keyslot(device, OTHER, THIRD, kdf=PBKDF2)
    assert changed == (0 if version == 2 else 2)
    assert not opens(device, OTHER)
    assert opens(device, THIRD)
    assert opens(device, PASSPHRASE)
    assert luks.remove_keyslot(device, 1) == 1
    assert not opens(device, PASSPHRASE)
    assert luks.add_keyslot(device, THIRD, PASSPHRASE, keyslot=3, kdf=PBKDF2) == 3
    assert luks.remove_keyslot(device, secret=THIRD) == changed
    assert not opens(device, THIRD)
    assert opens(device, PASSPHRASE)
    assert list(luks.load_header(device).keyslots) == [3]


@BOTH
def test_l61_limits_hold_for_changes_too(version: int) -> None:
    device = base(version).copy()
    low = luks.KdfLimits(iterations=1, memory_kib=1, time=1, lanes=1)
    key = luks.verify_volume_key(luks.load_header(device), KEY)
    with luks.edit(device, limits=low) as header:
        for secret in (OTHER, key):
            with pytest.raises(luks.PolicyError):
                header.unlock(secret)
        assert header.matching(OTHER) == ()
    with luks.edit(device) as header:
        assert header.matching(OTHER) == (0,)


@BOTH
def test_a_header_is_judged_before_anything_is_asked_of_it(version: int) -> None:
    device = base(version).copy()
    with pytest.raises(luks.PolicyError):
        luks.HeaderEdit(device, policy=luks.Policy(uuid="another"))
    area = base(version).header.keyslots[0].area
    with pytest.raises(luks.TruncatedImageError):
        luks.HeaderEdit(MemoryDevice(device.content[: area.end - 512]))
    if version == 2:
        root = json_of(base(2).header)
        root["config"]["requirements"] = {"mandatory": ["acme"]}
        with pytest.raises(luks.UnsupportedError):
            luks.HeaderEdit(with_json(base(2), root))


@BOTH
def test_a_volume_key_is_wiped_when_another_takes_its_place(version: int) -> None:
    with luks.HeaderEdit(base(version).copy()) as header:
        header.unlock(OTHER)
        first = header._key
        assert first is not None
        assert bytes(first.key.view()) == KEY
        assert header.unlock(luks.verify_volume_key(header.header, KEY)) == -1
        with pytest.raises(ValueError, match="wiped"):
            first.key.view()


@BOTH
def test_only_the_keyslot_that_was_asked_for_is_tried(version: int) -> None:
    device = base(version).copy()
    luks.add_keyslot(device, OTHER, PASSPHRASE, kdf=PBKDF2)
    with luks.edit(device) as header:
        with pytest.raises(luks.UnlockError):
            header.unlock(PASSPHRASE, keyslot=0)
        assert header.unlock(PASSPHRASE, keyslot=1) == 1
        assert header.matching(PASSPHRASE, keyslot=0) == ()
        assert header.matching(PASSPHRASE, keyslot=1) == (1,)


@BOTH
def test_the_volume_key_serves_instead_of_a_secret(version: int) -> None:
    device = base(version).copy()
    key = luks.verify_volume_key(luks.load_header(device), KEY)
    luks.remove_keyslot(device, 0, force=True)
    assert luks.load_header(device).keyslots == {}
    assert luks.add_keyslot(device, key, PASSPHRASE, kdf=PBKDF2) == 0
    assert opens(device, PASSPHRASE)
    assert bytes(key.key.view()) == KEY
    luks.change_keyslot(device, PASSPHRASE, THIRD, kdf=PBKDF2)
    assert opens(device, THIRD)


@BOTH
def test_the_last_keyslot_goes_on_demand_only(version: int) -> None:
    """L95."""
    device = base(version).copy()
    before = bytes(device.content)
    with pytest.raises(luks.PolicyError, match="last") as caught:
        luks.remove_keyslot(device, 0)
    assert "force" in str(caught.value.hint)
    with pytest.raises(luks.PolicyError):
        luks.remove_keyslot(device, secret=OTHER)
    with pytest.raises(luks.SecretRequiredError):
        luks.remove_keyslot(device)
    assert bytes(device.content) == before
    luks.remove_keyslot(device, 0, force=True)
    assert not opens(device, OTHER)


@BOTH
def test_a_wrong_secret_or_an_error_changes_nothing(version: int) -> None:
    device = RecordingDevice(base(version).device.content)
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.add_keyslot(device, b"wrong", THIRD, kdf=PBKDF2)
    with pytest.raises(ValueError, match="active"):
        luks.add_keyslot(device, OTHER, THIRD, keyslot=0, kdf=PBKDF2)
    with pytest.raises(ValueError, match="numbered"):
        luks.add_keyslot(device, OTHER, THIRD, keyslot=32, kdf=PBKDF2)
    with pytest.raises(ValueError, match="not active"):
        luks.remove_keyslot(device, 5)
    with pytest.raises(KeyError), luks.edit(device) as header:
        header.unlock(OTHER)
        header.add_keyslot(THIRD, kdf=PBKDF2)
        raise KeyError
    with pytest.raises(luks.SecretRequiredError), luks.edit(device) as header:
        header.add_keyslot(THIRD, kdf=PBKDF2)
    assert device.log == []


@BOTH
def test_erased_means_erased(version: int) -> None:
    """L91: key material, and every other byte that no keyslot refers to."""
    device = base(version).copy()
    luks.add_keyslot(device, OTHER, PASSPHRASE, kdf=PBKDF2)
    header = luks.load_header(device)
    end = header.keyslots_offset + header.keyslots_size
    device.content[end - 8192 : end - 8160] = b"leaked by a crash, or by others."
    old = header.keyslots[0].area
    material = bytes(device.content[old.offset : old.end])
    kept = header.keyslots[1].area
    keep = bytes(device.content[kept.offset : kept.end])
    luks.remove_keyslot(device, 0)
    assert device.content[old.offset : old.end] != material
    for place in range(0, len(material) - 512, 4096):
        assert material[place : place + 64] not in device.content
    assert b"leaked" not in device.content
    assert bytes(device.content[kept.offset : kept.end]) == keep


def test_a_transaction_is_one_write_of_the_header() -> None:
    device = RecordingDevice(base(2).device.content)
    with luks.edit(device) as header:
        header.unlock(OTHER)
        assert header.add_keyslot(PASSPHRASE, kdf=ARGON2ID, priority=PRIORITY_PREFER) == 1
        assert header.add_keyslot(THIRD, keyslot=7, kdf=PBKDF2) == 7
        header.remove_keyslot(0)
        header.set_labels(label="new", subsystem="sub")
        header.set_uuid("12345678-1234-1234-1234-123456789ABC")
        header.set_flags(["allow-discards", "same-cpu-crypt", "allow-discards"])
        assert header.set_token({"type": "acme", "keyslots": ["7"], "x": [1]}) == 0
        header.set_priority(7, PRIORITY_IGNORE)
        assert device.log == []
        assert header.header.label == "new"
    written = luks.load_header(device)
    assert written.seqid == base(2).header.seqid + 1
    assert (written.label, written.subsystem) == ("new", "sub")
    assert written.uuid == "12345678-1234-1234-1234-123456789abc"
    assert written.flags == ("allow-discards", "same-cpu-crypt")
    assert {n: slot.priority for n, slot in written.keyslots.items()} == {1: 2, 7: 0}
    assert written.keyslots[1].kdf == ARGON2ID
    assert written.tokens[0].body["x"] == [1]
    copies = [w.offset for w in device.writes if w.offset in {0, 16384}]
    assert copies == [0, 16384]
    assert not opens(device, OTHER)
    assert opens(device, PASSPHRASE)
    with luks.open(device, THIRD, keyslot=7) as volume:
        assert volume.keyslot == 7


def test_key_material_goes_where_nothing_is_in_use() -> None:
    """L10: not even where this very transaction removes a keyslot."""
    device = RecordingDevice(base(2).device.content)
    old = base(2).header.keyslots[0].area
    with luks.edit(device) as header:
        header.unlock(OTHER)
        header.change_keyslot(0, PASSPHRASE, kdf=PBKDF2)
    first_copy = next(i for i, event in enumerate(device.log) if event_offset(event) == 0)
    for event in device.log[:first_copy]:
        if isinstance(event, Write):
            assert event.offset >= old.end
    new = luks.load_header(device).keyslots[0].area
    assert new.offset >= old.end


def event_offset(event: object) -> int | None:
    return event.offset if isinstance(event, Write) else None


def test_a_full_keyslots_area_is_an_error_of_its_own() -> None:
    device = base(2).copy()
    for secret in (PASSPHRASE, THIRD, b"fourth"):
        luks.add_keyslot(device, OTHER, secret, kdf=PBKDF2)
    before = bytes(device.content)
    with pytest.raises(luks.KeyslotsFullError, match="no room") as caught:
        luks.add_keyslot(device, OTHER, b"fifth", kdf=PBKDF2)
    assert caught.value.exit_code == 54
    with pytest.raises(luks.KeyslotsFullError):
        luks.change_keyslot(device, OTHER, b"fifth", kdf=PBKDF2)
    assert bytes(device.content) == before
    one = base(1).copy()
    for number in range(1, 8):
        luks.add_keyslot(one, OTHER, b"%d" % number, kdf=PBKDF2)
    with pytest.raises(luks.KeyslotsFullError, match="all 8"):
        luks.add_keyslot(one, OTHER, b"8", kdf=PBKDF2)


def test_an_unbound_key_is_stored_and_does_not_open_the_volume() -> None:
    device = base(2).copy()
    with luks.edit(device) as header:
        number = header.add_keyslot(THIRD, kdf=PBKDF2, unbound_key=b"8 bytes.")
    assert number == 1
    loaded = luks.load_header(device)
    assert loaded.keyslots[1].key_size == 8
    assert loaded.digests[1].segments == ()
    assert loaded.volume_digest == 0
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(device, THIRD)
    luks.remove_keyslot(device, 1)
    assert list(luks.load_header(device).digests) == [0]
    assert opens(device, OTHER)


def test_tokens_are_replaced_unassigned_and_removed() -> None:
    device = base(2).copy()
    luks.add_keyslot(device, OTHER, PASSPHRASE, kdf=PBKDF2)
    with luks.edit(device) as header:
        assert header.set_token({"type": "a", "keyslots": ["0", "1"], "secret": "s"}) == 0
        assert header.set_token({"type": "b", "keyslots": []}, number=31) == 31
    with luks.edit(device) as header:
        header.set_token({"type": "c", "keyslots": ["0", "1"]}, number=0)
        header.remove_token(31)
    header_now = luks.load_header(device)
    assert {n: token.type for n, token in header_now.tokens.items()} == {0: "c"}
    luks.change_keyslot(device, PASSPHRASE, THIRD, kdf=PBKDF2)
    assert luks.load_header(device).tokens[0].keyslots == (0, 1)
    luks.remove_keyslot(device, 1)
    assert json_of(luks.load_header(device))["tokens"] == {"0": {"type": "c", "keyslots": ["0"]}}
    wrong: tuple[dict[str, Any], ...] = (
        {"keyslots": []},
        {"type": "", "keyslots": []},
        {"type": "a"},
        {"type": "a", "keyslots": [0]},
        {"type": "a", "keyslots": ["1"]},
    )
    for body in wrong:
        with pytest.raises(ValueError, match="token"), luks.edit(device) as header:
            header.set_token(body)
    with pytest.raises(ValueError, match="token"), luks.edit(device) as header:
        header.set_token({"type": "a", "keyslots": []}, number=32)
    with pytest.raises(ValueError, match="token"), luks.edit(device) as header:
        header.remove_token(7)


def test_luks1_has_no_luks2_things() -> None:
    changes: tuple[Callable[[luks.HeaderEdit], object], ...] = (
        lambda header: header.set_labels(label="x"),
        lambda header: header.set_flags(["x"]),
        lambda header: header.set_token({"type": "a", "keyslots": []}),
        lambda header: header.set_priority(0, 2),
        lambda header: header.add_keyslot(THIRD, kdf=PBKDF2, unbound_key=b"x"),
        lambda header: header.add_keyslot(THIRD, kdf=PBKDF2, hash_name="sha512"),
        lambda header: header.add_keyslot(THIRD, kdf=ARGON2ID),
    )
    for change in changes:
        device = RecordingDevice(base(1).device.content)
        with pytest.raises(ValueError, match="LUKS1"), luks.edit(device) as header:
            header.unlock(OTHER)
            change(header)
        assert device.log == []
    device = RecordingDevice(base(1).device.content)
    with luks.edit(device) as header:
        header.set_uuid("12345678-1234-1234-1234-123456789abc")
    assert luks.load_header(device).uuid == "12345678-1234-1234-1234-123456789abc"
    assert opens(device, OTHER)


def test_a_luks1_keyslot_across_two_sectors_is_not_replaced_in_place() -> None:
    """L92."""
    device = base(1).copy()
    luks.add_keyslot(device, OTHER, PASSPHRASE, keyslot=6, kdf=PBKDF2)
    assert luks.change_keyslot(device, PASSPHRASE, THIRD, kdf=PBKDF2) == 1
    assert opens(device, THIRD)
    raw: luks1.RawHeader = luks.load_header(device).source
    assert [slot.active for slot in raw.keyslots] == [True, True] + 6 * [False]


@pytest.mark.parametrize("words", [["acme"], ["online-reencrypt-v2"]])
def test_what_requires_more_is_not_changed(words: list[str]) -> None:
    """L31."""
    root = json_of(base(2).header)
    root["config"]["requirements"] = {"mandatory": words}
    if words != ["acme"]:
        segment = root["segments"]["0"]
        for number, flag in (("1", "backup-previous"), ("2", "backup-final")):
            root["segments"][number] = {**segment, "flags": [flag]}
        root["digests"]["0"]["segments"] = ["0", "1", "2"]
        area = {"type": "none", "offset": "163840", "size": "4096"}
        root["keyslots"]["1"] = {
            "type": "reencrypt",
            "mode": "reencrypt",
            "direction": "forward",
            "key_size": 1,
            "area": area,
        }
    device = with_json(base(2), root)
    before = bytes(device.content)
    refusal = luks.UnsupportedError if words == ["acme"] else luks.UnfinishedReencryptionError
    with pytest.raises(refusal), luks.edit(device) as header:
        header.set_labels(label="x")
    assert bytes(device.content) == before


def test_a_header_that_somebody_else_changed_is_not_overwritten() -> None:
    device = base(2).copy()
    with pytest.raises(luks.DeviceBusyError, match="meanwhile"), luks.edit(device) as header:
        header.set_labels(label="mine")
        with luks.edit(device) as other:
            other.set_labels(label="theirs")
    assert luks.load_header(device).label == "theirs"


@BOTH
@pytest.mark.parametrize("operation", ["write", "flush"])
@pytest.mark.parametrize("replaced", [True, False])
def test_l98_after_a_failed_commit_keys_go_where_neither_header_has_any(
    version: int, operation: Operation, replaced: bool
) -> None:
    """What the failed commit added may be there: the next one writes around it, and all open."""
    for number in itertools.count(1):
        recording = RecordingDevice(base(version).device.content)
        device = FaultyDevice(recording, operation, number)
        transaction = luks.HeaderEdit(device)
        transaction.unlock(OTHER)
        added = transaction.add_keyslot(PASSPHRASE, kdf=PBKDF2)
        try:
            transaction.commit()
        except luks.DeviceError:
            pass
        else:
            break
        if replaced:
            transaction.remove_keyslot(added)
        transaction.add_keyslot(THIRD, kdf=PBKDF2)
        header = luks.load_header(MemoryDevice(recording.content))
        in_use = [slot.area for slot in header.keyslots.values()]
        recording.log.clear()
        transaction.commit()
        written = luks.load_header(MemoryDevice(recording.content))
        assert written == transaction.header
        assert written.seqid == header.seqid + (version == 2)
        opening = [secret for secret in (OTHER, PASSPHRASE, THIRD) if opens(recording, secret)]
        assert opening == ([OTHER, THIRD] if replaced else [OTHER, PASSPHRASE, THIRD]), number
        for write in recording.writes:
            if write.offset < header.keyslots_offset:
                break  # the header: what is written after it erases
            assert not any(area.offset <= write.offset < area.end for area in in_use), number
    assert number > 3


def test_keys_are_changed_while_the_volume_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(base(2).device.content)
    with luks.open(path, OTHER, read_only=False) as volume:
        volume.write(0, b"before")
        luks.add_keyslot(path, OTHER, PASSPHRASE, kdf=PBKDF2)
        luks.remove_keyslot(path, 0)
        volume.write(100, b"after")
        volume.flush()
    with luks.open(path, PASSPHRASE) as volume:
        assert (volume.read(0, 6), volume.read(100, 5)) == (b"before", b"after")


def test_programs_that_change_headers_wait_for_each_other(tmp_path: Path) -> None:
    """L91: the lock is cryptsetup's."""
    path = tmp_path / "image"
    path.write_bytes(base(2).device.content)
    fd = os.open(path, os.O_RDONLY)
    with exclusive(path), pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with pytest.raises(luks.DeviceBusyError), exclusive(path, timeout=0.05):
        pass
    os.close(fd)
    with exclusive(path, timeout=0):
        pass
    with pytest.raises(luks.DeviceError), exclusive(tmp_path / "nothing"):
        pass
    with luks.edit(path), pytest.raises(luks.DeviceBusyError), exclusive(path, timeout=0):
        pass


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kind", ["damaged", "older"])
def test_opening_for_writing_restores_the_other_copy(which: int, kind: str) -> None:
    """L94: reading writes nothing, and the good copy is not touched."""
    device = base(2).copy()
    if kind == "damaged":
        device.content[which * 16384 + 5000] ^= 1
    else:
        text = json.dumps(json_of(base(2).header)).encode()
        put_copy(device, base(2).header, text, 1 - which, (1 - which) * 16384, seqid=9)
    before = bytes(device.content)
    luks.open(device, OTHER).close()
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(device, b"wrong", read_only=False)
    assert bytes(device.content) == before
    with luks.open(device, OTHER, read_only=False) as volume:
        assert volume.header.stale_copy is None
    header = luks.load_header(device)
    assert header.stale_copy is None
    assert header.seqid == (9 if kind == "older" else base(2).header.seqid)
    good = slice((1 - which) * 16384, (2 - which) * 16384)
    assert device.content[good] == before[good]
    assert device.content[32768:] == before[32768:]
    # Either copy alone is the header.
    for lost in (0, 1):
        alone = MemoryDevice(device.content)
        alone.content[lost * 16384 : (lost + 1) * 16384] = bytes(16384)
        assert luks.load_header(alone) == header


def test_a_detached_header_is_restored_too(tmp_path: Path) -> None:
    content = bytearray(base(2).device.content)
    content[5000] ^= 1
    path = tmp_path / "header"
    path.write_bytes(content[: 544 << 10])
    payload = MemoryDevice(base(2).device.content)
    luks.open(payload, OTHER, header=path).close()
    assert luks.load_header(path).stale_copy == 0
    path.chmod(0o444)
    luks.open(payload, OTHER, header=path, read_only=False).close()
    path.chmod(0o644)
    luks.open(payload, OTHER, header=path, read_only=False).close()
    assert luks.load_header(path).stale_copy is None


@pytest.mark.parametrize(
    ("offset", "signature"),
    [(0, b"XFSB"), (510, b"\x55\xaa"), (512, b"LABELONE"), (0x438, b"\x53\xef"), (3, b"NTFS    ")],
)
def test_what_somebody_put_over_a_header_is_not_overwritten(
    offset: int, signature: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """L94: the volume can be used, and what lies there stays."""
    device = base(2).copy()
    device.content[:8192] = bytes(8192)
    device.content[offset : offset + len(signature)] = signature
    before = bytes(device.content)
    with luks.open(device, OTHER, read_only=False) as volume:
        assert volume.header.stale_copy == 0
    assert "overwritten by" in caplog.text
    with pytest.raises(luks.ForeignImageError):
        luks.repair(device)
    with pytest.raises(luks.ForeignImageError), luks.edit(device) as header:
        header.set_labels(label="x")
    assert bytes(device.content) == before


@BOTH
def test_repair_erases_what_nothing_refers_to(version: int) -> None:
    device = base(version).copy()
    header = luks.load_header(device)
    end = header.keyslots_offset + header.keyslots_size
    device.content[end - 4096 : end - 4090] = b"leaked"
    repaired = luks.repair(device)
    assert repaired == header
    assert b"leaked" not in device.content
    assert opens(device, OTHER)


def test_no_repr_shows_a_secret() -> None:
    device = base(2).copy()
    with luks.edit(device) as header:
        header.unlock(OTHER)
        header.add_keyslot(THIRD, kdf=PBKDF2)
        shown = repr(header) + repr(vars(header)) + repr(header.header)
    for secret in (OTHER, THIRD, KEY):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
