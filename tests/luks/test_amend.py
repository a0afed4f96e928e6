"""Amending: keyslots get the state that is asked for, or nothing changes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

import luks
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2, opens, small_volume

if TYPE_CHECKING:
    from formats.devices.device import MemoryDevice

THIRD = b"third"
BOTH = pytest.mark.parametrize("version", [1, 2])


def volume(version: int) -> MemoryDevice:
    """A volume whose keyslot 0 opens with `PASSPHRASE`, with room for three more."""
    room: dict[str, Any] = {"keyslots_size": 512 << 10, "data_offset": 544 << 10}
    if version == 1:
        room = {}
    return small_volume(version=version, size=4096, **room)


def activate(device: MemoryDevice, new: bytes, **options: Any) -> tuple[int, ...]:
    given = {"secret": PASSPHRASE, "kdf": PBKDF2, **options}
    return luks.amend(device, state="active", new_secret=new, **given)


def deactivate(device: MemoryDevice, **options: Any) -> tuple[int, ...]:
    return luks.amend(device, state="inactive", **options)


@BOTH
def test_l101_an_inactive_keyslot_becomes_active(version: int) -> None:
    device = volume(version)
    assert activate(device, OTHER, keyslot=2) == (2,)
    assert activate(device, OTHER) == (1,)
    assert opens(device, OTHER)
    assert opens(device)
    assert sorted(luks.load_header(device).keyslots) == [0, 1, 2]


@BOTH
def test_l101_an_active_keyslot_with_the_same_secret_stays(version: int) -> None:
    device = volume(version)
    before = bytes(device.content)
    assert activate(device, PASSPHRASE, keyslot=0) == ()
    assert activate(device, PASSPHRASE, keyslot=0, secret=None) == ()
    assert bytes(device.content) == before
    with pytest.raises(luks.KeyslotInUseError) as caught:
        activate(device, PASSPHRASE, keyslot=0, strict_qemu=True)
    assert caught.value.exit_code == 59
    assert bytes(device.content) == before


@BOTH
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_l101_an_active_keyslot_with_another_secret_is_an_error(
    version: int, force: bool, strict: bool
) -> None:
    device = volume(version)
    before = bytes(device.content)
    with pytest.raises(luks.KeyslotInUseError):
        activate(device, OTHER, keyslot=0, force=force, strict_qemu=strict)
    assert bytes(device.content) == before


@BOTH
def test_l101_no_free_keyslot_is_an_error(version: int) -> None:
    device = volume(version)
    room = 7 if version == 1 else 3
    for _ in range(room):
        activate(device, OTHER)
    before = bytes(device.content)
    with pytest.raises(luks.KeyslotsFullError):
        activate(device, THIRD)
    assert bytes(device.content) == before


@BOTH
def test_l102_all_keyslots_with_the_old_secret_become_inactive(version: int) -> None:
    device = volume(version)
    activate(device, OTHER)
    activate(device, THIRD)
    activate(device, OTHER)
    assert deactivate(device, old_secret=OTHER) == (1, 3)
    assert sorted(luks.load_header(device).keyslots) == [0, 2]
    assert not opens(device, OTHER)
    assert opens(device, THIRD)
    with pytest.raises(luks.NoKeyslotMatchError):
        deactivate(device, old_secret=OTHER)


@BOTH
def test_l102_a_named_keyslot_becomes_inactive(version: int) -> None:
    device = volume(version)
    activate(device, OTHER)
    activate(device, OTHER)
    with pytest.raises(luks.NoKeyslotMatchError, match="keyslot 1"):
        deactivate(device, keyslot=1, old_secret=PASSPHRASE)
    assert deactivate(device, keyslot=1, old_secret=OTHER) == (1,)
    assert deactivate(device, keyslot=2) == (2,)
    assert sorted(luks.load_header(device).keyslots) == [0]


@BOTH
def test_l102_an_inactive_keyslot_stays(version: int) -> None:
    device = volume(version)
    before = bytes(device.content)
    assert deactivate(device, keyslot=3) == ()
    assert deactivate(device, keyslot=3, old_secret=OTHER) == ()
    with pytest.raises(ValueError, match="inactive already"):
        deactivate(device, keyslot=3, strict_qemu=True)
    assert deactivate(device, keyslot=3, strict_qemu=True, force=True) == ()
    with pytest.raises(ValueError, match="inactive already"):
        deactivate(device, keyslot=3, old_secret=OTHER, strict_qemu=True, force=True)
    assert bytes(device.content) == before


@BOTH
@pytest.mark.parametrize("options", [{"keyslot": 0}, {"old_secret": PASSPHRASE}])
def test_l102_the_last_keyslots_become_inactive_on_demand_only(
    version: int, options: dict[str, Any]
) -> None:
    device = volume(version)
    if "old_secret" in options:
        activate(device, PASSPHRASE)
    before = bytes(device.content)
    with pytest.raises(luks.PolicyError, match="all is lost"):
        deactivate(device, **options)
    assert bytes(device.content) == before
    deactivate(device, force=True, **options)
    assert not luks.load_header(device).keyslots


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "active"}, "L101"),
        ({"state": "active", "new_secret": OTHER, "old_secret": OTHER}, "L101"),
        ({"state": "inactive"}, "L102"),
        ({"state": "inactive", "keyslot": 0, "new_secret": OTHER}, "L102"),
        ({"state": "inactive", "keyslot": 0, "iter_time": 10}, "L102"),
        ({"state": "inactive", "keyslot": 0, "kdf": "pbkdf2"}, "L102"),
        ({"state": "gone", "keyslot": 0}, "state is one of"),
        ({"state": "inactive", "keyslot": 8}, "numbered from 0 to 7"),
        ({"state": "active", "new_secret": OTHER, "keyslot": 8}, "numbered from 0 to 7"),
    ],
)
def test_arguments_that_do_not_fit_together(options: dict[str, Any], message: str) -> None:
    """L101, L102."""
    device = volume(1)
    before = bytes(device.content)
    with pytest.raises(ValueError, match=message):
        luks.amend(device, **options)
    assert bytes(device.content) == before


def test_activating_needs_what_opens_the_volume() -> None:
    device = volume(2)
    with pytest.raises(luks.SecretRequiredError):
        activate(device, OTHER, secret=None)
    with pytest.raises(luks.NoKeyslotMatchError):
        activate(device, OTHER, secret=THIRD)
    key = luks.unlock(device, luks.load_header(device), PASSPHRASE)
    assert activate(device, OTHER, secret=key) == (1,)


def test_keyslots_that_cannot_be_tried_do_not_match(caplog: pytest.LogCaptureFixture) -> None:
    device = volume(2)
    luks.add_keyslot(device, PASSPHRASE, OTHER, kdf=luks.Pbkdf2("sha256", 5000))
    limits = luks.KdfLimits(iterations=2000)
    with pytest.raises(luks.NoKeyslotMatchError):
        deactivate(device, old_secret=OTHER, limits=limits)
    assert "keyslot 1 was not tried" in caplog.text


SECRETS = (PASSPHRASE, OTHER, THIRD)


def outcome(
    slots: dict[int, bytes], count: int, call: dict[str, Any]
) -> dict[int, bytes] | type[Exception]:
    """What the table in docs/keys.md says: the keyslots afterwards, or the error."""
    keyslot, new, old = call.get("keyslot"), call.get("new_secret"), call.get("old_secret")
    strict, force = call["strict_qemu"], call["force"]
    if keyslot is not None and keyslot >= count:
        return ValueError
    if call["state"] == "active":
        if new is None or old is not None:
            return ValueError
        if keyslot in slots:
            same = slots[keyslot] == new and not strict
            return slots if same else luks.KeyslotInUseError
        free = [n for n in range(count) if n not in slots] if keyslot is None else [keyslot]
        return {**slots, free[0]: new} if free else luks.KeyslotsFullError
    if new is not None or (keyslot is None and old is None):
        return ValueError
    if keyslot is not None and keyslot not in slots:
        return ValueError if strict and (old is not None or not force) else slots
    chosen = {n for n in slots if keyslot in {None, n} and old in {None, slots[n]}}
    if not chosen:
        return luks.NoKeyslotMatchError
    left = {n: secret for n, secret in slots.items() if n not in chosen}
    return left if left or force else luks.PolicyError


@pytest.mark.parametrize("seed", range(4))
@BOTH
def test_l100_generated_calls_do_what_the_table_says(version: int, seed: int) -> None:
    generator = random.Random(seed)
    device, slots = volume(version), {0: PASSPHRASE}
    count, room = (8, 8) if version == 1 else (32, 4)
    seen: set[tuple[str, object]] = set()
    for _ in range(60):
        call: dict[str, Any] = {
            "state": generator.choice(("active", "inactive")),
            "strict_qemu": generator.random() < 0.3,
            "force": generator.random() < 0.1,
        }
        for name, chance in (("new_secret", 0.5), ("old_secret", 0.3)):
            matters = (name == "new_secret") == (call["state"] == "active")
            if generator.random() < (0.9 * chance + 0.5 if matters else 0.05):
                call[name] = generator.choice(SECRETS)
        if generator.random() < 0.6:
            call["keyslot"] = generator.choice((0, 1, 2, 3, 7, 32))
        expected = outcome(slots, count, call)
        if isinstance(expected, dict) and len(expected) > room:
            expected = luks.KeyslotsFullError
        if call["state"] == "active":
            call |= {"secret": next(iter(slots.values())), "kdf": PBKDF2}
        if isinstance(expected, dict):
            changed = luks.amend(device, **call)
            assert set(changed) == {n for n in range(count) if (n in slots) != (n in expected)}
            slots = expected
            seen.add((call["state"], bool(changed)))
        else:
            before = bytes(device.content)
            with pytest.raises(expected):
                luks.amend(device, **call)
            assert bytes(device.content) == before
            seen.add((call["state"], expected))
        header = luks.load_header(device)
        assert sorted(header.keyslots) == sorted(slots)
        for number, secret in slots.items():
            luks.unlock(device, header, secret, keyslot=number).key.wipe()
        if not slots:
            device, slots = volume(version), {0: PASSPHRASE}
    assert len(seen) > 5
