"""NV writes of a TPM: `blobstore vtpm` beside swtpm, on the same file system.

    python -m tests.bench.vtpm_nv_writes [DIRECTORY]

One client writes 32 changing bytes to an NV index, again and again, and waits for each
response. They take turns, so that all see the same disk. What is printed is the time of a
write in each, and the ratio. Ours are in the clear, encrypted, and filled to 64 KiB first;
and the last two in a process of their own as well, under `blobstore serve` (V70). swtpm
acknowledges before anything is on the disk; what an fdatasync of 4 KiB takes there is
printed for comparison.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import blobstore
from tests.owner.tpms import places
from tests.support.foreign import program
from tests.support.owners import OwnerProcess
from tests.vtpm import commands
from tests.vtpm.support import STARTED, DataClient, command, key_of, make_image, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

INDEX, SIZE = 0x1500016, 32
ROUNDS, WRITES = 20, 100
NAMES = ("swtpm", "clear", "encrypted", "owned", "swtpm-filled", "filled", "owned-filled")
FILLED = 64 << 10


def write_time(client: DataClient, start: int, writes: int) -> float:
    """Return seconds per write, over so many of them."""
    began = time.perf_counter()
    for number in range(start, start + writes):
        response = client.send(commands.nv_write(INDEX, number.to_bytes(SIZE, "big")))
        assert commands.code_of(response) == 0
    return (time.perf_counter() - began) / writes


def fill(client: DataClient) -> None:
    for number in range(FILLED // 2048):
        client.send(commands.nv_define(0x1000000 + number, 2048))
        for offset in (0, 1024):
            data = os.urandom(1024)
            client.send(commands.nv_write(0x1000000 + number, data, offset))


def synchronise_time(directory: Path) -> float:
    """Return the median seconds of writing 4 KiB in place and fdatasync."""
    path = directory / "probe"
    path.write_bytes(bytes(4096))
    taken = []
    with path.open("r+b", buffering=0) as file:
        for number in range(200):
            began = time.perf_counter()
            os.pwrite(file.fileno(), bytes([number % 256]) * 4096, 0)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(
    directory: Path, names: tuple[str, ...] = NAMES, rounds: int = ROUNDS, writes: int = WRITES
) -> dict[str, float]:
    """Return the median seconds of a write in each."""
    with ExitStack() as stack:
        clients: dict[str, DataClient] = {}
        for name in names:
            place = directory / name
            place.mkdir()
            if name.startswith("owned"):
                client = clients[name] = stack.enter_context(_owned(make_image(place / "image")))
                _begin(client, filled=name.endswith("filled"))
                continue
            if name.startswith("swtpm"):
                arguments = [program("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={place}"]
            elif name == "clear":
                blobstore.create(place / "image", {}, encrypted=False).close()
                arguments = command(place / "image")
            else:
                image = make_image(place / "image")
                arguments = command(image, "--key-file", key_of(image))
            tpm = stack.enter_context(serving([*arguments, *STARTED], log_level=1))
            client = clients[name] = tpm.connect()
            stack.callback(client.close)
            _begin(client, filled=name.endswith("filled"))
        taken: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(rounds):
            for name, client in clients.items():
                taken[name].append(write_time(client, 1 + number * writes, writes))
    return {name: statistics.median(times) for name, times in taken.items()}


def _begin(client: DataClient, *, filled: bool) -> None:
    assert commands.code_of(client.send(commands.nv_define(INDEX, SIZE))) == 0
    if filled:
        fill(client)


@contextmanager
def _owned(image: Path) -> Iterator[DataClient]:
    """Yield a client of a TPM that is one of an owner's."""
    with places() as (tpm,):
        runtime = image.with_name("run")
        owner = OwnerProcess(image, runtime, "--key-file", key_of(image), "--tpm", tpm.text())
        try:
            client = tpm.connect()
            yield client
            client.close()
        finally:
            owner.end()


def main() -> None:
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        probe = synchronise_time(Path(directory))
        print(f"write and fdatasync of 4 KiB: {probe * 1e6:.0f} us")
        found = measure(Path(directory))
    for name, seconds in found.items():
        peer = found["swtpm-filled" if name.endswith("filled") else "swtpm"]
        print(f"{name:14} {seconds * 1e6:6.0f} us per NV write   {seconds / peer:.2f} of swtpm")


if __name__ == "__main__":
    main()
