"""The interface byte by byte: curl's view of it, bad input, and limits."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
from blobstore.owner import StoreClient
from blobstore.owner.connection import Limits
from tests.support.foreign import program
from tests.support.owners import owner_thread

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore.owner.server import OwnerServer

pytestmark = pytest.mark.usefixtures("server")

#: What the server is like whose limits are reached.
SMALL = Limits(connections=2, head=1024, idle=0.3, receiving=0.3, sending=0.3, draining=0.2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def curl(path: Path, target: str, *options: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """Return status, body and headers that curl sees."""
    done = subprocess.run(
        [
            program("curl"),
            *("-sS", "--path-as-is", "--unix-socket", str(path), "-D", "/dev/stderr"),
            *("-w", "%{stderr}%{http_code}", *options, f"http://localhost{target}"),
        ],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=True,
    )
    said = done.stderr.decode()
    return int(said[-3:]), done.stdout, said.lower()


def ask(path: Path, sent: bytes, *, ends: bool = True) -> bytes:
    """Send bytes, and return all that comes back until the server closes the connection."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        received = b""
        try:
            sock.sendall(sent)
            if ends:
                sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                received += piece
        except (BrokenPipeError, ConnectionResetError):
            pass
        return received


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body


def problem(reply: bytes) -> dict[str, Any]:
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    found: dict[str, Any] = json.loads(body)
    assert str(found["status"]) == head.split()[1].decode()
    return found


def test_curl_puts_and_gets_o21_o22_o24(path: Path, store: blobstore.Store) -> None:
    status, body, headers = curl(path, "/v1/sections/a", "-T", "-", stdin=b"blob")
    assert (status, body) == (204, b"")
    assert 'etag: "2"' in headers
    assert store.get("a") == b"blob"
    status, body, headers = curl(path, "/v1/sections/a")
    assert (status, body) == (200, b"blob")
    assert 'etag: "2"' in headers
    assert "application/octet-stream" in headers
    status, body, headers = curl(path, "/v1/sections/a", "--head")
    assert (status, body.partition(b"\r\n\r\n")[2]) == (200, b"")
    assert "content-length: 4" in headers
    assert curl(path, "/v1/sections/a", "-H", 'If-None-Match: "1", "2"')[:2] == (304, b"")
    assert curl(path, "/v1/sections/a", "-H", 'If-None-Match: "1"')[:2] == (200, b"blob")
    assert curl(path, "/v1/sections/a", "-X", "DELETE")[0] == 204
    assert "a" not in store


def test_if_match_makes_changes_conditional_o23(path: Path, store: blobstore.Store) -> None:
    store.put("a", b"1")
    old, new = 'If-Match: "1"', 'If-Match: "2"'
    before = store.digest()
    changes = [
        ("", "PUT", b"x"),
        ("", "DELETE", b""),
        ("/resize", "POST", b'{"max_size": 9}'),
        ("/rename", "POST", b'{"name": "z"}'),
    ]
    for action, method, body in changes:
        target = f"/v1/sections/a{action}"
        options = ("-X", method, "--data-binary", body.decode())
        status, said, _ = curl(path, target, *options, "-H", old)
        assert (status, json.loads(said)["class"]) == (412, "GenerationMismatchError"), action
        for bad in ("If-Match: *", 'If-Match: W/"2"', "If-Match: 2", 'If-Match: "2", "3"'):
            assert curl(path, target, *options, "-H", bad)[0] == 400, (action, bad)
        assert curl(path, target, *options, "-H", "If-None-Match: *")[0] == 400
    assert store.digest() == before
    status, _, headers = curl(path, "/v1/sections/a", "-T", "-", "-H", new, stdin=b"2")
    assert (status, store.get("a")) == (204, b"2")
    assert 'etag: "3"' in headers


