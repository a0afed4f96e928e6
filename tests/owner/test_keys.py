"""Keys of an image whose owner runs, wherever its LUKS header lies (O88 to O90)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from blobstore.owner import StoreClient
from blobstore.owner.remote_header import RemoteHeader
from blobstore.store import header_area
from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.errors import DeviceBusyError, DeviceError, ReadOnlyError, UnsupportedError
from tests.support.cli import QUICK
from tests.support.devices import RecordingDevice, Write
from tests.support.interrupts import InterruptPoints
from tests.support.owners import OwnerProcess, owner_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.owner import AnyStore

SECRET, OTHER = b"passphrase", b"another"
KDF = luks.Pbkdf2("sha256", 1000)
WAYS = ("raw", "detached", "luks in qcow2", "luks1 in qcow2", "own luks")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "key", tmp_path / "other key"
    paths[0].write_bytes(SECRET)
    paths[1].write_bytes(OTHER)
    return paths


def made(tmp_path: Path, way: str) -> tuple[Path, Path | None]:
    """Make an image with a store; return it and its detached header."""
    image = tmp_path / "image"
    header = tmp_path / "header" if way == "detached" else None
    version = 1 if way in ("luks1 in qcow2", "own luks") else 2
    blobstore.create(
        image,
        {"a": 100},
        SECRET,
        header=header,
        kdf=KDF,
        luks_version=version,
        image_format="qcow2" if "qcow2" in way or way == "own luks" else "raw",
        own_luks=way == "own luks",
    ).close()
    return image, header


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_verb_of_keys_works_beside_the_owner_o88(
    tmp_path: Path, runtime: Path, keys: tuple[Path, Path], way: str
) -> None:
    image, header = made(tmp_path, way)
    key, other = keys
    where = ("--header", header) if header else ()
    owner = OwnerProcess(image, runtime, "--key-file", key, *where)
    luks2 = way not in ("luks1 in qcow2", "own luks")

    def run(*arguments: object, code: int = 0) -> str:
        done = owner.run(*arguments)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout.decode() + done.stderr.decode()

    try:
        run("key", "add", image, *where, "--key-file", key, "--new-key-file", other, *QUICK)
        assert len(json.loads(run("key", "list", image, *where, "--json"))) == 2
        assert "keyslot 1" in run("key", "test", image, *where, "--key-file", other)
        backup = tmp_path / "backup"
        run("header", "backup", image, backup, *where)
        changed = run(
            *("key", "change", image, *where, "--key-file", other),
            *("--new-key-secret", "s", "--object", "secret,id=s,data=third", *QUICK),
        )
        number = changed.split()[1]
        run("key", "test", image, *where, "--key-file", other, code=51)
        run(
            *("amend", image, *where, "--object", "secret,id=s,data=third"),
            *("--json", f'{{"state": "inactive", "keyslot": {number}}}'),
        )
        assert len(json.loads(run("key", "list", image, *where, "--json"))) == 1
        run("header", "restore", image, backup, *where)
        run("key", "test", image, *where, "--key-file", other)
        if luks2:
            run("token", "add", image, *where, "--key-description", "k", "--key-slot", 1)
            run("token", "unassign", image, *where, 0, "--key-slot", 1)
            run("token", "assign", image, *where, 0, "--key-slot", 1)
            exported = run("token", "export", image, *where, 0)
            (tmp_path / "token").write_text(exported)
            run("token", "import", image, *where, tmp_path / "token")
            assert len(json.loads(run("token", "list", image, *where, "--json"))) == 2
            run("token", "remove", image, *where, 0)
        run("key", "remove", image, *where, "--key-file", other)
        run("key", "test", image, *where, "--key-file", other, code=51)
        described = json.loads(run("header", "dump", image, *where, "--json"))
        assert list(described["keyslots"]) == ["0"]
        # The owner goes on, and says what the header is now.
        run("put", image, "a", key)
        info = json.loads(run("info", image, "--json"))
        assert info["luks"]["keyslots"] == [0]
        if way in ("luks in qcow2", "luks1 in qcow2"):
            arguments = ("key", "remove", image, "--key-slot", 0, "--force", "--direct")
            assert f"process {owner.process.pid} (blobstore serve) owns" in run(*arguments, code=23)
            run("header", "detach", image, tmp_path / "detached", code=23)
    finally:
        code, said = owner.end()
    assert code == 0
    for secret in (SECRET, OTHER, b"third"):
        assert secret not in said
    with blobstore.open(image, SECRET, header=header) as store:
        assert store.get("a") == SECRET
        assert store.verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("way", ["raw", "luks in qcow2"])
def test_keys_are_exported_and_destroyed_beside_the_owner_o88(
    tmp_path: Path, runtime: Path, keys: tuple[Path, Path], way: str
) -> None:
    image, _ = made(tmp_path, way)
    owner = OwnerProcess(image, runtime, "--key-file", keys[0])
    try:
        for arguments in (
            (
                "key",
                "export",
                image,
                "-o",
                tmp_path / "volume key",
                "--key-file",
                keys[0],
                "--force",
            ),
            ("key", "test", image, "--volume-key-file", tmp_path / "volume key"),
            ("key", "destroy", image, "--force"),
            ("put", image, "a", keys[0]),
        ):
            done = owner.run(*arguments)
            assert done.returncode == 0, done
        assert owner.run("get", image, "a").stdout == SECRET
    finally:
        assert owner.end()[0] == 0
    with pytest.raises(luks.StorageError):
        blobstore.open(image, SECRET)


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    return made(tmp_path, "luks in qcow2")[0]


@pytest.fixture
def served(qcow2: Path, tmp_path: Path) -> Iterator[blobstore.Store]:
    with (
        blobstore.open(qcow2, SECRET, direct=True) as store,
        owner_thread(store, qcow2, tmp_path / "socket"),
    ):
        yield store


def opens(image: Path, secret: bytes) -> bool:
    with blobstore.luks_place(image) as place, luks.open_header(place) as (device, header):
        try:
            luks.unlock(device, header, secret).key.wipe()
        except luks.NoKeyslotMatchError:
            return False
    return True


def test_a_store_and_its_client_give_the_place_of_the_header(
    served: blobstore.Store, qcow2: Path
) -> None:
    client = blobstore.open(qcow2)
    assert isinstance(client, StoreClient)
    with client:
        stores: list[AnyStore] = [served, client]
        for number, store in enumerate(stores, start=1):
            with store.luks_place(write=True) as place:
                assert luks.add_keyslot(place, SECRET, OTHER + bytes([number]), kdf=KDF) == number
            with store.luks_place() as place:
                assert sorted(luks.load_header(place).keyslots) == list(range(number + 1))
                if store is client:
                    with pytest.raises(ReadOnlyError):
                        luks.remove_keyslot(place, number)
            info = store.image_info()
            assert info is not None
            assert info.luks is not None
            assert info.luks.keyslots == tuple(range(number + 1))
            assert opens(qcow2, OTHER + bytes([number]))
    with (
        blobstore.open(qcow2, read_only=True) as reader,
        pytest.raises(ReadOnlyError),
        reader.luks_place(write=True),
    ):
        pass


def test_the_client_of_a_clear_image_has_no_header(tmp_path: Path) -> None:
    image = tmp_path / "image"
    blobstore.create(image, {"a": 10}, encrypted=False, image_format="qcow2").close()
    with (
        blobstore.open(image, direct=True) as store,
        owner_thread(store, image, tmp_path / "socket"),
        StoreClient(tmp_path / "socket") as client,
    ):
        with client.luks_place() as place, pytest.raises(luks.ForeignImageError):
            luks.load_header(place)
        with pytest.raises(UnsupportedError, match=r"\[O88\]"):
            client._read_header(0, 1)


def test_who_is_overtaken_changes_nothing_o90(served: blobstore.Store, qcow2: Path) -> None:
    with StoreClient(qcow2.parent / "socket") as one, StoreClient(qcow2.parent / "socket") as two:
        with (
            pytest.raises(DeviceBusyError, match=r"\[O90\]"),
            one.luks_place(write=True) as place,
            luks.edit(place) as header,
        ):
            header.unlock(SECRET)
            header.add_keyslot(OTHER, kdf=KDF)
            with two.luks_place(write=True) as other:
                luks.add_keyslot(other, SECRET, b"theirs", kdf=KDF)
        with pytest.raises(DeviceBusyError, match=r"\[O90\]"), one.luks_place(write=True) as place:
            device = _device(place)
            device.read(0, 512)
            with served.luks_place(write=True) as own:
                luks.add_keyslot(own, SECRET, b"the owner's own", kdf=KDF)
            device.read(0, 512)
    assert not opens(qcow2, OTHER)
    assert opens(qcow2, b"theirs")
    assert opens(qcow2, b"the owner's own")


def _device(place: luks.Place) -> RemoteHeader:
    assert isinstance(place, RemoteHeader)
    return place


def test_who_keeps_the_header_for_long_is_not_waited_for(
    served: blobstore.Store, qcow2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_area, "HEADER_TIMEOUT", 0.1)
    with StoreClient(qcow2.parent / "socket") as client, served.luks_place(write=True):
        for call in (
            lambda: client._read_header(0, 1),
            lambda: served.luks_place(write=True).__enter__(),
        ):
            # In another thread: the one that has it may take it again.
            with ThreadPoolExecutor(1) as thread:
                waiting = thread.submit(call)
                with pytest.raises(DeviceBusyError, match="another program is changing"):
                    waiting.result()
    with served.luks_place(write=True) as place:
        assert luks.add_keyslot(place, SECRET, OTHER, kdf=KDF) == 1


def test_a_client_that_goes_away_leaves_what_a_power_cut_would_o90(
    served: blobstore.Store, qcow2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each number of requests: the header is sound, and a passphrase opens it."""
    original = tmp_path / "original"
    served.create_snapshot("before")
    real = StoreClient._write_header
    sent = 0

    def changes(client: StoreClient) -> None:
        with client.luks_place(write=True) as place, luks.edit(place) as header:
            header.unlock(SECRET)
            number = header.add_keyslot(OTHER, kdf=KDF)
            assert number == 1
            header.remove_keyslot(0)

    for allowed in range(10):
        sent = 0

        def write(client: StoreClient, writes: list[tuple[int, bytes]], etag: str) -> str:
            nonlocal sent
            if sent == allowed:  # noqa: B023  called in this pass only
                client.close()
                raise DeviceError("the client went away")
            sent += 1
            return real(client, writes, etag)

        monkeypatch.setattr(StoreClient, "_write_header", write)
        with StoreClient(tmp_path / "socket") as client:
            try:
                changes(client)
            except DeviceError:
                done = False
            else:
                done = True
        assert opens(qcow2, SECRET) or opens(qcow2, OTHER)
        header = served.image_info()
        assert header is not None
        shutil.copy(qcow2, original)
        secret = SECRET if opens(qcow2, SECRET) else OTHER
        with blobstore.open(original, secret) as copy:
            assert copy.verify().ok
        if done:
            assert opens(qcow2, OTHER)
            assert not opens(qcow2, SECRET)
            break
        # Go on from where each pass began.
        monkeypatch.setattr(StoreClient, "_write_header", real)
        served.apply_snapshot("before")
        assert opens(qcow2, SECRET)
        assert not opens(qcow2, OTHER)
    else:
        raise AssertionError("the change did not end")
    assert allowed >= 3


