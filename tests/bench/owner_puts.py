"""Durable puts through an owner's socket, beside puts into a store of this process.

Both stores lie on the same disk and are the same: LUKS2, two copies, authenticated. The
clients take turns with bursts of puts of one section: `StoreClient`, the client in C, and a
socket that sends what was prepared and waits for the reply, which is the owner's own time.
CPU time is that of both processes.
"""

from __future__ import annotations

import ctypes
import os
import socket
import statistics
import subprocess
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import blobstore
import luks
from blobstore.owner import StoreClient
from tests.bench.measuring import ROOT, Cell, measure, quotient
from tests.bench.report import Report
from tests.bench.setting import BLOBSTORE, PASSPHRASE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.measuring import Figures
    from tests.bench.setting import Setting

_ROUNDS = {"full": 15, "quick": 5, "tiny": 1}
_KIB, _MIB = 1 << 10, 1 << 20
#: Sizes of blobs, puts in a burst, and the most that a client's median may be of a direct one.
_BURSTS: dict[int, tuple[int, float | None]] = {
    4 * _KIB: (40, None),
    64 * _KIB: (40, 1.6),
    _MIB: (10, None),
}
_DIRECT, _PYTHON, _C, _RAW = "direct put", "StoreClient", "client in C", "socket alone"
_ANY = (1 << 64) - 1
#: More than a ``struct blobstore`` has.
_HANDLE = 1 << 15

if TYPE_CHECKING:
    Put = Callable[[str, bytes], object]


def run(setting: Setting) -> Report:
    """Measure puts of each size."""
    report = Report("owner")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="owner-", dir=setting.disk)))
        for name in ("direct", "owned"):
            blobstore.create(
                directory / name,
                {str(size): size for size in _BURSTS},
                PASSPHRASE,
                sector_size=4096,
                kdf=luks.Pbkdf2("sha256", 1000),
            ).close()
        direct = stack.enter_context(blobstore.open(directory / "direct", PASSPHRASE))
        path = directory / "socket"
        owner = stack.enter_context(_owner(directory / "owned", path))
        client = stack.enter_context(StoreClient(path))
        raw = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
        raw.connect(str(path))
        puts: dict[str, Put] = {
            _DIRECT: direct.put,
            _PYTHON: client.put,
            _RAW: lambda name, blob: _put_raw(raw, name, blob),
        }
        with report.optional(_C):
            library = setting.peers.library(ROOT / "contrib" / "c" / "blobstore.c")
            puts[_C] = stack.enter_context(_client_in_c(library, path))
        for size, (count, most) in _BURSTS.items():
            blobs = [os.urandom(size) for _ in range(count)]
            cells = [
                Cell(name, _burst(put, str(size), blobs, owner), check=_same(client, size, blobs))
                for name, put in puts.items()
            ]
            runs = measure(cells, _ROUNDS[setting.scale])
            report.keep(f"durable put, {size // _KIB} KiB", runs)
            for name in (_PYTHON, _C, _RAW):
                measured = quotient(runs, name, _DIRECT, "median") if name in runs else None
                asked = most if name == _PYTHON else None
                what = f"put through an owner, {size // _KIB} KiB, {name}: time"
                against = _DIRECT if name in runs else name
                report.compare(what, against, measured, most=asked)
    return report


@contextmanager
def _owner(image: Path, path: Path) -> Iterator[int]:
    """Serve an image in another process, whose number this yields."""
    key = image.with_suffix(".key")
    key.write_bytes(PASSPHRASE)
    command = [*BLOBSTORE, "--quiet", "serve", image, "--key-file", key, "--socket", path]
    environment = {**os.environ, "BLOBSTORE_RUNTIME_DIR": str(image.with_suffix(".run"))}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            while True:
                with socket.socket(socket.AF_UNIX) as probe:
                    if probe.connect_ex(str(path)) == 0:
                        break
                if process.poll() is not None:
                    raise RuntimeError("the owner does not start")
                time.sleep(0.02)
            yield process.pid
        finally:
            process.terminate()


def _burst(put: Put, name: str, blobs: list[bytes], owner: int) -> Callable[[], Figures]:
    """Return a run of one put for each blob."""

    def run() -> Figures:
        seconds = []
        cpu = _cpu(os.getpid()) + _cpu(owner)
        for blob in blobs:
            started = time.perf_counter()
            put(name, blob)
            seconds.append(time.perf_counter() - started)
        cpu = _cpu(os.getpid()) + _cpu(owner) - cpu
        return {
            "median": statistics.median(seconds),
            "mean": statistics.mean(seconds),
            "cpu": cpu / len(blobs),
        }

    return run


def _same(client: StoreClient, size: int, blobs: list[bytes]) -> Callable[[], None]:
    def check() -> None:
        if client.section(str(size)).size is not None and client.get(str(size)) != blobs[-1]:
            raise RuntimeError("a blob came back as something else")

    return check


def _cpu(process: int) -> float:
    """Return the seconds that a process's threads, as far as they live, have run."""
    total = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _put_raw(sock: socket.socket, name: str, blob: bytes) -> None:
    head = f"PUT /v1/sections/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(blob)}\r\n\r\n"
    sent = sock.sendmsg([head.encode(), blob])
    sock.sendall((head.encode() + blob)[sent:])
    reply = sock.recv(4096)
    if not reply.startswith(b"HTTP/1.1 204 ") or not reply.endswith(b"\r\n\r\n"):
        raise RuntimeError(f"the owner replies {reply!r}")


@contextmanager
def _client_in_c(library: ctypes.CDLL, path: Path) -> Iterator[Put]:
    handle = ctypes.create_string_buffer(_HANDLE)
    if library.blobstore_open(handle, None, str(path).encode(), 0):
        raise RuntimeError("the client in C finds no owner")

    def put(name: str, blob: bytes) -> None:
        size, condition = ctypes.c_size_t(len(blob)), ctypes.c_uint64(_ANY)
        result = library.blobstore_put(handle, name.encode(), blob, size, condition, None)
        if result:
            raise RuntimeError(f"the client in C fails with {result}")

    try:
        yield put
    finally:
        library.blobstore_close(handle)
