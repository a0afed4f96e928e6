"""QEMU boots OVMF with this TPM, and moves it: to a file, and alive to another host."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cli import blobstore as blobstore_command
from tests.support.foreign import program, system_file
from tests.vtpm import commands
from tests.vtpm.support import STARTED, Vtpm, key_of, make_image, opened, vtpm_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.interop, pytest.mark.slow]

CODE, VARS = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
INDEX = 0x1500016
_PATIENCE = 90


class Machine:
    """A virtual machine without disks: it ends in OVMF's shell."""

    def __init__(self, directory: Path, name: str, tpm: Vtpm, *, incoming: str | None) -> None:
        self._serial, self._log = directory / f"{name}.serial", directory / f"{name}.log"
        variables, monitor = directory / f"{name}.vars", directory / f"{name}.qmp"
        shutil.copy(system_file(VARS), variables)
        arguments = [
            *("-accel", "tcg", "-cpu", "max", "-machine", "q35,smm=off", "-m", "256"),
            *("-nodefaults", "-display", "none", "-serial", f"file:{self._serial}"),
            *("-drive", f"if=pflash,format=raw,readonly=on,file={system_file(CODE)}"),
            *("-drive", f"if=pflash,format=raw,file={variables}"),
            *("-chardev", f"socket,id=tpm,path={tpm.ctrl}"),
            *("-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"),
            *("-qmp", f"unix:{monitor},server=on,wait=off"),
            *(("-incoming", incoming) if incoming else ()),
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [program("qemu-system-x86_64"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._socket = socket.socket(socket.AF_UNIX)
        self._wait(lambda: self._socket.connect_ex(str(monitor)) == 0)
        self._monitor = self._socket.makefile("rw")
        self._monitor.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Give a command to the monitor and return the answer."""
        self._monitor.write(json.dumps({"execute": command, "arguments": arguments}))
        self._monitor.flush()
        while True:
            answer = json.loads(self._monitor.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def boots(self) -> None:
        """Wait for the banner of the shell."""
        before = self._serial.read_bytes().count(b"UEFI Interactive Shell")
        self._wait(lambda: self._serial.read_bytes().count(b"UEFI Interactive Shell") > before)

    def migrate(self, uri: str) -> None:
        self.ask("migrate", uri=uri)
        self._wait(lambda: self.ask("query-migrate").get("status") in ("completed", "failed"))
        assert self.ask("query-migrate")["status"] == "completed", self._log.read_text()

    def runs(self) -> None:
        """Wait until it runs, as after a migration."""
        self._wait(lambda: self.ask("query-status")["status"] == "running")

    def quit(self) -> None:
        self.ask("quit")
        assert self.process.wait(timeout=30) == 0, self._log.read_text()

    def close(self) -> None:
        self._socket.close()
        if hasattr(self, "_monitor"):
            self._monitor.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._serial.read_bytes()[-500:]
            time.sleep(0.05)


@contextmanager
def machine(name: str, tpm: Vtpm, incoming: str | None = None) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="qemu-") as directory:
        started = Machine(Path(directory), name, tpm, incoming=incoming)
        try:
            yield started
        finally:
            started.close()


def test_ovmf_boots_with_it_and_the_machine_moves_to_a_file_and_alive(tmp_path: Path) -> None:
    images = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        images.append(make_image(tmp_path / name / "image"))
    first, second = images
    saved = tmp_path / "saved"
    with vtpm_of(first, *STARTED) as tpm:
        client = tpm.connect()
        client.send(commands.nv_define(INDEX, 8))
        client.send(commands.nv_write(INDEX, b"precious"))
        client.close()
        assert tpm.end() == 0
    with vtpm_of(first, data=False) as tpm, machine("first", tpm) as booted:
        booted.boots()
        said = tpm.said()
        for code in ("0x144", "0x182", "0x17a"):  # Startup, PCR_Extend, GetCapability
            assert f"command {code}: 0x0" in said
        booted.migrate(f"file:{saved}")
        assert "GET_STATE_BLOB" in tpm.said()
        booted.quit()
        assert tpm.process.wait(timeout=30) == 0  # QEMU asks for SHUTDOWN
    assert saved.stat().st_size > 1 << 20

    migration = ("--migration", "release-lock-outgoing,incoming")
    with (
        vtpm_of(second, *migration, data=False) as tpm,
        machine("second", tpm, f"file:{saved}") as arrived,
    ):
        arrived.runs()
        assert "SET_STATE_BLOB" in tpm.said()
        arrived.ask("system_reset")  # the TPM starts again from what came
        arrived.boots()
        assert tpm.said().count("command 0x144: 0x0") == 1
        with vtpm_of(second, *migration, data=False) as next_tpm:
            live = f"unix:{tmp_path / 'live'}"
            with machine("third", next_tpm, live) as target:
                arrived.migrate(live)
                target.runs()
                arrived.quit()
                assert tpm.process.wait(timeout=30) == 0
                key = ("--key-file", key_of(second))
                busy = blobstore_command("ls", second, *key)
                assert busy.returncode == 23
                assert f"process {next_tpm.process.pid}" in busy.stderr.decode()
                target.quit()
            assert next_tpm.process.wait(timeout=30) == 0
    with opened(second) as store:
        assert store.verify().ok
    with vtpm_of(second, *STARTED) as tpm:
        client = tpm.connect()
        assert commands.data_of(client.send(commands.nv_read(INDEX, 8))) == b"precious"
        client.close()


def test_qemu_says_that_a_damaged_tpm_does_not_start(tmp_path: Path) -> None:
    """With --daemon or as a service nothing listens; here the state breaks under a waiting TPM."""
    image = make_image(tmp_path / "image")
    with opened(image) as store:
        store.register("tpm-permanent-state", 256 << 10)
        store.register("tpm-volatile-state", 65_551)
        state = b"\x00\x03\xab\x36\x47\x23" + bytes(1000)  # only libtpms sees what is wrong
        header = bytes.fromhex("0201000a0000") + (len(state) + 16).to_bytes(4, "big")
        field = b"\0\1" + len(state).to_bytes(4, "big")
        store.put("tpm-permanent-state", header + field + state)
    with vtpm_of(image, data=False) as tpm:
        done = subprocess.run(
            [
                *(program("qemu-system-x86_64"), "-accel", "tcg", "-machine", "q35", "-m", "64"),
                *("-nodefaults", "-display", "none", "-S"),
                *("-chardev", f"socket,id=tpm,path={tpm.ctrl}"),
                *("-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert b"CMD_INIT" in done.stderr
        assert "libtpms does not start" in tpm.said()
