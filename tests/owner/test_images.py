"""What concerns the whole image, through its owner: O80 to O94."""

from __future__ import annotations

import json
import os
import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from blobstore.copies import convert_bytes
from blobstore.image.place import entry_of
from blobstore.owner import StoreClient
from blobstore.owner.connection import Limits
from blobstore.owner.images import ImageResources
from blobstore.owner.owner import Owner
from blobstore.owner.resources import Reply, Request
from blobstore.owner.routes import Routes
from formats.errors import (
    DeviceBusyError,
    DeviceError,
    ReadOnlyError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    UnsupportedError,
)
from formats.qcow2.snapshots import SnapshotKey
from tests.support.owners import OwnerProcess, owner_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from blobstore.owner import AnyStore
    from blobstore.owner.server import OwnerServer

SECRET = b"passphrase"


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    blobstore.create(
        path, {"a": 5000, "b": 3000}, encrypted=False, image_format="qcow2", free=1 << 20
    ).close()
    return path


@pytest.fixture
def qcow2_store(qcow2: Path) -> Iterator[blobstore.Store]:
    with blobstore.open(qcow2, direct=True) as opened:
        yield opened


@pytest.fixture
def qcow2_client(qcow2_store: blobstore.Store, qcow2: Path, tmp_path: Path) -> Iterator[AnyStore]:
    with (
        owner_thread(qcow2_store, qcow2, tmp_path / "qcow2 socket"),
        StoreClient(tmp_path / "qcow2 socket", timeout=60) as opened,
    ):
        yield opened


@pytest.fixture(params=["qcow2_store", "qcow2_client"])
def any_qcow2(request: pytest.FixtureRequest) -> AnyStore:
    found: AnyStore = request.getfixturevalue(request.param)
    return found


def test_snapshots_are_made_listed_applied_and_deleted_o80_o82(any_qcow2: AnyStore) -> None:
    any_qcow2.put("a", b"one")
    assert any_qcow2.snapshots() == []
    first = any_qcow2.create_snapshot("first")
    second = any_qcow2.create_snapshot("ü/. %2F")
    assert any_qcow2.snapshots() == [first, second]
    assert (first.id, first.name, second.id) == ("1", "first", "2")
    any_qcow2.put("a", b"two")
    assert any_qcow2.apply_snapshot("ü/. %2F") == second
    assert any_qcow2.get("a") == b"one"
    with pytest.raises(SnapshotNotFoundError):
        any_qcow2.delete_snapshot(SnapshotKey(id="first"))
    with pytest.raises(SnapshotNotFoundError):
        any_qcow2.delete_snapshot(SnapshotKey(name="1"))
    with pytest.raises(SnapshotNotFoundError):
        any_qcow2.delete_snapshot(SnapshotKey(id="1", name="ü/. %2F"))
    assert any_qcow2.delete_snapshot(SnapshotKey(id="1", name="first")).id == "1"
    assert any_qcow2.delete_snapshot(SnapshotKey(name="ü/. %2F")).id == "2"
    assert any_qcow2.snapshots() == []


def test_errors_are_those_of_the_store_o30(any_qcow2: AnyStore, client: StoreClient) -> None:
    any_qcow2.create_snapshot("one")
    failing: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: any_qcow2.create_snapshot("one"), SnapshotExistsError),
        (lambda: any_qcow2.create_snapshot(""), ValueError),
        (lambda: any_qcow2.create_snapshot("x" * 300), ValueError),
        (lambda: any_qcow2.delete_snapshot("two"), SnapshotNotFoundError),
        (lambda: any_qcow2.apply_snapshot("two"), SnapshotNotFoundError),
        (lambda: any_qcow2.delete_snapshot(SnapshotKey()), ValueError),
        (client.snapshots, UnsupportedError),
        (lambda: client.create_snapshot("x"), UnsupportedError),
    ]
    for fail, error in failing:
        with pytest.raises(error):
            fail()
    assert len(any_qcow2.snapshots()) == 1


def test_names_that_are_not_text_can_be_chosen_by_id_o82(
    qcow2_store: blobstore.Store, qcow2_client: StoreClient
) -> None:
    qcow2_store.create_snapshot("\udcff")
    found = qcow2_client.snapshots()
    assert [(one.id, one.name) for one in found] == [("1", "\N{REPLACEMENT CHARACTER}")]
    assert qcow2_client.delete_snapshot(SnapshotKey(id="1")).id == "1"


