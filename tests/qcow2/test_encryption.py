"""LUKS inside qcow2, and QEMU's old AES: the seam for a cipher, put together with `luks`. Q7."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import luks
from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.errors import UnsupportedError
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.opening import luks_area, open_image
from formats.qcow2.snapshots import apply_snapshot, create_snapshot
from luks.crypto.ciphers import sector_cipher
from tests.qcow2.support import qemu_img
from tests.support.foreign import run

if TYPE_CHECKING:
    from pathlib import Path

    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer
    from formats.qcow2.device import Qcow2Device
    from luks.crypto.spec import SectorCipher

SIZE = 3 << 20
SECRET = b"abc123"
#: Where QEMU's LUKS header of a qcow2 image ends.
HEADER_SIZE = 2_068_480
KDF = luks.Pbkdf2("sha256", 1000)
_QEMU = ("--object", f"secret,id=s,data={SECRET.decode()}")


def cipher_of(device: BlockDevice) -> SectorCipher:
    area = luks_area(device)
    header = luks.load_header(area)
    key = luks.unlock(area, header, luks.Secret(SECRET))
    name = header.data_segments[0].cipher
    assert name is not None
    return sector_cipher(name, key.key.view(), 512)


def make(device: BlockDevice, options: Qcow2Options) -> None:
    """Make an encrypted image without QEMU: with the header that `luks` makes elsewhere."""
    outside = MemoryDevice(HEADER_SIZE + 512)
    luks.format(outside, SECRET, version=1, data_offset=HEADER_SIZE, kdf=KDF).close()
    header = create(device, SIZE, replace(options, luks_header_size=HEADER_SIZE))
    luks_area(device, header).write(0, outside.content[:HEADER_SIZE])


def qemu_io(path: Path, *commands: str) -> bytes:
    options = [word for command in commands for word in ("-c", command)]
    image = f"driver=qcow2,file.filename={path},encrypt.format=luks,encrypt.key-secret=s"
    return run("qemu-io", *_QEMU, *options, "--image-opts", image)


def assert_clean(path: Path, secret: bytes = SECRET) -> None:
    """Assert that qemu-img, which wants the key for that, finds nothing wrong."""
    secret_ = ("--object", f"secret,id=s,data={secret.decode()}")
    image = f"driver=qcow2,file.filename={path},encrypt.format=luks,encrypt.key-secret=s"
    run("qemu-img", "check", *secret_, "--image-opts", image)  # fails on leaks as well


def churn(disk: Qcow2Device, model: bytearray, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(40):
        offset = generator.randrange(len(model))
        length = min(generator.choice((1, 511, 512, 5000, 70_000, 1_500_000)), SIZE - offset)
        if generator.random() < 0.2:
            disk.discard(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            data = generator.randbytes(length)
            disk.write(offset, data)
            model[offset : offset + length] = data
    assert disk.read(0, SIZE) == model
    assert disk.read(1001, SIZE - 5000) == model[1001 : SIZE - 3999]


@pytest.mark.interop
@pytest.mark.parametrize("cluster_size", [4096])
def test_we_read_and_write_what_qemu_encrypts(cluster_size: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    options = (
        f"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size={cluster_size}"
    )
    qemu_img("create", "-q", "-f", "qcow2", *_QEMU, "-o", options, path, SIZE)
    qemu_io(path, "write -P 65 0 1M", "write -P 66 1000k 5k")
    model = bytearray(b"A" * 1024000 + b"B" * 5120 + b"A" * 19456).ljust(SIZE, b"\0")
    with FileDevice(path, read_only=False) as device:
        cipher = cipher_of(device)
        with open_image(device, cipher=cipher) as disk:
            assert disk.read(0, SIZE) == model
        create_snapshot(device, "before")
        changed = model[:]
        with open_image(device, read_only=False, cipher=cipher) as disk:
            churn(disk, changed, 1)
            disk.write(0, b"E" * 100_000)
        with open_image(device, cipher=cipher, snapshot="before") as disk:
            assert disk.read(0, SIZE) == model
        assert check(device).ok
    assert_clean(path)
    qemu_io(path, "read -P 69 0 100000")
    with FileDevice(path, read_only=False) as device:
        apply_snapshot(device, "before")
    assert_clean(path)
    said = qemu_io(path, "read -P 65 0 1000k", "read -P 66 1000k 5k", "read -P 0 1M 2M")
    assert b"failed" not in said


@pytest.mark.interop
@pytest.mark.parametrize(
    "options", [Qcow2Options(cluster_size=4096), Qcow2Options(version=2), Qcow2Options()]
)
def test_qemu_reads_and_writes_what_we_encrypt(options: Qcow2Options, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.touch()
    model = bytearray(SIZE)
    with FileDevice(path, read_only=False) as device:
        make(device, options)
        with open_image(device, read_only=False, cipher=cipher_of(device)) as disk:
            churn(disk, model, 2)
            disk.write(0, b"F" * 200_001)
            model[:200_001] = b"F" * 200_001
    assert_clean(path)
    said = qemu_io(path, "read -P 70 0 200000", "write -P 71 1M 100k")
    assert b"failed" not in said
    model[1 << 20 : (1 << 20) + 102_400] = b"G" * 102_400
    with FileDevice(path) as device, open_image(device, cipher=cipher_of(device)) as disk:
        assert disk.read(0, SIZE) == model


@pytest.mark.interop
def test_keyslots_are_changed_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.touch()
    with FileDevice(path, read_only=False) as device:
        make(device, Qcow2Options())
    qemu_io(path, "write -P 65 0 1M")
    with FileDevice(path, read_only=False) as device:
        luks.add_keyslot(luks_area(device), SECRET, b"another", kdf=KDF)
        luks.remove_keyslot(luks_area(device), 0)
    assert_clean(path, b"another")
    image = f"driver=qcow2,file.filename={path},encrypt.format=luks,encrypt.key-secret=s"
    another = ("--object", "secret,id=s,data=another")
    run("qemu-io", *another, "-c", "read -P 65 0 1M", "--image-opts", image)


def test_without_a_key_tables_can_be_worked_on_and_nothing_is_read() -> None:
    image = MemoryDevice(0)
    create(image, SIZE, Qcow2Options(luks_header_size=HEADER_SIZE))
    create_snapshot(image, "name")
    assert check(image).ok
    with open_image(image, read_only=False) as disk:
        for call in (
            lambda: disk.read(0, 1),
            lambda: disk.write(0, b"x"),
            lambda: disk.discard(0, 1),
            lambda: disk.resize(2 * SIZE),
        ):
            with pytest.raises(UnsupportedError, match="no key"):
                call()
    with pytest.raises(UnsupportedError, match="no LUKS header"):
        luks_area(_plain())


def _plain() -> MemoryDevice:
    image = MemoryDevice(0)
    create(image, SIZE)
    return image


class _OldAes:
    """AES-128 in CBC mode, the passphrase as key, IVs plain64 by the sector of the disk."""

    def __init__(self, passphrase: bytes) -> None:
        self._key = passphrase[:16].ljust(16, b"\0")

    def encrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        raise NotImplementedError

    def decrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        source = bytes(data)
        for at in range(0, len(source), 512):
            iv = (first_sector + at // 512).to_bytes(16, "little")
            cipher = Cipher(algorithms.AES(self._key), modes.CBC(iv)).decryptor()
            out[at : at + 512] = cipher.update(source[at : at + 512])


@pytest.mark.interop
def test_old_aes_is_read_and_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "image"
    options = "encrypt.format=aes,encrypt.key-secret=s"
    qemu_img("create", "-q", "-f", "qcow2", *_QEMU, "-o", options, path, SIZE)
    image = f"driver=qcow2,file.filename={path},encrypt.format=aes,encrypt.key-secret=s"
    run("qemu-io", *_QEMU, "-c", "write -P 65 100k 1M", "--image-opts", image)
    model = (bytes(100 << 10) + b"A" * (1 << 20)).ljust(SIZE, b"\0")
    with FileDevice(path, read_only=False) as device:
        with open_image(device, cipher=_OldAes(SECRET)) as disk:
            assert disk.read(0, SIZE) == model
            assert disk.read(102_405, 1000) == b"A" * 1000
        assert "weak" in caplog.text
        with pytest.raises(UnsupportedError, match="can be read only"):
            open_image(device, read_only=False, cipher=_OldAes(SECRET))
