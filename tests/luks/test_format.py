"""Making volumes: layouts, costs, files that appear, and what is never overwritten."""

from __future__ import annotations

import os
import stat
import uuid
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice, SliceDevice
from luks.header.luks2_binary import METADATA_SIZES
from luks.keys import benchmark
from tests.luks.support import (
    ARGON2I,
    ARGON2ID,
    OTHER,
    PASSPHRASE,
    PBKDF2,
    json_of,
    opens,
    small_volume,
)
from tests.support.devices import RecordingDevice, Write

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def test_the_default_layout_is_compact(tmp_path: Path) -> None:
    """L2: eight keyslots of 64-byte keys, data at 2 MiB, 4096-byte sectors."""
    path = tmp_path / "image"
    with luks.format(path, PASSPHRASE, size=MIB, kdf=ARGON2ID) as volume:
        header = volume.header
        assert (volume.size, volume.block_size, volume.volume_key_size) == (MIB, 4096, 64)
        assert not volume.read_only
    assert path.stat().st_size == 3 * MIB
    assert (header.version, header.cipher, header.seqid) == (2, "aes-xts-plain64", 1)
    assert (header.metadata_size, header.keyslots_offset) == (16 << 10, 32 << 10)
    assert (header.keyslots_size, header.data_offset) == (2016 << 10, 2 * MIB)
    assert header.keyslots_size == 8 * header.keyslots[0].area.size
    assert header.keyslots[0].kdf == ARGON2ID
    assert header.digests[0].kdf == PBKDF2
    assert len(header.digests[0].value) == 32
    assert header == luks.load_header(path)


def test_the_luks1_layout_is_cryptsetups(tmp_path: Path) -> None:
    """L3: what QEMU demands as well: 4000 stripes in every slot."""
    path = tmp_path / "image"
    with luks.format(path, PASSPHRASE, version=1, size=MIB, kdf=PBKDF2) as volume:
        header = volume.header
        assert (volume.size, volume.block_size) == (MIB, 512)
    slots = header.source.keyslots
    assert [slot.material_sector for slot in slots] == [8 + 504 * n for n in range(8)]
    assert {slot.stripes for slot in slots} == {4000}
    assert [slot.active for slot in slots] == [True, *[False] * 7]
    assert header.data_offset == 4096 * 512
    assert path.stat().st_size == 3 * MIB


@pytest.mark.parametrize(
    ("version", "size"), [(1, 2_068_480), (2, 2 * MIB)], ids=["luks1", "luks2"]
)
def test_a_detached_header_has_its_payload_at_0(version: int, size: int, tmp_path: Path) -> None:
    """L4."""
    path, head = tmp_path / "payload", tmp_path / "header"
    with luks.format(
        path, PASSPHRASE, version=version, header=head, size=MIB, kdf=PBKDF2
    ) as volume:
        assert volume.header.data_offset == 0
        volume.write(0, b"text")
    assert (path.stat().st_size, head.stat().st_size) == (MIB, size)
    assert luks.load_header(head).data_offset == 0
    with luks.open(path, PASSPHRASE, header=head) as volume:
        assert volume.read(0, 4) == b"text"


@pytest.mark.parametrize("metadata_size", METADATA_SIZES)
def test_metadata_may_have_any_size_of_the_format(metadata_size: int) -> None:
    device = small_volume(metadata_size=metadata_size, data_offset=None)
    header = luks.load_header(device)
    assert header.metadata_size == metadata_size
    assert header.data_offset % MIB == 0
    assert opens(device)


@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("key_size", [32, 64])
@pytest.mark.parametrize("kdf", [PBKDF2, ARGON2ID, ARGON2I], ids=["pbkdf2", "id", "i"])
def test_every_choice_opens_again(sector_size: int, key_size: int, kdf: luks.KdfCost) -> None:
    device = MemoryDevice(0)
    with luks.format(
        device, PASSPHRASE, size=8192, sector_size=sector_size, key_size=key_size, kdf=kdf
    ) as volume:
        volume.write(100, b"text")
    with luks.open(device, PASSPHRASE) as volume:
        assert volume.read(100, 4) == b"text"
        assert volume.header.keyslots[0].key_size == key_size
        assert volume.header.keyslots[0].area.size == {32: 131_072, 64: 258_048}[key_size]


