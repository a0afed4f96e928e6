"""What becomes of the writes of a client that is gone (P60 to P62).

`tests.simulation` found these: a write that an NBD server had received, and not begun, when the
connection broke was carried out after those of the next connection, and undid them; and one that
was in the server's cache was read by the next client, and then lost with the server.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from blobstore.image.remote.nbd_connection import NbdAddress, NbdConnection
from blobstore.image.remote.nbd_disk import NbdDisk
from blobstore.nbd.exports import NbdDevice
from blobstore.nbd.server import NbdServer
from formats.devices.device import MemoryDevice
from formats.nbd.numbers import Command
from tests.nbd.support import Client, request

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore.nbd.sockets import Address
    from formats.devices.device import WritableBuffer

_OLD, _NEW = b"o" * 512, b"n" * 512


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(4096)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("more", [b"", request(Command.READ, 0, 512)], ids=["alone", "more"])
def test_p61_a_write_that_waits_is_dropped_when_its_client_has_gone(
    tmp_path: Path, device: MemoryDevice, kind: str, more: bytes
) -> None:
    address: Address = ("127.0.0.1", 0) if kind == "tcp" else tmp_path / "nbd.sock"
    with NbdServer(address, NbdDevice("disk", device, writable=True)) as server:
        with Client(server.address) as gone, Client(server.address) as other:
            gone.begin("disk")
            other.begin("disk")
            with server.at_rest():
                gone.send(request(Command.WRITE, 0, data=_OLD) + more)
                time.sleep(0.2)  # it is received, and waits; were it not, nothing would be proved
                gone.close()
            time.sleep(0.2)  # more than it takes, once it may go on
            assert other.read(0, 512).data == bytes(512)
            assert other.write(0, _NEW).error == 0
        assert bytes(device.content[:512]) == _NEW


def test_p61_a_write_that_waits_is_carried_out_while_its_client_is_there(
    tmp_path: Path, device: MemoryDevice
) -> None:
    with (
        NbdServer(tmp_path / "nbd.sock", NbdDevice("disk", device, writable=True)) as server,
        Client(server.address) as client,
    ):
        client.begin("disk")
        with server.at_rest():
            client.send(request(Command.WRITE, 0, data=_NEW))
        assert client.reply().error == 0
    assert bytes(device.content[:512]) == _NEW


class Counting(MemoryDevice):
    """Notes reads and flushes."""

    def __init__(self) -> None:
        super().__init__(4096)
        self.log: list[str] = []

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self.log.append("read")
        super().read_into(offset, buffer)

    def flush(self) -> None:
        self.log.append("flush")


@pytest.mark.parametrize(("read_only", "done"), [(False, ["flush", "read"]), (True, ["read"])])
def test_p62_a_device_is_flushed_before_a_writer_reads_it(
    tmp_path: Path, read_only: bool, done: list[str]
) -> None:
    device, path = Counting(), tmp_path / "nbd.sock"
    with NbdServer(path, NbdDevice("disk", device, writable=True)):
        device.log.clear()
        address = NbdAddress(socket=path, export="disk")
        with NbdDisk(address, read_only=read_only) as disk:
            disk.read(0, 512)
    assert device.log == done


def test_p60_a_connection_that_is_given_up_is_reset_and_one_that_is_closed_is_not() -> None:
    ends: list[bytes | str] = []

    def serve(listening: socket.socket, server: NbdServer) -> None:
        """Pass on what a client and the server say; note how the client ends."""
        client = listening.accept()[0]
        with client, socket.create_connection(server.address) as there:  # type: ignore[arg-type]
            back = threading.Thread(target=_pump, args=(there, client))
            back.start()
            ends.append(_pump(client, there))
            there.shutdown(socket.SHUT_RDWR)
            back.join()

    with (
        NbdServer(("127.0.0.1", 0), NbdDevice("disk", MemoryDevice(4096))) as server,
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        for end in (NbdConnection.abandon, NbdConnection.close):
            thread = threading.Thread(target=serve, args=(listening, server))
            thread.start()
            end(NbdConnection(NbdAddress(socket=listening.getsockname()[:2], export="disk")))
            thread.join()
    assert ends == ["reset", b""]


def _pump(source: socket.socket, target: socket.socket) -> bytes | str:
    try:
        while piece := source.recv(4096):
            target.sendall(piece)
    except ConnectionResetError:
        return "reset"
    except OSError:
        return "closed"
    return b""
