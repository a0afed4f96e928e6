"""Volumes in the middle of a re-encryption: read, written, refused."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from tests.luks.programs import cryptsetup, key_file
from tests.luks.reencryption_support import CASES, KIB, PLAIN, Case, Content, options, volume
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2, pattern, small_volume
from tests.support.devices import FaultyDevice, RecordingDevice, crash_states

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.devices import Operation

SIZE = 48 * KIB
HEADER_SIZE = 320 * KIB
#: Bytes for more keyslots.
ROOM = 800 * KIB


@cache
def middles(case: Case) -> tuple[Content, ...]:
    """What is on the devices of a case before each of its steps."""
    image, header = case.before.devices()
    found = []
    with case.begin(image, header) as running:
        while not running.status.is_finished:
            content = None if header is None else bytes(header.content)
            found.append(Content(bytes(image.content), content))
            running.step()
    return tuple(found)


def reencrypted(steps: int = 1, **changes: Any) -> MemoryDevice:
    """A volume of three steps after some of them."""
    image, _ = volume(pattern("x", SIZE), **changes).devices()
    with luks.begin_reencryption(image, PASSPHRASE, options=options()) as running:
        for _ in range(steps):
            running.step()
    return image


@pytest.mark.parametrize("case", CASES, ids=str)
def test_l180_every_byte_is_read_and_written_between_any_two_steps(case: Case) -> None:
    """L180, L184: and what is written is there after the re-encryption."""
    rng = random.Random(case.name)
    for content in middles(case):
        image, header = content.devices()
        model = bytearray(case.plain)
        with luks.open(image, PASSPHRASE, header=header, policy=PLAIN) as opened:
            assert opened.size >= case.size
            assert opened.read(0, case.size) == case.plain
        with luks.open(image, PASSPHRASE, header=header, read_only=False, policy=PLAIN) as opened:
            for _ in range(8):
                at = rng.randrange(case.size)
                data = rng.randbytes(min(case.size - at, rng.choice((1, 700, 5000, 20000))))
                opened.write(at, data)
                model[at : at + len(data)] = data
            opened.flush()
            assert opened.read(0, case.size) == model
        with luks.resume_reencryption(image, PASSPHRASE, header=header) as running:
            assert bytes(_read(running.volume, case.size)) == model
            running.run()
            assert bytes(_read(running.volume, case.size)) == model
        if luks.load_header(image if header is None else header).digests:
            with luks.open(image, PASSPHRASE, header=header) as opened:
                assert opened.read(0, case.size) == model
        else:
            assert image.content[: case.size] == model


def _read(device: Any, size: int) -> bytearray:
    buffer = bytearray(size)
    device.read_into(0, buffer)
    return buffer


@pytest.mark.parametrize("case", CASES, ids=str)
def test_l183_a_segment_that_was_being_moved_is_not_read_before_a_resume(case: Case) -> None:
    refused = 0
    for content, _ in case.recorded.states(samples=1, exhaustive=0):
        image, header = content.devices()
        try:
            loaded = luks.load_header(image if header is None else header)
        except luks.FormatError:
            continue
        if not any(segment.is_hot for segment in loaded.data_segments):
            continue
        for read_only in (True, False):
            with pytest.raises(luks.UnfinishedReencryptionError, match="L183") as caught:
                luks.open(image, PASSPHRASE, header=header, read_only=read_only, policy=PLAIN)
            assert "--resume" in str(caught.value.hint)
        assert bytes(image.content) == content.image
        refused += 1
        if refused == 3:
            break
    assert refused


@pytest.mark.parametrize(
    "case", [case for case in CASES if "crypt" in case.name.partition("-")[0]], ids=str
)
def test_l62_a_payload_that_is_partly_plain_needs_a_policy(case: Case) -> None:
    for content in middles(case):
        image, header = content.devices()
        loaded = luks.load_header(image if header is None else header)
        if all(segment.type == "crypt" for segment in loaded.data_segments):
            luks.open(image, PASSPHRASE, header=header).close()
            continue
        with pytest.raises(luks.PolicyError, match="L62") as caught:
            luks.open(image, PASSPHRASE, header=header)
        assert "--resume" in str(caught.value.hint)


def test_l180_a_secret_must_open_both_keys() -> None:
    image, _ = volume(pattern("x", SIZE), keyslots_size=ROOM, data_offset=None).devices()
    luks.add_keyslot(image, PASSPHRASE, OTHER, kdf=PBKDF2)
    with luks.begin_reencryption(image, PASSPHRASE, options=options(drop_keyslots=True)) as running:
        running.step()
    header = luks.load_header(image)
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(image, b"neither")
    with pytest.raises(luks.NoKeyslotMatchError):  # it is of the old key only
        luks.open(image, OTHER)
    with luks.unlock_all(image, header, PASSPHRASE) as keys:
        assert len({bytes(key.key.view()) for key in keys.by_digest.values()}) == 2
        slots = [key.keyslot for key in keys.by_digest.values()]
    for slot in slots:
        luks.open(image, PASSPHRASE, keyslot=slot).close()
    with pytest.raises(luks.UnlockError, match="not hold a key of the volume"):
        luks.open(image, PASSPHRASE, keyslot=31)


def test_l180_a_volume_opens_by_its_keys() -> None:
    image = reencrypted()
    header = luks.load_header(image)
    with luks.unlock_all(image, header, PASSPHRASE) as keys:
        with luks.open(image, keys) as opened:
            assert opened.read(0, SIZE) == pattern("x", SIZE)
            with opened.over(image) as again:
                assert again.read(1000, 30000) == pattern("x", SIZE)[1000:31000]
        numbers = list(keys.by_digest)
        old, new = (keys.by_digest[number] for number in numbers)
        with pytest.raises(luks.UnsupportedError, match="two keys"):
            luks.open(image, old)
        with pytest.raises(luks.UnlockError, match="missing"):
            luks.open(image, luks.VolumeKeys({numbers[0]: old}))
        with pytest.raises(luks.UnlockError, match="not the volume key"):
            luks.open(image, luks.VolumeKeys({numbers[0]: new, numbers[1]: old}))
        with pytest.raises(ValueError, match="missing"):
            luks.Volume(image, header, luks.VolumeKeys({numbers[0]: old}))
    with pytest.raises(ValueError, match="wiped"):
        old.key.view()
    with pytest.raises(luks.UnfinishedReencryptionError, match="L180"):
        luks.unlock(image, header, PASSPHRASE)


def test_l180_all_keys_of_a_volume_that_is_not_reencrypted_are_one() -> None:
    image = small_volume()
    with luks.unlock_all(image, luks.load_header(image), PASSPHRASE) as keys:
        (number,) = keys.by_digest
        assert keys.keyslot == 0
        luks.open(image, keys).close()
        luks.open(image, keys.by_digest[number]).close()


def test_l187_the_size_does_not_change() -> None:
    image = reencrypted()
    before = bytes(image.content)
    with luks.open(image, PASSPHRASE, read_only=False) as opened:
        with pytest.raises(luks.UnfinishedReencryptionError, match="L187"):
            opened.resize(SIZE + 4096)
        assert opened.size == SIZE
    assert bytes(image.content) == before


@pytest.mark.parametrize("stale", [0, 1])
def test_l187_a_bad_header_copy_is_restored_and_nothing_is_erased(stale: int) -> None:
    image = reencrypted()
    before = bytes(image.content)
    size = luks.load_header(image).metadata_size
    image.content[stale * size + 600] ^= 1
    with luks.open(image, PASSPHRASE, read_only=False) as opened:
        assert opened.read(0, SIZE) == pattern("x", SIZE)
    assert image.content[HEADER_SIZE:] == before[HEADER_SIZE:]
    assert luks.load_header(image).stale_copy is None
    image.content[stale * size + 600] ^= 1
    luks.repair(image)
    assert image.content[2 * size :] == before[2 * size :]
    with luks.resume_reencryption(image, PASSPHRASE) as running:
        running.run()
        assert bytes(_read(running.volume, SIZE)) == pattern("x", SIZE)


def test_l114_the_keys_are_destroyed_at_any_time() -> None:
    for steps in range(3):
        image = reencrypted(steps)
        before = luks.load_header(image)
        header = luks.destroy_keys(image)
        assert [slot.type for slot in header.keyslots.values()] == ["reencrypt"]
        assert luks.load_header(image) == header
        assert header.segments == before.segments
        with pytest.raises(luks.UnlockError):
            luks.open(image, PASSPHRASE)
        for slot in before.keyslots.values():
            if slot.type == "luks2":
                start, end = slot.area.offset, slot.area.end
                assert image.content[start:end] != reencrypted(0).content[start:end]


def test_l187_a_header_is_not_changed_or_moved(tmp_path: Any) -> None:
    image = reencrypted()
    before = bytes(image.content)
    backup, early = tmp_path / "backup", tmp_path / "early"
    volume_before, _ = volume(pattern("x", SIZE)).devices()
    luks.backup_header(volume_before, early)
    assert luks.backup_header(image, backup).requirements
    changes: list[Callable[[], object]] = [
        lambda: luks.add_keyslot(image, PASSPHRASE, OTHER, kdf=PBKDF2),
        lambda: luks.change_keyslot(image, PASSPHRASE, OTHER, kdf=PBKDF2),
        lambda: luks.remove_keyslot(image, 0),
        lambda: luks.restore_header(image, early),
        lambda: luks.restore_header(image, backup),
        lambda: luks.restore_header(image, backup, force=True),
        lambda: luks.detach_header(image, tmp_path / "detached"),
        lambda: luks.begin_reencryption(image, PASSPHRASE, options=options()),
    ]
    for number, change in enumerate(changes):
        with pytest.raises(luks.UnfinishedReencryptionError) as caught:
            change()
        assert caught.value.hint, number
        assert bytes(image.content) == before, number
    assert not (tmp_path / "detached").exists()


def test_a_dump_says_which_keyslots_are_the_volumes() -> None:
    image = reencrypted()
    slots = luks.describe_header(luks.load_header(image))["keyslots"]
    assert {slot["type"]: slot["holds_volume_key"] for slot in slots.values()} == {
        "luks2": True,
        "reencrypt": False,
    }
    assert luks.load_header(image).unbound_keyslots == ()


@pytest.mark.parametrize("keyslot", [0, 5])
def test_l188_a_luks1_image_that_ends_inside_an_active_keyslot_is_refused(keyslot: int) -> None:
    image = small_volume(version=1)
    if keyslot:
        luks.add_keyslot(image, PASSPHRASE, OTHER, keyslot=keyslot, kdf=PBKDF2)
    end = luks.load_header(image).keyslots[keyslot].area.end
    for size in (luks.load_header(image).keyslots[keyslot].area.offset, end - 512, end - 1):
        cut = MemoryDevice(image.content[:size])
        with pytest.raises(luks.TruncatedImageError, match="L188"):
            luks.load_header(cut)
        with pytest.raises(luks.TruncatedImageError, match="L188"):
            luks.open(cut, PASSPHRASE)
    assert luks.load_header(MemoryDevice(image.content[:end])).keyslots


def has_keys(content: bytes) -> bool:
    """Whether the volume still opens, or all its keyslots are gone."""
    image = MemoryDevice(content)
    header = luks.load_header(image)
    if any(slot.type == "luks2" for slot in header.keyslots.values()):
        luks.open(image, PASSPHRASE).close()
        return True
    assert header.requirements
    return False


def test_l114_destroying_the_keys_of_a_reencryption_is_one_transaction() -> None:
    before = bytes(reencrypted().content)
    device = RecordingDevice(before)
    luks.destroy_keys(device)
    found = {has_keys(state.content) for state in crash_states(before, device.log, samples=4)}
    assert found == {True, False}


@pytest.mark.parametrize("operation", ["read", "write", "flush"])
def test_l114_a_failing_device_leaves_all_keys_or_none(operation: Operation) -> None:
    before = bytes(reencrypted().content)
    for number in range(1, 100):
        memory = MemoryDevice(before)
        device = FaultyDevice(memory, operation, number)
        try:
            luks.destroy_keys(device)
        except luks.DeviceError:
            has_keys(bytes(memory.content))
            luks.destroy_keys(memory)  # it can be repeated
            assert not has_keys(bytes(memory.content))
        else:
            assert not device.failed
            assert number > 3
            return
    pytest.fail("it never ends")


@pytest.mark.interop
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name in {"checksum-4096", "journal", "encrypt", "detached"}],
    ids=str,
)
def test_l184_cryptsetup_goes_on_with_what_was_written_meanwhile(
    case: Case, tmp_path: Path
) -> None:
    content = middles(case)[-1]
    image, header = tmp_path / "image", tmp_path / "header"
    image.write_bytes(content.image)
    if content.header is not None:
        header.write_bytes(content.header)
    place = None if content.header is None else header
    model = bytearray(case.plain)
    with luks.open(image, PASSPHRASE, header=place, read_only=False, policy=PLAIN) as opened:
        for at in range(700, case.size - 3000, 9000):
            opened.write(at, b"new" * 1000)
            model[at : at + 3000] = b"new" * 1000
        opened.flush()
    cryptsetup(
        *("reencrypt", "--resume-only", "--force-offline-reencrypt"),
        *("--key-file", key_file(tmp_path, PASSPHRASE)),
        *(() if place is None else ("--header", place)),
        image,
    )
    assert luks.load_header(place or image).requirements == ()
    with luks.open(image, PASSPHRASE, header=place) as opened:
        assert opened.read(0, case.size) == model
