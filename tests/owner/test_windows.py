"""Windows over HTTP: ranges as curl asks for them, and the window that all share (O60 to O64)."""

from __future__ import annotations

import json
import random
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.errors import PoisonedStoreError
from blobstore.owner import StoreClient
from blobstore.owner.owner import Owner
from blobstore.owner.windows import HeldWindows
from formats.devices.device import MemoryDevice
from formats.errors import DeviceBusyError, DeviceError
from tests.nbd.support import Client
from tests.owner.test_http import curl
from tests.support.devices import FaultyDevice
from tests.support.owners import OwnerProcess, owner_thread
from tests.support.stores import open_store
from tests.support.windows import ManualAlarm, manual_alarms, window_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 5000


@pytest.fixture
def windows(store: blobstore.Store, server: object, tmp_path: Path) -> Path:
    """The socket of an owner with two windows."""
    del server
    store.register("w", SIZE, "window")
    store.register("v", 10, "window")
    return tmp_path / "socket"


def test_curl_reads_ranges_o61(windows: Path, store: blobstore.Store) -> None:
    content = bytes(range(250)) * 20
    store.put("w", content)
    status, body, headers = curl(windows, "/v1/windows/w")
    assert (status, body) == (200, content)
    assert "accept-ranges: bytes" in headers
    for asked, first, last in (
        ("512-1023", 512, 1023),
        ("0-0", 0, 0),
        ("4999-", 4999, 4999),
        ("-10", 4990, 4999),
        ("4000-99999", 4000, 4999),
        ("-99999", 0, 4999),
    ):
        status, body, headers = curl(windows, "/v1/windows/w", "-r", asked)
        assert (status, body) == (206, content[first : last + 1]), asked
        assert f"content-range: bytes {first}-{last}/5000" in headers
        assert f"content-length: {last + 1 - first}" in headers
    status, body, headers = curl(windows, "/v1/windows/w", "--head")
    assert status == 200
    assert "content-length: 5000" in headers


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Range: bytes=5000-", 416),
        ("Range: bytes=-0", 416),
        (f"Range: bytes={10**19}-", 416),
        ("Range: bytes=5-4", 400),
        ("Range: bytes=0-1,3-4", 400),
        ("Range: bytes=-", 400),
        ("Range: lines=0-1", 400),
        ("Range: bytes=1", 400),
        ("Range: bytes=\u0661-2", 400),
        ("If-Range: x", 400),
        ("If-None-Match: *", 400),
    ],
)
def test_ranges_that_are_none_are_refused_o61(windows: Path, header: str, status: int) -> None:
    found, body, headers = curl(windows, "/v1/windows/w", "-H", header)
    assert (found, json.loads(body)["rule"]) == (status, "O61")
    assert ("content-range: bytes */5000" in headers) == (status == 416)


def test_curl_writes_anywhere_o62(windows: Path, store: blobstore.Store) -> None:
    put = ("-T", "-")
    assert curl(windows, "/v1/windows/w?offset=512", *put, stdin=b"one")[:2] == (202, b"")
    assert curl(windows, "/v1/windows/w", *put, stdin=b"zero")[0] == 202
    chunked = ("-H", "Transfer-Encoding: chunked")
    assert curl(windows, "/v1/windows/w?offset=4997", *put, *chunked, stdin=b"end")[0] == 202
    assert curl(windows, "/v1/windows/w?offset=5000", *put, stdin=b"")[0] == 202
    assert curl(windows, "/v1/windows/w/flush", "-X", "POST")[:2] == (204, b"")
    expected = bytearray(SIZE)
    expected[:4], expected[512:515], expected[-3:] = b"zero", b"one", b"end"
    assert store.get("w") == expected
    assert curl(windows, "/v1/windows/w?offset=1&fua", *put, stdin=b"E")[0] == 204
    expected[1:2] = b"E"
    assert store.get("w") == expected
    discard = ("--json", '{"offset": 0, "size": 3}')
    assert curl(windows, "/v1/windows/w/discard", *discard)[0] == 202
    assert curl(windows, "/v1/windows/w/close", "-X", "POST")[0] == 204
    assert store.get("w")[:4] == b"\0\0\0o"
    store.put("w", b"closed")


