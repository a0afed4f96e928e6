"""Real NBD servers: nbdkit with its filters, qemu-nbd, and their deaths."""

from __future__ import annotations

import shutil
import signal
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

    def __init__(self, command: list[str], socket: Path) -> None:
        if shutil.which(command[0]) is None:
            pytest.fail(f"{command[0]} is missing: see tools/system-packages.list")
        self.command, self.socket = command, socket
        self.address = NbdAddress(socket=socket)
        self.start()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 20
        while not self.socket.exists():
            assert self.process.poll() is None, f"{self.command} ended"
            assert time.monotonic() < end, f"{self.command} does not listen"
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@contextmanager
def nbdkit(socket: Path, *arguments: str) -> Iterator[NbdServerProcess]:
    """Run nbdkit with a plugin and filters."""
    server = NbdServerProcess(
        ["nbdkit", "--foreground", "--unix", str(socket), "--threads", "4", *arguments], socket
    )
    try:
        yield server
    finally:
        server.end()


@contextmanager
def qemu_nbd(socket: Path, image: Path, *options: str) -> Iterator[NbdServerProcess]:
    """Run qemu-nbd for an image."""
    server = NbdServerProcess(
        [
            *("qemu-nbd", "--persistent", "--shared=0", "--socket", str(socket)),
            *("--cache=writeback", "--discard=unmap", "--detect-zeroes=unmap"),
            *(*options, str(image)),
        ],
        socket,
    )
    try:
        yield server
    finally:
        server.end()