def test_an_interrupt_of_a_client_leaves_a_header_that_opens_o90(
    served: blobstore.Store, qcow2: Path, tmp_path: Path
) -> None:
    served.create_snapshot("before")

    def change() -> None:
        with StoreClient(tmp_path / "socket") as client, client.luks_place(write=True) as place:
            luks.change_keyslot(place, SECRET, OTHER, kdf=KDF)

    points = InterruptPoints(change)
    served.apply_snapshot("before")
    outcomes = set()
    for point in points.chosen(12):
        with contextlib.suppress(KeyboardInterrupt), points.interrupted_at(point):
            change()
        old, new = opens(qcow2, SECRET), opens(qcow2, OTHER)
        assert old != new
        outcomes.add(new)
        served.put("a", b"goes on")
        served.apply_snapshot("before")
    assert outcomes


@pytest.mark.parametrize("version", [1, 2])
def test_the_owner_writes_what_would_be_written_here_o90(version: int) -> None:
    """In the same order, with the same flushes: what holds after a crash of one holds for both."""
    memory = MemoryDevice(8 << 20)
    luks.format(memory, SECRET, version=version, kdf=KDF).close()
    logs = []
    for remote in (False, True):
        device = RecordingDevice(bytes(memory.content))

        def read(offset: int, size: int) -> tuple[bytes, str]:
            return device.read(offset, size), f'"{len(device.writes)}"'  # noqa: B023  this pass

        def write(writes: list[tuple[int, bytes]], etag: str) -> str:
            assert etag == f'"{len(device.writes)}"'  # noqa: B023  likewise
            for offset, data in writes:
                device.write(offset, data)  # noqa: B023  likewise
            device.flush()  # noqa: B023  likewise
            return f'"{len(device.writes)}"'  # noqa: B023  likewise

        place = RemoteHeader(2 << 20, read, write) if remote else device
        luks.add_keyslot(place, SECRET, OTHER, kdf=KDF)
        luks.change_keyslot(place, OTHER, b"third", kdf=KDF)
        with luks.edit(place) as header:
            header.unlock(SECRET)
            header.add_keyslot(b"fourth", kdf=KDF)
            header.remove_keyslot(0)
        luks.remove_keyslot(place, secret=b"third")
        logs.append(
            [
                (event.offset, len(event.data)) if isinstance(event, Write) else "flush"
                for event in device.log
            ]
        )
    assert logs[0] == logs[1]
    assert logs[0].count("flush") > 8


