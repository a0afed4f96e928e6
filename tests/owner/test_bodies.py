"""Bodies of requests, however the bytes arrive: in one piece with others, or in many."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

import pytest

from blobstore.owner import receiving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import blobstore

pytestmark = pytest.mark.usefixtures("server")

HEAD = b"PUT /v1/sections/large HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def sock(store: blobstore.Store, tmp_path: Path) -> Iterator[socket.socket]:
    store.register("large", 1 << 20)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(tmp_path / "socket"))
        yield client


def sized(body: bytes, *headers: bytes) -> bytes:
    lines = (b"Content-Length: %d" % len(body), *headers)
    return HEAD + b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body: bytes) -> bytes:
    chunks = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def replies(sock: socket.socket, count: int) -> list[bytes]:
    """Return so many replies without bodies, or all if the connection ends before that."""
    received = b""
    while received.count(b"\r\n\r\n") < count and (piece := sock.recv(65536)):
        received += piece
    return received.split(b"\r\n\r\n")


def test_bodies_arrive_however_they_are_cut_o10_o21(
    sock: socket.socket, store: blobstore.Store
) -> None:
    """Also where a body ends where a piece does that was received with the head."""
    generator = random.Random(15)
    piece = receiving._HEAD_PIECE
    near = [piece - len(sized(b"x" * 3999)) + 3999 + n for n in (-1, 0, 1)]
    for size in (*near, 0, 1, piece, 2 * piece, 65536, 65537, 300_000):
        bodies = [generator.randbytes(size), b"short", generator.randbytes(size // 2)]
        make = generator.choices([sized, chunked], k=3)
        sent = b"".join(one(body) for one, body in zip(make, bodies, strict=True))
        for pieces in (1, 2, 7):
            cuts = sorted(generator.sample(range(len(sent)), pieces - 1))
            generation = store.section("large").generation
            for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                sock.sendall(sent[start:end])
            found = replies(sock, 3)
            assert [reply[:12] for reply in found] == [*[b"HTTP/1.1 204"] * 3, b""]
            assert store.section("large").generation == generation + 3
            assert store.get("large") == bodies[2]
            assert store.get("large", previous=True) == b"short"


def test_a_body_that_ends_early_changes_nothing_o12(
    sock: socket.socket, store: blobstore.Store
) -> None:
    before = store.digest()
    sock.sendall(sized(bytes(100_000))[:-1])
    sock.shutdown(socket.SHUT_WR)
    assert replies(sock, 2)[0].startswith(b"HTTP/1.1 400 ")
    assert store.digest() == before


def test_bytes_after_a_body_are_the_next_request_o12(
    sock: socket.socket, store: blobstore.Store
) -> None:
    sock.sendall(sized(bytes(1000)) + b"garbage\r\n\r\n")
    first, second = replies(sock, 2)[:2]
    assert first.startswith(b"HTTP/1.1 204 ")
    assert second.startswith(b"HTTP/1.1 400 ")
    assert store.get("large") == bytes(1000)


def test_close_is_heard_beside_a_body_o10(sock: socket.socket, store: blobstore.Store) -> None:
    sock.sendall(sized(bytes(1000), b"Connection: close") + sized(b"not answered"))
    assert replies(sock, 2)[0].startswith(b"HTTP/1.1 204 ")
    assert store.get("large") == bytes(1000)


def test_a_body_is_asked_for_only_if_it_would_be_taken_o10_o11(
    sock: socket.socket, store: blobstore.Store, tmp_path: Path
) -> None:
    expecting = sized(bytes(9000), b"Expect: 100-continue")
    sock.sendall(expecting[:-9000])
    assert replies(sock, 1)[0] == b"HTTP/1.1 100 Continue"
    sock.sendall(bytes(9000))
    assert replies(sock, 1)[0].startswith(b"HTTP/1.1 204 ")
    sock.sendall(expecting[:-9000].replace(b"large", b"b"))  # which holds 3000 bytes
    assert replies(sock, 1)[0].startswith(b"HTTP/1.1 413 ")
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(30)
        other.connect(str(tmp_path / "socket"))
        before = store.digest()
        # Little is received before it is refused, and the connection goes on.
        for name, status in ((b"b", b"413"), (b"missing", b"404")):
            other.sendall(sized(bytes(3001)).replace(b"large", name))
            assert replies(other, 1)[0].startswith(b"HTTP/1.1 " + status)
        assert store.digest() == before
        other.sendall(sized(b"1"))
        assert replies(other, 1)[0].startswith(b"HTTP/1.1 204 ")
