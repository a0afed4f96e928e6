"""Snapshots and backups while devices write: one moment of all of them (O50, O81, O85)."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from blobstore.owner import StoreClient
from tests.nbd.support import Client
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.owner import AnyStore

SECRET = b"passphrase"
KINDS: dict[str, dict[str, Any]] = {
    "raw": {"encrypted": False},
    "raw luks": {"secret": SECRET},
    "qcow2": {"encrypted": False, "image_format": "qcow2"},
    "luks in qcow2": {"secret": SECRET, "image_format": "qcow2"},
}
#: Where the counter of the window lies, twice: apart, so that a mixture shows.
PLACES = (0, 96 << 10)
WINDOW = 128 << 10


class Writers:
    """A device that writes a counter into a window, and a program that puts one.

    Attributes:
        flushed: The last counter of the window that was flushed.
        stored: The last one that was put.
    """

    def __init__(self, devices: Path, socket: Path) -> None:
        self.flushed = self.stored = 0
        self._ending = False
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(self._write, devices)),
            threading.Thread(target=self._run, args=(self._put, socket)),
        ]

    def _run(self, work: Any, place: Path) -> None:
        try:
            work(place)
        except BaseException as error:
            self._failures.append(error)
            raise

    def _write(self, devices: Path) -> None:
        with Client(devices) as device:
            device.begin("flash")
            while not self._ending:
                number = (self.flushed + 1).to_bytes(512, "big")
                for place in PLACES:
                    assert device.write(place, number).error == 0
                assert device.flush().error == 0
                self.flushed += 1

    def _put(self, socket: Path) -> None:
        with StoreClient(socket) as client:
            while not self._ending:
                client.put("blob", (self.stored + 1).to_bytes(3000, "big"))
                self.stored += 1

    def wait(self, more: int) -> None:
        """Let both write so often."""
        wanted = self.flushed + more, self.stored + more
        for _ in range(6000):
            if self.flushed >= wanted[0] and self.stored >= wanted[1]:
                return
            assert not self._failures
            threading.Event().wait(0.005)
        raise AssertionError("the writers do not go on")

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ending = True
            for thread in self._threads:
                thread.join(60)
                assert not thread.is_alive()
        assert not self._failures


def numbers(store: AnyStore) -> tuple[int, int, int]:
    """Return both counters of the window, and that of the blob; the store must be sound."""
    assert store.verify().ok
    assert store.info().clean
    window = store.get("flash").ljust(WINDOW, b"\0")
    first, second = (int.from_bytes(window[place : place + 512], "big") for place in PLACES)
    return first, second, int.from_bytes(store.get("blob"), "big")


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_of_one_moment_of_all_devices_o50_o81_o85(
    kind: str, tmp_path: Path, runtime: Path
) -> None:
    image, key, devices = tmp_path / "image", tmp_path / "key", tmp_path / "nbd.sock"
    key.write_bytes(SECRET)
    options = KINDS[kind]
    secret = options.get("secret")
    kdf = luks.Pbkdf2("sha256", 1000) if secret else None
    with blobstore.create(image, {"blob": 3000}, kdf=kdf, free=4 << 20, **options) as store:
        store.register("flash", WINDOW, "window")
        store.put("blob", bytes(3000))
    of_key = ("--key-file", key) if secret else ()
    owner = OwnerProcess(image, runtime, "--nbd", devices, *of_key)
    before: dict[str, tuple[int, int]] = {}
    after: dict[str, tuple[int, int]] = {}
    try:
        writers = Writers(devices, owner.socket)
        client = blobstore.open(image)
        assert isinstance(client, StoreClient)
        with client, writers.running():
            for number in range(4):
                for what in ("snapshot", "backup"):
                    if what == "snapshot" and "qcow2" not in kind:
                        continue
                    writers.wait(3)
                    name = f"{what} {number}"
                    before[name] = writers.flushed, writers.stored
                    if what == "snapshot":
                        client.create_snapshot(name)
                    else:
                        client.backup(tmp_path / name)
                    after[name] = writers.flushed, writers.stored
            writers.wait(3)
    finally:
        code, said = owner.end()
    assert code == 0, said
    if "qcow2" in kind:
        assert blobstore.check(image).ok
    for name in before:
        if name.startswith("snapshot"):
            found = blobstore.open(image, secret, read_only=True, snapshot=name)
        else:
            found = blobstore.open(tmp_path / name, secret, read_only=True)
        with found:
            first, second, blob = numbers(found)
        # Written and flushed before is there, written after is not; parts are in order.
        assert before[name][0] <= second <= first <= after[name][0] + 1
        assert second >= first - 1
        assert before[name][1] <= blob <= after[name][1] + 1
