"""One suite over everything that stores bytes: what `BlockDevice` promises."""

from __future__ import annotations

import os
import random
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

import luks
from blobstore.container.initialise import SectionSpec, container_size, initialise
from blobstore.image.remote.nbd_connection import NbdAddress
from blobstore.image.remote.nbd_disk import NbdDisk
from blobstore.image.remote.rbd_disk import RbdAddress, RbdDisk
from blobstore.nbd.exports import NbdSections
from blobstore.nbd.server import NbdServer
from blobstore.store.store import Store
from blobstore.store.windows.window import Window
from formats.container.model import Kind
from formats.devices.device import BlockDevice, MemoryDevice, SliceDevice
from formats.devices.file import FileDevice
from formats.errors import ReadOnlyError, UnsupportedError
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.opening import open_image
from luks.crypto.ciphers import sector_cipher
from tests.ceph.cluster import shared_cluster
from tests.luks.support import PASSPHRASE, json_of, template, with_json
from tests.nbd.servers import nbdkit, qemu_nbd, qemu_storage_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.nbd.servers import NbdServerProcess

SIZE = 64 << 10
_KDF = luks.Pbkdf2("sha256", 1000)


def memory(_: Path, __: ExitStack) -> BlockDevice:
    return MemoryDevice(SIZE)


def slice_of_memory(_: Path, __: ExitStack) -> BlockDevice:
    return SliceDevice(MemoryDevice(3 * SIZE), 1000, SIZE)


def file(directory: Path, stack: ExitStack) -> BlockDevice:
    path = directory / "file"
    path.write_bytes(bytes(SIZE))
    return stack.enter_context(FileDevice(path, read_only=False))


def file_without_positional_io(directory: Path, stack: ExitStack) -> BlockDevice:
    """As on a system that has neither `pread` nor `pwrite`."""
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.delattr(os, "pread")
    patch.delattr(os, "preadv")
    patch.delattr(os, "pwrite")
    return file(directory, stack)


def _volume(
    directory: Path,
    stack: ExitStack,
    version: int,
    sector_size: int,
    *,
    cipher: str = "aes-xts-plain64",
    key_size: int = 64,
) -> luks.Volume:
    volume = luks.format(
        directory / "image",
        b"secret",
        version=version,
        sector_size=sector_size,
        size=SIZE,
        kdf=_KDF,
        cipher=cipher,
        key_size=key_size,
    )
    stack.enter_context(volume)
    volume.write(0, bytes(SIZE))
    return volume


def luks1(directory: Path, stack: ExitStack) -> BlockDevice:
    return _volume(directory, stack, 1, 512)


def luks2_of_512(directory: Path, stack: ExitStack) -> BlockDevice:
    return _volume(directory, stack, 2, 512)


def luks2_of_4096(directory: Path, stack: ExitStack) -> BlockDevice:
    return _volume(directory, stack, 2, 4096)


def luks1_of_serpent(directory: Path, stack: ExitStack) -> BlockDevice:
    return _volume(directory, stack, 1, 512, cipher="serpent-cbc-essiv:sha256", key_size=32)


def luks2_of_cbc(directory: Path, stack: ExitStack) -> BlockDevice:
    return _volume(directory, stack, 2, 2048, cipher="aes-cbc-essiv:sha256", key_size=32)


def luks2_of_ctr(directory: Path, stack: ExitStack) -> BlockDevice:
    return _volume(directory, stack, 2, 4096, cipher="aes-ctr-plain64", key_size=24)


def luks2_of_ecb(directory: Path, stack: ExitStack) -> BlockDevice:
    return _volume(directory, stack, 2, 1024, cipher="cast5-ecb", key_size=16)


def luks2_of_two_segments(_: Path, stack: ExitStack) -> BlockDevice:
    base = template(2, sector_size=512, size=SIZE)
    root = json_of(base.header)
    first = root["segments"]["0"]
    start = int(first["offset"])
    second = {**first, "offset": str(start + 20_480), "sector_size": 2048, "iv_tweak": "40"}
    root["segments"] = {"0": {**first, "size": "20480"}, "1": second}
    root["digests"]["0"]["segments"] = ["0", "1"]
    volume = stack.enter_context(luks.open(with_json(base, root), PASSPHRASE, read_only=False))
    volume.write(0, bytes(SIZE))
    return volume


