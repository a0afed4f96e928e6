"""Owners of images: in a thread of this process, and as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blobstore.owner.listening import listening
from blobstore.owner.owner import Owner
from blobstore.owner.server import OwnerServer
from tests.support.cli import with_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pytest

    import blobstore
    from blobstore.owner.limits import Limits

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def owner_thread(
    store: blobstore.Store | Owner, image: Path, socket: Path, limits: Limits | None = None
) -> Iterator[OwnerServer]:
    """Serve a store in a thread of this process; the store stays the caller's to close.

    What ends the thread is raised at the end.
    """
    owner = store if isinstance(store, Owner) else Owner(store, image)
    with listening(image, socket) as listener, ThreadPoolExecutor(1) as executor:
        server = OwnerServer(owner, listener, limits=limits)
        running = executor.submit(server.run)
        try:
            yield server
        finally:
            server.stop()
            running.result(60)
            server.close()


#: Processes of this test, of which one that fails leaves some.
_STARTED: list[OwnerProcess] = []


def end_owners() -> None:
    """End what a test has started, however it went."""
    while _STARTED:
        _STARTED.pop().end(signal.SIGKILL)


def own_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *end: Callable[[], None]
) -> Iterator[Path]:
    """Yield a runtime directory of one test's own; what it starts ends with it.

    Args:
        tmp_path: Where to make it.
        monkeypatch: Names it in the environment.
        end: Called before the owners are ended.
    """
    directory = tmp_path / "run"
    monkeypatch.setenv("BLOBSTORE_RUNTIME_DIR", str(directory))
    yield directory
    for one in end:
        one()
    end_owners()


class OwnerProcess:
    """`blobstore serve`, ready when this is made; `end_owners` comes after the test."""

    def __init__(
        self,
        image: Path | str,
        runtime: Path,
        *options: object,
        program: Sequence[str] = ("blobstore",),
        within: Sequence[str] = (),
        waits: bool = True,
    ) -> None:
        """Start it.

        Args:
            image: Its place.
            runtime: The runtime directory.
            options: Of ``serve``.
            program: The module that is run, and what comes before ``serve``.
            within: What comes before all of this, to run it as on another host.
            waits: Whether it is waited for until it is ready.
        """
        self.image, self.runtime = image, runtime
        self._within = within
        self.environment = {**os.environ, "BLOBSTORE_RUNTIME_DIR": str(runtime)}
        self.environment["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            [
                *within,
                *with_signals(default=("HUP", "INT", "TERM")),
                sys.executable,
                *("-m", *program, "serve", str(image)),
                *map(str, options),
            ],
            env=self.environment,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        self.said = b""
        _STARTED.append(self)
        if waits:
            self.wait()

    def wait(self) -> None:
        """Wait until it is ready."""
        assert self.process.stderr is not None
        self.said += self.process.stderr.readline()
        while b"serving at" not in self.said and self.process.poll() is None:
            self.said += self.process.stderr.readline()
        assert b"serving at" in self.said, self.said.decode()

    @property
    def socket(self) -> Path:
        """The socket in the runtime directory."""
        found = Path(self.image).stat()
        return self.runtime / f"{found.st_dev}-{found.st_ino}.sock"

    def run(self, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run ``blobstore`` where it can find this owner."""
        return subprocess.run(
            [*self._within, sys.executable, "-m", "blobstore", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=120,
            check=False,
        )

    def ended(self) -> int:
        """Wait until it ends by itself; return its exit code, negative for a signal."""
        _, said = self.process.communicate(timeout=60)
        self.said += said
        return self.process.returncode

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, bytes]:
        """End it with a signal; return its exit code and what it said on stderr since."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        if self.process.stderr is None or self.process.stderr.closed:
            return self.process.returncode, b""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said
