"""Heads that are known, and replies that are not h11's: h11 would have said the same (O170)."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import blobstore
from blobstore.owner import StoreClient
from blobstore.owner.exchange import Exchange
from blobstore.owner.heads import KnownHeads
from blobstore.owner.limits import Limits
from blobstore.owner.problems import RefusedError
from blobstore.owner.receiving import Receiving
from blobstore.owner.replies import END_OF_BODY, chunk, head_of, sends_body
from blobstore.owner.resources import Reply
from formats.errors import DeviceError, FormatError
from tests.support.effort import cases
from tests.support.owners import owner_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.owner.resources import Request

LIMITS = Limits(idle=5, receiving=5)
HEADS = [
    b"PUT /v1/sections/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
    b'PUT /v1/sections/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nIf-Match: "7"\r\n\r\n',
    b'PUT /a HTTP/1.1\r\nHost: x\r\nif-match: "7"\r\nIF-MATCH: "8"\r\nContent-Length: 1\r\n\r\n',
    b"HEAD /v1/sections HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/store HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
]
#: Put where something of a head was: among them what changes where it ends.
PARTS = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b"\r\n", b"\n", b"\r\n\r\n", b'"', b"9", b"00", b": ", b"If-Match"]),
)


@contextmanager
def pair() -> Iterator[tuple[socket.socket, Receiving]]:
    mine, others = socket.socketpair()
    with mine, others:
        mine.settimeout(5)
        yield mine, Receiving(others, LIMITS)


def outcome(sock: socket.socket, receiving: Receiving, sent: bytes) -> object:
    """Return what the last bytes of a client mean: a request, the status of a refusal, or None."""
    sock.sendall(sent)
    sock.shutdown(socket.SHUT_WR)
    try:
        request = receiving.head()
    except RefusedError as error:
        return error.status
    if request is None:
        return None
    return (*request, receiving.is_head, receiving._came)


def take(sock: socket.socket, receiving: Receiving, head: bytes) -> Request:
    """Return a request that is taken, its body of zeros with it."""
    sock.sendall(head)
    request = receiving.head()
    assert request is not None
    size = int(request.headers.get("content-length", 0))
    if "transfer-encoding" in request.headers:
        sock.sendall(END_OF_BODY)
        assert receiving.chunked_body(0, ValueError) == b""
    else:
        sock.sendall(bytes(size))
        assert receiving.sized_body(size) == bytes(size)
    if "expect" in request.headers:
        assert sock.recv(99).startswith(b"HTTP/1.1 100 ")
    return request


@settings(max_examples=cases(300, 10_000), deadline=None, derandomize=True)
@given(
    head=st.sampled_from(HEADS),
    start=st.floats(0, 1),
    length=st.integers(0, 8),
    part=PARTS,
    rest=st.binary(max_size=5),
)
def test_what_was_sent_before_changes_nothing_o170(
    head: bytes, start: float, length: int, part: bytes, rest: bytes
) -> None:
    at = int(start * len(head))
    changed = head[:at] + part + head[at + length :] + rest
    with pair() as new, pair() as known:
        for before in HEADS:
            take(*known, before)
        assert outcome(*known, changed) == outcome(*new, changed)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_comes_again_is_the_same_request_o170(head: bytes) -> None:
    with pair() as (sock, receiving):
        first = take(sock, receiving, head)
        assert take(sock, receiving, head) == first
        known = receiving._http is None
        assert known == (not any(word in head for word in (b"chunked", b"Expect", b"IF-MATCH")))


def test_a_generation_is_read_each_time_o170() -> None:
    with pair() as (sock, receiving):
        for number in (b"7", b"8", b"18446744073709551615", b"007"):
            request = take(sock, receiving, HEADS[1].replace(b"7", number))
            assert request.headers["if-match"] == f'"{number.decode()}"'
        assert receiving._http is None


def test_a_head_in_pieces_and_one_that_is_long_are_read_by_h11_o170() -> None:
    with pair() as (sock, receiving):
        first = take(sock, receiving, HEADS[0])
        sock.sendall(HEADS[0][:20])
        timer = threading.Timer(0.05, sock.sendall, [HEADS[0][20:] + b"abc"])
        timer.start()
        assert receiving.head() == first
        timer.join()
        assert receiving.sized_body(3) == b"abc"
        long = HEADS[0][:-2] + b"X: " + bytes(2000).replace(b"\0", b"x") + b"\r\n\r\n"
        for _ in range(2):
            take(sock, receiving, long)
            assert receiving._http is not None


def test_few_heads_are_remembered_o170() -> None:
    heads: KnownHeads[int] = KnownHeads()
    for number in range(1000):
        heads.remember(b"GET /%d HTTP/1.1\r\n\r\n" % number, number, {})
    assert len(heads._known) == 16
    found = heads.find(b"GET /999 HTTP/1.1\r\n\r\nrest")
    assert found == (999, {}, 21)
    assert heads.find(b"GET /1 HTTP/1.1\r\n\r\n") is None
    assert heads.find(b"GET /999 HTTP/1.1\r\n") is None


REPLIES = [
    Reply(204, (("etag", '"5"'),)),
    Reply(304, (("etag", '"5"'),)),
    Reply(200, (("content-type", "application/octet-stream"),), b""),
    Reply(200, (), bytes(1000)),
    Reply(206, (("content-range", "bytes 0-1/2"),), b"ab"),
    Reply(503, (("retry-after", "1"),), b"{}"),
    Reply(200, (), [b"a", b"bc"]),
]


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("last", [False, True])
def test_replies_are_what_h11_reads_o10(reply: Reply, last: bool) -> None:
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    sent, body = head_of(reply, last=last), b""
    if isinstance(reply.body, bytes):
        sent += reply.body if sends_body(reply) else b""
        expected = reply.body
    else:
        sent += b"".join(map(chunk, reply.body)) + END_OF_BODY
        expected = b"abc"
    http.receive_data(sent)
    response = http.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == reply.status
    headers = [(name.decode(), value.decode()) for name, value in response.headers]
    assert set(reply.headers) < set(headers)
    assert (("connection", "close") in headers) == last
    while isinstance(event := http.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert body == expected
    assert (http.their_state is h11.MUST_CLOSE) == last


# ------------------------------------------------------------------- the client


@contextmanager
def owner_that_says(path: Path, *replies: bytes) -> Iterator[Exchange]:
    """Yield an exchange with an owner that gives these replies, one for each request."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen(4)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                for reply in replies:
                    sock.recv(1 << 16)
                    sock.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        exchange = Exchange(path, timeout=10)
        yield exchange
        exchange.close()
        thread.join(10)


