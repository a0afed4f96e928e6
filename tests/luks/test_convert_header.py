"""LUKS1 to LUKS2 and back, in place: what comes out, and what is refused."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from formats.frozen import replace
from luks.header import luks1
from luks.header.places import Room, plan_moves
from tests.luks.converting import CROWDED, ROOMY, SECRETS, TIGHT, check_opens, luks1_volume
from tests.luks.programs import CHEAP, accepts, cryptsetup, key_file, qemu_read
from tests.luks.support import ARGON2ID, OTHER, PASSPHRASE, PBKDF2, known_volume
from tests.support.devices import RecordingDevice
from tests.support.foreign import ForeignProgramError

if TYPE_CHECKING:
    from pathlib import Path

SETS = [(0,), (1,), (7,), (0, 1), (0, 7), (0, 2, 4, 6), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 5, 6, 7)]


@pytest.mark.parametrize("options", [CROWDED, TIGHT, ROOMY], ids=["crowded", "tight", "roomy"])
@pytest.mark.parametrize("keyslots", [*SETS, range(1, 8), range(7)], ids=str)
def test_l200_each_passphrase_opens_by_the_same_keyslot_there_and_back(
    keyslots: tuple[int, ...], options: dict[str, Any]
) -> None:
    before = luks1_volume(keyslots, options)
    device = MemoryDevice(before)
    old = luks.load_header(device)
    for version in (2, 1, 2):
        converted = luks.convert_header(device, version)
        assert converted == check_opens(device, keyslots)
        assert (converted.version, converted.stale_copy) == (version, None)
        for number in keyslots:
            luks.open(device, SECRETS[number], keyslot=number).close()
        assert (converted.uuid, converted.data_offset) == (old.uuid, old.data_offset)
        assert bytes(device.content[old.data_offset :]) == before[old.data_offset :]
    # Nothing of LUKS1 is left in the padding, and a further change goes through.
    assert not any(device.content[512:4096])
    with luks.edit(device) as header:
        header.set_labels(label="label")
    check_opens(device, keyslots)


def test_l203_eight_keyslots_without_room_are_refused_before_anything_is_written() -> None:
    device = RecordingDevice(luks1_volume(range(8), TIGHT))
    with pytest.raises(luks.KeyslotsFullError, match="L203") as caught:
        luks.convert_header(device, 2)
    assert device.log == []
    assert "remove a keyslot" in (caught.value.hint or "")
    luks.remove_keyslot(device, 3)
    luks.convert_header(device, 2)
    check_opens(device, (0, 1, 2, 4, 5, 6, 7))


def test_l203_eight_keyslots_with_room_are_converted() -> None:
    device = MemoryDevice(luks1_volume(range(8), ROOMY))
    luks.convert_header(device, 2)
    check_opens(device, range(8))
    luks.convert_header(device, 1)
    check_opens(device, range(8))


@pytest.mark.parametrize("version", [1, 2])
def test_l206_the_same_version_changes_nothing(version: int) -> None:
    device = RecordingDevice(known_volume(version).device.content)
    assert luks.convert_header(device, version) == luks.load_header(device)
    assert device.log == []
    with pytest.raises(ValueError, match="version must be 1 or 2"):
        luks.convert_header(device, 3)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "sectors have 4096 bytes"),
        ({"sector_size": 512, "kdf": ARGON2ID}, "not PBKDF2"),
        ({"sector_size": 512, "keyslot_cipher": ("aes-cbc-plain64", 32)}, "cipher of its own"),
        ({"sector_size": 512, "keyslots_size": 256 << 10, "data_offset": 2 << 20}, ""),
        ({"sector_size": 512, "keyslots_size": 256 << 10, "data_offset": 288 << 10}, "no room"),
    ],
    ids=["sectors", "argon2", "cipher", "fits", "room"],
)
def test_l204_what_luks1_cannot_store_is_refused(options: dict[str, Any], why: str) -> None:
    device = MemoryDevice(0)
    defaults: dict[str, Any] = {"kdf": PBKDF2, "key_size": 32, "size": 4096}
    luks.format(device, OTHER, **{**defaults, **options}).close()
    recorded = RecordingDevice(device.content)
    if not why:
        assert luks.convert_header(recorded, 1).version == 1
        return
    with pytest.raises(luks.UnsupportedError, match=f"{why}.*L204"):
        luks.convert_header(recorded, 1)
    assert recorded.log == []


@pytest.mark.parametrize("lost", ["token", "label", "subsystem", "flag", "priority", "unbound"])
def test_l205_what_would_be_lost_is_refused_or_forced(lost: str) -> None:
    device = MemoryDevice(luks1_volume((0, 1), ROOMY))
    luks.convert_header(device, 2)
    with luks.edit(device) as header:
        if lost == "token":
            header.set_token({"type": "acme", "keyslots": ["1"]})
        elif lost == "label":
            header.set_labels(label="x")
        elif lost == "subsystem":
            header.set_labels(subsystem="x")
        elif lost == "flag":
            header.set_flags(["allow-discards"])
        elif lost == "priority":
            header.set_priority(1, 2)
        else:
            header.add_keyslot(b"x", kdf=PBKDF2, unbound_key=bytes(32))
    content = bytes(device.content)
    error = luks.UnsupportedError if lost == "unbound" else luks.PolicyError
    with pytest.raises(error, match=r"L20[45]"):
        luks.convert_header(device, 1)
    assert bytes(device.content) == content
    if lost != "unbound":
        luks.convert_header(device, 1, force=True)
        check_opens(device, (0, 1))


def test_l202_a_detached_header_grows(tmp_path: Path) -> None:
    image, header = tmp_path / "image", tmp_path / "header"
    with luks.format(
        image, PASSPHRASE, header=header, version=1, size=4096, key_size=32, kdf=PBKDF2
    ) as volume:
        volume.write(0, b"payload")
    size = header.stat().st_size
    cryptsetups = tmp_path / "cryptsetup's"
    cryptsetups.write_bytes(header.read_bytes())
    cryptsetup("convert", "--type", "luks2", cryptsetups)
    converted = luks.convert_header(header, 2)
    assert header.stat().st_size == size + 28672 == cryptsetups.stat().st_size
    assert converted.source.root == luks.load_header(cryptsetups).source.root
    for version in (2, 1):
        luks.convert_header(header, version)
        with luks.open(image, PASSPHRASE, header=header) as volume:
            assert volume.read(0, 7) == b"payload"
    fixed = RecordingDevice(header.read_bytes()[:size])
    with pytest.raises(luks.TruncatedImageError, match="L202"):
        luks.convert_header(fixed, 2)
    assert fixed.log == []


def test_l202_a_payload_that_begins_too_early_is_refused() -> None:
    """Old programs packed keyslots of few stripes tightly."""
    device = MemoryDevice(luks1_volume((0,), CROWDED))
    raw = luks.load_header(device).source
    slots = (replace(slot, material_sector=8 + 4 * n) for n, slot in enumerate(raw.keyslots))
    tight = replace(raw, payload_sector=64, keyslots=tuple(slots))
    device.content[: luks1.HEADER_SIZE] = luks1.encode(tight)
    recorded = RecordingDevice(device.content)
    luks.open(recorded, SECRETS[0]).close()
    with pytest.raises(luks.UnsupportedError, match="L202"):
        luks.convert_header(recorded, 2)
    assert recorded.log == []
    # Places of 2 KiB, with room for the copies, are taken as they are.
    far = replace(tight, payload_sector=136)
    device.content[: luks1.HEADER_SIZE] = luks1.encode(far)
    header = luks.convert_header(device, 2)
    assert {slot.area.size for slot in header.keyslots.values()} == {2048}
    check_opens(device, (0,))


@pytest.mark.interop
@pytest.mark.parametrize(
    ("bits", "keyslots"), [(128, (0, 1)), (256, (7,)), (512, (0,)), (512, (0, 2, 4, 6))], ids=str
)
def test_l200_cryptsetup_makes_the_same_header(
    bits: int, keyslots: tuple[int, ...], tmp_path: Path
) -> None:
    """Both ways, with programs of both versions reading what we made."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    key = key_file(tmp_path, SECRETS[keyslots[0]])
    cipher = "aes-cbc-plain64" if bits == 128 else "aes-xts-plain64"
    ours.write_bytes(luks1_volume(keyslots, {"cipher": cipher, "key_size": bits // 8}))
    plain = qemu_read(ours, key, tmp_path / "plain")
    theirs.write_bytes(ours.read_bytes())
    before = luks.load_header(ours).source
    for version in (2, 1):
        luks.convert_header(ours, version)
        cryptsetup("convert", "--type", f"luks{version}", theirs)
        one, other = luks.load_header(ours), luks.load_header(theirs)
        if version == 2:
            assert one.source.root == other.source.root
            assert json.dumps(one.source.root)
        else:
            assert one.source == other.source == before
        for number in keyslots:
            assert accepts(ours, key_file(tmp_path, SECRETS[number]), "--key-slot", number)
    assert qemu_read(ours, key, tmp_path / "plain") == plain


@pytest.mark.interop
def test_l204_cryptsetup_refuses_tokens_too_and_takes_the_rest(tmp_path: Path) -> None:
    """What cryptsetup made with its own layout becomes LUKS1 as it makes it."""
    ours, theirs, key = tmp_path / "ours", tmp_path / "theirs", key_file(tmp_path, PASSPHRASE)
    ours.touch()
    with ours.open("r+b") as file:
        file.truncate(17 << 20)
    cryptsetup(
        *("luksFormat", "--type", "luks2", "--sector-size", "512", *CHEAP["pbkdf2"], ours, key)
    )
    theirs.write_bytes(ours.read_bytes())
    with luks.edit(theirs) as header:
        header.set_token({"type": "acme", "keyslots": ["0"]})
    with pytest.raises(ForeignProgramError, match="token"):
        cryptsetup("convert", "--type", "luks1", theirs)
    with luks.edit(theirs) as header:
        header.remove_token(0)
    cryptsetup("convert", "--type", "luks1", theirs)
    luks.convert_header(ours, 1)
    assert luks.load_header(ours).source == luks.load_header(theirs).source
    assert accepts(ours, key)


def test_l201_plans_never_overwrite_what_is_in_use() -> None:
    """Random places and goals: either there is no plan, or each move goes to a free place."""
    generator = random.Random(18)
    planned = 0
    for _ in range(2000):
        room = Room(
            32768, 32768 + generator.randrange(4, 40) * 4096, 4096 * generator.randint(1, 5)
        )
        grid = range(room.start, room.end - room.size + 1, generator.choice((4096, room.size)))
        places, goals = (_apart(generator, grid, room.size) for _ in range(2))
        count = min(len(places), len(goals), 8)
        now = dict(enumerate(places[:count]))
        wanted = dict(enumerate(goals[:count]))
        moves = plan_moves(now, wanted, room)
        if moves is None:
            continue
        planned += 1
        for number, target in moves:
            assert room.is_free(target, now.values())
            now[number] = target
        assert now == wanted
    assert planned > 1000


def _apart(generator: random.Random, grid: range, size: int) -> list[int]:
    """Random places that do not overlap."""
    chosen: list[int] = []
    for place in generator.sample(grid, len(grid)):
        if all(abs(place - other) >= size for other in chosen):
            chosen.append(place)
    return chosen[: generator.randint(0, len(chosen))]