def test_maintenance_is_what_the_store_does_o91_o92(
    any_qcow2: AnyStore, qcow2_store: blobstore.Store
) -> None:
    any_qcow2.put("a", b"one")
    any_qcow2.put("a", b"two")
    any_qcow2.restore("a")
    assert any_qcow2.get("a") == b"one"
    size = any_qcow2.info().size
    any_qcow2.grow(size + (1 << 20))
    assert any_qcow2.info().size >= size + (1 << 20)
    assert any_qcow2.regions() == qcow2_store.regions()
    any_qcow2.delete("b")
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    assert any_qcow2.compact(progress) in (0, 1)
    assert any_qcow2.scrub(progress).rewritten == 1
    report = any_qcow2.repair(accept_previous="x", names={"y"}, progress=progress)
    assert report.ok
    assert calls
    any_qcow2.require_fresh()
    any_qcow2.register("empty", 10)
    with pytest.raises(blobstore.NoPreviousBlobError):
        any_qcow2.restore("empty")
    with qcow2_store.window(any_qcow2.register("w", 512, "window").name):
        for refused in (any_qcow2.compact, any_qcow2.scrub, any_qcow2.repair):
            with pytest.raises(ValueError, match="windows"):
                refused()
    assert any_qcow2.at_one_moment(lambda: any_qcow2.get("a")) == b"one"


def test_what_is_read_at_one_moment_is_read_again_o40(
    client: StoreClient, store: blobstore.Store
) -> None:
    seen: list[bytes] = []

    def read() -> tuple[bytes, bytes]:
        a = client.get("a")
        if len(seen) < 3:
            store.put("b", bytes([len(seen)]))
            store.put("a", bytes([len(seen)]))
        seen.append(a)
        return a, client.get("b")

    store.put("a", b"\xff")
    assert client.at_one_moment(read) == (b"\2", b"\2")
    assert len(seen) == 4

    def restless() -> None:
        store.put("a", store.get("a") + b"1")

    with pytest.raises(blobstore.StoreBusyError):
        client.at_one_moment(restless)

    def failing_once() -> bytes:
        if len(seen) == 4:
            seen.append(b"")
            store.rename("b", "c")
            return client.get("b")
        return client.get("c")

    assert client.at_one_moment(failing_once) == b"\2"
    with pytest.raises(blobstore.BlobNotFoundError):
        client.at_one_moment(lambda: client.get("b"))


class AtRest:
    """A front that says whether it is at rest."""

    def __init__(self) -> None:
        self.resting = False
        self.rests = 0

    def at_rest(self) -> AtRest:
        return self

    def suspend(self, *, waiting: bool) -> None:
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> None:
        self.resting = True
        self.rests += 1

    def __exit__(self, *_: object) -> None:
        self.resting = False