@pytest.mark.parametrize("way", ["raw", "luks in qcow2", "detached"])
def test_verify_tells_of_damage_to_the_header_since_it_was_opened(tmp_path: Path, way: str) -> None:
    """An owner runs for long: what its header was when it started says little."""
    image, header = made(tmp_path, way)
    with blobstore.open(image, SECRET, header=header, direct=True) as store:
        assert store.verify().ok
        with store.luks_place(write=True) as place:
            if isinstance(place, str | os.PathLike):
                with FileDevice(place, read_only=False, lock=False) as file:
                    file.write(100, b"damage")
            else:
                place.write(100, b"damage")
        report = store.verify()
        assert [one.message for one in report.problems] == [
            "the primary LUKS header copy is damaged or old"
        ]
        with store.luks_place(write=True) as place:
            luks.repair(place)
        assert store.verify().ok
        if header is not None:
            header.unlink()
            assert store.verify().ok


def test_a_header_that_was_changed_meanwhile_is_that_of_the_next_snapshot(
    served: blobstore.Store, qcow2: Path
) -> None:
    with served.luks_place(write=True) as place:
        luks.add_keyslot(place, SECRET, OTHER, kdf=KDF)
    served.create_snapshot("two keys")
    with served.luks_place(write=True) as place:
        luks.remove_keyslot(place, secret=OTHER)
    served.close()
    for secret, snapshot in ((OTHER, "two keys"), (SECRET, None)):
        with blobstore.open(qcow2, secret, read_only=True, snapshot=snapshot, direct=True) as found:
            assert found.verify().ok
    with pytest.raises(luks.NoKeyslotMatchError):
        blobstore.open(qcow2, OTHER, read_only=True, direct=True)