@pytest.mark.parametrize("name", ["sha1", "sha224", "sha512", "sha3-256", "blake2b-512"])
@pytest.mark.parametrize("version", [1, 2])
def test_one_hash_serves_for_kdf_af_and_digest(name: str, version: int) -> None:
    device = small_volume(version=version, hash_name=name, kdf=luks.Pbkdf2(name, 1000))
    header = luks.load_header(device)
    assert header.keyslots[0].af_hash == name
    assert header.digests[0].kdf == luks.Pbkdf2(name, 1000)
    lengths = {"sha1": 20, "sha224": 28, "sha512": 64, "sha3-256": 32, "blake2b-512": 64}
    assert len(header.digests[0].value) == (20 if version == 1 else lengths[name])
    assert opens(device)


def test_what_is_given_is_stored() -> None:
    device = small_volume(
        uuid="A0B1C2D3-0000-4000-8000-00000000000F", label="é" * 23 + "x", subsystem="s" * 47
    )
    header = luks.load_header(device)
    assert header.uuid == "a0b1c2d3-0000-4000-8000-00000000000f"
    assert (header.label, header.subsystem) == ("é" * 23 + "x", "s" * 47)


def test_what_is_not_given_is_random() -> None:
    headers = [luks.load_header(small_volume()) for _ in range(2)]
    for header in headers:
        assert uuid.UUID(header.uuid).version == 4
    assert headers[0].uuid != headers[1].uuid
    assert headers[0].keyslots[0].salt != headers[1].keyslots[0].salt
    assert headers[0].digests[0].salt != headers[1].digests[0].salt
    keys = [
        luks.unlock(d, luks.load_header(d), PASSPHRASE).key
        for d in (small_volume(), small_volume())
    ]
    assert bytes(keys[0].view()) != bytes(keys[1].view())


def test_a_volume_key_may_be_given() -> None:
    key = os.urandom(32)
    device = small_volume(volume_key=key)
    assert bytes(luks.unlock(device, luks.load_header(device), PASSPHRASE).key.view()) == key


def test_a_lost_header_is_made_again_from_the_volume_key() -> None:
    """The payload is not touched, so the key is all that it takes."""
    device = small_volume()
    with luks.open(device, PASSPHRASE, read_only=False) as volume:
        volume.write(0, b"text")
    key = luks.unlock(device, luks.load_header(device), PASSPHRASE).key
    small_volume(device, volume_key=key, overwrite=True, size=None)
    with luks.open(device, PASSPHRASE) as volume:
        assert volume.read(0, 4) == b"text"


def test_the_keyslots_area_is_random_where_it_is_not_in_use() -> None:
    """L6."""
    device = MemoryDevice(0)
    luks.format(device, PASSPHRASE, size=4096, kdf=PBKDF2).close()
    for start in range(32 << 10, 2 * MIB, 4096):
        assert device.content.count(0, start, start + 4096) < 50
    device = small_volume(version=1)
    end = 4096 + 8 * 131_072
    for start in range(4096, end, 4096):
        assert device.content.count(0, start, start + 4096) < 50