def test_heads_tell_errors_and_sections_without_json_o151(
    path: Path, store: blobstore.Store
) -> None:
    """So does one that is answered without a body."""
    for options in ((), ("-I",)):
        status, _, headers = curl(path, "/v1/sections/none", *options)
        assert status == 404
        assert "blobstore-error: 61 blobnotfounderror there is no section 'none'" in headers
        assert "\nblobstore-section: 5000 -\r" in curl(path, "/v1/sections/a/info", *options)[2]
    store.put("a", b"123")
    assert "\nblobstore-section: 5000 3\r" in curl(path, "/v1/sections/a/info")[2]
    _, _, headers = curl(path, "/v1/sections/%C3%BC%0A%00", "-I")
    assert "blobstore-error: 61 blobnotfounderror there is no section 'ü" in headers
    _, body, headers = curl(
        path, "/v1/sections/c/register", "-d", '{"max_size": 7}', "-H", "content-type: x/y"
    )
    assert json.loads(body)["max_size"] == 7
    assert "\nblobstore-section: 7 -\r" in headers
    # What is refused before it is a request says it in the same way.
    refused = ask(path, b"nonsense\r\n\r\n")
    assert b"blobstore-error: 30 FormatError " in refused


def test_one_of_many_conditional_puts_wins_o23(path: Path, store: blobstore.Store) -> None:
    store.put("a", b"0")
    won: list[int] = []

    def count() -> None:
        with StoreClient(path) as client:
            for _ in range(10):
                while True:
                    try:
                        with client.transaction() as changes:
                            number = int(changes.get("a")) + 1
                            changes.put("a", str(number).encode())
                    except blobstore.GenerationMismatchError:
                        continue
                    won.append(number)
                    break

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(1, 41))
    assert store.get("a") == b"40"


def test_large_bodies_are_refused_before_they_are_sent_o11(path: Path) -> None:
    for more in ((), ("-H", "Transfer-Encoding: chunked")):
        status, said, _ = curl(path, "/v1/sections/b", "-T", "-", *more, stdin=bytes(4 << 20))
        assert (status, json.loads(said)["class"]) == (413, "BlobTooLargeError")
    status, said, headers = curl(
        path, "/v1/sections/b", "-X", "PUT", "--data-binary", "@-", stdin=bytes(4 << 20)
    )
    assert (status, json.loads(said)["exit_code"]) == (413, 63)
    assert "100 continue" not in headers
    reply = ask(path, request("PUT /v1/sections/b", f"Content-Length: {10**18}"))
    assert problem(reply)["detail"].endswith(f"not {10**18}")
    reply = ask(path, request("POST /v1/transactions", f"Content-Length: {(64 << 20) + 1}"))
    assert problem(reply)["rule"] == "O11"
    reply = ask(path, request("GET /v1/store", "Content-Length: 1", body=b"x"))
    assert problem(reply)["status"] == 413


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/store HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/store HTTP/1.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /v1/store HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (request("GET /v1/store", "X: " + "y" * 20000), 431),
        (request("GET /" + "y" * 20000), 431),
        (request("GET /v1/store", "Content-Length: -1"), 400),
        (request("GET /v1/store", "Content-Length: 1", "Content-Length: 2"), 400),
        (request("GET /v1/store", "Content-Length: " + "9" * 5000), 400),
        (request("PUT /v1/sections/a", "Transfer-Encoding: gzip", body=b"x"), 501),
        (request("PUT /v1/sections/a", "Transfer-Encoding: chunked", body=b"zz\r\n"), 400),
        (request("PUT /v1/sections/a", "Content-Length: 5", body=b"1234"), 400),
        (request("GET /"), 404),
        (request("GET /v1"), 404),
        (request("GET /v2/store"), 404),
        (request("GET /v1/sections/a/b"), 404),
        (request("GET v1/store"), 404),
        (request("OPTIONS *"), 404),
        (request("CONNECT x:1"), 404),
        (request("GET /v1/sections/%zz"), 400),
        (request("GET /v1/sections/%ff"), 400),
        (request("GET /v1/sections/a?nonsense"), 400),
        (request("GET /v1/store?previous"), 400),
        (request("GET /v1/sections/a?previous=no"), 400),
        (request("GET /v1/sections/a?previous&previous"), 400),
        (request("DELETE /v1/store"), 405),
        (request("BREW /v1/sections/a"), 405),
        (request("GET /v1/transactions"), 405),
        (request("POST /v1/sections/a/resize"), 400),
        (request("GET /v1/sections/none"), 404),
    ],
)
def test_bad_requests_are_answered_o12(path: Path, sent: bytes, status: int) -> None:
    found = problem(ask(path, sent))
    assert found["status"] == status
    if found["class"] == "FormatError":
        assert found["rule"].startswith("O")
    assert ask(path, request("GET /v1/store", "Connection: close")).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"changes": 1}',
        b'{"changes": [], "more": 1}',
        b'{"changes": [{"op": "put"}]}',
        b'{"changes": [{"op": "put", "name": "a", "data": "?"}]}',
        b'{"changes": [{"op": "put", "name": 1, "data": ""}]}',
        b'{"changes": [{"op": "explode", "name": "a"}]}',
        b'{"changes": [{"op": "resize", "name": "a", "max_size": 1e99}]}',
        b'{"changes": [{"op": "resize", "name": "a", "max_size": true}]}',
        b'{"changes": ' + b"[" * 100000,
        b'{"changes": [{"op": "delete", "name": "\\ud800"}]}',
    ],
)
def test_bad_documents_are_refused_o20(path: Path, store: blobstore.Store, body: bytes) -> None:
    before = store.digest()
    head = request("POST /v1/transactions", f"Content-Length: {len(body)}", "Connection: close")
    found = problem(ask(path, head + body))
    assert found["status"] in (400, 404)
    assert found["class"] in ("FormatError", "BlobNotFoundError")
    assert store.digest() == before