@pytest.mark.parametrize(
    ("target", "options", "status", "kind"),
    [
        ("w?offset=4998", (), 413, "FormatError"),
        ("w?offset=5001", (), 416, "FormatError"),
        ("w?offset=-1", (), 400, "FormatError"),
        ("w?offset=", (), 400, "FormatError"),
        ("w?offset=0x10", (), 400, "FormatError"),
        ("w?offset=1&more", (), 400, "FormatError"),
        ("w", ("-H", "Content-Range: bytes 0-2/5000"), 400, "FormatError"),
        ("w", ("-H", 'If-Match: "1"'), 400, "FormatError"),
        ("w?run=0000000000000000", (), 412, "FormatError"),
        ("a", (), 409, "SectionMismatchError"),
        ("none", (), 404, "BlobNotFoundError"),
        ("one", (), 403, "ReadOnlyError"),
    ],
)
def test_writes_that_cannot_be_are_refused_as_a_whole_o62(
    windows: Path,
    store: blobstore.Store,
    target: str,
    options: tuple[str, ...],
    status: int,
    kind: str,
) -> None:
    store.register("one", 512, "window", copies=1)
    before = store.digest()
    found, body, _ = curl(windows, f"/v1/windows/{target}", "-T", "-", *options, stdin=b"new")
    assert (found, json.loads(body)["class"]) == (status, kind)
    for name in ("w", "one"):
        curl(windows, f"/v1/windows/{name}/close", "-X", "POST")
    assert store.digest() == before


def test_http_and_nbd_share_a_window_o63(
    windows: Path, store: blobstore.Store, tmp_path: Path
) -> None:
    sections = blobstore.NbdSections(store)
    with blobstore.NbdServer(tmp_path / "nbd", sections), StoreClient(windows) as client:
        with client.window("w") as window:
            window.write(0, b"http")
            device = Client(tmp_path / "nbd")
            device.begin("w")
            assert device.read(0, 4).data == b"http"
            assert device.write(2, b"NBD").error == 0
            assert window.read(0, 5) == b"htNBD"
            window.flush()
            assert store.get("w")[:5] == b"htNBD"
        # It is still open for NBD.
        with pytest.raises(ValueError, match="has an open window"):
            client.put("w", b"")
        assert device.write(0, b"end").error == 0
        assert device.flush().error == 0
        with client.window("w") as window:
            assert window.read(0, 5) == b"endBD"
            device.close()
            window.write(0, b"E", fua=True)
        client.put("w", b"")


@contextmanager
def held(path: Path, content: blobstore.Store, windows: HeldWindows | None) -> Iterator[Path]:
    """Serve a store with these windows."""
    owner = Owner(content, path)
    if windows is not None:
        owner.windows = windows
    with owner_thread(owner, path, path.parent / "held"):
        yield path.parent / "held"


