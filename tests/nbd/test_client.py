"""N60 to N69: exports of real servers as block devices."""

from __future__ import annotations

import os
import random
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.image.remote.nbd_connection import NbdAddress
from blobstore.image.remote.nbd_disk import NbdDisk
from formats.errors import DeviceError, DeviceFullError, ReadOnlyError, UnsupportedError
from tests.nbd.servers import nbdkit, qemu_nbd, qemu_storage_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.nbd.servers import NbdServerProcess

SIZE = 4 << 20

pytestmark = pytest.mark.interop

SERVERS: dict[str, Callable[[Path, Path], AbstractContextManager[NbdServerProcess]]] = {
    "nbdkit file": lambda socket, image: nbdkit(socket, "file", str(image)),
    "nbdkit memory": lambda socket, _: nbdkit(socket, "memory", str(SIZE)),
    "without structured replies": lambda socket, image: nbdkit(
        socket, "--no-sr", "file", str(image)
    ),
    "one connection": lambda socket, image: nbdkit(
        socket, "--filter=multi-conn", "file", str(image), "multi-conn-mode=disable"
    ),
    "blocks of 4096": lambda socket, image: nbdkit(
        *(socket, "--filter=blocksize-policy", "file", str(image)),
        *("blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536"),
        "blocksize-error-policy=error",
    ),
    "without zeroing": lambda socket, image: nbdkit(
        socket, "--filter=nozero", "file", str(image), "zeromode=none"
    ),
    "without extents": lambda socket, image: nbdkit(
        socket, "--filter=noextents", "file", str(image)
    ),
    "slow": lambda socket, image: nbdkit(
        socket, "--filter=delay", "file", str(image), "rdelay=1ms", "wdelay=1ms"
    ),
    "qemu-nbd raw": lambda socket, image: qemu_nbd(socket, image, "--format=raw"),
    "qemu-storage-daemon": qemu_storage_daemon,
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NbdServerProcess]:
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, SIZE)
    with SERVERS[request.param](tmp_path / "socket", image) as running:
        yield running


def test_it_is_as_a_piece_of_memory(server: NbdServerProcess) -> None:
    known = bytearray(SIZE)
    chance = random.Random(60)
    with NbdDisk(server.address, read_only=False) as disk:
        assert disk.size == SIZE
        for step in range(200):
            offset = chance.randrange(SIZE)
            size = min(chance.choice((1, 511, 4096, 70_000, 2_000_000)), SIZE - offset)
            match chance.choice(("read", "read", "write", "write", "discard", "flush")):
                case "read":
                    assert disk.read(offset, size) == known[offset : offset + size], step
                case "write":
                    data = chance.randbytes(size)
                    disk.write(offset, data)
                    known[offset : offset + size] = data
                case "discard":
                    try:
                        disk.discard(offset, size)
                    except UnsupportedError:
                        continue
                    known[offset : offset + size] = bytes(size)
                case _:
                    disk.flush()
        disk.flush()
        assert disk.read(0, SIZE) == known
        covered = bytearray(SIZE)
        for offset, size in disk.data_ranges(0, SIZE):
            covered[offset : offset + size] = known[offset : offset + size]
        assert covered == known  # the rest is zeros
    with NbdDisk(server.address) as again:
        assert again.read(0, SIZE) == known


def test_a_store_lies_on_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    blobstore.create(image, {"a": 5000}, encrypted=False, size=SIZE).close()
    with (
        nbdkit(tmp_path / "socket", "file", str(image)) as server,
        ExitStack() as resources,
    ):
        disk = resources.enter_context(NbdDisk(server.address, read_only=False))
        store = blobstore.Store.on_device(disk, encrypted=False, resources=resources.pop_all())
        with store:
            for number in range(20):
                store.put("a", b"%d" % number * 100)
    with blobstore.open(image, direct=True) as store:
        assert store.get("a") == b"19" * 100


