"""Letting go of the store while clients are connected, and going on (O136, O141)."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.nbd.exports import NbdDevice, NbdSections
from blobstore.nbd.server import NbdServer
from blobstore.store.windows.buffered import BufferedWindow
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from formats.nbd.numbers import Command, Errno
from tests.nbd.support import Client, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[blobstore.Store]:
    with blobstore.create(tmp_path / "image", {"b": 100}, encrypted=False, free=1 << 20) as made:
        made.put("b", b"blob")
        made.register("w", 8192, "window")
        made.register("single", 8192, "window", copies=1)
    with blobstore.open(tmp_path / "image", direct=True) as opened:
        yield opened


@pytest.fixture
def server(store: blobstore.Store, tmp_path: Path) -> Iterator[NbdServer]:
    memory = NbdDevice("memory", MemoryDevice(4096), writable=True)
    with NbdServer(tmp_path / "s", NbdSections(store), memory) as running:
        yield running


@contextmanager
def connected(server: NbdServer, name: str) -> Iterator[Client]:
    with Client(server.address) as client:
        client.begin(name, structured=False)
        yield client


def ask(client: Client, command: Command, data: bytes = b"", length: int = 0) -> tuple[int, bytes]:
    client.send(request(command, 0, length, data))
    return client.reply(length if command is Command.READ else 0)


def test_devices_are_read_as_they_were_committed_o141(
    server: NbdServer, store: blobstore.Store
) -> None:
    with connected(server, "w") as window, connected(server, "memory") as memory:
        assert ask(window, Command.WRITE, b"uncommitted")[0] == 0
        server.suspend(waiting=False)
        store.release()
        server.suspend(waiting=False)  # again changes nothing
        with connected(server, "b") as blob, connected(server, "single") as single:
            assert ask(blob, Command.READ, length=4) == (0, b"blob")
            assert ask(single, Command.READ, length=4) == (0, bytes(4))
        for command, data, length in [
            (Command.WRITE, b"x", 0),
            (Command.TRIM, b"", 4096),
            (Command.WRITE_ZEROES, b"", 4096),
        ]:
            assert ask(window, command, data, length)[0] == Errno.EPERM
        assert ask(window, Command.FLUSH)[0] == 0  # what was written is committed
        assert ask(window, Command.READ, length=11) == (0, b"uncommitted")
        assert ask(memory, Command.WRITE, b"x")[0] == 0  # it is not of the store
        with connected(server, "w") as late:
            assert ask(late, Command.WRITE, b"x")[0] == Errno.EPERM
            store.take_over()
            server.resume()
            assert ask(late, Command.WRITE, b"one")[0] == 0
            assert ask(window, Command.READ, length=3) == (0, b"one")
            assert ask(window, Command.FLUSH)[0] == 0
    assert store.get("w")[:11] == b"oneommitted"


def test_clients_wait_and_go_on_o136(server: NbdServer, store: blobstore.Store) -> None:
    with connected(server, "w") as window:
        server.suspend(waiting=True)
        store.release()
        window.send(request(Command.WRITE, 0, data=b"late"))
        window.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            window.reply()
        arriving = threading.Thread(target=lambda: connected(server, "b").__enter__().close())
        arriving.start()
        store.take_over()
        server.resume()
        window.socket.settimeout(20)
        assert window.reply().error == 0
        arriving.join(20)
        assert not arriving.is_alive()
        assert ask(window, Command.FLUSH)[0] == 0
    assert store.get("w")[:4] == b"late"


def test_clients_that_wait_are_not_answered_at_the_end_o136(
    store: blobstore.Store, tmp_path: Path
) -> None:
    with NbdServer(tmp_path / "s", NbdSections(store)) as server, connected(server, "w") as window:
        server.suspend(waiting=True)
        store.release()
        window.send(request(Command.WRITE, 0, data=b"lost"))
        server.stop()
        with pytest.raises(EOFError):
            window.reply()
    store.take_over()
    assert not store.section("w").size


def test_a_device_that_cannot_be_committed_goes_on_o140(
    server: NbdServer, store: blobstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its flush fails, its end, or what is read after that."""
    for kind, method in [
        (BufferedWindow, "_make_durable"),
        (BufferedWindow, "_finish"),
        (NbdSections, "open_released"),
    ]:
        with connected(server, "w") as window, connected(server, "single") as single:
            with monkeypatch.context() as failing:

                def fail(*_: object) -> None:
                    raise DeviceError("the disk is gone")

                failing.setattr(kind, method, fail)
                with pytest.raises(DeviceError, match="gone"):
                    server.suspend(waiting=False)
            assert ask(single, Command.READ, length=4) == (0, bytes(4))
            assert ask(window, Command.WRITE, os.fsencode(method))[0] == 0
            assert ask(window, Command.FLUSH)[0] == 0
        store.put("b", b"the store is here")
        assert store.get("w").startswith(os.fsencode(method))


def test_a_device_that_is_gone_then_fails_alone_o141(
    server: NbdServer, store: blobstore.Store, tmp_path: Path
) -> None:
    store.register("v", 4096, "window")
    with connected(server, "w") as window, connected(server, "v") as other:
        server.suspend(waiting=False)
        store.release()
        with blobstore.open(tmp_path / "image", direct=True) as elsewhere:
            elsewhere.delete("w")
        store.take_over()
        server.resume()
        assert ask(window, Command.WRITE, b"x")[0] == Errno.EPERM
        assert ask(other, Command.WRITE, b"x")[0] == 0
