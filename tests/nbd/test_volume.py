"""The payload of the store that is open, as an export (N40 to N43)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from blobstore.nbd.exports import NbdSections, NbdVolume
from blobstore.nbd.server import NbdServer
from formats.devices.device import BlockDevice
from formats.errors import ReadOnlyError
from formats.nbd.numbers import Command, Errno
from tests.nbd.support import Client, option, request
from tests.support.foreign import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = b"a secret"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[blobstore.Store]:
    kdf = luks.Pbkdf2("sha256", 1000)
    with blobstore.create(tmp_path / "image", {"a": 5000}, SECRET, kdf=kdf, size=4 << 20) as opened:
        opened.put("a", b"blob")
        yield opened


@pytest.fixture
def server(store: blobstore.Store, tmp_path: Path) -> Iterator[NbdServer]:
    with NbdServer(tmp_path / "s", NbdVolume("volume", store), NbdSections(store)) as started:
        yield started


def test_n40_payload_is_only_read(store: blobstore.Store, server: NbdServer) -> None:
    payload = store.payload()
    assert isinstance(payload, BlockDevice)
    with pytest.raises(ReadOnlyError):
        payload.write(0, b"x")
    payload.flush()
    with Client(server.address) as client:
        client.begin("volume")
        for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
            data = b"x" if command is Command.WRITE else b""
            client.send(request(command, 0, 1, data))
            assert client.reply().error == Errno.EPERM
        assert client.flush().error == 0
        assert client.read(0, 4).data == payload.read(0, 4)
    assert store.verify().ok


@pytest.mark.interop
def test_n40_it_is_the_decrypted_volume(
    store: blobstore.Store, server: NbdServer, tmp_path: Path
) -> None:
    run("nbdcopy", f"nbd+unix:///volume?socket={server.address}", tmp_path / "copy")
    with blobstore.open(
        tmp_path / "copy", read_only=True, allow_unprotected=True
    ) as copied:  # nothing changed it meanwhile
        assert copied.get("a") == b"blob"
        assert copied.digest() == store.digest()


def test_n41_no_section_takes_its_name(store: blobstore.Store, server: NbdServer) -> None:
    store.register("volume", 100)
    store.put("volume", b"a section")
    with Client(server.address) as client:
        client.greet()
        names = [data[4:] for _, data in client.ask(option(3))[:-1]]
        assert sorted(names) == [b"a", b"volume"]
    with Client(server.address) as client:
        client.begin("volume")
        assert client.read(0, 512).data == store.payload().read(0, 512)


def test_n42_a_read_is_of_one_moment(store: blobstore.Store, server: NbdServer) -> None:
    began, done = threading.Event(), threading.Event()

    def read() -> None:
        with Client(server.address) as client:
            client.begin("volume")
            began.set()
            assert client.read(0, 512).error == 0
            done.set()

    with store.transaction() as changes:
        thread = threading.Thread(target=read)
        thread.start()
        assert began.wait(20)
        assert not done.wait(0.2)  # it waits for the step that is under way
        changes.put("a", b"new")
    assert done.wait(20)
    thread.join()


def test_n43_a_connection_sees_the_size_it_began_with(
    store: blobstore.Store, server: NbdServer
) -> None:
    before = store.payload().size
    with Client(server.address) as older:
        older.begin("volume")
        store.grow(before + (1 << 20))
        assert store.payload().size > before
        assert older.read(before - 1, 1).error == 0
        assert older.read(before, 1).error == Errno.EINVAL
        with Client(server.address) as newer:
            newer.begin("volume")
            assert newer.read(before, 1).error == 0


def test_n19_payload_of_a_closed_store_is_a_shutdown(
    store: blobstore.Store, server: NbdServer
) -> None:
    with Client(server.address) as client:
        client.begin("volume")
        store.close()
        assert client.read(0, 1).error == Errno.ESHUTDOWN