def luks2_of_two_keys(_: Path, stack: ExitStack) -> BlockDevice:
    """In the middle of a re-encryption: the first part has the new key and cipher."""
    image = MemoryDevice(0)
    made = luks.format(image, PASSPHRASE, kdf=_KDF, key_size=32, sector_size=512, size=SIZE)
    with made as volume:
        volume.write(0, bytes(SIZE))
    options = luks.ReencryptionOptions(
        kdf=_KDF, cipher="aes-cbc-essiv:sha256", key_size=16, sector_size=4096, hotzone_size=20480
    )
    with luks.begin_reencryption(image, PASSPHRASE, options=options) as running:
        running.step()
    volume = stack.enter_context(luks.open(image, PASSPHRASE, read_only=False))
    assert len(volume.header.payload_digests) == 2
    return volume


def _window(stack: ExitStack, device: BlockDevice, *, in_place: bool) -> BlockDevice:
    spec = SectionSpec("window", SIZE, kind=Kind.WINDOW)
    initialise(device, [spec], encrypted=False)
    store = stack.enter_context(Store.on_device(device, encrypted=False))
    return store.window("window", in_place=in_place)


def window(_: Path, stack: ExitStack) -> BlockDevice:
    size = container_size([SectionSpec("window", SIZE)])
    return _window(stack, MemoryDevice(size), in_place=False)


def window_in_place(_: Path, stack: ExitStack) -> BlockDevice:
    size = container_size([SectionSpec("window", SIZE)])
    return _window(stack, MemoryDevice(size), in_place=True)


def window_in_place_in_a_volume(directory: Path, stack: ExitStack) -> BlockDevice:
    path = directory / "image"
    kdf, size = _KDF, 3 * SIZE
    volume = luks.format(path, b"secret", version=2, sector_size=4096, size=size, kdf=kdf)
    return _window(stack, stack.enter_context(volume), in_place=True)


def _qcow2(options: Qcow2Options, stack: ExitStack, **more: Any) -> BlockDevice:
    image = MemoryDevice(0)
    create(image, SIZE, options)
    return stack.enter_context(open_image(image, read_only=False, **more))


def qcow2(_: Path, stack: ExitStack) -> BlockDevice:
    return _qcow2(Qcow2Options(), stack)


def qcow2_of_512(directory: Path, stack: ExitStack) -> BlockDevice:
    path = directory / "image"
    path.touch()
    image = stack.enter_context(FileDevice(path, read_only=False))
    create(image, SIZE, Qcow2Options(version=2, cluster_size=512))
    return stack.enter_context(open_image(image, read_only=False))


def qcow2_of_4096(_: Path, stack: ExitStack) -> BlockDevice:
    return _qcow2(Qcow2Options(cluster_size=4096, refcount_bits=1), stack)


def qcow2_over_a_backing_file(_: Path, stack: ExitStack) -> BlockDevice:
    options = Qcow2Options(cluster_size=4096, backing_name="zeros", backing_format="raw")
    return _qcow2(options, stack, open_backing=lambda *_: MemoryDevice(SIZE - 3000))


def qcow2_encrypted(_: Path, stack: ExitStack) -> BlockDevice:
    cipher = sector_cipher("aes-xts-plain64", bytes(range(64)), 512)
    return _qcow2(Qcow2Options(cluster_size=8192, luks_header_size=2 << 20), stack, cipher=cipher)


def _export(server: AbstractContextManager[NbdServerProcess], stack: ExitStack) -> BlockDevice:
    return stack.enter_context(NbdDisk(stack.enter_context(server).address, read_only=False))


def _file(directory: Path) -> Path:
    path = directory / "image"
    path.write_bytes(bytes(SIZE))
    return path


def nbd_export(directory: Path, stack: ExitStack) -> BlockDevice:
    return _export(nbdkit(directory / "socket", "memory", str(SIZE)), stack)


def nbd_export_of_a_file(directory: Path, stack: ExitStack) -> BlockDevice:
    return _export(nbdkit(directory / "socket", "file", str(_file(directory))), stack)


def nbd_export_of_large_blocks(directory: Path, stack: ExitStack) -> BlockDevice:
    options = ("blocksize-minimum=4096", "blocksize-maximum=16384", "blocksize-error-policy=error")
    filtered = ("--filter=blocksize-policy", "memory", str(SIZE), *options)
    return _export(nbdkit(directory / "socket", *filtered), stack)


