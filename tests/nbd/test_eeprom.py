"""An EEPROM of a machine in QEMU is a section of a store (N24, N27).

The machine is a BMC, whose firmware reads EEPROMs by I2C. Here its processor is stopped, and
instead of firmware the test drives the registers of its I2C controller (ASPEED's AST2600), over
QEMU's qtest protocol. What comes back went from the section through NBD, QEMU's at24c device,
the bus and the controller.
"""

from __future__ import annotations

import random
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

import blobstore
from tests.support.foreign import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop

SIZE = 4096
BUS, ADDRESS = 4, 0x50

#: Registers of a bus of the AST2600, from its base on.
_BUS_BASE: Final = 0x1E78A000 + 0x80 * (BUS + 1)
_CONTROL, _INTERRUPTS, _STATUS, _COMMAND, _BYTE = 0x00, 0x0C, 0x10, 0x14, 0x20
_MASTER: Final = 1
_START, _SEND, _RECEIVE, _LAST, _STOP = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 5
_ACKNOWLEDGED, _RECEIVED = 1 << 0, 1 << 2


class Board:
    """A machine that does nothing but what it is told at its registers."""

    def __init__(self, qtest: socket.socket) -> None:
        self._lines = qtest.makefile("rw", newline="\n")
        self._set(_CONTROL, _MASTER)
        self._set(_INTERRUPTS, _ACKNOWLEDGED | _RECEIVED)

    def read(self, offset: int, size: int) -> bytes:
        """Read from the EEPROM: its address is written, and then bytes are received."""
        self._address(offset)
        self._send(ADDRESS << 1 | 1, _START)
        data = bytearray()
        for left in range(size, 0, -1):
            self._do(_RECEIVE | (_LAST if left == 1 else 0), _RECEIVED)
            data.append(self._get(_BYTE) >> 8 & 0xFF)
        self._do(_STOP)
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Write to the EEPROM, in one transfer."""
        self._address(offset)
        for byte in data:
            self._send(byte)
        self._do(_STOP)

    def _address(self, offset: int) -> None:
        self._send(ADDRESS << 1, _START)
        self._send(offset >> 8)
        self._send(offset & 0xFF)

    def _send(self, byte: int, command: int = 0) -> None:
        self._set(_BYTE, byte)
        self._do(_SEND | command, _ACKNOWLEDGED)

    def _do(self, command: int, expected: int = 0) -> None:
        self._set(_STATUS, 0xFFFFFFFF)  # ones clear it
        self._set(_COMMAND, command)
        assert self._get(_STATUS) & expected == expected

    def _set(self, register: int, value: int) -> None:
        self._ask(f"writel {_BUS_BASE + register:#x} {value:#x}")

    def _get(self, register: int) -> int:
        return int(self._ask(f"readl {_BUS_BASE + register:#x}"), 0)

    def _ask(self, line: str) -> str:
        self._lines.write(line + "\n")
        self._lines.flush()
        status, _, rest = self._lines.readline().strip().partition(" ")
        assert status == "OK", (line, status, rest)
        return rest


def _accept(listening: socket.socket, process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + 60
    while True:
        try:
            return listening.accept()[0]
        except TimeoutError:
            assert process.poll() is None, "QEMU has ended"
            assert time.monotonic() < deadline


@contextmanager
def board(nbd: Path, directory: Path, *options: str) -> Iterator[Board]:
    """Run a machine whose EEPROM is the section ``eeprom``."""
    path = directory / "qtest"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(0.1)
        drive = f"if=none,id=rom,format=raw,file=nbd+unix:///eeprom?socket={nbd}"
        device = f"at24c-eeprom,bus=aspeed.i2c.bus.{BUS},address={ADDRESS:#x},rom-size={SIZE}"
        command = [program("qemu-system-arm"), "-machine", "ast2600-evb", "-S"]
        command += ["-nodefaults", "-display", "none", "-qtest", f"unix:{path}"]
        command += ["-qtest-log", "none"]
        command += ["-drive", ",".join((drive, *options)), "-device", f"{device},drive=rom"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                with _accept(listening, process) as qtest:
                    qtest.settimeout(60)
                    yield Board(qtest)
            finally:
                process.terminate()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[blobstore.Store]:
    with blobstore.create(tmp_path / "image", {}, encrypted=False) as opened:
        opened.register("eeprom", SIZE, kind="window")
        opened.put("eeprom", random.Random(24).randbytes(SIZE))
        yield opened


def test_an_eeprom_in_qemu_has_what_its_section_has(store: blobstore.Store, tmp_path: Path) -> None:
    content = store.get("eeprom")
    sections = blobstore.NbdSections(store)
    with (
        blobstore.NbdServer(tmp_path / "s", sections) as server,
        board(tmp_path / "s", tmp_path) as machine,
    ):
        assert machine.read(0, 256) == content[:256]
        assert machine.read(0xABC, 40) == content[0xABC : 0xABC + 40]
        assert machine.read(SIZE - 1, 3) == content[-1:] + content[:2]  # it goes on at its start
        machine.write(0x120, b"serial number 1")
        assert (
            machine.read(0x11F, 17) == content[0x11F:0x120] + b"serial number 1" + content[303:304]
        )
        server.flush()
        expected = content[:0x120] + b"serial number 1" + content[303:]
        assert store.get("eeprom") == expected
    with (
        blobstore.NbdServer(tmp_path / "s", sections),
        board(tmp_path / "s", tmp_path) as machine,
    ):
        assert machine.read(0x120, 15) == b"serial number 1"


def test_n27_each_write_is_durable_where_qemu_writes_through(
    store: blobstore.Store, tmp_path: Path
) -> None:
    with (
        blobstore.NbdServer(tmp_path / "s", blobstore.NbdSections(store)),
        board(tmp_path / "s", tmp_path, "cache=writethrough") as machine,
    ):
        for number in range(5):
            generation = store.digest().generation
            machine.write(16, bytes([number + 1]) * 3)
            assert machine.read(16, 3) == bytes([number + 1]) * 3
            assert store.get("eeprom")[16:19] == bytes([number + 1]) * 3
            assert store.digest().generation > generation
