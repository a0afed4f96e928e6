"""Images that are re-encrypted while their owner serves them: O210 to O224."""

from __future__ import annotations

import json
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from blobstore.container.scan import scan
from blobstore.owner import StoreClient
from formats.errors import ArgumentError, DeviceBusyError, FormatError, UnsupportedError
from tests.owner.test_http import curl
from tests.support.owners import OwnerProcess, owner_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.owner.server import OwnerServer

SECRET = b"passphrase"
QUICK = luks.Pbkdf2("sha256", 1000)
#: Members of a request that make key derivations quick, and steps many.
FAST = {"pbkdf": "pbkdf2", "iterations": 1000}
MANY = {"hotzone_size": 64 << 10}


def make(path: Path, *, encrypted: bool = True, size: int = 6 << 20, **more: Any) -> None:
    options: dict[str, Any] = {"secret": SECRET, "kdf": QUICK} if encrypted else {}
    options |= more
    with blobstore.create(path, {"a": 5000}, encrypted=encrypted, size=size, **options) as store:
        store.register("flash", 64 << 10, "window")
        store.put("a", b"before")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    make(path)
    return path


@pytest.fixture
def store(image: Path) -> Iterator[blobstore.Store]:
    with blobstore.open(image, SECRET, direct=True) as opened:
        yield opened


@pytest.fixture
def other(server: OwnerServer, tmp_path: Path) -> Iterator[StoreClient]:
    del server
    with StoreClient(tmp_path / "socket", timeout=60) as opened:
        yield opened


def key_of(store: blobstore.Store) -> bytes:
    return scan(store.session.container.device).header.key


def followed(client: StoreClient) -> list[Any]:
    found = list(client.follow_reencryption())
    client.require_reencrypted(found[-1])
    return found


@pytest.mark.parametrize(
    "mode", ["reencrypt", "reencrypt qcow2", "encrypt", "encrypt detached", "decrypt"]
)
def test_o212_o213_puts_and_windows_go_on_between_two_pieces(tmp_path: Path, mode: str) -> None:
    image, header = tmp_path / "image", tmp_path / "header"
    image_format = "qcow2" if "qcow2" in mode else "raw"
    make(image, encrypted=not mode.startswith("encrypt"), image_format=image_format)
    asked: dict[str, Any] = {**MANY}
    if mode != "decrypt":
        asked |= FAST
    if mode in ("decrypt", "encrypt detached"):
        asked["header"] = str(header)
    secret = None if mode.startswith("encrypt") else SECRET
    socket = tmp_path / "socket"
    with (
        blobstore.open(image, secret, direct=True) as store,
        owner_thread(store, image, socket),
        StoreClient(socket, timeout=60) as client,
        StoreClient(socket, timeout=60) as other,
        store.window("flash", in_place=True) as window,
    ):
        key, generation = key_of(store), store.info().generation
        began = client.begin_reencryption(mode.partition(" ")[0], SECRET, **asked)
        assert (began.state, began.mode) == ("running", mode.partition(" ")[0])
        told, number, positions = 0, 0, []
        for found in client.follow_reencryption():
            positions.append(found.position)
            for _ in range(5):
                number += 1
                blob = b"%d" % number
                told = other.put("a", blob)
                assert other.get("a") == blob
                window.write(number * 10, blob)
                assert window.read(number * 10, len(blob)) == blob
            window.flush()
        client.require_reencrypted(found)
        assert positions == sorted(positions)
        assert found.position == found.size
        assert told > generation
        assert key_of(store) != key
        assert client.get("a") == b"%d" % number
        assert other.reencryption().state == "finished"
        info = client.info()
        assert info.encrypted is (mode != "decrypt")
        client.put("a", b"after")
        content = window.read(0, 64 << 10)
    now = header if mode == "encrypt detached" else None
    assert blobstore.reencryption_status(image, header=now) is None
    with blobstore.open(
        image, None if mode == "decrypt" else SECRET, direct=True, header=now
    ) as store:
        assert store.get("a") == b"after"
        assert store.get("flash") == content
        assert store.verify().ok


