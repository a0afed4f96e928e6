"""A `blobstore vtpm` in a process of its own, and clients for its two channels."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blobstore
import luks
from tests.support.cli import blobstore as blobstore_command
from tests.support.foreign import run
from tests.vtpm import commands

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
SECRET = b"passphrase of the image"
PERMANENT, VOLATILE = "tpm-permanent-state", "tpm-volatile-state"

#: The index that tests use, and what is like a TPM 2.0's permanent state to all but libtpms.
INDEX = 0x1500016
LOOKS_LIKE_A_STATE = b"\x00\x03\xab\x36\x47\x23" + bytes(1000)

NOT_NEED_INIT = ("--flags", "not-need-init")
STARTED = ("--flags", "not-need-init,startup-clear")


def make_image(path: Path) -> Path:
    """Make an image without sections, and its key file beside it."""
    blobstore.create(path, {}, SECRET, kdf=luks.Pbkdf2("sha256", 1000)).close()
    key_of(path).write_bytes(SECRET)
    return path


def key_of(image: Path) -> Path:
    return image.with_name("key")


def opened(image: Path, **options: Any) -> blobstore.Store:
    store: blobstore.Store = blobstore.open(image, SECRET, direct=True, **options)
    return store


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "blobstore", "vtpm", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


def refused(image: Path, *options: object) -> tuple[int, str]:
    """Start a TPM that must not start; return its exit code and what it said.

    It leaves the image as it is, and no socket.
    """
    before = image.read_bytes()
    with tempfile.TemporaryDirectory(prefix="vtpm-") as directory:
        socket_path = Path(directory, "tpm")
        arguments = ["--ctrl", f"type=unixio,path={socket_path}", *NOT_NEED_INIT, *options]
        key = () if "--key-file" in options else ("--key-file", key_of(image))
        done = blobstore_command("vtpm", image, *key, *arguments)
        assert not socket_path.exists()
    assert image.read_bytes() == before
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stderr.decode()


class Vtpm:
    """A TPM that serves at two Unix sockets.

    Attributes:
        process: The program.
        data: Path of the data channel's socket; None if there is none.
        ctrl: Path of the control channel's socket.
        log: Path of its log.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        directory: Path,
        *,
        data: bool = True,
        log_level: int = 3,
    ) -> None:
        self.data = directory / "tpm"
        self.ctrl = directory / "tpm.ctrl"  # where the TCTI looks for it
        self.log = directory / "log"
        server = (f"--server=type=unixio,path={self.data}",) if data else ()
        self.process = subprocess.Popen(
            [
                *map(str, arguments),
                *server,
                f"--ctrl=type=unixio,path={self.ctrl}",
                f"--log=file={self.log},level={log_level}",
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while not _listens(self.ctrl):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def said(self) -> str:
        log = self.log.read_text() if self.log.exists() else ""
        if self.process.poll() is not None and self.process.stderr:
            log += self.process.stderr.read().decode()
        return log

    @property
    def tools(self) -> dict[str, str]:
        """The environment that leads tpm2-tools here."""
        return {"TPM2TOOLS_TCTI": f"swtpm:path={self.data}"}

    def connect(self) -> DataClient:
        return DataClient(self.data)

    def control(self) -> ControlClient:
        return ControlClient(self.ctrl)

    def ioctl(self, *arguments: object) -> bytes:
        return run("swtpm_ioctl", "--unix", self.ctrl, *arguments)

    def tpm2(self, *arguments: object) -> bytes:
        return run("tpm2", *arguments, environment=self.tools)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stderr:
            self.process.stderr.close()


@contextmanager
def serving(
    arguments: Sequence[object], *, data: bool = True, log_level: int = 3
) -> Iterator[Vtpm]:
    """Run a program that takes swtpm's options."""
    # Not pytest's tmp_path, which may be too long for the name of a socket.
    with tempfile.TemporaryDirectory(prefix="vtpm-") as directory:
        vtpm = Vtpm(arguments, Path(directory), data=data, log_level=log_level)
        try:
            vtpm.wait_until_ready()
            yield vtpm
        finally:
            vtpm.close()


@contextmanager
def vtpm_of(image: Path, *options: object, data: bool = True) -> Iterator[Vtpm]:
    """Run the TPM of an image."""
    with serving(command(image, "--key-file", key_of(image), *options), data=data) as vtpm:
        yield vtpm


def reads(tpm_image: Path, expected: bytes = b"precious") -> None:
    with vtpm_of(tpm_image, *STARTED) as tpm:
        client = tpm.connect()
        assert commands.data_of(client.send(commands.nv_read(INDEX, len(expected)))) == expected
        client.close()


class DataClient:
    """A client of the data channel."""

    def __init__(self, where: Path | socket.socket) -> None:
        self.socket = where if isinstance(where, socket.socket) else _connected(where)
        self.socket.settimeout(60)

    def send(self, command: bytes) -> bytes:
        self.socket.sendall(command)
        return self.receive()

    def receive(self) -> bytes:
        """Return one response, or less at the end of the connection."""
        header = self.receive_exactly(10)
        if len(header) < 10:
            return header
        return header + self.receive_exactly(struct.unpack_from(">I", header, 2)[0] - 10)

    def receive_exactly(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            piece = self.socket.recv(size - len(received))
            if not piece:
                break
            received += piece
        return received

    def close(self) -> None:
        self.socket.close()


class ControlClient:
    """A client of the control channel."""

    def __init__(self, path: Path) -> None:
        self.socket = _connected(path)
        self.socket.settimeout(60)

    def ask(self, code: int, body: bytes = b"") -> bytes:
        """Send a request and return what comes back at once."""
        self.socket.sendall(struct.pack(">I", code) + body)
        return self.socket.recv(1 << 20)

    def state(self, kind: int) -> tuple[int, bytes]:
        """Fetch a state: its result, and what came."""
        self.socket.sendall(struct.pack(">IIII", 0xC, 1, kind, 0))
        reply = b""
        while len(reply) < 16 or len(reply) < 16 + struct.unpack_from(">I", reply, 12)[0]:
            reply += self.socket.recv(1 << 20)
        return struct.unpack_from(">I", reply)[0], reply[16:]

    def set_state(self, kind: int, state: bytes) -> int:
        """Give a state; return the result."""
        return result_of(self.ask(0xD, struct.pack(">III", 0, kind, len(state)) + state))

    def init(self, flags: int = 0) -> int:
        return result_of(self.ask(2, struct.pack(">I", flags)))

    def stop(self) -> int:
        return result_of(self.ask(0xE))

    def close(self) -> None:
        self.socket.close()


def result_of(reply: bytes) -> int:
    return int(struct.unpack_from(">I", reply)[0])


def _connected(path: Path) -> socket.socket:
    """Connect, perhaps to a socket that is there a moment after the other one."""
    deadline = time.monotonic() + 5
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return client


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