def nbd_export_of_qemu_nbd(directory: Path, stack: ExitStack) -> BlockDevice:
    return _export(qemu_nbd(directory / "socket", _file(directory), "--format=raw"), stack)


def nbd_export_of_qemu_storage_daemon(directory: Path, stack: ExitStack) -> BlockDevice:
    return _export(qemu_storage_daemon(directory / "socket", _file(directory)), stack)


def nbd_export_of_a_window(directory: Path, stack: ExitStack) -> BlockDevice:
    """Of this project's own server."""
    device = MemoryDevice(container_size([SectionSpec("window", SIZE)]))
    initialise(device, [SectionSpec("window", SIZE, kind=Kind.WINDOW)], encrypted=False)
    store = stack.enter_context(Store.on_device(device, encrypted=False))
    path = directory / "socket"
    stack.enter_context(NbdServer(path, NbdSections(store)))
    return stack.enter_context(NbdDisk(NbdAddress(socket=path, export="window"), read_only=False))


def rbd_image(directory: Path, stack: ExitStack) -> BlockDevice:
    cluster = shared_cluster()
    cluster.create(directory.name, SIZE)
    address = RbdAddress(pool="rbd", image=directory.name, conf=str(cluster.conf))
    return stack.enter_context(RbdDisk(address, read_only=False))


MAKERS: list[Callable[[Path, ExitStack], BlockDevice]] = [
    memory,
    slice_of_memory,
    file,
    file_without_positional_io,
    luks1,
    luks2_of_512,
    luks2_of_4096,
    luks1_of_serpent,
    luks2_of_cbc,
    luks2_of_ctr,
    luks2_of_ecb,
    luks2_of_two_segments,
    luks2_of_two_keys,
    window,
    window_in_place,
    window_in_place_in_a_volume,
    qcow2,
    qcow2_of_512,
    qcow2_of_4096,
    qcow2_over_a_backing_file,
    qcow2_encrypted,
    nbd_export,
    nbd_export_of_a_file,
    nbd_export_of_large_blocks,
    nbd_export_of_qemu_nbd,
    nbd_export_of_qemu_storage_daemon,
    nbd_export_of_a_window,
    rbd_image,
]
#: What cannot be resized.
FIXED = (SliceDevice, Window, NbdDisk)


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockDevice]:
    with ExitStack() as stack:
        maker: Callable[[Path, ExitStack], BlockDevice] = request.param
        yield maker(tmp_path, stack)


def read(device: BlockDevice, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    device.read_into(offset, buffer)
    return bytes(buffer)


def test_it_is_a_block_device(device: BlockDevice) -> None:
    assert isinstance(device, BlockDevice)
    assert device.size == SIZE
    assert device.block_size in (512, 1024, 2048, 4096)


def test_what_is_written_is_read_at_any_alignment(device: BlockDevice) -> None:
    generator = random.Random(1)
    model = bytearray(SIZE)
    for _ in range(300):
        offset = generator.randrange(SIZE + 1)
        size = min(generator.choice((0, 1, 15, 512, 4096, 5000, 20_000)), SIZE - offset)
        if generator.random() < 0.5:
            offset -= offset % 512
        data = generator.randbytes(size)
        device.write(offset, data)
        model[offset : offset + size] = data
        start = generator.randrange(SIZE)
        length = generator.randrange(SIZE - start + 1)
        assert read(device, start, length) == model[start : start + length]
    device.flush()
    assert read(device, 0, SIZE) == model


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_it_takes_every_buffer_and_changes_none(
    device: BlockDevice, kind: Callable[[bytes], bytes]
) -> None:
    content = random.Random(2).randbytes(4096 + 7)
    data = kind(content)
    device.write(511, data)
    assert bytes(data) == content
    target = bytearray(len(content) + 10)
    device.read_into(511, memoryview(target)[5:-5])
    assert target == bytes(5) + content + bytes(5)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (SIZE, 1), (SIZE - 1, 2), (1 << 70, 0)])
def test_a_request_outside_is_the_caller_s_mistake(
    device: BlockDevice, offset: int, size: int
) -> None:
    with pytest.raises(ValueError, match="outside"):
        device.write(offset, bytes(size))
    with pytest.raises(ValueError, match="outside"):
        device.read_into(offset, bytearray(size))
    assert read(device, 0, SIZE) == bytes(SIZE)