@pytest.mark.parametrize(
    "options",
    [
        {"version": 0},
        {"version": 3},
        {"size": 4095},
        {"size": 0},
        {"size": -4096},
        {"sector_size": 256},
        {"sector_size": 8192},
        {"sector_size": 0},
        {"metadata_size": 20480},
        {"metadata_size": 8 << 20},
        {"keyslots_size": 252 * 1024 - 4096},
        {"keyslots_size": 252 * 1024 + 512},
        {"keyslots_size": 128 * MIB + 4096},
        {"data_offset": MIB},
        {"data_offset": 2 * MIB + 512},
        {"label": "x" * 48},
        {"label": "a\0b"},
        {"subsystem": "é" * 24},
        {"uuid": "no uuid"},
        {"volume_key": bytes(32)},
        {"kdf": luks.Pbkdf2("sha256", 999)},
        {"kdf": luks.Argon2("argon2id", 3, 32, 1)},
        {"kdf": luks.Argon2("argon2id", 4, 31, 1)},
        {"kdf": luks.Argon2("argon2id", 4, 39, 5)},
        {"kdf": luks.Argon2("argon2id", 4, 32, 0)},
        {"kdf": "scrypt"},
        {"kdf": "argon2id", "iter_time": 0},
        {"version": 1, "label": "x"},
        {"version": 1, "subsystem": "x"},
        {"version": 1, "sector_size": 4096},
        {"version": 1, "kdf": ARGON2ID},
        {"version": 1, "kdf": "argon2i"},
        {"version": 1, "kdf": luks.Pbkdf2("sha1", 1000)},
        {"version": 1, "data_offset": MIB},
        {"version": 1, "data_offset": 3 * MIB + 1},
        {"version": 1, "size": 513},
        {"size": None},
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_together_leave_nothing(
    options: dict[str, Any], tmp_path: Path
) -> None:
    defaults: dict[str, Any] = {"size": MIB, "kdf": PBKDF2}
    with pytest.raises(ValueError):
        luks.format(tmp_path / "image", PASSPHRASE, **{**defaults, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cipher": "cast6-xts-plain64"}, luks.UnsupportedError),
        ({"cipher": "aes-xts-plain64", "key_size": 40}, luks.UnsupportedError),
        ({"cipher": "nonsense"}, luks.UnsupportedError),
        ({"cipher": "cipher_null-ecb", "key_size": 32}, luks.PolicyError),
        ({"hash_name": "sha257"}, luks.UnsupportedError),
        ({"hash_name": "sha3_256"}, luks.UnsupportedError),
        ({"kdf": luks.Pbkdf2("tiger", 1000)}, luks.UnsupportedError),
        ({"volume_key": bytes(64)}, luks.UnsupportedError),
        ({"key_size": 10**15}, luks.UnsupportedError),
        ({"key_size": -1}, luks.UnsupportedError),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_what_cannot_be_opened_is_not_made(
    options: dict[str, Any], error: type[luks.StorageError], version: int, tmp_path: Path
) -> None:
    if version == 1 and isinstance(options.get("kdf"), luks.Pbkdf2):
        options = {**options, "hash_name": "tiger"}
    defaults: dict[str, Any] = {
        "size": MIB,
        "kdf": luks.Pbkdf2(options.get("hash_name", "sha256"), 1000),
    }
    with pytest.raises(error):
        luks.format(tmp_path / "image", PASSPHRASE, version=version, **{**defaults, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_appears_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with luks.format(path, PASSPHRASE, size=4096, kdf=PBKDF2) as volume:
        assert [entry.name for entry in tmp_path.iterdir()] == ["image"]
        volume.write(0, b"text")
        volume.flush()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert opens(MemoryDevice(path.read_bytes()))


def test_a_new_file_that_fails_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luks.payload.creation.create_header", _fail)
    for header in (None, tmp_path / "header"):
        with pytest.raises(luks.DeviceError, match="injected"):
            luks.format(tmp_path / "image", PASSPHRASE, header=header, size=4096, kdf=PBKDF2)
        assert list(tmp_path.iterdir()) == []


def _fail(*_: object) -> None:
    raise luks.DeviceError("injected")


def test_a_new_file_is_locked_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with (
        luks.format(path, PASSPHRASE, size=4096, kdf=PBKDF2),
        pytest.raises(luks.DeviceBusyError),
    ):
        luks.open(path, PASSPHRASE)
    luks.open(path, PASSPHRASE).close()


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("content", [b"", bytes(4 * MIB)], ids=["empty", "blank"])
def test_an_empty_or_blank_file_is_formatted_in_place(
    content: bytes, detached: bool, tmp_path: Path
) -> None:
    path, header = tmp_path / "image", tmp_path / "header" if detached else None
    path.write_bytes(content)
    inode = path.stat().st_ino
    if not content:
        with pytest.raises(ValueError, match="needs a size"):
            luks.format(path, PASSPHRASE, header=header, kdf=PBKDF2)
        assert path.read_bytes() == b""
        if header:
            assert not header.exists()
    with luks.format(path, PASSPHRASE, header=header, size=MIB, kdf=PBKDF2) as volume:
        remaining = len(content) - (0 if detached else 2 * MIB)
        assert volume.size == (remaining if content else MIB)
    assert path.stat().st_ino == inode
    luks.open(path, PASSPHRASE, header=header).close()


@pytest.mark.parametrize("detached", [False, True])
def test_a_device_with_too_little_room_stays_as_it_is(detached: bool) -> None:
    device = MemoryDevice(MIB)
    header = MemoryDevice(MIB) if detached else None
    with pytest.raises(luks.DeviceFullError, match="needed"):
        luks.format(device, PASSPHRASE, header=header, kdf=PBKDF2)
    assert device.content == bytes(MIB)
    slice_ = SliceDevice(MemoryDevice(4 * MIB), MIB, 3 * MIB)
    with pytest.raises(luks.DeviceFullError):
        luks.format(slice_, PASSPHRASE, size=2 * MIB, kdf=PBKDF2)
    with luks.format(slice_, PASSPHRASE, size=MIB, kdf=PBKDF2) as volume:
        assert volume.size == MIB


FOREIGN = [b"x", b"\x89PNG", bytes(3 * MIB) + b"x", bytes(5 * MIB - 1) + b"x"]


@pytest.mark.parametrize("content", FOREIGN, ids=["byte", "png", "inside", "end"])
@pytest.mark.parametrize("detached", [False, True])
def test_a_foreign_file_is_never_overwritten(
    content: bytes, detached: bool, tmp_path: Path
) -> None:
    """L14: neither by a header nor, detached, by what calls itself its payload."""
    path, header = tmp_path / "image", tmp_path / "header" if detached else None
    path.write_bytes(content)
    with pytest.raises(luks.ForeignImageError) as caught:
        luks.format(path, PASSPHRASE, header=header, size=MIB, kdf=PBKDF2)
    assert caught.value.exit_code == 32
    assert path.read_bytes() == content
    assert header is None or not header.exists()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("over", [1, 2])
def test_a_volume_is_overwritten_on_demand_only(version: int, over: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    luks.format(path, OTHER, version=over, size=4 * MIB, kdf=PBKDF2).close()
    before = path.read_bytes()
    with pytest.raises(luks.LuksExistsError) as caught:
        luks.format(path, PASSPHRASE, version=version, kdf=PBKDF2)
    assert caught.value.exit_code == 36
    assert path.read_bytes() == before
    luks.format(path, PASSPHRASE, version=version, kdf=PBKDF2, overwrite=True).close()
    assert luks.load_header(path).version == version
    assert path.stat().st_size == len(before)
    luks.open(path, PASSPHRASE).close()
    with pytest.raises(luks.NoKeyslotMatchError):
        luks.open(path, OTHER)


@pytest.mark.parametrize("size", METADATA_SIZES)
def test_a_volume_whose_primary_header_is_lost_counts_as_one(size: int) -> None:
    device = small_volume(metadata_size=size, data_offset=None)
    device.content[:size] = bytes(size)
    with pytest.raises(luks.LuksExistsError):
        luks.format(device, PASSPHRASE, kdf=PBKDF2)


@pytest.mark.parametrize("old", [16 << 10, 64 << 10, 4 * MIB])
@pytest.mark.parametrize("new", [16 << 10, 64 << 10])
def test_no_header_copy_of_an_old_volume_survives(old: int, new: int) -> None:
    """L13: or it would come back when the new primary is lost."""
    device = MemoryDevice(0)
    luks.format(device, OTHER, size=8 * MIB, metadata_size=old, kdf=PBKDF2).close()
    luks.format(device, PASSPHRASE, metadata_size=new, kdf=PBKDF2, overwrite=True).close()
    device.content[:new] = bytes(new)
    assert luks.load_header(device).metadata_size == new
    device.content[new : new + 6] = bytes(6)
    with pytest.raises(luks.ForeignImageError):
        luks.load_header(device)


def test_the_order_of_writes_is_material_first_copy_second_copy() -> None:
    """L10: nothing refers to what is not durable, and one copy is always whole."""
    device = RecordingDevice(bytes(4 * MIB))
    luks.format(device, PASSPHRASE, kdf=PBKDF2).close()
    log = [(e.offset, len(e.data)) if isinstance(e, Write) else "flush" for e in device.log]
    assert log == [
        (32768, MIB),
        (32768 + MIB, 2016 * 1024 - MIB),
        (32768, 256_000),
        "flush",
        (0, 16384),
        "flush",
        (16384, 16384),
        "flush",
    ]


def test_a_measured_cost_takes_about_the_time_it_shall(monkeypatch: pytest.MonkeyPatch) -> None:
    """L7, with a clock that says what a derivation costs."""
    now = 0.0

    def derive(cost: luks.KdfCost, *_: object) -> None:
        nonlocal now
        if isinstance(cost, luks.Pbkdf2):
            now += cost.iterations / 4_000_000
        else:
            now += cost.memory_kib * cost.time / 2_000_000

    monkeypatch.setattr(benchmark, "derive", derive)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr(benchmark, "_physical_memory_kib", lambda: 16 << 20)
    monkeypatch.setattr(benchmark, "_cpus", lambda: 8)

    assert luks.benchmark_kdf("pbkdf2") == luks.Pbkdf2("sha256", 8_000_000)
    assert luks.benchmark_kdf("pbkdf2", iter_time=1, hash_name="sha1") == luks.Pbkdf2("sha1", 4000)
    assert luks.benchmark_kdf("argon2id") == luks.Argon2("argon2id", 4, 1_000_000, 4)
    assert luks.benchmark_kdf("argon2i", iter_time=8000) == luks.Argon2("argon2i", 15, 1 << 20, 4)
    assert luks.benchmark_kdf(iter_time=10) == luks.Argon2("argon2id", 4, 5000, 4)
    monkeypatch.setattr(benchmark, "_physical_memory_kib", lambda: 100_000)
    assert luks.benchmark_kdf() == luks.Argon2("argon2id", 80, 50_000, 4)
    monkeypatch.setattr(benchmark, "_cpus", lambda: 1)
    assert luks.benchmark_kdf(iter_time=1).lanes == 1  # type: ignore[union-attr]


def test_no_cost_is_chosen_below_the_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_measure", lambda *_: 1000.0)
    assert luks.benchmark_kdf("pbkdf2", iter_time=1) == luks.Pbkdf2("sha256", 1000)
    cost = luks.benchmark_kdf("argon2id", iter_time=1)
    assert isinstance(cost, luks.Argon2)
    assert (cost.time, cost.memory_kib) == (4, 32)


@pytest.mark.parametrize(("version", "kind"), [(1, luks.Pbkdf2), (2, luks.Argon2)])
def test_without_a_cost_one_is_measured(
    version: int, kind: type[luks.KdfCost], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(_cost: luks.KdfCost, key_size: int) -> float:
        measured.append(key_size)
        return 1000.0

    monkeypatch.setattr(benchmark, "_measure", measure)
    device = MemoryDevice(0)
    luks.format(device, PASSPHRASE, version=version, size=4096).close()
    header = luks.load_header(device)
    assert isinstance(header.keyslots[0].kdf, kind)
    assert measured == [64, 32]
    assert opens(device)


def test_a_kind_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_measure", lambda *_: 1000.0)
    for kind in ("argon2i", "argon2id", "pbkdf2"):
        header = luks.load_header(small_volume(kdf=kind))
        assert json_of(header)["keyslots"]["0"]["kdf"]["type"] == kind