def test_o215_what_needs_an_image_in_one_piece_waits_until_it_is_finished(
    client: StoreClient, other: StoreClient, tmp_path: Path, server: OwnerServer
) -> None:
    del server
    client.begin_reencryption("reencrypt", SECRET, **FAST, **MANY)
    for refused in (
        lambda: other.backup(tmp_path / "copy"),
        other.release,
        lambda: other.begin_reencryption("reencrypt", SECRET, **FAST),
        lambda: other.begin_reencryption("resume"),
    ):
        with pytest.raises(DeviceBusyError, match=r"O215|O217"):
            refused()
    with pytest.raises(DeviceBusyError), other.at_rest():
        pass
    followed(client)
    other.backup(tmp_path / "copy")
    with blobstore.open(tmp_path / "copy", SECRET, direct=True) as copy:
        assert copy.get("a") == b"before"
        assert copy.verify().ok


def test_o214_it_is_stopped_and_resumed(
    client: StoreClient, image: Path, store: blobstore.Store, tmp_path: Path
) -> None:
    client.begin_reencryption("reencrypt", SECRET, **FAST, **MANY)
    stopped = client.stop_reencryption()
    assert stopped.state == "stopped"
    assert client.stop_reencryption() == stopped
    assert 0 <= stopped.position < stopped.size
    assert client.reencryption() == stopped
    client.put("a", b"stopped")
    # What is stopped is an image as any other: it is backed up, and its volume is opened.
    client.backup(tmp_path / "copy")
    with blobstore.open(tmp_path / "copy", SECRET, direct=True) as copy:
        assert copy.get("a") == b"stopped"
    status = blobstore.reencryption_status(image)
    assert status is not None
    assert status.position == stopped.position
    assert client.begin_reencryption("resume", SECRET, **MANY).state == "running"
    followed(client)
    assert client.get("a") == b"stopped"
    assert store.verify().ok
    assert blobstore.reencryption_status(image) is None


def test_o221_what_cannot_be_begun_changes_nothing(
    client: StoreClient, image: Path, store: blobstore.Store
) -> None:
    before = luks.load_header(image)
    with pytest.raises(luks.NoKeyslotMatchError):
        client.begin_reencryption("reencrypt", b"wrong", **FAST)
    with pytest.raises(ArgumentError):
        client.begin_reencryption("turn round", SECRET)
    with pytest.raises(ArgumentError):
        client.begin_reencryption("resume", SECRET, cipher="serpent-xts-plain64")
    with pytest.raises(luks.PolicyError):
        client.begin_reencryption("reencrypt", SECRET, cipher="cipher_null-ecb")
    with pytest.raises(luks.NoReencryptionError):
        client.begin_reencryption("resume", SECRET)
    assert client.reencryption().state == "none"
    assert luks.load_header(image) == before
    client.put("a", b"as before")
    assert store.verify().ok