def test_a_window_that_is_not_used_is_closed_o63(
    windows: Path, store: blobstore.Store, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del windows
    manual_alarms(monkeypatch)
    monkeypatch.setattr("blobstore.owner.windows.Alarm", ManualAlarm)
    with held(image, store, HeldWindows(store)) as path, StoreClient(path) as client:
        with pytest.raises(ValueError, match="has an open window"):
            _put_beside(client)
        owned = next(alarm for alarm in ManualAlarm.made if alarm._idle == 30)
        owned.advance(29)
        assert client.window("w").read(0, 3) == b"1\0\0"
        owned.advance(29)
        with pytest.raises(ValueError, match="has an open window"):
            client.put("w", b"")
        owned.advance(1)
        assert store.get("w")[:1] == b"1"
        client.put("w", b"2")
        assert client.window("w").read(0, 1) == b"2"


def _put_beside(client: StoreClient) -> None:
    client.window("w").write(0, b"1")
    client.put("w", b"")


def test_other_windows_give_way_o63(windows: Path, store: blobstore.Store, image: Path) -> None:
    del windows
    store.register("x", 4990, "window")
    store.register("large", 5001, "window")
    pool = HeldWindows(store, most_bytes=SIZE)
    with held(image, store, pool) as path, StoreClient(path) as client:
        for name in ("w", "v", "x"):
            client.window(name).write(0, name.encode())
        assert list(pool._held) == ["v", "x"]
        assert store.get("w")[:1] == b"w"
        with pytest.raises(DeviceBusyError, match="O63"):
            client.window("large")
        client.window("w").write(1, b"W")
        assert list(pool._held) == ["w"]
        assert (store.get("x")[:1], store.get("v")[:1]) == (b"x", b"v")
    # At the end of the owner.
    assert store.get("w")[:2] == b"wW"
    store.put("w", b"")


def test_the_owner_is_at_rest_between_two_requests_o63(
    windows: Path, store: blobstore.Store, image: Path
) -> None:
    del windows
    owner = Owner(store, image)
    with (
        owner_thread(owner, image, image.parent / "held"),
        StoreClient(image.parent / "held") as client,
        client.window("w") as window,
    ):
        window.write(0, b"1")
        with owner.at_rest():
            assert store.get("w")[:1] == b"1"
            writing = threading.Thread(target=window.write, args=(0, b"2"))
            writing.start()
            writing.join(0.3)
            assert writing.is_alive()
        writing.join(30)
        assert window.read(0, 1) == b"2"


def test_no_flush_confirms_what_is_not_durable_o64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manual_alarms(monkeypatch)
    monkeypatch.setattr("blobstore.owner.windows.Alarm", ManualAlarm)
    device = FaultyDevice(MemoryDevice(window_image(SIZE)), "flush", 1 << 30, persistent=True)
    store = open_store(device)
    image = tmp_path / "image"
    image.touch()
    with (  # noqa: SIM117
        pytest.raises(blobstore.StorageError),
        held(image, store, None) as path,
        StoreClient(path) as client,
    ):
        with pytest.raises(PoisonedStoreError), client.window("w") as window:
            window.write(0, b"1")
            device._number = 0
            for alarm in list(ManualAlarm.made):
                alarm.advance(1000)
            for _ in range(2):
                with pytest.raises(blobstore.StorageError):
                    window.flush()
            with StoreClient(path) as other, pytest.raises(PoisonedStoreError):
                other.window("w").flush()


def test_a_flush_does_not_confirm_what_a_dead_owner_had_o64(
    image: Path, runtime: Path, store: blobstore.Store
) -> None:
    store.register("w", SIZE, "window")
    store.close()
    owner = OwnerProcess(image, runtime)
    with StoreClient(owner.socket) as client, client.window("w") as window:
        window.write(0, b"durable", fua=True)
        owner.end(signal.SIGKILL)
        owner = OwnerProcess(image, runtime)
        try:
            with pytest.raises(DeviceError, match=r"started again .*O64"):
                window.flush()
            window.write(7, b"2")
            window.flush()
            assert window.read(0, 8) == b"durable2"
        finally:
            window.close()
            assert owner.end()[0] == 0
    with blobstore.open(image, read_only=True) as opened:
        assert opened.get("w")[:8] == b"durable2"


def test_no_kill_loses_what_was_flushed_o64(
    image: Path, runtime: Path, store: blobstore.Store
) -> None:
    """SIGKILL while a client writes and flushes: what was acknowledged is there, or the next."""
    store.register("w", SIZE, "window")
    store.close()
    generator = random.Random(15)
    acknowledged = 0
    for _ in range(4):
        owner = OwnerProcess(image, runtime)
        killing = threading.Timer(generator.uniform(0.1, 0.6), owner.process.kill)
        with StoreClient(owner.socket) as client:
            killing.start()
            try:
                window = client.window("w")
                while True:
                    number = b"%010d" % (acknowledged + 1)
                    window.write(0, number)
                    window.write(SIZE - 10, number)
                    window.flush()
                    acknowledged += 1
            except DeviceError:
                pass
        killing.join()
        owner.end()
        with blobstore.open(image) as opened:
            assert opened.verify()
            assert acknowledged, "it was killed before it did anything"
            content = opened.get("w")
            begin, end = int(content[:10]), int(content[-10:])
            # A commit in a pause may have taken the first half of the next write.
            assert acknowledged <= end <= begin <= acknowledged + 1
            acknowledged = begin
            with opened.window("w") as direct:
                direct.write(SIZE - 10, b"%010d" % acknowledged)
    assert acknowledged > 4


def test_what_was_not_flushed_is_committed_when_the_owner_ends_o64(
    image: Path, runtime: Path, store: blobstore.Store
) -> None:
    store.register("w", SIZE, "window")
    store.close()
    owner = OwnerProcess(image, runtime)
    with StoreClient(owner.socket) as client:
        window = client.window("w")
        window.write(0, b"end")
        assert owner.end()[0] == 0
    with blobstore.open(image, read_only=True) as opened:
        assert opened.get("w")[:3] == b"end"
        assert opened.verify()
