"""Copies of a running machine's image, taken at rest: TPMs and windows of one moment (O50, V78)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.owner import Owner, Tpms
from tests.nbd.support import Client
from tests.owner.tpms import INDEX, places
from tests.support.foreign import program
from tests.support.owners import ROOT
from tests.vtpm import commands

if TYPE_CHECKING:
    from pathlib import Path

    from tests.owner.tpms import Places

pytestmark = pytest.mark.interop

SIZE = 8
ATTRIBUTES = "ownerread|ownerwrite|authread|authwrite"


class Writer:
    """Writes growing numbers to a device in a thread, and knows which were confirmed."""

    def __init__(self) -> None:
        self.confirmed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.failure is None

    def until(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while self.confirmed < count:
            assert self.failure is None
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def write(self, number: int) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.write(self.confirmed + 1)
                self.confirmed += 1
        except BaseException as error:  # noqa: BLE001  the test raises it
            self.failure = error


class Tpm2Tools(Writer):
    """tpm2_nvwrite, a process and connections for each number."""

    def __init__(self, tpm: Places) -> None:
        super().__init__()
        self._tpm = tpm
        tpm.tpm2("nvdefine", hex(INDEX), "-C", "o", "-s", SIZE, "-a", ATTRIBUTES)
        self.write(0)

    def write(self, number: int) -> None:
        subprocess.run(
            [program("tpm2"), "nvwrite", hex(INDEX), "-C", "o", "-i", "-"],
            input=number.to_bytes(SIZE, "big"),
            env={"TPM2TOOLS_TCTI": f"swtpm:path={self._tpm.data}"},
            capture_output=True,
            check=True,
        )


class NvWrites(Writer):
    """NV writes on one connection."""

    def __init__(self, tpm: Places) -> None:
        super().__init__()
        tpm.define(SIZE)
        tpm.write(bytes(SIZE))
        self.client = tpm.connect()

    def write(self, number: int) -> None:
        response = self.client.send(commands.nv_write(INDEX, number.to_bytes(SIZE, "big")))
        assert commands.code_of(response) == 0


class Window(Writer):
    """Writes at both ends of a window, which are committed together or not at all."""

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self.client = Client(socket, timeout=60)
        self.client.begin("window", structured=False)

    def write(self, number: int) -> None:
        for offset in (0, 8192):
            data = number.to_bytes(SIZE, "big").ljust(512, b"\0")
            assert self.client.write(offset, data).error == 0


def test_o50_v78_copies_at_rest_have_what_was_confirmed(
    store: blobstore.Store, image: Path, tmp_path: Path
) -> None:
    store.register("window", 16384, "window")
    copies: list[tuple[Path, int, int, int]] = []
    with ExitStack() as stack:
        first, second = stack.enter_context(places("first", "second"))
        nbd = tmp_path / "nbd"
        server = stack.enter_context(blobstore.NbdServer(nbd, blobstore.NbdSections(store)))
        tpms = stack.enter_context(Tpms(store, [first.options(), second.options()]))
        owner = Owner(store, image)
        owner.add(tpms)
        owner.add(server)
        tools, writes, window = Tpm2Tools(first), NvWrites(second), Window(nbd)
        stack.callback(writes.client.close)
        stack.callback(window.client.close)
        for writer in (tools, writes, window):
            stack.callback(writer.stop)
            writer.start()
        for number in range(3):
            tools.until(tools.confirmed + 2)
            writes.until(writes.confirmed + 5)
            copy = tmp_path / f"copy-{number}"
            with owner.at_rest():
                copies.append((copy, tools.confirmed, writes.confirmed, window.confirmed))
                before = store.digest()
                blobstore.backup(image, copy)
                assert store.digest() == before
        tools.until(tools.confirmed + 1)  # they go on
        writes.until(writes.confirmed + 1)
        window.until(window.confirmed + 1)
    for copy, of_tools, of_writes, of_window in copies:
        with (
            blobstore.open(copy, direct=True) as copied,
            places("first", "second") as (first, second),
            Tpms(copied, [first.options(), second.options()]),
        ):
            # One more may have been confirmed, and its client not have noticed yet.
            found = int.from_bytes(first.tpm2("nvread", hex(INDEX), "-C", "o"), "big")
            assert of_tools <= found <= of_tools + 1
            assert of_writes <= int.from_bytes(second.read(SIZE), "big") <= of_writes + 1
            content = copied.get("window")
            ends = [int.from_bytes(content[at : at + SIZE], "big") for at in (0, 8192)]
            assert of_window <= ends[1] <= ends[0] <= of_window + 1
            assert copied.verify().ok


def test_v79_a_tpm_of_this_process_rests_too(image: Path, tmp_path: Path) -> None:
    """`blobstore vtpm` is such an owner; here in a process of its own, as libtpms has one TPM."""
    script = """
import sys, threading
from pathlib import Path
import blobstore
from blobstore import vtpm
from blobstore.owner import OnlyTpm, Owner
from blobstore.vtpm.commands import Command
from formats.errors import DeviceBusyError
from tests.vtpm import commands
image, copy = sys.argv[1:]
with blobstore.open(image, direct=True) as store:
    tpm = vtpm.Tpm(vtpm.StoreNvram(store))
    owner = Owner(store, Path(image))
    owner.add(OnlyTpm(tpm))
    tpm.power_on(vtpm.Startup.CLEAR)
    answered = []
    def ask():
        answered.append(tpm.execute(Command(commands.get_random(4))))
    with owner.at_rest():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(0.3)
        assert not answered
        blobstore.backup(image, copy)
    thread.join(10)
    assert answered
    from blobstore.vtpm import tpm as module
    module.REST_TIME = 0.1
    with tpm.at_rest():
        def refuse():
            try:
                with owner.at_rest():
                    pass
            except DeviceBusyError as error:
                answered.append(str(error))
        thread = threading.Thread(target=refuse)
        thread.start()
        thread.join(10)
    assert "[V78]" in answered[-1]
    tpm.stop()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, image, tmp_path / "copy"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    with blobstore.open(tmp_path / "copy", direct=True) as store:
        assert store.verify().ok
