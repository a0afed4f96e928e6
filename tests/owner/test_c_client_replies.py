"""The client in C beside impostors: replies that are not there, not whole, or not replies."""

from __future__ import annotations

import json
import re
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


def test_replies_may_be_chunked_and_interim_o42(c: CClient) -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked \t\r\n"
    head += b'X: y\r\netag:"18446744073709551615"\r\n\r\n'
    chunks = b"2\r\nbl\r\n0001;x=y\r\no\r\n001 \r\nb\r\n0\r\n\r\n"
    for pieces in ((head + chunks,), (head, chunks), tuple(bytes([b]) for b in head + chunks)):
        with replying(c, *pieces):
            assert c.get("a") == (b"blob", (1 << 64) - 1)
    with replying(c, head + b"0\r\n\r\n"):
        assert c.get("a", 0)[0] == b""
    with replying(c, BLOB.replace(b"\r\n", b"\n")):
        assert c.get("a") == (b"blob", 7)


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
    document = b'{"class": "BlobTooLargeError", "exit_code": 63, "detail": "too large"}'
    refusal = b"HTTP/1.1 413 x\r\nContent-Length: %d\r\n\r\n%s" % (len(document), document)
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
        (b"\r\n", BAD_REPLY),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", BAD_REPLY),
        (b"HTTP/1.1 20x OK\r\n\r\n", BAD_REPLY),
        (b"HTTP/1.1 99999999999999999999 OK\r\n\r\n", BAD_REPLY),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", BAD_REPLY),
        (BLOB.replace(b"ETag", b"X: y\r\n" * 100 + b"ETag"), BAD_REPLY),
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
        (BLOB.replace(b"Content-Length: 4", b"Transfer-Encoding: gzip"), BAD_REPLY),
        *(
            (BLOB.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked")[:-4] + chunks, found)
            for chunks, found in (
                (b"blob\r\n", BAD_REPLY),
                (b"\r\n", BAD_REPLY),
                (b"-1\r\n", BAD_REPLY),
                (b"0x4\r\nblob\r\n0\r\n\r\n", BAD_REPLY),
                (b"4\r\nblobs\r\n0\r\n\r\n", BAD_REPLY),
                (b"4\r\nblob\r\n0\r\nX: y\r\n\r\n", BAD_REPLY),
                (b"FFFFFFFFFFFFFFFF\r\nblob", TOO_LARGE),
                (b"FFFFFFFFFFFFFFFFF\r\nblob", BAD_REPLY),
                (b"4\r\nblob\r\nFFFFFFFFFFFFFFFC\r\n", TOO_LARGE),
                (b"100000\r\n" + bytes(1 << 20) + b"\r\n1\r\nx\r\n0\r\n\r\n", TOO_LARGE),
            )
        ),
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
    "document",
    [
        b"",
        b"{",
        b"[1]",
        b'"class"',
        b'{"class": "X", "detail": "y"}',
        b'{"class": "X", "exit_code": 61}',
        b'{"detail": "y", "exit_code": 61}',
        b'{"class": "X", "detail": "y", "exit_code": 0}',
        b'{"class": "X", "detail": "y", "exit_code": 256}',
        b'{"class": "X", "detail": "y", "exit_code": -1}',
        b'{"class": "X", "detail": "y", "exit_code": 61e0}',
        b'{"class": "X", "exit_code": 61, "detail": "y',
        b'{"class": "X", "exit_code": 61, "detail": "y\\',
        b'{"class": "X", "exit_code": 61, "detail": "\\u12"}',
        b'{"class": "X", "exit_code": 61, "detail": "\\x"}',
        b'{"class": "X", "exit_code": 61, "detail": "\\x and more"}',
        b'{"class": "X", "exit_code": 61, "detail": "' + b"y" * 8147 + b"\\",
        b'{"class": "X", "exit_code": 61, "detail": "\\\b"}',
        b'{"class": "X", "exit_code": 61, "detail": "a\nb"}',
        b'{"class": "X", "exit_code": 61, "detail": "a\0b"}',
        b'{"a": {"class": "X", "exit_code": 61, "detail": "y"}}',
        b'[{"class": "X", "exit_code": 61, "detail": "y"}]',
    ],
)
def test_refusals_without_reasons_are_bad_replies_o33(c: CClient, document: bytes) -> None:
    with replying(c, b"HTTP/1.1 404 x\r\nContent-Length: %d\r\n\r\n" % len(document) + document):
        assert failure(lambda: c.delete("a")).result == BAD_REPLY


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
        b"FFFFFFFFFFFFFFF0",
        b'{"class":"X","exit_code":5,"detail":"',
        b'"max_size":5,"size":null,"generation":9',
        b"\\ud83d",
        b"\\u0000",
        b"\xff\xfe",
        b'"',
        b"}",
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


_VALUES = st.recursive(
    st.none() | st.text(max_size=20) | st.floats(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values),
    max_leaves=8,
)


@settings(max_examples=cases(300, 20000), deadline=None)
@given(
    st.text(st.characters(codec=None), max_size=50),
    st.integers(0, 900),
    st.dictionaries(st.text(max_size=3), _VALUES, max_size=3),
    st.booleans(),
    st.sampled_from([None, 2]),
)
@example("\ud83d", 0, {}, True, None)
@example("\udc00\ud800", 0, {}, True, None)
@example("€", 797, {}, False, None)
def test_messages_arrive_as_they_were_o31(
    shared: CClient,
    text: str,
    more: int,
    others: dict[str, object],
    plain: bool,
    indent: int | None,
) -> None:
    """Decoded as Python decodes it, and cut between two characters."""
    detail = "x" * more + (text if plain else re.sub("[\ud800-\udfff]", "", text))
    document = {"title": "t", **others, "detail": detail, "exit_code": 5, "class": 'X"\\/\n'}
    body = json.dumps(document, ensure_ascii=plain, indent=indent).encode()
    head = b"HTTP/1.1 500 x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with replying(shared, head + body):
        found = failure(lambda: shared.put("a", b""))
    assert (found.result, found.kind, found.maybe_done) == (5, 'X"\\/\n', False)
    # What C cannot have in a text, and what UTF-8 cannot, is replaced.
    expected = re.sub(
        "[\0\ud800-\udfff]",
        "\ufffd",
        detail.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"),
    )
    assert expected.startswith(found.message)
    if len(expected.encode()) < 797:
        assert found.message == expected
    else:
        assert len(found.message.encode()) >= 790
