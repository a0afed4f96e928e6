"""The client in C beside impostors: replies that are not there, not whole, or not replies."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blobstore.errors import BlobNotFoundError
from blobstore.owner import problems
from formats.errors import DeviceBusyError, StorageError
from tests.support.c_client import (
    BAD_REPLY,
    LOST,
    NO_OWNER,
    TOO_LARGE,
    USAGE,
    CClient,
    CError,
    failure,
)
from tests.support.effort import cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OK = b'HTTP/1.1 204 \r\nETag: "7"\r\n\r\n'
BLOB = b'HTTP/1.1 200 \r\nETag: "7"\r\nContent-Length: 4\r\n\r\nblob'


@pytest.fixture(scope="module")
def shared(driver: Path) -> Iterator[CClient]:
    with CClient(driver) as client:
        yield client


def refusing(summary: bytes) -> bytes:
    """Return a reply that refuses, with a document that the client does not read."""
    return b"HTTP/1.1 413 x\r\nBlobstore-Error: %s\r\nContent-Length: 2\r\n\r\n{}" % summary


@contextmanager
def impostor(answer: Callable[[socket.socket], object]) -> Iterator[Path]:
    """Listen, and have each connection answered by a function; it is closed after that."""
    with tempfile.TemporaryDirectory(prefix="owner-") as directory:
        path = Path(directory, "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(8)

            def serve() -> None:
                while True:
                    try:
                        sock, _ = listener.accept()
                    except OSError:
                        return
                    with sock:
                        try:
                            answer(sock)
                        except OSError:
                            continue

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield path
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join(60)
                assert not thread.is_alive()


@contextmanager
def replying(c: CClient, *pieces: bytes, timeout: float = 30) -> Iterator[None]:
    """Connect the client to what reads a request once, sends these bytes, and ends."""

    def answer(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        for piece in pieces:
            sock.sendall(piece)

    with impostor(answer) as path:
        c.open(path=path, timeout=timeout)
        yield


def test_replies_may_be_interim_and_in_pieces_o42(c: CClient) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX: y\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH: \t4\r\n"
    head += b'X: etag: "1"\r\netag:"18446744073709551615"\r\n\r\n'
    for whole in (head + b"blob", interim + head + b"blob"):
        for pieces in ((whole,), (whole[:-4], b"blob"), tuple(bytes([b]) for b in whole)):
            with replying(c, *pieces):
                assert c.get("a", 4) == (b"blob", (1 << 64) - 1)
    with replying(c, head.replace(b"4", b"0")):
        assert c.get("a", 0)[0] == b""


@pytest.mark.parametrize("reply", [OK, BLOB], ids=["put", "get"])
def test_an_owner_that_goes_away_is_told_from_all_else_o34(c: CClient, reply: bytes) -> None:
    """A change whose reply is not there, or not all of it, may have been made."""
    for length in range(len(reply)):
        with replying(c, reply[:length]):
            call = (lambda: c.get("a")) if reply is BLOB else (lambda: c.put("a", b"new"))
            found = failure(call)
            assert (found.result, found.exit_code, found.kind) == (LOST, 20, ""), length
            assert found.maybe_done == (reply is OK)
            assert ("may have been made" in found.message) == found.maybe_done


def test_what_was_not_sent_as_a_whole_was_not_done_o7(c: CClient) -> None:
    with impostor(lambda sock: sock.recv(1)) as path:
        c.open(path=path)
        found = failure(lambda: c.put("a", bytes(8 << 20)))
    assert (found.result, found.maybe_done) == (LOST, False)
    refusal = refusing(b"63 BlobTooLargeError too large")
    for reply, result in ((refusal, 63), (OK, BAD_REPLY)):

        def answer(sock: socket.socket, reply: bytes = reply) -> None:
            sock.recv(1)
            sock.sendall(reply)

        with impostor(answer) as path:
            c.open(path=path)
            found = failure(lambda: c.put("a", bytes(8 << 20)))
        assert (found.result, found.maybe_done) == (result, False)


def test_silence_ends_with_the_time_of_the_call_o42(c: CClient) -> None:
    """Also if signals arrive all the time, bytes trickle, or nothing takes the request."""

    def trickle(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            sock.sendall(b"x")
            time.sleep(0.01)

    waiting = threading.Event()
    for number, answer in enumerate((lambda _: waiting.wait(1.2), trickle)):
        for interrupts in (0, 1000):
            with impostor(answer) as path:
                c.open(path=path, timeout=0.5)
                c.interrupt(interrupts)
                found = failure(lambda: c.put("a", b""))
                assert (found.result, found.maybe_done) == (LOST, True), number
                assert "too long" in found.message
                if number == 0:
                    c.open(path=path, timeout=0.5)
                    found = failure(lambda: c.put("a", bytes(8 << 20)))
                    assert (found.result, found.maybe_done) == (LOST, False)
                c.interrupt(0)
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "socket")
        listener.bind(str(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            found = failure(lambda: c.open(path=path, timeout=0.1))
    assert found.result == NO_OWNER


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (b"\r\n\r\n", BAD_REPLY),
        (b"\r\n", LOST),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", BAD_REPLY),
        (b"HTTP/1.1 20x OK\r\n\r\n", BAD_REPLY),
        (b"HTTP/1.1 99999999999999999999 OK\r\n\r\n", BAD_REPLY),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", BAD_REPLY),
        (BLOB.replace(b"\r\n", b"\n"), LOST),
        (BLOB.replace(b"ETag", b"X: y\r\n" * 1400 + b"ETag"), BAD_REPLY),
        (BLOB.replace(b"ETag", b"\0ETag"), BAD_REPLY),
        (BLOB.replace(b"ETag", b'ETag: "7"\r\nETag'), BAD_REPLY),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100000 + b"\r\n\r\n", BAD_REPLY),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100, BAD_REPLY),
        (b"HTTP/1.1 200 OK\r\n\r\nblob", BAD_REPLY),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nblob", BAD_REPLY),
        (BLOB.replace(b'"7"', b'"x"'), BAD_REPLY),
        (BLOB.replace(b'"7"', b'W/"7"'), BAD_REPLY),
        (BLOB.replace(b'"7"', b'"18446744073709551616"'), BAD_REPLY),
        (BLOB.replace(b": 4", b": -4"), BAD_REPLY),
        (BLOB.replace(b": 4", b": 0x4"), BAD_REPLY),
        (BLOB.replace(b": 4", b": 4, 4"), BAD_REPLY),
        (BLOB.replace(b": 4", b": 4\r\nContent-Length: 4"), BAD_REPLY),
        (BLOB.replace(b": 4", b": 4\r\nTransfer-Encoding: chunked"), BAD_REPLY),
        (BLOB.replace(b": 4", b": 18446744073709551616"), BAD_REPLY),
        (BLOB.replace(b": 4", b": 18446744073709551615"), TOO_LARGE),
        (BLOB.replace(b": 4", b": 1048577"), TOO_LARGE),
        (BLOB.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked"), BAD_REPLY),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", BAD_REPLY),
        (b"HTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\n", BAD_REPLY),
        (b"HTTP/1.1 404 x\r\nContent-Length: 100000\r\n\r\n", TOO_LARGE),
        (b"HTTP/1.1 304 x\r\n\r\n", BAD_REPLY),
    ],
)
def test_bad_replies_are_errors_o12_o33(c: CClient, reply: bytes, result: int) -> None:
    with replying(c, reply):
        found = failure(lambda: c.get("a"))
    assert (found.result, found.maybe_done) == (result, False)
    assert found.exit_code == (30 if result == BAD_REPLY else 20)


@pytest.mark.parametrize(
    "summary",
    [
        b"",
        b"61",
        b"61 ",
        b"61 X",
        b"61 X ",
        b"X y",
        b"0 X y",
        b"256 X y",
        b"-1 X y",
        b"9999 X y",
        b"0x1 X y",
        b"61 X y\r\nBlobstore-Error: 61 X y",
        b"\x0061 X y",
        b"61 \0X y",
    ],
)
def test_refusals_without_reasons_are_bad_replies_o33_o151(c: CClient, summary: bytes) -> None:
    with replying(c, refusing(summary)):
        found = failure(lambda: c.delete("a"))
    assert (found.result, found.kind) == (BAD_REPLY, "")
    with replying(c, refusing(b"61 X y").replace(b"Blobstore", b"blob")):
        assert failure(lambda: c.delete("a")).result == BAD_REPLY


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (b"5 3", (True, 3, 5, 7)),
        (b"5 0", (True, 0, 5, 7)),
        (b"5 -", (False, 0, 5, 7)),
        (b"18446744073709551615 -", (False, 0, (1 << 64) - 1, 7)),
        (b"18446744073709551616 -", None),
        (b"5", None),
        (b"5 ", None),
        (b"5 x", None),
        (b"5 3 1", None),
        (b"5  3", None),
        (b"-5 3", None),
    ],
)
def test_sections_are_described_in_the_head_o151(
    c: CClient, said: bytes, found: tuple[bool, int, int, int] | None
) -> None:
    reply = BLOB.replace(b"ETag", b"Blobstore-Section: " + said + b"\r\nETag")
    with replying(c, reply):
        if found is None:
            assert failure(lambda: c.info("a")).result == BAD_REPLY
        else:
            assert c.info("a") == found


def test_bytes_after_a_reply_are_not_the_next_one(c: CClient) -> None:
    """Otherwise a put would be acknowledged before it was asked for."""
    replies = iter([OK + OK, b"HTTP/1.1 500"])

    def answer(sock: socket.socket) -> None:
        sock.recv(1 << 16)
        sock.sendall(reply := next(replies))
        if reply.startswith(OK):
            assert sock.recv(1) == b"", "the client uses this connection again"

    with impostor(answer) as path:
        c.open(path=path)
        assert c.put("a", b"1") == 7
        assert failure(lambda: c.put("a", b"2")).result == LOST


def test_names_that_are_too_long_are_errors_of_the_caller(c: CClient) -> None:
    with replying(c, OK):
        assert failure(lambda: c.put("x" * 100_000, b"")).result == USAGE
        assert failure(lambda: c.put("/" * 1000, b"")).result == USAGE
        assert failure(lambda: c.register("a", 1, "x" * 1000)).result == USAGE


_PIECES = st.sampled_from(
    [
        b"HTTP/1.1 ",
        b"200 OK",
        b"404 x",
        b"204",
        b"100 ",
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b'ETag: "1"\r\n',
        b"Content-Length: ",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"4",
        b"18446744073709551615",
        b"Blobstore-Error: ",
        b"Blobstore-Section: ",
        b"5 XError it is not so",
        b"5 -",
        b"y" * 900,
        b"-1",
        b" ",
        b":",
        b'"',
        b"\0",
    ]
)


@settings(max_examples=cases(400, 20000), deadline=None)
@given(
    st.lists(_PIECES | st.binary(max_size=20), max_size=30).map(b"".join)
    | st.tuples(st.sampled_from([OK, BLOB]), st.integers(0, 60), st.binary(max_size=5)).map(
        lambda one: one[0][: one[1]] + one[2] + one[0][one[1] :]
    ),
    st.sampled_from(["get", "put", "info", "delete", "register"]),
    st.integers(0, 40),
)
def test_any_bytes_give_a_result_o42(
    shared: CClient, reply: bytes, verb: str, capacity: int
) -> None:
    """The sanitizers end the process otherwise."""
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: shared.get("a", capacity),
        "put": lambda: shared.put("a", b"new", 3),
        "info": lambda: shared.info("a"),
        "delete": lambda: shared.delete("a"),
        "register": lambda: shared.register("a", 3),
    }
    with replying(shared, reply):
        found = None
        try:
            calls[verb]()
        except CError as error:
            found = error
    if found is not None:
        assert found.result in (LOST, BAD_REPLY, TOO_LARGE, 5)
        assert found.maybe_done == (verb in ("put", "delete", "register") and found.result < 0)


@settings(max_examples=cases(300, 20000), deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=50),
    st.integers(0, 900),
    st.sampled_from([ValueError, BlobNotFoundError, DeviceBusyError]),
)
@example("€", 699, ValueError)
@example("\0a\nb\r\n\u2028c\x7f", 0, ValueError)
@example(" ", 0, ValueError)
def test_messages_arrive_as_they_were_o31_o151(
    shared: CClient, text: str, more: int, kind: type[ValueError | StorageError]
) -> None:
    """As the owner says them in the head, and cut between two characters."""
    error = kind("x" * more + text)
    summary = problems.summary_of(error)
    with replying(shared, refusing(summary.encode())):
        found = failure(lambda: shared.put("a", b""))
    exit_code = getattr(kind, "exit_code", 1)
    assert (found.result, found.kind, found.maybe_done) == (exit_code, kind.__name__, False)
    expected = "".join(c if c.isprintable() else " " for c in str(error)).strip() or "-"
    assert expected.startswith(found.message.strip())
    if len(expected.encode()) <= 700:
        assert found.message.strip() == expected
    else:
        assert len(found.message.encode()) >= 696
