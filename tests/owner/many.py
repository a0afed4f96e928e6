"""Twenty devices of one owner at once: TPMs, windows over NBD, and programs that put blobs.

    python -m tests.owner.many [SECONDS]

Each device writes numbers, one after the other, and each is confirmed when it is durable.
At the end every device has the last number that was confirmed to it. Printed are the writes
of each kind in a second, and the memory of the owner and of the processes of its TPMs.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from blobstore.owner import StoreClient
from tests.nbd.support import Client
from tests.owner.tpms import INDEX, Places, places, tpms_of, workers
from tests.support.owners import OwnerProcess
from tests.vtpm import commands
from tests.vtpm.support import key_of, make_image, opened

if TYPE_CHECKING:
    from collections.abc import Callable

    import blobstore

    Write = Callable[[int], object]

TPMS, WINDOWS, BLOBS = 6, 7, 7
WINDOW_SIZE, BLOB_SIZE = 64 << 10, 16 << 10


@dataclass
class Result:
    """What happened.

    Attributes:
        seconds: That all of them wrote.
        confirmed: The last number of each device.
        memory: Of each process, in bytes: private and a share of what is shared.
    """

    seconds: float
    confirmed: dict[str, int]
    memory: dict[str, int] = field(default_factory=dict)

    def rate(self, kind: str) -> float:
        """Confirmed writes of all devices of a kind in a second."""
        return sum(n for name, n in self.confirmed.items() if name.startswith(kind)) / self.seconds


def run_devices(directory: Path, *, seconds: float = 0, at_least: int = 0) -> Result:
    """Have all devices write, for so long and each at least so often; check and return.

    Raises:
        AssertionError: Something that was confirmed is not there.
    """
    image = make_image(directory / "image")
    with opened(image) as store:
        for number in range(WINDOWS):
            store.register(f"window-{number}", WINDOW_SIZE, "window")
        for number in range(BLOBS):
            store.register(f"blob-{number}", BLOB_SIZE)
    with places(*(f"tpm-{number}" for number in range(TPMS))) as all_tpms:
        confirmed, took, memory = _serve(image, all_tpms, seconds, at_least)
        with opened(image) as store:
            assert store.verify().ok
            _check(store, confirmed, all_tpms)
    return Result(took, confirmed, memory)


def _serve(
    image: Path, all_tpms: list[Places], seconds: float, at_least: int
) -> tuple[dict[str, int], float, dict[str, int]]:
    directory = all_tpms[0].data.parent
    options = [word for tpm in all_tpms for word in ("--tpm", tpm.text())]
    nbd = directory / "nbd"
    owner = OwnerProcess(
        image, directory / "run", "--key-file", key_of(image), "--nbd", nbd, *options
    )
    confirmed: dict[str, int] = {}
    failures: list[BaseException] = []
    with ExitStack() as stack:
        stack.callback(owner.process.kill)
        devices: dict[str, Write] = {}
        for tpm in all_tpms:
            devices[tpm.name] = _tpm(tpm, stack)
        for number in range(WINDOWS):
            devices[f"window-{number}"] = _window(nbd, f"window-{number}", stack)
        for number in range(BLOBS):
            devices[f"blob-{number}"] = _blob(owner.socket, f"blob-{number}", stack)
        began = time.monotonic()

        def use(name: str, write: Write) -> None:
            count = 0
            try:
                while count < at_least or time.monotonic() < began + seconds:
                    write(count + 1)
                    count += 1
            except BaseException as error:  # noqa: BLE001  raised below
                failures.append(error)
            confirmed[name] = count

        threads = [threading.Thread(target=use, args=item) for item in devices.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        memory = {"owner": _memory(owner.process.pid)}
        memory |= {name: _memory(process) for process, name in workers(owner.process.pid)}
    if failures:
        raise failures[0]
    # It was killed: what was confirmed does not depend on an end in order.
    owner.process.communicate()
    return confirmed, took, memory


def _content(number: int, size: int) -> bytes:
    return number.to_bytes(8, "big") * (size // 8)


def _tpm(tpm: Places, stack: ExitStack) -> Write:
    tpm.define(64)
    client = tpm.connect()
    stack.callback(client.close)

    def write(number: int) -> None:
        assert commands.code_of(client.send(commands.nv_write(INDEX, _content(number, 64)))) == 0

    return write


def _window(socket: Path, name: str, stack: ExitStack) -> Write:
    client = stack.enter_context(Client(socket, timeout=120))
    client.begin(name, structured=False)

    def write(number: int) -> None:
        half = WINDOW_SIZE // 2
        for offset in (0, half):
            assert client.write(offset, _content(number, 4096)).error == 0
        assert client.flush().error == 0

    return write


def _blob(socket: Path, name: str, stack: ExitStack) -> Write:
    client = stack.enter_context(StoreClient(socket, timeout=120))
    return lambda number: client.put(name, _content(number, BLOB_SIZE))


def _check(store: blobstore.Store, confirmed: dict[str, int], all_tpms: list[Places]) -> None:
    for number in range(WINDOWS):
        content = store.get(f"window-{number}")
        for offset in (0, WINDOW_SIZE // 2):
            wanted = _content(confirmed[f"window-{number}"], 4096)
            assert content[offset : offset + 4096] == wanted
    for number in range(BLOBS):
        wanted = _content(confirmed[f"blob-{number}"], BLOB_SIZE)
        assert store.get(f"blob-{number}") == wanted
    with tpms_of(store, *all_tpms):
        for tpm in all_tpms:
            assert tpm.read(64) == _content(confirmed[tpm.name], 64)


def _memory(process: int) -> int:
    """Return the proportional set size of a process."""
    for line in Path("/proc", str(process), "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError(process)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = run_devices(Path(place), seconds=float(sys.argv[1]) if len(sys.argv) > 1 else 20)
    for what, said in (("tpm", "NV writes"), ("window", "8 KiB and flush"), ("blob", "puts")):
        print(f"{what:8} {found.rate(what):7.0f} {said} per second")
    print({name: f"{size / 1e6:.1f} MB" for name, size in found.memory.items()})
    print(f"together {sum(found.memory.values()) / 1e6:.0f} MB")