def test_devices_rest_for_snapshots_and_for_the_end_of_backups_o50_o83_o86(
    qcow2_store: blobstore.Store, qcow2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, front = Owner(qcow2_store, qcow2), AtRest()
    owner.add(front)
    routes = Routes([ImageResources(owner).resources()])
    seen: list[bool] = []
    real_create, real_carry = qcow2_store.create_snapshot, "blobstore.copies.copier.carry"

    def create(name: str) -> object:
        seen.append(front.resting)
        return real_create(name)

    monkeypatch.setattr(qcow2_store, "create_snapshot", create)
    assert routes.answer(Request("POST", "/v1/snapshots", {}, b'{"name": "one"}')).status == 200
    assert (seen, front.rests) == ([True], 1)

    def carry(*arguments: object, **options: object) -> None:
        seen.append(front.resting)
        convert_bytes.carry(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(real_carry, carry)
    peer = (1, os.geteuid(), 1)
    body = json.dumps({"path": str(tmp_path / "copy")}).encode()
    reply = routes.answer(Request("POST", "/v1/backup", {}, body, peer))
    assert b"generation" in b"".join(reply.body)  # type: ignore[arg-type]
    assert (seen, front.rests) == ([True, False], 2)
    reply = routes.answer(Request("POST", "/v1/snapshots/one/apply", {}))
    assert (reply.status, b"DeviceBusyError" in bytes(reply.body)) == (503, True)  # type: ignore[arg-type]


def test_only_root_and_the_owners_user_have_it_write_files_o87(
    store: blobstore.Store, image: Path, tmp_path: Path
) -> None:
    routes = Routes([ImageResources(Owner(store, image)).resources()])
    body = json.dumps({"path": str(tmp_path / "copy")}).encode()

    def ask(peer: tuple[int, int, int] | None) -> Reply:
        return routes.answer(Request("POST", "/v1/backup", {}, body, peer))

    for peer in (None, (1, os.geteuid() + 1, 1)):
        reply = ask(peer)
        assert reply.status == 403
        assert b"[O87]" in bytes(reply.body)  # type: ignore[arg-type]
    assert not (tmp_path / "copy").exists()
    assert ask((1, 0, 0)).status == 200


def test_a_backup_fails_as_the_store_would_o86(
    client: StoreClient, store: blobstore.Store, image: Path, tmp_path: Path
) -> None:
    client.put("a", b"1")
    destination = tmp_path / "copy"
    calls: list[tuple[int, int]] = []
    blobstore.backup(client, destination, progress=lambda done, total: calls.append((done, total)))
    with blobstore.open(destination, read_only=True) as copy:
        assert copy.get("a") == b"1"
        assert copy.info().clean
    for backed_up in (store, client):
        with pytest.raises(blobstore.ImageExistsError):
            blobstore.backup(backed_up, destination)
        with pytest.raises(ValueError, match="image itself"):
            blobstore.backup(backed_up, image, overwrite=True)
        with pytest.raises(ValueError, match="secret"):
            blobstore.backup(backed_up, tmp_path / "new", b"secret")
        with pytest.raises(DeviceError):
            blobstore.backup(backed_up, tmp_path / "missing" / "copy")
        blobstore.backup(backed_up, destination, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy"]


def test_a_client_that_goes_away_ends_its_backup_o86(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, destination = tmp_path / "image", tmp_path / "copy"
    started, go_on = threading.Event(), threading.Event()

    def carry(*arguments: object, progress: Callable[[int, int], None], **options: object) -> None:
        progress(0, 1)
        started.set()
        assert go_on.wait(60)
        convert_bytes.carry(*arguments, progress=progress, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("blobstore.copies.copier.carry", carry)
    with (
        blobstore.create(image, {"a": 10}, encrypted=False, free=1 << 20) as store,
        owner_thread(store, image, tmp_path / "socket"),
    ):
        store.put("a", b"1")

        def leave(_done: int, _total: int) -> None:
            raise ConnectionAbortedError

        with StoreClient(tmp_path / "socket") as client, pytest.raises(ConnectionAbortedError):
            client.backup(destination, progress=leave)
        assert started.wait(60)
        with StoreClient(tmp_path / "socket") as client:
            client.put("a", b"2")  # the store is not held meanwhile
        _wait_for("connection")  # to notice that the client has gone
        go_on.set()
        _wait_for("work")
    left = [path.name for path in tmp_path.iterdir() if "copy" in path.name]
    assert left == []


def test_an_owner_that_ends_gives_up_a_long_backup_o7(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, destination = tmp_path / "image", tmp_path / "copy"
    started, failed = threading.Event(), threading.Event()

    def carry(*_: object, progress: Callable[[int, int], None], **__: object) -> None:
        try:
            while True:
                progress(0, 1)
                started.set()
                threading.Event().wait(0.01)
        finally:
            failed.set()

    monkeypatch.setattr("blobstore.copies.copier.carry", carry)
    with blobstore.create(image, {"a": 10}, encrypted=False, free=1 << 20) as store:
        limits = Limits(sending=0.2, draining=5)

        def back_up() -> None:
            with (
                StoreClient(tmp_path / "socket") as client,
                pytest.raises(blobstore.StorageError),
            ):
                client.backup(destination)

        waiting = threading.Thread(target=back_up)
        with owner_thread(store, image, tmp_path / "socket", limits):
            waiting.start()
            assert started.wait(60)
        assert failed.wait(60)
        waiting.join(60)
        _wait_for("work")
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"path": 1}',
        b'{"path": ""}',
        b'{"path": "relative"}',
        b'{"path": "/a\\u0000b"}',
        b'{"path": "/a\\ud800b"}',
        b'{"path": "/"}',
        b'{"path": "/dev/null", "overwrite": true}',
        b'{"path": "/proc/x"}',
        b'{"path": "/%s"}' % (b"x" * 5000),
        b'{"path": "/tmp/x", "more": 1}',
    ],
)
def test_nonsense_is_answered_with_an_error_o12(
    store: blobstore.Store, image: Path, body: bytes
) -> None:
    routes = Routes([ImageResources(Owner(store, image)).resources()])
    reply = routes.answer(Request("POST", "/v1/backup", {}, body, (1, 0, 0)))
    content = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
    assert b'"class"' in content.splitlines()[-1]
    for path, method in (("/v1/snapshots", "POST"), ("/v1/luks-header", "POST")):
        assert routes.answer(Request(method, path, {}, body)).status >= 400
    for query in ("", "?offset", "?offset=1", "?offset=1&size=", "?offset=1&size=9999999999999999"):
        assert routes.answer(Request("GET", f"/v1/luks-header{query}", {})).status >= 400
    assert store.verify().ok


def _wait_for(name: str) -> None:
    """Wait until all threads of that name have ended."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(60)
            assert not thread.is_alive()


# ------------------------------------------------------- blobstore.open and verbs


def test_open_is_a_client_where_there_is_an_owner_o94(
    server: OwnerServer, store: blobstore.Store, image: Path
) -> None:
    del server
    store.put("a", b"1")
    with blobstore.open(image, b"a secret that is not sent", header="nowhere") as client:
        assert isinstance(client, StoreClient)
        assert client.get("a") == b"1"
        client.put("a", b"2")
        digest, generation = client.digest(), client.info().generation
        assert client.image_info() == store.image_info()
    with blobstore.open(image, read_only=True, expect_digest=digest) as reader:
        assert reader.read_only
        for change in (
            lambda: reader.put("a", b"3"),
            lambda: reader.delete("a"),
            lambda: reader.register("n", 1),
            lambda: reader.resize("a", 1),
            lambda: reader.rename("a", "n"),
            lambda: reader.restore("a"),
            lambda: reader.grow(1),
            reader.compact,
            reader.scrub,
            reader.repair,
            lambda: reader.create_snapshot("x"),
            lambda: _empty(reader),
        ):
            with pytest.raises(ReadOnlyError):
                change()
    with pytest.raises(blobstore.PinMismatchError):
        blobstore.open(image, at_least_generation=generation + 1)
    with pytest.raises(blobstore.PinMismatchError):
        blobstore.open(image, expect_digest=blobstore.StateDigest(1, bytes(32)))
    own = f"process {os.getpid()} .* owns {image}"
    keywords: list[dict[str, Any]] = [{"direct": True}, {"allow_damaged": True}]
    for options in keywords:
        with pytest.raises(DeviceBusyError, match=own) as info:
            blobstore.open(image, **options)
        assert "ask the owner" in (info.value.hint or "")
    with blobstore.open(image, read_only=True, lock=False) as unlocked:
        assert isinstance(unlocked, blobstore.Store)
    with blobstore.open(image, released=True) as released:
        assert isinstance(released, blobstore.Store)
    with pytest.raises(DeviceBusyError, match=own):
        blobstore.check(image)


def _empty(store: AnyStore) -> None:
    with store.transaction() as changes:
        changes.delete("a")


def test_open_is_a_store_where_there_is_no_owner_o94(image: Path) -> None:
    entry = entry_of(image)
    assert entry is not None
    with blobstore.open(image) as store:
        assert isinstance(store, blobstore.Store)
    entry.parent.mkdir()
    entry.symlink_to("nowhere")
    with blobstore.open(image) as store:
        assert isinstance(store, blobstore.Store)
    assert blobstore.find_owner(image) is None


def test_functions_take_the_store_of_an_owner(
    client: StoreClient, store: blobstore.Store, tmp_path: Path
) -> None:
    store.put("a", b"1")
    unpacked = blobstore.unpack(client, tmp_path / "unpacked")
    assert set(unpacked.files) == {"a"}
    with blobstore.clone(client, tmp_path / "clone") as cloned:
        differences = blobstore.compare(client, cloned)
        assert {one.change for one in differences} == {"same"}
        cloned.put("a", b"2")
        assert [one.change for one in blobstore.compare(cloned, client)] == ["changed", "same"]


@pytest.mark.slow
def test_verbs_that_find_the_owner_o94(tmp_path: Path, runtime: Path) -> None:
    image, key, copy = tmp_path / "image", tmp_path / "key", tmp_path / "copy"
    key.write_bytes(SECRET)
    kdf = luks.Pbkdf2("sha256", 1000)
    with blobstore.create(
        image, {"a": 100, "b": 100}, SECRET, kdf=kdf, image_format="qcow2"
    ) as store:
        store.put("a", b"one")
        store.put("a", b"two")
    owner = OwnerProcess(image, runtime, "--key-file", key)
    try:

        def run(*arguments: object, code: int = 0) -> str:
            done = owner.run(*arguments)
            assert done.returncode == code, (arguments, done.stdout, done.stderr)
            return done.stdout.decode() + done.stderr.decode()

        assert json.loads(run("verify", image, "--json"))["ok"]
        assert json.loads(run("verify", image, "--repair", "--json"))["ok"]
        info = json.loads(run("info", image, "--json"))
        assert info["owner"]["process"] == owner.process.pid
        assert info["image"]["format"] == "qcow2"
        assert info["luks"]["header"] == "attached"
        assert sum(one["size"] for one in info["regions"]) == info["image"]["size"]
        assert "regions of" in run("info", image)
        run("restore", image, "a")
        run("snapshot", "create", image, "then")
        run("put", image, "a", key)
        listed = json.loads(run("snapshot", "list", image, "--json"))
        assert [one["name"] for one in listed] == ["then"]
        diff = json.loads(run("snapshot", "diff", image, "then", "--json", "--key-file", key))
        assert {one["name"]: one["change"] for one in diff}["a"] == "changed"
        key_of = ("--key-file", key)
        assert run("get", image, "a", "--snapshot", "then", *key_of) == "one"
        assert "owns" in run("get", image, "a", "--snapshot", "then", "--direct", *key_of, code=23)
        run("backup", image, copy)
        diff = json.loads(run("diff", image, copy, "--json", "--other-key-file", key))
        assert {one["change"] for one in diff} == {"same"}
        run("backup", image, copy, code=69)
        run("backup", image, copy, "--force", "--direct", "--key-file", key)
        run("snapshot", "apply", image, "then")
        assert run("get", image, "a") == "one"
        run("grow", image, "20M")
        run("compact", image)
        run("scrub", image)
        run("snapshot", "delete", image, "then")
        run("unpack", image, "-o", tmp_path / "unpacked")
        run("export", image, "raw", tmp_path / "x", code=2)
        name = f"process {owner.process.pid} (blobstore serve) owns {image}"
        for arguments in (
            ("snapshot", "create", image, "x", "--direct"),
            ("snapshot", "list", image, "--direct"),
            ("snapshot", "apply", image, "x", "--direct"),
            ("snapshot", "delete", image, "x", "--direct"),
            ("verify", image, "--direct", "--key-file", key),
            ("info", image, "--direct", "--key-file", key),
            ("diff", image, copy, "--direct", "--key-file", key),
            ("restore", image, "a", "--direct", "--key-file", key),
            ("compact", image, "--direct", "--key-file", key),
            ("scrub", image, "--direct", "--key-file", key),
            ("grow", image, "20M", "--direct", "--key-file", key),
            ("check", image),
            ("convert", image, tmp_path / "raw", "--to", "raw", "--key-file", key),
            ("serve", image, "--key-file", key),
        ):
            assert name in run(*arguments, code=23), arguments
    finally:
        assert owner.end()[0] == 0
    with blobstore.open(image, SECRET) as again:
        assert again.get("a") == b"one"
        assert again.verify().ok


def test_an_owner_with_devices_applies_no_snapshot_o83(
    qcow2: Path, runtime: Path, tmp_path: Path
) -> None:
    owner = OwnerProcess(qcow2, runtime, "--nbd", tmp_path / "nbd.sock")
    try:
        assert owner.run("snapshot", "create", qcow2, "then").returncode == 0
        refused = owner.run("snapshot", "apply", qcow2, "then")
        assert (refused.returncode, b"[O83]" in refused.stderr) == (23, True)
    finally:
        owner.end()
    shutil.rmtree(runtime)
