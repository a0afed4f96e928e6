"""Real NBD servers: nbdkit with its filters, qemu-nbd, and their deaths."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from blobstore.image.remote.nbd_connection import NbdAddress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class NbdServerProcess:
    """A server on a Unix socket, which can be killed and started again."""

    def __init__(self, command: list[str], place: Path, *, export: str = "") -> None:
        if shutil.which(command[0]) is None:
            pytest.fail(f"{command[0]} is missing: see tools/system-packages.list")
        self.command, self.socket = command, place
        self.address = NbdAddress(socket=place, export=export)
        self.start()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 60
        while not self._listens():
            assert self.process.poll() is None, f"{self.command} ended"
            assert time.monotonic() < end, f"{self.command} does not listen"
            time.sleep(0.01)

    def _listens(self) -> bool:
        """Say whether it takes connections; the name of its socket is there before that."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:  # it waits for a client
            self.kill()


@contextmanager
def nbdkit(place: Path, *arguments: str) -> Iterator[NbdServerProcess]:
    """Run nbdkit with a plugin and filters."""
    server = NbdServerProcess(
        ["nbdkit", "--foreground", "--unix", str(place), "--threads", "4", *arguments], place
    )
    try:
        yield server
    finally:
        server.end()


@contextmanager
def qemu_nbd(place: Path, image: Path, *options: str) -> Iterator[NbdServerProcess]:
    """Run qemu-nbd for an image."""
    server = NbdServerProcess(
        [
            *("qemu-nbd", "--persistent", "--shared=0", "--socket", str(place)),
            *("--cache=writeback", "--discard=unmap", "--detect-zeroes=unmap"),
            *(*options, str(image)),
        ],
        place,
    )
    try:
        yield server
    finally:
        server.end()


@contextmanager
def qemu_storage_daemon(place: Path, image: Path) -> Iterator[NbdServerProcess]:
    """Run qemu-storage-daemon for a raw image."""
    server = NbdServerProcess(
        [
            *("qemu-storage-daemon", "--blockdev"),
            f"driver=file,node-name=disk,filename={image},discard=unmap",
            *("--nbd-server", f"addr.type=unix,addr.path={place}"),
            *("--export", "type=nbd,id=it,node-name=disk,name=disk,writable=on"),
        ],
        place,
        export="disk",
    )
    try:
        yield server
    finally:
        server.end()
