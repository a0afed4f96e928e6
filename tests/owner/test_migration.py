"""Letting the image go, and taking it over, with all devices (O140 to O144)."""

from __future__ import annotations

import json
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.owner import StoreClient
from blobstore.owner.owner import Owner
from formats.errors import DeviceBusyError, DeviceError, ReadOnlyError, UnsupportedError
from formats.nbd.numbers import Command, Errno
from tests.nbd.support import Client, Reply, request
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

SIZE = 8192


@pytest.fixture
def windows(image: Path) -> Path:
    with blobstore.open(image) as store:
        store.register("w", SIZE, "window")
        store.register("unwritten", SIZE, "window")
        store.put("a", b"blob")
    return image


@pytest.fixture
def source(windows: Path, runtime: Path, tmp_path: Path) -> Iterator[OwnerProcess]:
    options = ("--socket", tmp_path / "1.sock", "--nbd", tmp_path / "1.nbd")
    owner = OwnerProcess(windows, runtime, *options)
    yield owner
    owner.end()


def incoming(windows: Path, runtime: Path, tmp_path: Path, how: str) -> OwnerProcess:
    options = ("--socket", tmp_path / "2.sock", "--nbd", tmp_path / "2.nbd")
    return OwnerProcess(windows, runtime, *options, "--incoming", how)


def write(client: Client, data: bytes, *, flush: bool = True) -> int:
    client.send(request(Command.WRITE, 0, data=data))
    error = client.reply().error
    if error or not flush:
        return error
    client.send(request(Command.FLUSH))
    return client.reply().error


def read(client: Client, size: int) -> bytes:
    client.send(request(Command.READ, 0, size))
    reply: Reply = client.reply(size)
    assert reply.error == 0
    return reply.data


def test_devices_move_with_the_image_and_come_back_o140_o141_o142(
    source: OwnerProcess, windows: Path, runtime: Path, tmp_path: Path
) -> None:
    target = incoming(windows, runtime, tmp_path, "told")
    with (
        StoreClient(tmp_path / "1.sock") as here,
        StoreClient(tmp_path / "2.sock") as there,
        Client(tmp_path / "1.nbd") as device,
        Client(tmp_path / "2.nbd") as arriving,
    ):
        device.begin("w", structured=False)
        assert write(device, b"before", flush=False) == 0
        # The other one reads what was committed, and changes nothing.
        assert (here.state().released, there.state().released) == (False, True)
        assert there.get("a") == b"blob"
        arriving.begin("unwritten", structured=False)
        assert read(arriving, SIZE) == bytes(SIZE)
        assert write(arriving, b"x") == Errno.EPERM
        with pytest.raises(ReadOnlyError, match="take it over"):
            there.put("a", b"x")
        with pytest.raises(DeviceBusyError):
            there.take_over()
        assert there.state().released
        # What a device wrote and did not flush is committed first.
        digest = here.release()
        assert here.state().released
        assert here.get("w")[:6] == b"before"
        assert read(device, 6) == b"before"
        assert write(device, b"refused") == Errno.EPERM
        with pytest.raises(ReadOnlyError):
            here.put("a", b"x")
        with pytest.raises(UnsupportedError):
            here.release()
        with Client(tmp_path / "1.nbd") as late:
            late.begin("w", structured=False)
            assert read(late, 6) == b"before"
        assert there.take_over(expect_digest=digest) == digest
        assert write(arriving, b"there") == 0
        there.put("a", b"there")
        # The entry of the image is that of the process that has it.
        assert source.socket.readlink() == tmp_path / "2.sock"
        with pytest.raises(DeviceBusyError):
            here.take_over()
        assert read(device, 6) == b"before"
        # And back.
        newer = there.release()
        assert newer.generation > digest.generation
        assert here.take_over(at_least_generation=newer.generation) == newer
        assert here.get("a") == b"there"
        assert write(device, b"back") == 0
        assert source.socket.readlink() == tmp_path / "1.sock"
        assert write(arriving, b"x") == Errno.EPERM
    assert target.end()[0] == 0
    assert source.end()[0] == 0
    with blobstore.open(windows) as store:
        assert store.info().clean
        assert (store.get("w")[:6], store.get("unwritten")[:5]) == (b"backre", b"there")


def test_what_was_released_is_taken_back_when_the_migration_fails_o142(
    source: OwnerProcess, tmp_path: Path
) -> None:
    with StoreClient(tmp_path / "1.sock") as here, Client(tmp_path / "1.nbd") as device:
        device.begin("w", structured=False)
        digest = here.release()
        assert here.take_over(expect_digest=digest) == digest
        assert write(device, b"on") == 0
        here.put("a", b"on")
        assert here.take_over().generation == here.info().generation  # it has it already
    assert source.end()[0] == 0