def test_any_bytes_leave_the_owner_as_it_was_o12(path: Path, store: blobstore.Store) -> None:
    """Requests with some bytes changed, cut or repeated, from a fixed seed."""
    generator = random.Random(15)
    threads = threading.active_count()
    seeds = [
        request("GET /v1/sections/a"),
        request("PUT /v1/sections/b", "If-Match: x", "Content-Length: 3", body=b"abc"),
        request("PUT /v1/sections/zz", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
        request("POST /v1/transactions", "Content-Length: 16", body=b'{"changes": [1]}'),
    ]
    for _ in range(300):
        sent = bytearray(generator.choice(seeds) * generator.randint(1, 3))
        for _ in range(generator.randint(1, 8)):
            place = generator.randrange(len(sent))
            sent[place : place + generator.randint(0, 3)] = generator.randbytes(
                generator.randint(0, 3)
            )
        reply = ask(path, bytes(sent[: generator.randint(1, len(sent))]))
        assert not reply or reply.startswith(b"HTTP/1.1 ")
    # Some have become requests that are done.
    assert store.verify()
    assert set(store) == {"a", "b"}
    deadline = time.monotonic() + 30
    while threading.active_count() > threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_requests_that_do_not_wait_are_answered_in_order_o10(path: Path) -> None:
    sent = b"".join(
        request("PUT /v1/sections/a", "Content-Length: 1", body=str(i).encode())
        + request("GET /v1/sections/a")
        for i in range(5)
    )
    reply = ask(path, sent)
    assert [piece[-1:] for piece in reply.split(b"HTTP/1.1 ")[2::2]] == [
        b"0",
        b"1",
        b"2",
        b"3",
        b"4",
    ]


@pytest.fixture
def small(store: blobstore.Store, image: Path, tmp_path: Path) -> Any:
    with owner_thread(store, image, tmp_path / "small", SMALL):
        yield tmp_path / "small"


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1", request("PUT /v1/sections/a", "Content-Length: 9", body=b"1")]
)
def test_silent_clients_are_let_go_o11(small: Path, sent: bytes) -> None:
    began = time.monotonic()
    assert ask(small, sent, ends=False) == b""
    assert time.monotonic() - began < 20
    with StoreClient(small) as client:
        assert len(client) == 2


