"""Any bytes on the socket give a reply or an end, and the owner answers the next client (O12)."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import blobstore
from blobstore.owner import StoreClient
from blobstore.owner.limits import Limits
from tests.support.effort import cases
from tests.support.owners import owner_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Little patience, so that half a request costs little time.
LIMITS = Limits(idle=0.05, receiving=0.05, draining=0.01, sending=5, waiting=0.05)

SETTINGS = settings(
    max_examples=cases(150, 5000),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "image"
    sections = {"a": 5000, "b": 100}
    blobstore.create(image, sections, encrypted=False, free=1 << 20).close()
    with blobstore.open(image, direct=True) as store:
        store.register("w", 5000, "window")
        threads = threading.active_count()
        with owner_thread(store, image, tmp_path / "socket", LIMITS):
            yield tmp_path / "socket"
        assert threading.active_count() <= threads + 1  # of a window that was written last
        assert store.verify()


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.settimeout(60)
        yield sock


def exchange(path: Path, sent: bytes, *, ends: bool) -> bytes:
    """Send bytes, and return what comes back until the owner ends the connection."""
    with connected(path) as sock:
        received = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(sent)
            if ends:
                sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                received += piece
                if b"/x-ndjson" in received:  # a stream, which ends when its client does
                    break
        return received


def require_answers(path: Path, received: bytes) -> None:
    assert not received or received.startswith(b"HTTP/1.1 "), received
    with StoreClient(path) as client:
        assert client.info().generation > 0


@SETTINGS
@given(sent=st.binary(max_size=2000), ends=st.booleans())
def test_any_bytes_o12(path: Path, sent: bytes, ends: bool) -> None:
    require_answers(path, exchange(path, sent, ends=ends))


TARGETS = [
    "/v1/store",
    "/v1/sections",
    "/v1/sections/a",
    "/v1/sections/a/info",
    "/v1/sections/a/register",
    "/v1/sections/a/resize",
    "/v1/sections/b/rename",
    "/v1/transactions",
    "/v1/verify",
    "/v1/changes",
    "/v1/windows/w",
    "/v1/windows/w/info",
    "/v1/windows/w/flush",
    "/v1/windows/w/close",
    "/v1/windows/w/discard",
    "/v1/windows/a",
]
NUMBERS = st.one_of(
    st.integers(-2, 6000), st.sampled_from([1 << 31, 1 << 63, 1 << 64, 10**30, -(1 << 63)])
)
NAMES = st.sampled_from(["a", "b", "w", "", "x" * 300, "\n", "%00", "\U0001f600"])
CHANGES = st.one_of(
    st.fixed_dictionaries(
        {"op": st.just("put"), "name": NAMES, "data": st.sampled_from(["", "AA==", "?"])}
    ),
    st.fixed_dictionaries({"op": st.just("require"), "name": NAMES, "generation": NUMBERS}),
    st.fixed_dictionaries({"op": st.just("resize"), "name": NAMES, "max_size": NUMBERS}),
    st.fixed_dictionaries(
        {"op": st.sampled_from(["register"]), "name": NAMES, "max_size": NUMBERS}
    ),
    st.fixed_dictionaries({"op": st.sampled_from(["rename"]), "name": NAMES, "new": NAMES}),
)
BODIES = st.one_of(
    st.binary(max_size=100),
    st.binary(min_size=4900, max_size=5100),
    st.builds(
        lambda value: json.dumps(value).encode(),
        st.one_of(
            st.fixed_dictionaries({"max_size": NUMBERS}),
            st.fixed_dictionaries({"offset": NUMBERS, "size": NUMBERS}),
            st.fixed_dictionaries({"name": NAMES}),
            st.fixed_dictionaries({"changes": st.lists(CHANGES, max_size=4)}),
        ),
    ),
)
QUERIES = st.lists(
    st.one_of(
        st.sampled_from(["previous", "allow_damaged", "fua", "run=0", "since=", "a=b", "%ff"]),
        st.builds("{}={}".format, st.sampled_from(["offset", "since", "keep_alive"]), NUMBERS),
    ),
    max_size=3,
).map("&".join)
HEADERS = st.lists(
    st.one_of(
        st.builds("Range: bytes={}-{}".format, NUMBERS, st.one_of(NUMBERS, st.just(""))),
        st.builds('If-Match: "{}"'.format, NUMBERS),
        st.builds('If-None-Match: "{}"'.format, NUMBERS),
        st.sampled_from(
            [
                "Accept: application/x-ndjson",
                "Expect: 100-continue",
                "Connection: close",
                "Content-Range: bytes 0-1/2",
                "Transfer-Encoding: chunked",
                "Upgrade: h2c",
                "X: \xe4",
            ]
        ),
    ),
    max_size=3,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that could be one: with the right framing, and any values."""
    method = draw(st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS"]))
    target, query = draw(st.sampled_from(TARGETS)), draw(QUERIES)
    if method == "DELETE":
        target = "/v1/sections/none"
    body, headers = draw(BODIES), draw(HEADERS)
    if "Transfer-Encoding: chunked" in headers:
        headers = [h for h in headers if not h.startswith("Transfer")] + [
            "Transfer-Encoding: chunked"
        ]
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    else:
        headers = [*headers, f"Content-Length: {len(body)}"]
    line = f"{method} {target}{'?' if query else ''}{query} HTTP/1.1"
    return "\r\n".join([line, "Host: x", *headers, "", ""]).encode("latin-1") + body


@SETTINGS
@given(sent=st.lists(requests(), min_size=1, max_size=3).map(b"".join), ends=st.booleans())
def test_any_values_in_requests_o12(path: Path, sent: bytes, ends: bool) -> None:
    require_answers(path, exchange(path, sent, ends=ends))


@SETTINGS
@given(
    sent=requests(),
    changes=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 5), st.binary(max_size=5)),
        min_size=1,
        max_size=4,
    ),
    length=st.integers(1, 6000),
    ends=st.booleans(),
)
def test_any_changes_of_requests_o12(
    path: Path, sent: bytes, changes: list[tuple[int, int, bytes]], length: int, ends: bool
) -> None:
    changed = bytearray(sent)
    for place, removed, added in changes:
        changed[place : place + removed] = added
    require_answers(path, exchange(path, bytes(changed[:length]), ends=ends))
