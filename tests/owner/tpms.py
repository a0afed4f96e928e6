"""TPMs of an owner, for tests: in processes of this one, and of `blobstore serve`."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blobstore import vtpm
from blobstore.owner import TpmOptions, Tpms
from tests.support.foreign import run
from tests.vtpm import commands
from tests.vtpm.support import ControlClient, DataClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import blobstore

INDEX = 0x1500016


class Places:
    """Where the sockets of a TPM are, and clients for them."""

    def __init__(self, directory: Path, name: str = "tpm") -> None:
        self.name = name
        self.data, self.ctrl = directory / name, directory / f"{name}.ctrl"

    def text(self, *more: str, flags: str = "not-need-init,startup-clear") -> str:
        """What `--tpm` says."""
        said = [f"name={self.name}", f"server=type=unixio,path={self.data}"]
        said += [f"ctrl=type=unixio,path={self.ctrl}", *([f"flags={flags}"] if flags else [])]
        return ",".join([*said, *more])

    def options(self, **more: object) -> TpmOptions:
        """The same for an owner in this process."""
        return TpmOptions(
            name=self.name,
            ctrl=vtpm.Channel(path=self.ctrl),
            data=vtpm.Channel(path=self.data),
            needs_init=False,
            startup=vtpm.Startup.CLEAR,
            **more,  # type: ignore[arg-type]
        )

    def connect(self) -> DataClient:
        return DataClient(self.data)

    def control(self) -> ControlClient:
        return ControlClient(self.ctrl)

    def answers(self) -> bool:
        """Whether a command succeeds."""
        client = self.connect()
        response = client.send(commands.get_random(4))
        client.close()
        return commands.code_of(response) == 0

    def ask(self, code: int) -> bytes:
        """Send a request and return what comes back."""
        client = self.control()
        reply = client.ask(code)
        client.close()
        return reply

    def tpm2(self, *arguments: object) -> bytes:
        return run("tpm2", *arguments, environment={"TPM2TOOLS_TCTI": f"swtpm:path={self.data}"})

    def define(self, size: int = 8) -> None:
        client = self.connect()
        assert commands.code_of(client.send(commands.nv_define(INDEX, size))) == 0
        client.close()

    def write(self, data: bytes) -> None:
        client = self.connect()
        assert commands.code_of(client.send(commands.nv_write(INDEX, data))) == 0
        client.close()

    def read(self, size: int = 8) -> bytes:
        client = self.connect()
        found = commands.data_of(client.send(commands.nv_read(INDEX, size)))
        client.close()
        return found


@contextmanager
def places(*names: str) -> Iterator[list[Places]]:
    """Yield places with short names."""
    with tempfile.TemporaryDirectory(prefix="tpms-") as directory:
        yield [Places(Path(directory), name) for name in names or ("tpm",)]


@contextmanager
def tpms_of(store: blobstore.Store, *where: Places) -> Iterator[Tpms]:
    """Run TPMs whose owner is this process."""
    with Tpms(store, [one.options() for one in where]) as running:
        yield running


def workers(parent: int | None = None) -> list[tuple[int, str]]:
    """Return the processes of TPMs that a process has, and their names; this one's by default."""
    wanted = os.getpid() if parent is None else parent
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
                status = (place / "status").read_text()
            except OSError:
                continue
            if b"blobstore.owner.tpm.worker" in words and f"\nPPid:\t{wanted}\n" in status:
                found.append((int(place.name), words[words.index(b"-m") + 2].decode()))
    return found


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that has to happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
