"""From a secret to the volume key: which keyslots are tried, and what is said of them."""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from formats.frozen import replace
from luks.header.writer import write_header
from luks.keys.enroll import enroll_key
from tests.luks.support import (
    ARGON2I,
    ARGON2ID,
    OTHER,
    PASSPHRASE,
    PBKDF2,
    Template,
    json_of,
    opens,
    small_volume,
    template,
    with_json,
    with_luks1,
    with_slot,
)

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))


def with_keyslots(version: int, *secrets: bytes) -> Template:
    """A volume of which keyslot n is opened by the nth secret."""
    device = MemoryDevice(0)
    options: dict[str, Any] = {} if version == 1 else {"keyslots_size": 512 << 10}
    luks.format(
        device,
        secrets[0],
        version=version,
        size=64 << 10,
        key_size=32,
        volume_key=KEY,
        kdf=PBKDF2,
        **options,
    ).close()
    for number, secret in enumerate(secrets[1:], start=1):
        header, material = enroll_key(
            luks.load_header(device),
            number,
            kdf=PBKDF2,
            secret=secret,
            key=KEY,
            hash_name="sha256",
        )
        write_header(device, header, material)
    return Template(device, luks.load_header(device))


@cache
def two(version: int) -> Template:
    return with_keyslots(version, PASSPHRASE, OTHER)


@pytest.mark.parametrize("version", [1, 2])
def test_each_keyslot_opens_the_volume(version: int) -> None:
    base = two(version)
    for number, secret in enumerate((PASSPHRASE, OTHER)):
        key = luks.unlock(base.device, base.header, secret)
        assert key.keyslot == number
        assert bytes(key.key.view()) == KEY
        with luks.open(base.device, secret, keyslot=number) as volume:
            assert (volume.keyslot, volume.volume_key_size) == (number, 32)


@pytest.mark.parametrize("version", [1, 2])
def test_a_wrong_secret_says_what_else_it_may_be(version: int) -> None:
    """L64."""
    base = two(version)
    with pytest.raises(
        luks.NoKeyslotMatchError, match="damaged, which cannot be distinguished"
    ) as caught:
        luks.open(base.device, b"wrong")
    assert caught.value.tried == {
        0: "the secret does not open it",
        1: "the secret does not open it",
    }
    assert caught.value.exit_code == 51
    assert isinstance(caught.value, luks.UnlockError)


@pytest.mark.parametrize("version", [1, 2])
def test_a_named_keyslot_is_the_only_one_tried(version: int) -> None:
    base = two(version)
    with pytest.raises(luks.NoKeyslotMatchError) as caught:
        luks.open(base.device, PASSPHRASE, keyslot=1)
    assert set(caught.value.tried) == {1}
    for number in (-1, 2, 7, 99):
        with pytest.raises(luks.UnlockError, match=f"keyslot {number} is not active"):
            luks.open(base.device, PASSPHRASE, keyslot=number)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("place", [0, 64_000, 127_999])
def test_a_flipped_bit_in_a_keyslot_looks_like_a_wrong_secret(version: int, place: int) -> None:
    base = two(version)
    device = base.copy()
    device.content[base.header.keyslots[0].area.offset + place] ^= 4
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(device, PASSPHRASE)
    assert opens(device, OTHER)


@pytest.mark.parametrize(
    ("kdf", "secret"),
    [
        (kdf, secret)
        for kdf in (PBKDF2, ARGON2ID, ARGON2I, luks.Argon2("argon2id", 4, 64, 4))
        for secret in (b"", b"\0", b"pw\n", bytes(range(256)), b"x" * 100_000)
    ],
)
def test_any_bytes_are_a_secret(kdf: luks.KdfCost, secret: bytes) -> None:
    device = MemoryDevice(0)
    luks.format(device, secret, size=4096, kdf=kdf, key_size=32).close()
    assert opens(device, secret)
    assert not opens(device, secret + b"\n")


def test_a_secret_object_serves_and_stays_whole() -> None:
    device = MemoryDevice(0)
    with luks.Secret(b"pass") as secret:
        luks.format(device, secret, size=4096, kdf=PBKDF2, key_size=32).close()
        luks.open(device, secret).close()
        assert bytes(secret.view()) == b"pass"