def test_a_client_reads_known_replies_as_new_ones_o170(tmp_path: Path) -> None:
    blob = b'HTTP/1.1 200 OK\r\nEtag: "%d"\r\nContent-Length: 3\r\n\r\n%b'
    put = b'HTTP/1.1 204 No Content\r\netag: "%d"\r\n\r\n'
    replies = [blob % (1, b"abc"), put % 2, put % 3, blob % (10**19, b"def")]
    with owner_that_says(tmp_path / "s", *replies) as exchange:
        answers = [exchange.ask("GET", "/") for _ in replies]
    assert [one.headers["etag"] for one in answers] == ['"1"', '"2"', '"3"', f'"{10**19}"']
    assert [one.status for one in answers] == [200, 204, 204, 200]
    assert [one.body for one in answers] == [b"abc", b"", b"", b"def"]


def test_a_body_of_a_known_reply_that_ends_early_is_no_reply_o34(tmp_path: Path) -> None:
    blob = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
    with owner_that_says(tmp_path / "s", blob + b"abc", blob + b"a") as exchange:
        assert exchange.ask("GET", "/").body == b"abc"
        with pytest.raises(DeviceError, match="went away"):
            exchange.ask("GET", "/")


def test_more_than_a_known_reply_is_refused_o12(tmp_path: Path) -> None:
    put = b"HTTP/1.1 204 No Content\r\n\r\n"
    with owner_that_says(tmp_path / "s", put, put + b"HTTP") as exchange:
        exchange.ask("PUT", "/")
        with pytest.raises(FormatError, match="more than a reply"):
            exchange.ask("PUT", "/")


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nConnection: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_replies_that_say_more_are_read_by_h11_o170(tmp_path: Path, reply: bytes) -> None:
    with owner_that_says(tmp_path / "s", reply, reply) as exchange:
        for _ in range(2):
            assert exchange.ask("GET", "/").body == b""
        assert not exchange._known._known


def test_a_put_returns_its_generation_o21(tmp_path: Path) -> None:
    image = tmp_path / "image"
    blobstore.create(image, {"a": 100}, encrypted=False).close()
    with blobstore.open(image, direct=True) as store:
        with (
            owner_thread(store, image, tmp_path / "socket", LIMITS),
            StoreClient(tmp_path / "socket") as client,
        ):
            first = client.put("a", b"1")
            assert first == client.section("a").generation
            assert client.put("a", b"2") == store.section("a").generation == first + 1
        assert store.put("a", b"3") == first + 2
