"""Making volumes with every choice that luksFormat has, and as other programs do (L96)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from tests.luks.programs import CHEAP, accepts, cryptsetup, key_file, qemu_io
from tests.luks.support import PASSPHRASE, PBKDF2, opens

if TYPE_CHECKING:
    from pathlib import Path

    from luks.header import luks1

pytestmark = pytest.mark.interop

MIB = 1 << 20


def made(**options: Any) -> tuple[MemoryDevice, luks.Header]:
    device = MemoryDevice(0)
    luks.format(device, PASSPHRASE, **{"size": 64 << 10, "kdf": PBKDF2, **options}).close()
    assert opens(device)
    return device, luks.load_header(device)


def test_the_profile_of_qemu_has_qemus_layout(tmp_path: Path) -> None:
    """The payload directly follows keyslot 7; QEMU reads and writes it."""
    device, header = made(**luks.PROFILES["qemu"])
    assert header.data_offset == 4040 * 512
    raw: luks1.RawHeader = header.source
    assert [slot.material_sector for slot in raw.keyslots] == [8 + 504 * n for n in range(8)]
    image, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    image.write_bytes(device.content)
    qemu_io(image, key, "write -P 0x5a 512 1024")
    with luks.open(image, PASSPHRASE) as volume:
        assert volume.read(512, 1024) == b"\x5a" * 1024


def test_the_profiles_of_cryptsetup_have_its_layout(tmp_path: Path) -> None:
    key = key_file(tmp_path, PASSPHRASE)
    for profile, type_ in (("cryptsetup", "luks2"), ("cryptsetup-luks1", "luks1")):
        theirs, ours = tmp_path / f"{profile}.theirs", tmp_path / profile
        theirs.write_bytes(bytes(20 * MIB))
        ours.write_bytes(bytes(20 * MIB))
        cryptsetup("luksFormat", f"--type={type_}", *CHEAP["pbkdf2"], theirs, key)
        options: dict[str, Any] = {"kdf": PBKDF2, **luks.PROFILES[profile]}
        luks.format(ours, PASSPHRASE, **options).close()
        expected, header = luks.load_header(theirs), luks.load_header(ours)
        for name in ("cipher", "data_offset", "sector_size", "keyslots_size", "metadata_size"):
            assert getattr(header, name) == getattr(expected, name), name
        assert header.keyslots[0].area == expected.keyslots[0].area
        assert accepts(ours, key)


@pytest.mark.parametrize(
    ("cipher", "key_size"),
    [
        ("aes-xts-plain64", 64),
        ("aes-cbc-essiv:sha256", 32),
        ("aes-ctr-plain64", 32),
        ("camellia-cbc-plain", 32),
        ("sm4-xts-plain64", 32),
        ("aes-lrw-benbi", 48),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_each_cipher_has_a_key_size_by_default(cipher: str, key_size: int, version: int) -> None:
    _, header = made(cipher=cipher, version=version, sector_size=512 if version == 1 else None)
    assert header.keyslots[0].key_size == key_size


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("alignment", [512, 4096, 65536, 3 * 4096, 8 * MIB])
def test_the_payload_is_aligned_as_asked(version: int, alignment: int, tmp_path: Path) -> None:
    device, header = made(version=version, alignment=alignment, sector_size=512)
    end = header.keyslots_offset + header.keyslots_size
    if version == 1:
        end = 4040 * 512
    assert header.data_offset == end + -end % alignment
    image = tmp_path / "image"
    image.write_bytes(device.content)
    assert accepts(image, key_file(tmp_path, PASSPHRASE))
    with pytest.raises(ValueError, match="alignment"):
        made(version=version, alignment=alignment + 1)


@pytest.mark.parametrize("stripes", [1, 2, 999, 8000])
def test_luks1_has_as_many_stripes_as_asked(stripes: int) -> None:
    device, header = made(version=1, stripes=stripes, hash_name="sha512", kdf="pbkdf2", iter_time=1)
    assert {slot.stripes for slot in header.source.keyslots} == {stripes}
    luks.add_keyslot(device, PASSPHRASE, b"other", kdf="pbkdf2", iter_time=1)
    assert opens(device, b"other")
    with pytest.raises(ValueError, match="stripes"):
        made(version=2, stripes=stripes)


@pytest.mark.parametrize("stripes", [0, -1, 2**32])
def test_impossible_stripes_are_refused(stripes: int) -> None:
    with pytest.raises(ValueError, match="stripes"):
        made(version=1, stripes=stripes)


def test_keyslots_may_have_a_cipher_of_their_own(tmp_path: Path) -> None:
    cipher = ("aes-cbc-essiv:sha256", 16)
    device, header = made(cipher="aes-xts-plain64", keyslot_cipher=cipher)
    area = header.keyslots[0].area
    assert (area.cipher, area.key_size, area.size) == (*cipher, 258_048)
    image, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    image.write_bytes(device.content)
    assert accepts(image, key)
    with pytest.raises(ValueError, match="LUKS1"):
        made(version=1, keyslot_cipher=cipher)
    with pytest.raises(luks.PolicyError):
        made(keyslot_cipher=("cipher_null-ecb", 16))
