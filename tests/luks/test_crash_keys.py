"""Power cuts while keys and tokens are rotated, headers restored, moved, destroyed."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import luks
from formats.devices.device import MemoryDevice
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2
from tests.support.devices import FaultyDevice, RecordingDevice, crash_states

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from formats.devices.device import BlockDevice
    from tests.support.devices import Operation

pytestmark = pytest.mark.slow

BACKUP, NEW = b"backup key", b"new backup key"
SECRETS = (PASSPHRASE, OTHER, BACKUP, NEW)


class Seen(NamedTuple):
    """The visible state: the secrets that open, and each token with the secrets of its keyslots."""

    opening: frozenset[bytes]
    tokens: frozenset[tuple[str, frozenset[bytes]]]


NOTHING = Seen(frozenset(), frozenset())


def look(content: bytes, header: MemoryDevice | None = None) -> Seen:
    """Look as the machine does that starts after the crash."""
    place = MemoryDevice(content) if header is None else header
    try:
        there = luks.load_header(place)
    except (luks.EmptyImageError, luks.ForeignImageError, luks.LuksHeaderError):
        return NOTHING
    keyslots: dict[int, bytes] = {}
    for number in there.keyslots:
        for secret in SECRETS:
            try:
                luks.open(MemoryDevice(content), secret, header=place, keyslot=number).close()
            except luks.NoKeyslotMatchError:
                continue
            keyslots[number] = secret
            break
        else:
            pytest.fail(f"keyslot {number} is active and opens with nothing")
    tokens = (
        (token.body["name"], frozenset(keyslots[n] for n in token.keyslots))
        for token in there.tokens.values()
    )
    return Seen(frozenset(keyslots.values()), frozenset(tokens))


@cache
def base(version: int) -> bytes:
    """A volume that `PASSPHRASE` opens, and `BACKUP`, which has a token in LUKS2."""
    device = MemoryDevice(0)
    options: dict[str, Any] = {}
    if version == 2:
        options = {"keyslots_size": 512 << 10, "data_offset": 544 << 10}
    luks.format(
        device, PASSPHRASE, version=version, key_size=32, size=4096, kdf=PBKDF2, **options
    ).close()
    with luks.edit(device) as header:
        header.unlock(PASSPHRASE)
        number = header.add_keyslot(BACKUP, kdf=PBKDF2)
        if version == 2:
            header.set_token({"type": "acme", "keyslots": [str(number)], "name": "old"})
    return bytes(device.content)


def explore(
    before: bytes, run: Callable[[RecordingDevice], object], allowed: set[Seen]
) -> dict[Seen, int]:
    """Cut the power at every write of ``run``; count the states by what is found."""
    device = RecordingDevice(before)
    run(device)
    found: dict[Seen, int] = {}
    for state in crash_states(before, device.log, exhaustive=4, samples=3):
        seen = look(state.content)
        assert seen in allowed, (state.point, state.landed, seen)
        found[seen] = found.get(seen, 0) + 1
    assert look(device.content) in found
    return found


def test_a_backup_key_and_its_token_are_rotated_together() -> None:
    """L91: never a keyslot without its token, never none; the old ones or the new ones work."""

    def rotate(device: BlockDevice) -> None:
        with luks.edit(device) as header:
            header.unlock(PASSPHRASE)
            number = header.add_keyslot(NEW, kdf=PBKDF2)
            header.set_token({"type": "acme", "keyslots": [str(number)], "name": "new"}, number=0)
            header.remove_keyslot(1)

    old = Seen(frozenset({PASSPHRASE, BACKUP}), frozenset({("old", frozenset({BACKUP}))}))
    new = Seen(frozenset({PASSPHRASE, NEW}), frozenset({("new", frozenset({NEW}))}))
    assert look(base(2)) == old
    assert explore(base(2), rotate, {old, new}).keys() == {old, new}


def test_a_failing_device_never_parts_a_keyslot_from_its_token() -> None:
    def rotate(device: BlockDevice) -> None:
        with luks.edit(device) as header:
            header.unlock(PASSPHRASE)
            header.change_keyslot(1, NEW, kdf=PBKDF2)
            header.set_token({"type": "acme", "keyslots": ["1"], "name": "new"}, number=0)

    old = Seen(frozenset({PASSPHRASE, BACKUP}), frozenset({("old", frozenset({BACKUP}))}))
    new = Seen(frozenset({PASSPHRASE, NEW}), frozenset({("new", frozenset({NEW}))}))
    operations: tuple[Operation, ...] = ("write", "flush")
    for operation in operations:
        for number in range(1, 100):
            memory = MemoryDevice(base(2))
            device = FaultyDevice(memory, operation, number, persistent=True)
            try:
                rotate(device)
            except luks.DeviceError:
                assert look(bytes(memory.content)) in {old, new}
            else:
                assert not device.failed
                break


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("active", [True, False])
def test_an_amended_keyslot_is_as_before_or_as_asked(version: int, active: bool) -> None:
    """L100."""

    def run(device: BlockDevice) -> None:
        if active:
            luks.amend(device, state="active", secret=PASSPHRASE, new_secret=OTHER, kdf=PBKDF2)
        else:
            luks.amend(device, state="inactive", old_secret=BACKUP)

    before = look(base(version))
    device = MemoryDevice(base(version))
    run(device)
    after = look(bytes(device.content))
    assert explore(base(version), run, {before, after}).keys() == {before, after}


def changed(version: int) -> bytes:
    """The volume after all its passphrases were changed."""
    device = MemoryDevice(base(version))
    luks.change_keyslot(device, PASSPHRASE, OTHER, kdf=PBKDF2)
    luks.change_keyslot(device, BACKUP, NEW, kdf=PBKDF2)
    return bytes(device.content)


def test_l112_a_restored_luks2_header_is_the_old_one_or_that_of_the_backup() -> None:
    backup = MemoryDevice(base(2))
    before, after = look(changed(2)), look(base(2))
    assert before.opening == {OTHER, NEW}

    def run(device: BlockDevice) -> None:
        luks.restore_header(device, backup)

    assert explore(changed(2), run, {before, after}).keys() == {before, after}


def test_l113_a_restored_luks1_header_opens_all_the_while_if_a_keyslot_stays() -> None:
    device = MemoryDevice(base(1))
    luks.add_keyslot(device, PASSPHRASE, OTHER, kdf=PBKDF2)
    backup = MemoryDevice(device.content)
    luks.remove_keyslot(device, secret=BACKUP)  # keyslot 1
    luks.amend(device, state="active", keyslot=1, secret=PASSPHRASE, new_secret=NEW, kdf=PBKDF2)
    luks.remove_keyslot(device, secret=OTHER)  # keyslot 2

    def run(device: BlockDevice) -> None:
        luks.restore_header(device, backup)

    openings = (
        {PASSPHRASE, NEW},
        {PASSPHRASE, NEW, OTHER},
        {PASSPHRASE, OTHER},
        {PASSPHRASE, OTHER, BACKUP},
    )
    allowed = {Seen(frozenset(opening), frozenset()) for opening in openings}
    assert explore(bytes(device.content), run, allowed).keys() == allowed


def test_l113_a_luks1_header_that_differs_in_all_keyslots_has_a_window() -> None:
    """It is as documented: a crash in it leaves no keyslot, and restoring again helps."""
    backup = MemoryDevice(base(1))
    device = MemoryDevice(base(1))
    for number, old, new in ((0, PASSPHRASE, OTHER), (1, BACKUP, NEW)):
        key = luks.unlock(device, luks.load_header(device), BACKUP if number == 0 else OTHER)
        luks.remove_keyslot(device, secret=old)
        luks.amend(device, state="active", keyslot=number, secret=key, new_secret=new, kdf=PBKDF2)
    before, after = look(bytes(device.content)), look(base(1))

    def run(device: BlockDevice) -> None:
        luks.restore_header(device, backup)

    found = explore(bytes(device.content), run, {before, after, NOTHING})
    assert found.keys() == {before, after, NOTHING}
    recorder = RecordingDevice(device.content)
    run(recorder)
    for state in crash_states(recorder.before, recorder.log, exhaustive=0, samples=1):
        again = MemoryDevice(state.content)
        luks.restore_header(again, backup)
        assert look(bytes(again.content)) == after


@pytest.mark.parametrize("version", [1, 2])
def test_l111_a_header_that_is_given_up_is_whole_or_not_there(version: int) -> None:
    """It is made invalid before the first of its key material is overwritten (as L13)."""
    other = MemoryDevice(len(base(version)))
    options: dict[str, Any] = {}
    if version == 2:
        options = {"keyslots_size": 512 << 10, "data_offset": 544 << 10}
    luks.format(other, NEW, version=version, key_size=32, kdf=PBKDF2, **options).close()
    backup = MemoryDevice(base(version))
    before, after = look(bytes(other.content)), look(base(version))

    def run(device: BlockDevice) -> None:
        luks.restore_header(device, backup, force=True)

    found = explore(bytes(other.content), run, {before, after, NOTHING})
    assert found.keys() == {before, after, NOTHING}


@pytest.mark.parametrize("version", [1, 2])
def test_l114_destroyed_keys_are_all_there_or_none(version: int) -> None:
    before = look(base(version))
    after = Seen(frozenset(), before.tokens and frozenset({("old", frozenset())}))
    allowed = {before, after}
    assert explore(base(version), luks.destroy_keys, allowed).keys() == allowed


@pytest.mark.parametrize("version", [1, 2])
def test_l120_a_header_is_in_its_old_place_or_in_its_new_one(version: int, tmp_path: Path) -> None:
    header = tmp_path / "header"
    whole = look(base(version))

    def run(device: BlockDevice) -> None:
        luks.detach_header(device, header)

    found = explore(base(version), run, {whole, NOTHING})
    assert found.keys() == {whole, NOTHING}
    # Nothing was overwritten before this was durable.
    content = header.read_bytes()
    assert look(base(version), MemoryDevice(content)) == whole


@pytest.mark.parametrize("version", [1, 2])
def test_l121_an_attached_header_is_whole_or_not_there(version: int, tmp_path: Path) -> None:
    device, header = MemoryDevice(base(version)), tmp_path / "header"
    luks.detach_header(device, header)

    def run(device: BlockDevice) -> None:
        luks.attach_header(device, header)

    whole = look(base(version))
    found = explore(bytes(device.content), run, {whole, NOTHING})
    assert found.keys() == {whole, NOTHING}


def test_what_a_cut_rotation_leaks_is_erased_by_the_next_change() -> None:
    """L91: material of keyslots that the header does not know, wherever the power went."""

    def rotate(device: BlockDevice) -> None:
        luks.change_keyslot(device, BACKUP, NEW, kdf=PBKDF2)

    device = RecordingDevice(base(2))
    rotate(device)
    leaked = 0
    headers = [luks.load_header(MemoryDevice(content)) for content in (base(2), device.content)]
    contents = (base(2), device.content)
    for state in crash_states(base(2), device.log, exhaustive=0, samples=1):
        left = MemoryDevice(state.content)
        with luks.edit(left) as header:
            header.set_labels(label=os.urandom(4).hex())
        used = {slot.area.offset for slot in luks.load_header(left).keyslots.values()}
        for content, there in zip(contents, headers, strict=True):
            area = there.keyslots[1].area
            part = content[area.offset : area.offset + 512]
            if area.offset not in used:
                leaked += part in state.content
                assert part not in left.content
    assert leaked


def attach(device: BlockDevice) -> None:
    luks.attach_header(device, MemoryDevice(base(2)))


def restore(device: BlockDevice) -> None:
    luks.restore_header(device, MemoryDevice(base(2)))


def without_header() -> bytes:
    return os.urandom(544 << 10) + base(2)[544 << 10 :]


@pytest.mark.parametrize("name", ["restore", "attach", "destroy", "detach"])
def test_failing_devices_leave_the_old_header_or_the_new_one(name: str, tmp_path: Path) -> None:
    """Every read, write and flush fails in turn, once or permanently."""
    header = tmp_path / "header"
    runs: dict[str, tuple[Callable[[BlockDevice], object], bytes]] = {
        "restore": (restore, changed(2)),
        "attach": (attach, without_header()),
        "destroy": (luks.destroy_keys, base(2)),
        "detach": (lambda d: luks.detach_header(d, header, overwrite=True), base(2)),
    }
    run, before = runs[name]
    memory = MemoryDevice(before)
    run(memory)
    allowed = {look(before), look(bytes(memory.content))}
    operations: tuple[Operation, ...] = ("read", "write", "flush")
    failures = 0
    for operation in operations:
        for persistent in (False, True):
            for number in range(1, 100):
                memory = MemoryDevice(before)
                device = FaultyDevice(memory, operation, number, persistent=persistent)
                try:
                    run(device)
                except luks.DeviceError:
                    assert device.failed
                    failures += 1
                    assert look(bytes(memory.content)) in allowed, (operation, number)
                else:
                    assert not device.failed
                    assert look(bytes(memory.content)) in allowed
                    break
            else:
                pytest.fail("it never ends")
    assert failures > 10