@pytest.mark.parametrize(("offset", "size"), [(0, 4096), (512, 20_000), (7, 100), (SIZE, 0)])
def test_what_is_written_durably_is_read_with_what_was_written_before(
    device: BlockDevice, offset: int, size: int
) -> None:
    data = random.Random(4).randbytes(size)
    device.write_durably(offset, data)
    assert read(device, offset, size) == data
    device.write(0, b"before")
    device.write_durably(8192, data[:4096])
    assert read(device, 0, 6) == b"before"
    assert read(device, 8192, len(data[:4096])) == data[:4096]
    with pytest.raises(ValueError, match="outside"):
        device.write_durably(SIZE - 1, b"xy")


def test_an_empty_request_at_the_end_is_fine(device: BlockDevice) -> None:
    device.write(SIZE, b"")
    assert read(device, SIZE, 0) == b""


def test_threads_do_not_disturb_each_other(device: BlockDevice) -> None:
    """Neighbours inside one sector, written and read at the same time."""
    errors: list[object] = []

    def work(number: int) -> None:
        for turn in range(40):
            data = bytes([number, turn]) * 350
            for offset in (number * 700, 32_768 + number * 700):
                device.write(offset, data)
                if read(device, offset, 700) != data:
                    errors.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_closing_twice_is_fine(device: BlockDevice) -> None:
    device.close()
    device.close()


def test_resizing_works_or_is_refused(device: BlockDevice) -> None:
    if isinstance(device, FIXED):
        with pytest.raises(UnsupportedError, match="resized"):
            device.resize(SIZE + 4096)
        assert device.size == SIZE
        return
    if isinstance(device, luks.Volume) and device.header.requirements:  # L187
        with pytest.raises(luks.UnfinishedReencryptionError):
            device.resize(SIZE + 4096)
        assert device.size == SIZE
        return
    device.write(0, b"text")
    device.resize(SIZE + 4096)
    assert device.size == SIZE + 4096
    assert read(device, 0, SIZE) == b"text".ljust(SIZE, b"\0")
    if not isinstance(device, luks.Volume):  # what was not written yet is noise there
        assert read(device, SIZE, 4096) == bytes(4096)
    device.write(SIZE - 5, b"across the old end")
    assert read(device, SIZE - 5, 18) == b"across the old end"
    smaller = SIZE // 2
    device.resize(smaller)
    assert device.size == smaller
    assert read(device, 0, smaller) == b"text".ljust(smaller, b"\0")
    with pytest.raises(ValueError, match="outside"):
        device.write(smaller, b"x")


@pytest.mark.parametrize(
    ("offset", "size"), [(8192, 8192), (1, 40_000), (5000, 100), (0, SIZE), (SIZE, 0)]
)
def test_what_is_discarded_reads_as_zeros_or_as_noise(
    device: BlockDevice, offset: int, size: int
) -> None:
    data = random.Random(3).randbytes(SIZE)
    device.write(0, data)
    device.discard(offset, size)
    device.flush()
    assert device.size == SIZE
    after = read(device, 0, SIZE)
    end = offset + size
    assert after[:offset] == data[:offset]
    assert after[end:] == data[end:]
    if not isinstance(device, luks.Volume):
        assert after[offset:end] == bytes(size)
    elif size >= 8192:  # it has whole sectors, and these are not what they were
        assert after[offset:end] != data[offset:end]
    device.write(offset, data[offset:end])
    assert read(device, 0, SIZE) == data


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (SIZE, 1), (SIZE - 1, 2)])
def test_discarding_outside_is_the_caller_s_mistake(
    device: BlockDevice, offset: int, size: int
) -> None:
    with pytest.raises(ValueError, match="outside"):
        device.discard(offset, size)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_volume_open_for_reading_is_not_written(tmp_path: Path, sector_size: int) -> None:
    with ExitStack() as stack:
        _volume(tmp_path, stack, 2, sector_size)
    before = (tmp_path / "image").read_bytes()
    with luks.open(tmp_path / "image", b"secret") as volume:
        with pytest.raises(ReadOnlyError):
            volume.write(0, b"x")
        with pytest.raises(ReadOnlyError):
            volume.discard(0, 4096)
        with pytest.raises(ReadOnlyError):
            volume.resize(SIZE * 2)
        assert volume.read(0, 10) == bytes(10)
    assert (tmp_path / "image").read_bytes() == before