def test_priorities_order_the_keyslots() -> None:
    """L63: preferred ones first, then by number; ignored ones only by name."""
    base = with_keyslots(2, b"same", b"same", b"same")

    def first(*priorities: int | None) -> int | None:
        root = json_of(base.header)
        for number, priority in enumerate(priorities):
            if priority is not None:
                root["keyslots"][str(number)]["priority"] = priority
        with luks.open(with_json(base, root), b"same") as volume:
            return volume.keyslot

    assert first(None, None, None) == 0
    assert first(None, 2, 2) == 1
    assert first(0, None, None) == 1
    assert first(0, 3, 1) == 2
    root = json_of(base.header)
    for number in "012":
        root["keyslots"][number]["priority"] = 0
    device = with_json(base, root)
    with pytest.raises(luks.UnlockError) as caught:
        luks.open(device, b"same")
    assert "'ignore'" in str(caught.value)
    assert "only when they are named" in str(caught.value.hint)
    with luks.open(device, b"same", keyslot=2) as volume:
        assert volume.keyslot == 2


def test_an_unbound_keyslot_does_not_open_the_volume() -> None:
    root = json_of(two(2).header)
    root["digests"]["0"]["keyslots"] = ["0"]
    root["digests"]["1"] = {**root["digests"]["0"], "keyslots": ["1"], "segments": []}
    device = with_json(two(2), root)
    assert opens(device, PASSPHRASE)
    with pytest.raises(luks.NoKeyslotMatchError) as caught:
        luks.open(device, OTHER)
    assert set(caught.value.tried) == {0}
    with pytest.raises(luks.UnlockError, match="keyslot 1 does not hold the volume key"):
        luks.open(device, OTHER, keyslot=1)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("area", "encryption"), "cipher_null-ecb", "encrypts nothing"),
        (("area", "encryption"), "cast6-xts-plain64", "cast6"),
        (("kdf", "iterations"), 2**30, "iterations="),
        (("kdf", "hash"), "acme", "acme"),
        (("kdf", "type"), "scrypt", "are unknown"),
        (("type",), "acme", "acme"),
    ],
)
def test_a_keyslot_that_cannot_be_tried_does_not_hinder_others(
    path: tuple[str, ...], value: object, reason: str
) -> None:
    root = json_of(two(2).header)
    place = root["keyslots"]["0"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    device = with_json(two(2), root)
    assert opens(device, OTHER)
    with pytest.raises(luks.NoKeyslotMatchError, match="keyslot 0 was not tried") as caught:
        luks.open(device, PASSPHRASE)
    assert reason in caught.value.tried[0]
    assert caught.value.tried[1] == "the secret does not open it"
    with pytest.raises(luks.StorageError, match=reason):
        luks.open(device, PASSPHRASE, keyslot=0)


def test_a_truncated_keyslot_does_not_hinder_others() -> None:
    base = two(2)
    first, second = (base.header.keyslots[n].area for n in (0, 1))
    assert first.end <= second.offset
    payload = MemoryDevice(base.header.data_offset + 4096)
    header = MemoryDevice(base.device.content[: second.offset + 1000])
    luks.open(payload, PASSPHRASE, header=header).close()
    with pytest.raises(luks.NoKeyslotMatchError) as caught:
        luks.open(payload, OTHER, header=header)
    assert "ends inside a keyslot" in caught.value.tried[1]
    with pytest.raises(luks.TruncatedImageError):
        luks.open(payload, OTHER, header=header, keyslot=1)


@pytest.mark.parametrize(
    ("kdf", "limits"),
    [
        (PBKDF2, luks.KdfLimits(iterations=999)),
        (ARGON2ID, luks.KdfLimits(memory_kib=31)),
        (ARGON2ID, luks.KdfLimits(time=3)),
        (ARGON2ID, luks.KdfLimits(work_kib=127)),
        (luks.Argon2("argon2i", 4, 32, 2), luks.KdfLimits(lanes=1)),
    ],
)
def test_limits_are_the_callers_to_set(kdf: luks.KdfCost, limits: luks.KdfLimits) -> None:
    """L61: for keyslots and digests, before the secret is used."""
    device = small_volume(kdf=kdf)
    with pytest.raises(luks.PolicyError, match="L61") as caught:
        luks.open(device, b"not even looked at", limits=limits)
    assert "KdfLimits" in str(caught.value.hint)
    luks.open(device, PASSPHRASE).close()


@pytest.mark.parametrize(
    "cost",
    [
        {"type": "argon2id", "time": 4, "memory": 2**32 - 1, "cpus": 4},
        {"type": "argon2i", "time": 2**32 - 1, "memory": 2**20, "cpus": 4},
        {"type": "argon2id", "time": 4, "memory": 2**20, "cpus": 2**24 - 1},
        {"type": "pbkdf2", "hash": "sha256", "iterations": 2**32 - 1},
    ],
)
def test_a_hostile_header_costs_nothing(cost: dict[str, Any]) -> None:
    """Four TiB of memory, centuries, a million lanes: refused at once."""
    root = json_of(two(2).header)
    for keyslot in root["keyslots"].values():
        keyslot["kdf"] = {**cost, "salt": keyslot["kdf"]["salt"]}
    with pytest.raises(luks.PolicyError, match="more than the permitted"):
        luks.open(with_json(two(2), root), PASSPHRASE)


def test_many_keyslots_cost_no_more_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """L61: each of 32 keyslots is within the limits, all of them are not."""
    root = json_of(two(2).header)
    first = root["keyslots"]["0"]
    size = 4096
    for number in range(32):
        area = {**first["area"], "offset": str(32768 + number * size), "size": str(size)}
        af = {**first["af"], "stripes": 128}
        kdf = {**first["kdf"], "iterations": 10_000}
        slot = {**first, "area": area, "af": af, "kdf": kdf}
        root["keyslots"][str(number)] = slot
    root["digests"]["0"]["keyslots"] = [str(number) for number in range(32)]
    device = with_json(two(2), root)
    tried: list[int] = []

    def derive(*_: object) -> luks.Secret:
        tried.append(1)
        return luks.Secret(os.urandom(32))

    monkeypatch.setattr("luks.keys.keyslots.derive", derive)
    limits = luks.KdfLimits(iterations=11_000)
    with pytest.raises(luks.NoKeyslotMatchError, match="L61") as caught:
        luks.open(device, OTHER, limits=limits)
    assert len(tried) == 4
    assert "name the keyslot" in str(caught.value.tried) or "times" in caught.value.tried[31]
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(device, OTHER, limits=limits, keyslot=31)
    assert len(tried) == 5
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(device, OTHER, limits=replace(limits, total=100))
    assert len(tried) == 37


def test_a_hostile_luks1_header_costs_nothing() -> None:
    base = two(1)
    for device in (
        with_luks1(base, mk_digest_iterations=2**32 - 1),
        with_luks1(base, keyslots=with_slot(base.header.source, 0, iterations=2**32 - 1)),
    ):
        with pytest.raises(luks.PolicyError, match="iterations="):
            luks.open(device, PASSPHRASE, keyslot=0)


def test_memory_that_is_not_there_is_an_unlock_error() -> None:
    root = json_of(two(2).header)
    for keyslot in root["keyslots"].values():
        salt = keyslot["kdf"]["salt"]
        keyslot["kdf"] = {
            "type": "argon2id",
            "time": 1,
            "memory": 2**32 - 1,
            "cpus": 1,
            "salt": salt,
        }
    no_limits = luks.KdfLimits(memory_kib=2**32, work_kib=2**40)
    with pytest.raises(luks.UnlockError, match="4294967295 KiB of memory"):
        luks.open(with_json(two(2), root), PASSPHRASE, limits=no_limits)


def test_a_null_cipher_in_luks1_is_refused_before_the_secret_is_used() -> None:
    """L62."""
    device = with_luks1(two(1), cipher_name="cipher_null", cipher_mode="ecb")
    luks.load_header(device)
    with pytest.raises(luks.PolicyError, match="not encrypted"):
        luks.open(device, b"anything")


@pytest.mark.parametrize("version", [1, 2])
def test_a_volume_opens_from_a_loaded_header_and_a_verified_key(version: int) -> None:
    base = two(version)
    device = base.copy()
    key = luks.verify_volume_key(base.header, KEY)
    assert key.keyslot is None
    with luks.Volume(device, base.header, key, read_only=False) as volume:
        volume.write(0, b"text")
    with luks.open(device, OTHER) as volume:
        assert volume.read(0, 4) == b"text"
    for wrong in (bytes(32), KEY[:-1], b""):
        with pytest.raises(luks.UnlockError, match="not the volume key"):
            luks.verify_volume_key(base.header, wrong)


def test_the_header_is_read_once() -> None:
    """The validated header is the one that is opened, even if the device changes meanwhile."""
    base = two(2)

    class Swapping(MemoryDevice):
        """Gives away another header as soon as the first keyslot area was read."""

        swapped = False

        def read_into(self, offset: int, buffer: bytearray | memoryview, /) -> None:
            if offset < 32768:
                assert not self.swapped
            super().read_into(offset, buffer)
            if offset >= 32768 and len(buffer) > 100_000:
                self.swapped = True
                self.content[:32768] = os.urandom(32768)

    device = Swapping(base.device.content)
    with luks.open(device, OTHER) as volume:
        assert volume.header == base.header
    assert device.swapped


def test_keys_are_wiped_when_the_volume_is_closed() -> None:
    device = two(2).copy()
    key = luks.unlock(device, luks.load_header(device), PASSPHRASE)
    memory = key.key.view()
    volume = luks.Volume(device, luks.load_header(device), key)
    assert bytes(memory) == KEY
    volume.close()
    assert bytes(memory) == bytes(32)
    volume.close()


def test_unlocking_does_not_hold_the_interpreter() -> None:
    """The key derivation runs beside other threads: that is what cryptography 50 is for."""
    device = small_volume(kdf=luks.Pbkdf2("sha256", 400_000))
    counted = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.wait(0.001):
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    luks.open(device, PASSPHRASE).close()
    done.set()
    thread.join()
    assert counted > 10


def test_enrolling_needs_a_free_keyslot_and_room() -> None:
    base = template()
    with pytest.raises(ValueError, match="keyslot 0 is active"):
        enroll_key(base.header, 0, kdf=PBKDF2, secret=b"", key=KEY, hash_name="sha256")
    with pytest.raises(luks.KeyslotsFullError, match="no room"):
        enroll_key(base.header, 1, kdf=PBKDF2, secret=b"", key=KEY, hash_name="sha256")


def test_enrolling_uses_the_first_gap() -> None:
    base = with_keyslots(2, b"a", b"b", b"c")
    areas = {n: slot.area.offset for n, slot in base.header.keyslots.items()}
    assert areas == {n: 32768 + n * 131072 for n in range(3)}
    keyslots = {n: slot for n, slot in base.header.keyslots.items() if n != 1}
    digest = replace(base.header.digests[0], keyslots=(0, 2))
    header = replace(base.header, keyslots=keyslots, digests={0: digest})
    added, material = enroll_key(header, 9, kdf=PBKDF2, secret=b"d", key=KEY, hash_name="sha512")
    assert list(material) == [areas[1]]
    assert added.keyslots[9].af_hash == "sha512"
    assert added.digests[0].keyslots == (0, 2, 9)
    device = base.copy()
    write_header(device, added, material)
    assert [opens(device, secret) for secret in (b"a", b"b", b"c", b"d")] == [
        True,
        False,
        True,
        True,
    ]


def test_no_error_repr_or_key_shows_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "image"
    marked = b"marked-secret-7431"
    with luks.format(path, marked, size=4096, kdf=PBKDF2, key_size=32) as volume:
        shown = f"{volume!r} {volume.header!r} {vars(volume)!r}"
    with pytest.raises(luks.NoKeyslotMatchError) as caught:
        luks.open(path, marked + b"x")
    shown += f"{caught.value!r} {caught.value} {caught.value.tried} {caught.value.hint}"
    assert "marked" not in shown


@pytest.mark.parametrize("version", [1, 2])
def test_a_newline_at_the_end_is_pointed_out(version: int) -> None:
    """Editors leave one, and a key file's is part of the passphrase."""
    device = template(version).copy()
    with pytest.raises(luks.NoKeyslotMatchError) as caught:
        luks.open(device, PASSPHRASE + b"\n")
    assert "newline" in str(caught.value.hint)
    with pytest.raises(luks.NoKeyslotMatchError) as caught:
        luks.open(device, PASSPHRASE + b"!")
    assert caught.value.hint is None


def test_what_was_given_instead_of_a_volume_is_named() -> None:
    disk = MemoryDevice(bytes(510) + b"\x55\xaa" + b"EFI PART" + bytes(8192))
    with pytest.raises(luks.ForeignImageError, match="GUID partition table") as caught:
        luks.open(disk, PASSPHRASE)
    assert "partitions" in str(caught.value.hint)
    with pytest.raises(luks.ForeignImageError, match="not a LUKS volume") as caught:
        luks.open(MemoryDevice(b"payload of some volume" * 1000), PASSPHRASE)
    assert "--header" in str(caught.value.hint)
