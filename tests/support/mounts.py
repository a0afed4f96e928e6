"""Mounted directories: their semantics without a kernel, and as processes of their own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
from blobstore.mount.settings import MountSettings
from blobstore.mount.tree import Tree
from tests.support.cli import with_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.mount.file import Handle
    from blobstore.owner import AnyStore
    from blobstore.store.store import Store

ROOT = Path(__file__).resolve().parents[2]

#: A user and group for files that are made.
NOBODY = (65534, 65534)


class KnownProcesses:
    """Processes with one thread each, of which some were killed."""

    def __init__(self) -> None:
        self.killed: set[int] = set()
        self.groups: dict[int, int] = {}

    def group(self, thread: int) -> int:
        return self.groups.get(thread, thread)

    def is_killed(self, thread: int) -> bool:
        return thread in self.killed


class Programs:
    """Programs that use a directory: each call is one of the system's.

    A handle is closed as a program does it: the kernel says so for the descriptor, and then
    for the handle.
    """

    def __init__(self, store: Store, **settings: Any) -> None:
        self.store = store
        self.processes = KnownProcesses()
        self.tree = Tree(store, MountSettings(**settings), self.processes)

    def open(self, name: str, flags: int = os.O_RDONLY, pid: int = 1) -> Handle:
        if flags & os.O_CREAT:
            return self.tree.create(name, flags, 0o640, NOBODY, pid)
        return self.tree.open(self.tree.lookup(name), flags, pid)

    def create(self, name: str, pid: int = 1) -> Handle:
        return self.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, pid)

    def write(self, handle: Handle, data: bytes, offset: int = 0, pid: int = 1) -> None:
        self.tree.write(handle, offset, memoryview(data), pid)

    def close(self, handle: Handle, pid: int = 1) -> None:
        try:
            self.tree.flush(handle, pid)
        finally:
            self.tree.release(handle)

    def save(self, name: str, data: bytes) -> None:
        """Write a file as most programs do."""
        handle = self.create(name)
        self.write(handle, data)
        self.close(handle)

    def replace(self, name: str, data: bytes, *, fsync: bool = False) -> None:
        """Write a file as careful programs do: another one that is renamed."""
        handle = self.create(f"{name}.tmp")
        self.write(handle, data)
        if fsync:
            self.tree.fsync(handle)
        self.close(handle)
        self.tree.rename(f"{name}.tmp", name, 0)

    def read(self, name: str) -> bytes:
        handle = self.open(name)
        found = self.tree.contents.read(handle.file, 0, 1 << 20)
        self.close(handle)
        return found

    def names(self) -> set[str]:
        return {name for _, _, name in self.tree.listing()}


@contextmanager
def refused(number: int) -> Iterator[None]:
    """Expect an error of the system with this number."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, errno.errorcode.get(caught.value.errno or 0)


#: Processes of this test.
_STARTED: list[MountProcess] = []


def end_mounts() -> None:
    """End what a test has started, and take away what it left mounted."""
    while _STARTED:
        mounted = _STARTED.pop()
        mounted.end(signal.SIGKILL)
        take_away(mounted.directory)


def take_away(directory: Path) -> None:
    """Unmount what a test left, if it did."""
    while os.path.ismount(directory) or _is_stale(directory):
        subprocess.run(["umount", "-l", directory], check=True)


def _is_stale(directory: Path) -> bool:
    try:
        directory.stat()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


class MountProcess:
    """`blobstore mount`, ready when this is made; `end_mounts` comes after the test."""

    def __init__(self, image: Path, directory: Path, *options: object, verb: str = "mount") -> None:
        self.image, self.directory = image, directory
        with suppress(FileExistsError):
            directory.mkdir()
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        where = [directory] if verb == "mount" else ["--mount", directory]
        self.process = subprocess.Popen(
            [
                *with_signals(default=("HUP", "INT", "TERM")),
                *(sys.executable, "-m", "blobstore", verb, image, *where),
                *map(str, options),
            ],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _STARTED.append(self)
        self.said = b""
        assert self.process.stderr is not None
        ready = b"mounted at" if verb == "mount" else b"serving at"
        while ready not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said.decode()
            self.said += line

    def store(self) -> AnyStore:
        """Return the store of this owner, which the runtime directory of the test leads to."""
        return blobstore.open(self.image)

    def run(self, *arguments: object, stdin: bytes = b"") -> bytes:
        """Run ``blobstore`` where it can find the owner; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "blobstore", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, bytes]:
        """End it with a signal; return its exit code and what it said since it was ready."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, bytes]:
        """Wait until it ends; as `end`."""
        if self.process.stderr is None or self.process.stderr.closed:
            return self.process.returncode, b""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


def wait_for(condition: Any, seconds: float = 10) -> None:
    """Wait for what the kernel does a little later, such as the release of a file."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