def test_an_image_is_taken_when_it_is_free_o143(
    source: OwnerProcess, windows: Path, runtime: Path, tmp_path: Path
) -> None:
    target = incoming(windows, runtime, tmp_path, "free")
    try:
        with StoreClient(tmp_path / "2.sock") as there, StoreClient(tmp_path / "1.sock") as here:
            here.put("a", b"acknowledged")
            source.end(signal.SIGKILL)
            deadline = time.monotonic() + 60
            while there.state().released:
                assert time.monotonic() < deadline
            assert there.get("a") == b"acknowledged"
            there.put("a", b"on")
    finally:
        assert target.end()[0] == 0


def test_an_owner_that_waits_can_be_ended_and_writes_nothing_o143(
    windows: Path, runtime: Path, tmp_path: Path
) -> None:
    before = windows.read_bytes()
    with blobstore.open(windows, read_only=True):
        assert incoming(windows, runtime, tmp_path, "told").end()[0] == 0
    assert windows.read_bytes() == before
    assert not runtime.exists()  # the entry is that of the process that has the image


def test_the_verbs_are_these_requests_o144(source: OwnerProcess, windows: Path) -> None:
    assert f"process   {source.process.pid}" in source.run("owner", "show", windows).stdout.decode()
    digest = source.run("owner", "release", windows).stdout.decode().strip()
    shown = json.loads(source.run("owner", "show", windows, "--json").stdout)
    assert shown == {"process": source.process.pid, "released": True}
    assert source.run("put", windows, "a", "-", stdin=b"x").returncode == 22
    refused = source.run("owner", "take-over", windows, "--at-least-generation", "99")
    assert refused.returncode == 75
    taken = source.run("owner", "take-over", windows, "--expect-digest", digest)
    assert taken.stdout.decode().strip() == digest
    assert source.run("put", windows, "a", "-", stdin=b"x").returncode == 0
    assert source.run("owner", "release", windows.parent / "none").returncode == 20


class BrokenFront:
    """A front whose devices cannot be committed, or that counts."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails, self.said = fails, ""

    def at_rest(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def suspend(self, *, waiting: bool) -> None:
        if self.fails:
            raise DeviceError("the disk is gone")
        self.said += "w" if waiting else "s"

    def resume(self) -> None:
        self.said += "r"


def test_a_device_that_cannot_be_committed_keeps_the_image_here_o140(
    store: blobstore.Store, image: Path
) -> None:
    owner = Owner(store, image)
    good, bad = BrokenFront(), BrokenFront(fails=True)
    owner.add(good)
    owner.add(bad)
    with pytest.raises(DeviceError, match="the disk is gone"):
        owner.release()
    assert not owner.released
    assert good.said == "sr"
    store.put("a", b"on")
    owner.remove(bad)
    owner.release(waiting=True)
    owner.add(late := BrokenFront())
    assert (good.said, late.said) == ("srw", "s")
    owner.take_over()
    assert (good.said, late.said) == ("srwr", "sr")


def test_a_store_that_cannot_be_released_goes_on_o140(
    store: blobstore.Store, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, front = Owner(store, image), BrokenFront()
    owner.add(front)

    def fail(*_: object, **__: object) -> None:
        raise DeviceError("the disk is gone")

    with monkeypatch.context() as failing:
        failing.setattr(blobstore.Store, "release", fail)
        with pytest.raises(DeviceError, match="gone"):
            owner.release(waiting=True)
    assert (front.said, owner.released) == ("wr", False)
    store.put("a", b"on")
    digest = owner.release()
    with monkeypatch.context() as failing:
        failing.setattr(blobstore.Store, "take_over", fail)
        with pytest.raises(DeviceError, match="gone"):
            owner.take_over(expect_digest=digest)
    assert (front.said, owner.released) == ("wrs", True)
    owner.take_over(expect_digest=digest)
    store.put("a", b"on")


def test_nothing_comes_between_the_digest_and_the_release_o140(
    store: blobstore.Store, image: Path
) -> None:
    """Puts in another thread: what was acknowledged is in the state that the digest pins."""
    owner = Owner(store, image)
    acknowledged = [0]

    def put() -> None:
        while True:
            try:
                store.put("a", str(acknowledged[0] + 1).encode())
            except ReadOnlyError:
                return
            acknowledged[0] += 1

    for _ in range(10):
        thread = threading.Thread(target=put)
        thread.start()
        time.sleep(0.005)
        digest = owner.release()
        thread.join()
        with blobstore.open(image, expect_digest=digest) as other:
            assert int(other.get("a")) == acknowledged[0]
        owner.take_over()
