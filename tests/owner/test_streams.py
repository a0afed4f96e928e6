"""Replies that are sent in lines: commits, and progress (O66 to O71)."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.container.recent import MOST_COMMITS
from blobstore.owner import StoreClient
from blobstore.owner.changes import MOST
from formats.errors import DeviceBusyError, DeviceError, FormatError
from tests.owner.test_http import ask, curl, problem, request
from tests.support.foreign import program
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore.owner.server import OwnerServer

LINES = ("-H", "Accept: application/x-ndjson")


@pytest.fixture
def path(server: OwnerServer, tmp_path: Path) -> Path:
    del server
    return tmp_path / "socket"


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_curl_watches_o66_o67(path: Path, store: blobstore.Store) -> None:
    store.put("a", b"1")
    begin = store.info().generation
    watching = subprocess.Popen(
        [
            *(program("curl"), "-sSN", "--unix-socket", str(path)),
            f"http://localhost/v1/changes?since={begin - 1}&keep_alive=1",
        ],
        stdout=subprocess.PIPE,
    )
    assert watching.stdout is not None
    with watching, closing(watching.stdout):
        lines = (json.loads(line) for line in watching.stdout)
        nothing = {"changes": [], "missed": False}
        assert next(lines) == {"generation": begin - 1, **nothing}
        change = {"name": "a", "what": "changed", "before": None}
        assert next(lines) == {"generation": begin, "changes": [change], "missed": False}
        assert next(lines) == {"generation": begin, **nothing}  # to keep it alive
        store.rename("a", "c")
        change = {"name": "c", "what": "renamed", "before": "a"}
        while (line := next(lines)) == {"generation": begin, **nothing}:
            pass
        assert line == {"generation": begin + 1, "changes": [change], "missed": False}
        watching.kill()


@pytest.mark.parametrize("query", ["since=x", "since=", "since=1.5", "keep_alive=x", "more"])
def test_a_watch_from_nowhere_is_refused_o67(path: Path, query: str) -> None:
    assert curl(path, f"/v1/changes?{query}")[0] == 400


def test_a_head_of_a_watch_takes_no_place_o68(path: Path, server: OwnerServer) -> None:
    for _ in range(MOST + 1):
        reply = ask(path, request("HEAD /v1/changes", "Connection: close"))
        assert reply.startswith(b"HTTP/1.1 200 ")
    assert not server._owner.watches._open


def test_a_watch_that_reads_nothing_delays_no_commit_o68(
    path: Path, store: blobstore.Store
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(str(path))
        sock.sendall(request("GET /v1/changes"))
        received = sock.recv(100)
        # More than sockets hold: the thread of this watch waits, and nothing else does.
        for _ in range(4 * MOST_COMMITS):
            store.put("a", b"1")
        newest = store.info().generation
        while f'"generation":{newest},'.encode() not in received:
            received += sock.recv(1 << 20)
    assert b'"missed":true' in received
    assert store.verify()


def test_there_are_only_so_many_watches_o68(path: Path) -> None:
    with StoreClient(path) as client, ExitStack() as watches:
        for _ in range(MOST):
            watches.enter_context(client.changes())
        with pytest.raises(DeviceBusyError, match="too many watches"):
            client.changes()
        assert b"retry-after: 1" in ask(path, request("GET /v1/changes", "Connection: close"))
        client.put("a", b"1")
        watches.close()

        def again() -> bool:
            client.put("a", b"1")  # so that the owner finds out who has gone
            try:
                client.changes().close()
            except DeviceBusyError:
                return False
            return True

        eventually(again)


def test_a_watch_ends_with_its_owner_o66(image: Path, runtime: Path) -> None:
    owner = OwnerProcess(image, runtime)
    with StoreClient(owner.socket) as client, client.changes() as watch:
        next(watch)
        client.put("a", b"1")
        began = time.monotonic()
        assert owner.end()[0] == 0
        assert time.monotonic() - began < 15
        assert [told.changes for told in watch] == [(blobstore.SectionChange("a", "changed"),)]
    owner = OwnerProcess(image, runtime)
    with StoreClient(owner.socket) as client, client.changes() as watch:
        next(watch)
        owner.end(signal.SIGKILL)
        with pytest.raises(DeviceError, match="went away"):
            next(watch)


def test_a_client_that_connects_again_misses_nothing_o67(
    path: Path, store: blobstore.Store
) -> None:
    """Watches that end at any moment, each going on from the last generation of the one before."""
    told: list[int] = []
    begin = store.info().generation
    done = threading.Event()

    def put() -> None:
        for _ in range(200):
            store.put("a", b"1")
            time.sleep(0.001)
        done.set()

    putting = threading.Thread(target=put)
    putting.start()
    last = begin
    with StoreClient(path) as client:
        while last < begin + 200:
            with client.changes(last) as watch:
                first = next(watch)
                assert (first.generation, first.missed) == (last, False)
                for _ in range(3):
                    one = next(watch)
                    told.append(one.generation)
                    last = one.generation
                    if last == begin + 200:
                        break
    putting.join()
    assert told == list(range(begin + 1, begin + 201))


# ------------------------------------------------------------------- progress


def test_curl_verifies_with_progress_o70(path: Path, store: blobstore.Store) -> None:
    store.register("large", 8 << 20)
    store.put("large", bytes(8 << 20))
    for options, last in ((LINES, True), ((), False), (("-H", "Accept: */*"), False)):
        status, body, headers = curl(path, "/v1/verify", "-X", "POST", *options)
        assert status == 200
        assert ("content-type: application/x-ndjson" in headers) == last
        *progress, report = [json.loads(line) for line in body.splitlines()]
        assert report["ok"]
        assert bool(progress) <= last
        for line in progress:
            assert line["done"] <= line["total"]
    with StoreClient(path) as client:
        calls: list[tuple[int, int]] = []
        report = client.verify(lambda done, total: calls.append((done, total)))
        assert report == store.verify()
        assert calls[-1] == (report.blob_bytes, report.blob_bytes)
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_progress_is_told_while_it_happens_o70(path: Path, store: blobstore.Store) -> None:
    """A verification that waits for the store says so, and others are answered when it is done."""
    with StoreClient(path) as client:
        lines = client._exchange.stream("POST", "/v1/verify", {"accept": "application/x-ndjson"})
        with store.transaction():
            for _ in range(3):
                assert json.loads(next(lines).body) == {"done": 0, "total": 0}
        assert json.loads(list(lines)[-1].body)["ok"]
        # What the caller raises ends it, and the client goes on.
        with pytest.raises(ZeroDivisionError):
            client.verify(lambda *_: 1 // 0)  # type: ignore[arg-type]
        assert client.verify()


def test_a_verification_that_no_one_waits_for_ends_o71(
    path: Path, store: blobstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def verify(progress: Callable[[int, int], None]) -> None:
        """Go on until the progress is not wanted any more."""
        try:
            for _ in range(6000):
                progress(1, 2)
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(store, "verify", verify)
    with StoreClient(path) as client:
        lines = client._exchange.stream("POST", "/v1/verify", {"accept": "application/x-ndjson"})
        next(lines)
        lines.close()
    began = time.monotonic()
    assert ended.wait(60)
    assert time.monotonic() - began < 30
    eventually(lambda: not any(t.name == "work" for t in threading.enumerate()))


def test_an_error_in_the_middle_is_the_last_line_o70(
    path: Path, store: blobstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(progress: Callable[[int, int], None]) -> None:
        progress(1, 2)
        time.sleep(0.5)
        raise DeviceError("cannot read at byte 4096")

    monkeypatch.setattr(store, "verify", fail)
    calls: list[tuple[int, int]] = []
    with StoreClient(path) as client:
        with pytest.raises(DeviceError, match="cannot read") as info:
            client.verify(lambda *call: calls.append(call))
        assert type(info.value) is DeviceError
        assert calls == [(1, 2)]
    status, body, _ = curl(path, "/v1/verify", "-X", "POST", *LINES)
    last = json.loads(body.splitlines()[-1])
    assert (status, last["class"], last["status"]) == (200, "DeviceError", 500)


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (CHUNKED, DeviceError),
        (CHUNKED + b'15\r\n{"done":0,"total":0}\n\r\n', DeviceError),
        (CHUNKED + b'15\r\n{"done":0,"total":0}\n\r\n0\r\n\r\n', FormatError),
        (CHUNKED + b"3\r\n{}\n\r\n0\r\n\r\n", FormatError),
        (CHUNKED + b"0\r\n\r\n", FormatError),
        (CHUNKED + b"zz\r\n", FormatError),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", FormatError),
    ],
    ids=range(7),
)
def test_a_reply_that_ends_early_is_an_error_o70(
    tmp_path: Path, sent: bytes, error: type[Exception]
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "fake"))
        listening.listen()

        def answer() -> None:
            with listening.accept()[0] as sock:
                sock.recv(65536)
                sock.sendall(sent)

        answering = threading.Thread(target=answer)
        answering.start()
        with StoreClient(tmp_path / "fake") as client:
            with pytest.raises(error) as info:
                client.verify(lambda *_: None)
            assert type(info.value) is error
        answering.join(30)


def test_a_problem_is_a_document_of_its_own_o31(path: Path) -> None:
    reply = ask(path, request("GET /v1/changes?since=-1", "Connection: close"))
    assert problem(reply)["class"] == "ArgumentError"
