"""`blobstore copy` between places, with and without an owner of the source."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from blobstore.copies.passes import ImageCopy
from blobstore.owner import StoreClient, resting
from formats.errors import ArgumentError, DeviceBusyError, DeviceError, ReadOnlyError
from tests.nbd.servers import nbdkit
from tests.support.cli import blobstore as run
from tests.support.owners import OwnerProcess, own_runtime, owner_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from formats.devices.device import BlockDevice

SIZE = 4 << 20


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from own_runtime(tmp_path, monkeypatch)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    with blobstore.create(path, {"a": 5000}, encrypted=False, size=SIZE) as store:
        store.put("a", b"state")
    return path


def test_places_of_all_kinds_hold_the_same_bytes_p40(image: Path, tmp_path: Path) -> None:
    with (
        nbdkit(tmp_path / "1.sock", "memory", "6M") as first,
        nbdkit(tmp_path / "2.sock", "memory", "6M") as second,
    ):
        places = [f"nbd+unix:///?socket={server.socket}" for server in (first, second)]
        blobstore.copy(image, places[0])
        blobstore.copy(places[0], places[1])
        blobstore.copy(places[1], tmp_path / "back.img")
        with blobstore.open(places[1], read_only=True) as store:
            assert store.get("a") == b"state"
    back = (tmp_path / "back.img").read_bytes()
    assert back == image.read_bytes() + bytes(2 << 20)
    assert (tmp_path / "back.img").stat().st_blocks <= image.stat().st_blocks + 128
    assert (tmp_path / "back.img").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_encrypted_images_are_copied_without_a_key_p40(tmp_path: Path, kind: str) -> None:
    source, copy = tmp_path / "source.img", tmp_path / "copy.img"
    cost: dict[str, Any] = {"kdf": "pbkdf2", "iter_time": 1}
    with blobstore.create(source, {"a": 500}, b"secret", image_format=kind, **cost) as store:
        store.put("a", b"state")
    blobstore.copy(source, copy)
    assert copy.read_bytes() == source.read_bytes()
    with blobstore.open(copy, b"secret") as store:
        assert store.get("a") == b"state"
        store.put("a", b"of the copy")
    blobstore.copy(source, tmp_path / "moved.img", hand_over=True)
    with pytest.raises(blobstore.MovedImageError, match="P46"):
        blobstore.open(source, b"secret")
    assert not luks.is_luks(source)
    with blobstore.open(tmp_path / "moved.img", b"secret") as store:
        assert store.get("a") == b"state"


def test_what_is_there_is_kept_p47(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"needed" * 100)
    with pytest.raises(blobstore.StorageError, match="holds something"):
        blobstore.copy(image, other)
    assert other.read_bytes() == b"needed" * 100
    with pytest.raises(ArgumentError, match="the image itself"):
        blobstore.copy(image, image)
    blobstore.copy(image, other, overwrite=True)
    assert other.read_bytes() == image.read_bytes()
    with blobstore.open(other) as store, pytest.raises(DeviceBusyError):
        store.put("a", b"used")
        blobstore.copy(image, other, overwrite=True)
    with pytest.raises(DeviceError, match="cannot open"):
        blobstore.copy(tmp_path / "none", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_writer_that_cannot_be_asked_is_not_copied_from_p44(image: Path, tmp_path: Path) -> None:
    with blobstore.open(image, direct=True), pytest.raises(DeviceBusyError):
        blobstore.copy(image, tmp_path / "copy.img")
    with pytest.raises(blobstore.UnfinishedCopyError, match="P41"):
        blobstore.open(tmp_path / "copy.img")
    with pytest.raises(blobstore.UnfinishedCopyError):
        blobstore.copy(tmp_path / "copy.img", tmp_path / "another.img")
    assert not (tmp_path / "another.img").exists()
    blobstore.copy(image, tmp_path / "copy.img")
    assert (tmp_path / "copy.img").read_bytes() == image.read_bytes()


@contextmanager
def writing(path: Path) -> Iterator[list[int]]:
    """Put numbers in another thread; yield those that were acknowledged."""
    acknowledged: list[int] = []
    stopped = threading.Event()

    def write() -> None:
        with StoreClient(path) as store:
            number = 0
            while not stopped.is_set():
                number += 1
                try:
                    store.put("a", b"%d" % number)
                except ReadOnlyError:
                    return
                acknowledged.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while len(acknowledged) < 5:
            time.sleep(0.01)
        yield acknowledged
    finally:
        stopped.set()
        thread.join()


def test_an_image_is_copied_while_its_owner_writes_p44_o175(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    owner = OwnerProcess(image, runtime)
    with writing(owner.socket) as acknowledged, StoreClient(owner.socket) as client:
        for number in range(3):
            before = acknowledged[-1]
            copied = blobstore.copy(image, tmp_path / f"{number}.img", owner=client)
            after = acknowledged[-1]
            with blobstore.open(tmp_path / f"{number}.img") as store:
                assert before <= int(store.get("a")) <= after + 1
                assert store.info().clean
                assert store.digest() == copied.digest
                assert store.verify().ok
        count = len(acknowledged)
        while len(acknowledged) < count + 5:  # it goes on
            time.sleep(0.01)
    assert owner.end()[0] == 0


def test_nothing_acknowledged_is_lost_in_a_hand_over_p46(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.img"
    owner = OwnerProcess(image, runtime)
    with writing(owner.socket) as acknowledged:
        done = owner.run("copy", image, copy, "--hand-over", "--json")
        assert done.returncode == 0, done.stderr
    *progress, result = map(json.loads, done.stdout.splitlines())
    assert progress[-1] == {"done": progress[-1]["total"], "total": progress[-1]["total"]}
    with blobstore.open(copy, expect_digest=blobstore.StateDigest.parse(result["digest"])) as store:
        assert int(store.get("a")) == acknowledged[-1]
        store.put("a", b"on")
    # The old one is not to be had, by whomever.
    for verb in (("owner", "take-over", image), ("get", image, "a", "--direct"), ("serve", image)):
        assert owner.run(*verb).returncode == blobstore.MovedImageError.exit_code, verb
    again = owner.run("copy", image, tmp_path / "2.img", "--hand-over")
    assert again.returncode == blobstore.MovedImageError.exit_code
    assert owner.end()[0] == 0


def test_an_owner_takes_its_image_back_if_it_is_not_moved_p46(
    image: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = OwnerProcess(image, runtime)

    def fail(_copy: ImageCopy) -> None:
        raise DeviceError("injected")

    with StoreClient(owner.socket) as client:
        with monkeypatch.context() as patched:
            patched.setattr(ImageCopy, "hand_over", fail)
            with pytest.raises(DeviceError, match="injected"):
                blobstore.copy(image, tmp_path / "copy.img", owner=client, hand_over=True)
        assert not client.state().released
        client.put("a", b"on")
        # One that was interrupted after that has released it still.
        client.release()
        blobstore.copy(image, tmp_path / "copy.img", owner=client, hand_over=True)
        assert client.state().released
    with blobstore.open(tmp_path / "copy.img") as store:
        assert store.get("a") == b"on"


def test_devices_do_not_wait_for_a_copy_that_takes_too_long_o176(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resting, "LONGEST", 0.3)
    with (
        blobstore.open(image, direct=True) as store,
        owner_thread(store, image, tmp_path / "socket"),
        StoreClient(tmp_path / "socket") as client,
        StoreClient(tmp_path / "socket") as other,
    ):
        with pytest.raises(DeviceBusyError, match="O176"), client.at_rest():
            began = time.monotonic()
            other.put("a", b"waits")
            assert time.monotonic() - began > 0.2
        with client.at_rest() as digest:
            time.sleep(0.01)
        assert digest == store.digest()
        with pytest.raises(KeyError), client.at_rest():
            raise KeyError
        other.put("a", b"goes on")


def test_an_owner_that_is_to_end_does_not_wait_for_a_copy_o176(
    image: Path, runtime: Path, tmp_path: Path
) -> None:
    with blobstore.open(image, direct=True) as store:
        store.register("w", 8192, "window")
    owner = OwnerProcess(image, runtime, "--nbd", tmp_path / "nbd.sock")
    with StoreClient(owner.socket) as client, pytest.raises(DeviceBusyError), client.at_rest():
        began = time.monotonic()
        assert owner.end()[0] == 0
        assert time.monotonic() - began < resting.LONGEST / 2
    with blobstore.open(image) as store:
        assert store.info().clean


def test_what_is_not_an_upgrade_is_refused_o175(image: Path, tmp_path: Path) -> None:
    with (
        blobstore.open(image, direct=True) as store,
        owner_thread(store, image, tmp_path / "socket"),
        StoreClient(tmp_path / "socket") as client,
        pytest.raises(blobstore.StorageError, match="Upgrade"),
    ):
        client._ask("POST", "/v1/rest")


def test_a_copy_that_was_killed_goes_on_p45(tmp_path: Path) -> None:
    source, copy = tmp_path / "large.img", tmp_path / "copy.img"
    with blobstore.create(source, {"a": 40 << 20}, encrypted=False) as store:
        store.put("a", bytes(range(256)) * (40 << 12))
    command = [sys.executable, "-m", "blobstore", "copy", str(source), str(copy), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run("get", copy, "a").returncode == blobstore.UnfinishedCopyError.exit_code
    done = run("copy", source, copy, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["written"] < 45 << 20
    assert copy.read_bytes() == source.read_bytes()
    assert run("copy", source, copy).returncode == blobstore.ImageExistsError.exit_code


def test_a_hand_over_that_was_interrupted_is_completed_by_the_same_call_p46(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, content = tmp_path / "copy.img", image.read_bytes()
    calls = []

    def interrupt(device: BlockDevice) -> None:
        calls.append(device)
        if len(calls) > 1:  # the first is before the copying
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("blobstore.copies.passes._wipe_second_heads", interrupt)
        with pytest.raises(KeyboardInterrupt):
            blobstore.copy(image, copy, hand_over=True)
    with pytest.raises(blobstore.UnfinishedCopyError):
        blobstore.open(copy)
    with pytest.raises(blobstore.MovedImageError):
        blobstore.open(image)
    # It needs the same two places, and no other copy is put in its way.
    with pytest.raises(blobstore.MovedImageError):
        blobstore.copy(image, copy)
    with pytest.raises(blobstore.MovedImageError):
        blobstore.copy(image, tmp_path / "another.img", hand_over=True)
    blobstore.create(tmp_path / "other.img", encrypted=False, size=SIZE).close()
    with pytest.raises(blobstore.ImageExistsError, match="P46"):
        blobstore.copy(tmp_path / "other.img", copy)
    blobstore.copy(image, copy, hand_over=True)
    assert copy.read_bytes() == content
    with blobstore.open(copy) as store:
        assert store.get("a") == b"state"