def test_o222_the_secret_does_not_cross_the_socket(
    client: StoreClient, server: OwnerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    ask = client._exchange.ask

    def seen(method: str, target: str, body: bytes | memoryview = b"", *rest: Any) -> Any:
        sent.append(bytes(body))
        return ask(method, target, body, *rest)

    monkeypatch.setattr(client._exchange, "ask", seen)
    del server
    client.begin_reencryption("reencrypt", SECRET, **FAST)
    followed(client)
    assert sent
    assert not any(SECRET in body for body in sent)
    key_file = json.loads(sent[0])["key_file"]
    with pytest.raises(FileNotFoundError):
        open(key_file).close()  # noqa: PTH123  a path of /proc
    for path in ("relative", None):
        with pytest.raises(FormatError, match="O222"):
            client.begin_reencryption("reencrypt", None, key_file=path)
    (tmp_path / "key").write_bytes(SECRET)
    client.begin_reencryption("reencrypt", None, key_file=str(tmp_path / "key"), **FAST)
    followed(client)


def test_o220_curl_sees_how_far_it_is(client: StoreClient, tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    status, body = curl(socket, "/v1/reencryption")[:2]
    assert (status, json.loads(body)["state"]) == (200, "none")
    client.begin_reencryption("reencrypt", SECRET, **FAST, **MANY)
    _, body = curl(socket, "/v1/reencryption", "-H", "Accept: application/x-ndjson")[:2]
    lines = [json.loads(line) for line in body.splitlines()]
    assert len(lines) > 1
    assert {line["state"] for line in lines[:-1]} == {"running"}
    assert (lines[-1]["state"], lines[-1]["error"]) == ("finished", None)


def test_o216_killed_and_started_again(tmp_path: Path, runtime: Path) -> None:
    """No put that was answered is lost, and the new owner carries the re-encryption on."""
    image, key = tmp_path / "image", tmp_path / "key"
    make(image, size=24 << 20)
    key.write_bytes(SECRET)
    process = OwnerProcess(image, runtime, "--key-file", key)
    found = blobstore.find_owner(image)
    assert found is not None
    acknowledged = [b"before"]
    with found as client:
        client.begin_reencryption("reencrypt", SECRET, **FAST, **MANY)

        def put() -> None:
            try:
                for number in range(100000):
                    client.put("a", b"%d" % number)
                    acknowledged.append(b"%d" % number)
            except luks.DeviceError:
                pass

        putting = threading.Thread(target=put)
        putting.start()
        time.sleep(0.5)
        process.end(signal.SIGKILL)
        putting.join()
    assert len(acknowledged) > 1
    assert blobstore.reencryption_status(image) is not None
    process = OwnerProcess(image, runtime, "--key-file", key, "--resume")
    found = blobstore.find_owner(image)
    assert found is not None
    with found as client:
        # One more may have been durable, and not been answered.
        assert client.get("a") in (acknowledged[-1], b"%d" % (len(acknowledged) - 1))
        assert client.reencryption().state in ("running", "finished")
        followed(client)
        assert client.verify().ok
    assert process.end()[0] == 0
    assert blobstore.reencryption_status(image) is None
    with blobstore.open(image, SECRET, direct=True) as store:
        assert store.verify().ok


def test_o216_an_owner_that_ends_leaves_what_is_resumed(tmp_path: Path, runtime: Path) -> None:
    image, key = tmp_path / "image", tmp_path / "key"
    make(image, encrypted=False, size=24 << 20)
    key.write_bytes(SECRET)
    process = OwnerProcess(image, runtime)
    run = process.run(
        *("encrypt", image, "--key-file", key, "--init-only", "--hotzone-size", "64K"),
        *("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", 1000),
    )
    assert run.returncode == 0, run.stderr
    assert process.run("put", image, "a", "-", stdin=b"in the middle").returncode == 0
    status = process.run("encrypt", image, "--status", "--json")
    assert json.loads(status.stdout)["state"] == "stopped"
    assert process.end()[0] == 0
    refused = process.run("get", image, "a", "--key-file", key)
    assert refused.returncode != 0
    assert b"--resume" in refused.stderr
    process = OwnerProcess(image, runtime, "--key-file", key, "--resume")
    assert process.run("get", image, "a").stdout == b"in the middle"
    found = blobstore.find_owner(image)
    assert found is not None
    with found as client:
        followed(client)
    assert process.end()[0] == 0
    with blobstore.open(image, SECRET, direct=True) as store:
        assert store.get("a") == b"in the middle"
        assert store.info().encrypted
        assert store.verify().ok


def test_o218_a_successor_takes_over_what_was_stopped(tmp_path: Path, runtime: Path) -> None:
    image, key = tmp_path / "image", tmp_path / "key"
    make(image, size=24 << 20)
    key.write_bytes(SECRET)
    first = OwnerProcess(image, runtime, "--key-file", key)
    found = blobstore.find_owner(image)
    assert found is not None
    with found as client:
        client.begin_reencryption("reencrypt", SECRET, **FAST, **MANY)
        assert client.stop_reencryption().state == "stopped"
        client.put("a", b"stopped")
    second = OwnerProcess(image, runtime, "--key-file", key, "--replace")
    assert first.ended() == 0
    resumed = second.run("reencrypt", image, "--resume", "--key-file", key, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1])["state"] == "finished"
    assert second.run("get", image, "a").stdout == b"stopped"
    assert second.end()[0] == 0
    with blobstore.open(image, SECRET, direct=True) as store:
        assert store.verify().ok


def test_o213_without_room_for_its_new_key_it_fails_and_goes_on_when_there_is(
    client: StoreClient, store: blobstore.Store
) -> None:
    """The image grows no more (O215), so what was free when it began may be used by then."""
    client.begin_reencryption("reencrypt", SECRET, **FAST, **MANY, begin_only=True)
    assert client.reencryption().state == "stopped"
    free = store.verify().free_bytes
    client.register("large", free - 32768, copies=1)
    key = key_of(store)
    client.begin_reencryption("resume")
    *_, last = client.follow_reencryption()
    assert last.state == "failed"
    with pytest.raises(blobstore.NoSpaceError, match="O202"):
        client.require_reencrypted(last)
    assert key_of(store) == key
    client.put("a", b"still served")
    client.delete("large")
    client.begin_reencryption("resume")
    followed(client)
    assert key_of(store) != key
    assert client.get("a") == b"still served"
    assert store.verify().ok


def test_o207_sectors_fit_the_blocks_of_the_store(tmp_path: Path) -> None:
    image, socket = tmp_path / "image", tmp_path / "socket"
    make(image, encrypted=False, block_size=512)
    with (
        blobstore.open(image, direct=True) as store,
        owner_thread(store, image, socket),
        StoreClient(socket, timeout=60) as client,
    ):
        with pytest.raises(ArgumentError, match="O207"):
            client.begin_reencryption("encrypt", SECRET, **FAST, sector_size=4096)
        with pytest.raises(FormatError, match="O221"):
            client.begin_reencryption("encrypt", SECRET, **FAST, header="relative")
        assert client.get("a") == b"before"
        client.begin_reencryption("encrypt", SECRET, **FAST)
        assert followed(client)[-1].new_sector_size == 512
        assert client.get("a") == b"before"
    with blobstore.open(image, SECRET, direct=True) as store:
        assert store.verify().ok


def test_o211_what_was_begun_is_taken_back_if_the_store_cannot_use_it(
    client: StoreClient, image: Path, store: blobstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise blobstore.StorageError("injected")

    with monkeypatch.context() as context:
        context.setattr("blobstore.owner.moving.move", fail)
        with pytest.raises(blobstore.StorageError, match="injected"):
            client.begin_reencryption("reencrypt", SECRET, **FAST)
    assert blobstore.reencryption_status(image) is None
    client.put("a", b"as before")
    client.begin_reencryption("reencrypt", SECRET, **FAST)
    followed(client)
    assert store.get("a") == b"as before"


def test_o210_luks1_is_not_re_encrypted_by_an_owner(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(image, luks_version=1)
    with (
        blobstore.open(image, SECRET, direct=True) as store,
        owner_thread(store, image, tmp_path / "socket"),
        StoreClient(tmp_path / "socket", timeout=60) as client,
    ):
        with pytest.raises(UnsupportedError, match="O210"):
            client.begin_reencryption("reencrypt", SECRET, **FAST)
        assert client.reencryption().state == "none"
        client.put("a", b"as before")
        assert store.verify().ok


def test_o210_a_qcow2_image_that_encrypts_itself_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(image, image_format="qcow2", own_luks=True)
    with (
        blobstore.open(image, SECRET, direct=True) as store,
        owner_thread(store, image, tmp_path / "socket"),
        StoreClient(tmp_path / "socket", timeout=60) as client,
        pytest.raises(UnsupportedError, match="qcow2 itself"),
    ):
        client.begin_reencryption("reencrypt", SECRET, **FAST)