def test_a_slow_client_has_no_more_time_than_a_silent_one_o11(small: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(small))
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(400):
                sock.sendall(b"X")
                time.sleep(0.05)
        assert time.monotonic() - began < 15


def test_a_client_that_reads_nothing_is_let_go_o11(small: Path, store: blobstore.Store) -> None:
    store.register("large", 4 << 20)
    store.put("large", bytes(4 << 20))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(small))
        sock.sendall(request("GET /v1/sections/large"))
        time.sleep(1.5)
        received = 0
        while piece := sock.recv(1 << 20):
            received += len(piece)
        assert received < 4 << 20
    store.put("a", b"the store is not locked")


def test_too_many_connections_are_refused_and_harm_nothing_o11(
    store: blobstore.Store, image: Path, tmp_path: Path
) -> None:
    """All are in the middle of a request, so none gives way (O73)."""
    path = tmp_path / "few"
    with owner_thread(store, image, path, Limits(connections=2)):
        held = []
        for _ in range(2):
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].connect(str(path))
            held[-1].sendall(request("PUT /v1/sections/a", "Content-Length: 9", body=b"1"))
        refused = 0
        for _ in range(500):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.settimeout(30)
                reply = sock.recv(65536)
                refused += b"503" in reply and b"retry-after: 1" in reply
        assert refused > 490
        for sock in held:
            sock.close()
        deadline = time.monotonic() + 30
        while True:
            try:
                with StoreClient(path) as client:
                    assert len(client) == 2
                break
            except blobstore.StorageError:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_what_was_received_is_answered_at_the_end_o7(
    store: blobstore.Store, image: Path, tmp_path: Path
) -> None:
    """A put that waits for the store when the owner is told to end is done, and says so."""
    path = tmp_path / "ending"
    replies: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as idle:
        with owner_thread(store, image, path) as server:
            idle.connect(str(path))
            with store.transaction():
                sent = request("PUT /v1/sections/a", "Content-Length: 3", body=b"end")
                asking = threading.Thread(
                    target=lambda: replies.append(ask(path, sent, ends=False))
                )
                asking.start()
                deadline = time.monotonic() + 30
                while len(server._connections) < 2:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                time.sleep(0.2)
                server.stop()
        asking.join()
    assert replies[0].startswith(b"HTTP/1.1 204 ")
    assert store.get("a") == b"end"
    assert not path.exists()


def test_unknown_errors_keep_their_exit_code_o33(server: OwnerServer) -> None:
    del server
    from blobstore.owner.problems import error_of

    newer = {"class": "NewerError", "detail": "text", "exit_code": 99, "hint": "do", "x": 1}
    error = error_of(500, json.dumps(newer).encode())
    assert isinstance(error, blobstore.StorageError)
    assert (str(error), error.exit_code, error.hint) == ("text", 99, "do")
    for document in (b"", b"[]", b"{}", b'{"class": 1}', b"<html>"):
        assert "status 502" in str(error_of(502, document))


def test_a_head_that_is_refused_has_no_body_o14(path: Path) -> None:
    for line, status in (("HEAD /v1/none", b"404"), ("HEAD /v1/sections/none", b"404")):
        for more in ((), ("Content-Length: 1",)):
            head, _, body = ask(path, request(line, *more)).partition(b"\r\n\r\n")
            assert head[9:12] in (status, b"413")
            assert body == b""


def test_a_request_for_what_is_not_there_keeps_the_connection_o10(path: Path) -> None:
    sent = [
        request("GET /v1/sections/none"),
        request("GET /v1/windows/none", "Range: bytes=x"),
        request("GET /v1/store", "Connection: close"),
    ]
    reply = ask(path, b"".join(sent))
    assert [piece[:3] for piece in reply.split(b"HTTP/1.1 ")[1:]] == [b"404", b"404", b"200"]