def test_several_threads(tmp_path: Path) -> None:
    with (
        nbdkit(tmp_path / "socket", "memory", str(SIZE)) as server,
        NbdDisk(server.address, read_only=False) as disk,
    ):
        wrong: list[int] = []

        def work(number: int) -> None:
            start = number * (SIZE // 8)
            for step in range(50):
                data = bytes([number * 16 + step % 16]) * 30_000
                disk.write(start, data)
                if step % 7 == 0:
                    disk.flush()
                if disk.read(start, 30_000) != data:
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_n64_what_the_server_refuses_is_an_error_of_its_kind(tmp_path: Path) -> None:
    with nbdkit(tmp_path / "a", "--readonly", "memory", str(SIZE)) as server:
        with pytest.raises(ReadOnlyError):
            NbdDisk(server.address, read_only=False)
        with NbdDisk(server.address) as disk, pytest.raises(ReadOnlyError):
            disk.write(0, b"x")
    with (
        nbdkit(
            *(tmp_path / "b", "--filter=error", "memory", str(SIZE)),
            *("error-pwrite=ENOSPC", "error-pwrite-rate=100%"),
        ) as server,
        NbdDisk(server.address, read_only=False) as disk,
    ):
        with pytest.raises(DeviceFullError, match="WRITE"):
            disk.write(0, b"x")
        assert disk.read(0, 1) == b"\0"  # the connection goes on
    with (
        nbdkit(
            *(tmp_path / "c", "--filter=error", "memory", str(SIZE)),
            *("error-pread=EIO", "error-pread-rate=100%"),
        ) as server,
        NbdDisk(server.address) as disk,
        pytest.raises(DeviceError, match=r"READ of 1 bytes at byte 7 with EIO"),
    ):
        disk.read(7, 1)


def test_n60_no_server_no_export(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot reach"):
        NbdDisk(NbdAddress(socket=tmp_path / "none"))
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    with (
        qemu_nbd(tmp_path / "socket", image, "--format=raw", "--export-name=this") as server,
        pytest.raises(DeviceError, match="no such export"),
    ):
        NbdDisk(NbdAddress(socket=server.socket, export="that"))


@pytest.mark.parametrize("round_", range(6))
def test_n66_what_was_not_flushed_is_sent_again(tmp_path: Path, round_: int) -> None:
    """A server loses what was not flushed, and dies at any moment: nothing of it is lost."""
    image = tmp_path / "image"
    known = bytearray(SIZE)
    image.write_bytes(known)
    chance = random.Random(round_)
    with qemu_nbd(tmp_path / "socket", image, "--format=raw") as server:
        durable = bytes(known)
        dying = threading.Event()

        def die_now_and_then() -> None:
            while not dying.wait(chance.random() * 0.1):
                with lock:
                    server.kill()
                    if not flushing:  # else any part of it may be durable
                        image.write_bytes(durable)
                    server.start()

        lock = threading.Lock()
        flushing = False
        with NbdDisk(server.address, read_only=False, reconnecting=60) as disk:
            killer = threading.Thread(target=die_now_and_then)
            killer.start()
            try:
                for step in range(100):
                    offset = chance.randrange(SIZE - 5000)
                    data = chance.randbytes(5000)
                    disk.write(offset, data)
                    known[offset : offset + 5000] = data
                    if step % 9 == 0:
                        with lock:
                            flushing = True
                        disk.flush()
                        with lock:
                            durable, flushing = bytes(known), False
                    if step % 5 == 0:
                        assert disk.read(0, SIZE) == known, step
            finally:
                dying.set()
                killer.join()
            disk.flush()
        assert image.read_bytes() == known


def test_n66_without_a_server_it_ends_in_time(tmp_path: Path) -> None:
    with nbdkit(tmp_path / "socket", "memory", str(SIZE)) as server:
        disk = NbdDisk(server.address, read_only=False, reconnecting=0.3)
        disk.write(0, b"x")
        server.kill()
        with pytest.raises(DeviceError, match="broke"):
            disk.flush()
        server.start()
        disk.flush()  # what was written is still known
        assert disk.read(0, 1) == b"x"
        disk.close()
