"""N60, N63: whatever a server answers, the client raises one of the project's errors in time."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore.image.remote.nbd_connection import NbdAddress
from blobstore.image.remote.nbd_disk import NbdDisk
from formats.errors import DeviceError, FormatError, StorageError
from formats.nbd.handshake import Handshake
from formats.nbd.model import Begun, Export, ExportWanted
from formats.nbd.numbers import SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, Command
from formats.nbd.replies import Replies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 1 << 20


class Server:
    """Answers one client after the other with what ``answer`` does with the connection."""

    def __init__(self, path: Path, answer: Callable[[socket.socket], None]) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._answer = answer
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                with client, suppress(OSError):
                    client.settimeout(2)
                    self._answer(client)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


def greeted(client: socket.socket) -> Begun | None:
    """Do the handshake as this project's server does it."""
    handshake = Handshake()
    while True:
        event = handshake.next_event()
        client.sendall(handshake.outgoing())
        if isinstance(event, ExportWanted):
            handshake.tell_export(Export("", SIZE, read_only=False))
        elif isinstance(event, Begun):
            return event
        elif event is None:
            data = client.recv(4096)
            if not data:
                return None
            handshake.receive(data)
        else:
            return None


def read_from(answer: Callable[[socket.socket], None]) -> bytes:
    """Read 16 bytes from a server that answers so."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "socket")
        with (
            Server(path, answer),
            NbdDisk(NbdAddress(socket=path, timeout=1), reconnecting=0.05) as disk,
        ):
            return disk.read(0, 16)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_n60_any_bytes_for_a_greeting(data: bytes) -> None:
    with pytest.raises((DeviceError, FormatError, StorageError)):
        read_from(lambda client: client.sendall(data))


def _pieces() -> st.SearchStrategy[bytes]:
    number = st.integers(0, 70_000)
    simple = st.builds(
        lambda error, cookie: (
            b"".join((SIMPLE_REPLY_MAGIC.to_bytes(4, "big"), error.to_bytes(4, "big")))
            + cookie.to_bytes(8, "big")
        ),
        st.sampled_from((0, 5, 28)),
        st.integers(0, 3),
    )
    chunk = st.builds(
        lambda flags, kind, cookie, length, body: (
            STRUCTURED_REPLY_MAGIC.to_bytes(4, "big")
            + flags.to_bytes(2, "big")
            + kind.to_bytes(2, "big")
            + cookie.to_bytes(8, "big")
            + (len(body) if length is None else length).to_bytes(4, "big")
            + body
        ),
        st.integers(0, 3),
        st.sampled_from((0, 1, 2, 5, 9, 0x8001, 0x8002, 0xFFFF)),
        st.integers(0, 3),
        st.none() | number,
        st.binary(max_size=40),
    )
    return st.one_of(simple, chunk, st.binary(max_size=60))


@settings(max_examples=100, deadline=None)
@given(st.lists(_pieces(), max_size=4))
def test_n63_any_replies(pieces: list[bytes]) -> None:
    def answer(client: socket.socket) -> None:
        if greeted(client) is not None:
            client.recv(28)
            client.sendall(b"".join(pieces))

    try:
        data = read_from(answer)
    except StorageError:
        return
    assert len(data) == 16


CORRUPT: dict[str, Callable[[int, Replies], bytes]] = {
    "another cookie": lambda cookie, replies: replies.read(cookie + 1, 0, 16) + bytes(16),
    "another place": lambda cookie, replies: replies.read(cookie, 8, 16) + bytes(16),
    "too few bytes": lambda cookie, replies: replies.read(cookie, 0, 8) + bytes(8),
    "no bytes": lambda cookie, replies: replies.done(cookie),
    "extents": lambda cookie, replies: replies.block_status(cookie, []),
}


@pytest.mark.parametrize("how", CORRUPT)
def test_n63_a_wrong_answer_is_never_data(how: str) -> None:
    def answer(client: socket.socket) -> None:
        if greeted(client) is not None:
            head = client.recv(28)
            assert int.from_bytes(head[6:8], "big") == Command.READ
            cookie = int.from_bytes(head[8:16], "big")
            client.sendall(CORRUPT[how](cookie, Replies(structured=True)))

    with pytest.raises(DeviceError, match="N63"):
        read_from(answer)


def test_a_right_answer_is() -> None:
    def answer(client: socket.socket) -> None:
        if greeted(client) is not None:
            cookie = int.from_bytes(client.recv(28)[8:16], "big")
            client.sendall(Replies(structured=True).read(cookie, 0, 16) + bytes(range(16)))

    assert read_from(answer) == bytes(range(16))


def test_a_silent_server_is_not_waited_for_without_end() -> None:
    with pytest.raises(DeviceError):
        read_from(_say_nothing)


def _say_nothing(client: socket.socket) -> None:
    client.recv(1)


def options_without_end() -> Iterator[bytes]:
    """Yield replies to one option, one after the other."""
    while True:
        yield b"\0\x03\xe8\x89\x04\x55\x65\xa9" + bytes((0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0))


def test_n60_replies_without_end_are_refused() -> None:
    def answer(client: socket.socket) -> None:
        client.sendall(Handshake().outgoing())
        client.recv(4)
        client.recv(100)
        for reply in options_without_end():
            client.sendall(reply)

    with pytest.raises(FormatError, match="without end"):
        read_from(answer)
