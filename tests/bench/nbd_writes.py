"""Writes of 4 KiB, each flushed, over NBD: ours beside `nbdkit file` and `qemu-nbd`.

    python -m tests.bench.nbd_writes [DIRECTORY]

One client writes 4 KiB, flushes, and waits for both answers, again and again. The servers
take turns, so that all see the same disk and the same neighbours. What is printed for each is the
median time of a pair and the 10th percentile, which says more on a machine that is
shared, and the ratio of both to nbdkit.

Ours are windows of several sizes, in the clear and encrypted. Those that are buffered
commit at each flush: one mac over the whole window, and three writes instead of one. It is there as
a whole or not at all after a crash. Windows in place do what the other two do: a
crash may tear what they wrote.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import blobstore
import luks
from tests.nbd.support import Client
from tests.support.foreign import program

SECRET = b"bench"
WRITE = 4096
ROUNDS, WRITES = 10, 100
#: Names of ours, size of the window in bytes, whether the image is encrypted, and whether
#: the window is in place.
OURS = (
    ("window-64K", 64 << 10, False, False),
    ("window-528K", 528 << 10, False, False),
    ("window-528K-luks", 528 << 10, True, False),
    ("in-place-528K", 528 << 10, False, True),
    ("in-place-528K-luks", 528 << 10, True, True),
)

SERVER = """
import sys, threading
from pathlib import Path
import blobstore
store = blobstore.open(sys.argv[1], sys.argv[3].encode() or None)
sections = blobstore.NbdSections(store, in_place=sys.argv[4:])
blobstore.NbdServer(Path(sys.argv[2]), sections).start()
threading.Event().wait()
"""


class Figures(NamedTuple):
    """Seconds of a write and a flush: the median, and the 10th percentile."""

    median: float
    low: float

    @classmethod
    def of(cls, taken: list[float]) -> Figures:
        return cls(statistics.median(taken), statistics.quantiles(taken, n=10)[0])


def pair_times(client: Client, writes: int, size: int) -> list[float]:
    """Return the seconds of each write and flush."""
    taken = []
    for number in range(writes):
        data = time.perf_counter_ns().to_bytes(8, "big") * (WRITE // 8)
        began = time.perf_counter()
        assert client.write(number * WRITE % size, data).error == 0
        assert client.flush().error == 0
        taken.append(time.perf_counter() - began)
    return taken


def connect(path: Path, name: str) -> Client:
    """Connect to a server that may still be starting."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client = Client(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
            continue
        client.begin(name, structured=False)
        return client


def commands(directory: Path) -> dict[str, tuple[list[str], str, int]]:
    """Return how each server starts, the name of its export, and its size."""
    found = {}
    size = 528 << 10
    for name in ("nbdkit", "qemu-nbd"):
        file = directory / f"{name}.img"
        file.write_bytes(b"\1" * size)
        socket = str(directory / name)
        command = [program("nbdkit"), "--foreground", "--unix", socket, "file", str(file)]
        if name == "qemu-nbd":
            command = [program("qemu-nbd"), "--socket", socket, "--format=raw", "--persistent"]
            command += ["--cache=writeback", str(file)]
        found[name] = command, "", size
    for name, window, encrypted, in_place in OURS:
        image = directory / f"{name}.img"
        secret = SECRET if encrypted else None
        kdf = luks.Pbkdf2("sha256", 1000) if encrypted else None
        with blobstore.create(image, {}, secret, kdf=kdf, encrypted=encrypted) as store:
            store.register("w", window, kind="window")
            store.put("w", b"\1" * window)
        command = [sys.executable, "-c", SERVER, str(image), str(directory / name)]
        command += [SECRET.decode() if encrypted else "", *(["w"] if in_place else [])]
        found[name] = command, "w", window
    return found


def measure(directory: Path, rounds: int = ROUNDS, writes: int = WRITES) -> dict[str, Figures]:
    """Return how long a write and a flush take in each."""
    with ExitStack() as stack:
        clients: dict[str, tuple[Client, int]] = {}
        for name, (command, export, size) in commands(directory).items():
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            clients[name] = stack.enter_context(connect(directory / name, export)), size
        taken: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(rounds):
            for name, (client, size) in clients.items():
                taken[name] += pair_times(client, writes, size)
    return {name: Figures.of(times) for name, times in taken.items()}


def main() -> None:
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        found = measure(Path(directory))
    other = found["nbdkit"]
    for name, (median, low) in found.items():
        print(
            f"{name:20} median {median * 1e6:6.0f} us, {median / other.median:5.2f} of nbdkit"
            f"   10 % {low * 1e6:6.0f} us, {low / other.low:5.2f} of nbdkit"
        )


if __name__ == "__main__":
    main()
