"""An exported section is the content of QEMU's AT24C EEPROM, as a guest reads and writes it.

The guest is this test: it drives the two lines of the I2C controller of QEMU's
versatilepb, through QEMU's qtest protocol.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from formats.eeprom.framework.codec import Findings
from formats.eeprom.ipmi_fru import CODEC
from tests.support.cli import succeeds
from tests.support.foreign import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.interop

MANIFEST = """
[image]
luks = false

[[section]]
name = "board"
type = "ipmi-fru"
chip = "24c04"
[section.fields.board]
manufacturer = "Example"
serial-number = "0042"
"""

#: The controller's registers: what is written sets lines, or clears them. Reading the
#: first gives the lines.
SET, CLEAR = 0x1000_2000, 0x1000_2004
CLOCK, DATA = 1, 2
#: The EEPROM's address on the bus, shifted left for the direction bit.
ADDRESS = 0x50 << 1


class Bus:
    """The I2C bus of a machine, bit by bit; many commands go to QEMU at once."""

    def __init__(self, machine: subprocess.Popen[str]) -> None:
        self._machine = machine
        self._commands: list[str] = []

    def _lines(self, *, clock: int | None = None, data: int | None = None) -> None:
        for line, level in ((CLOCK, clock), (DATA, data)):
            if level is not None:
                self._commands.append(f"writel {SET if level else CLEAR:#x} {line:#x}")

    def start(self) -> None:
        self._lines(data=1)
        self._lines(clock=1)
        self._lines(data=0)
        self._lines(clock=0)

    def stop(self) -> None:
        self._lines(data=0)
        self._lines(clock=1)
        self._lines(data=1)

    def send(self, *values: int) -> None:
        """Send bytes, each of which must be acknowledged."""
        for value in values:
            for bit in range(7, -1, -1):
                self._lines(data=value >> bit & 1)
                self._lines(clock=1)
                self._lines(clock=0)
            self._lines(data=1)
            self._lines(clock=1)
            self._commands.append(f"readl {SET:#x}")
            self._lines(clock=0)
        acknowledged = self._run()
        assert not any(acknowledged), "the bus acknowledged a byte"

    def receive(self, count: int) -> bytes:
        """Receive bytes, and acknowledge all except the last."""
        for number in range(count):
            self._lines(data=1)
            for _ in range(8):
                self._lines(clock=1)
                self._commands.append(f"readl {SET:#x}")
                self._lines(clock=0)
            self._lines(data=int(number == count - 1))
            self._lines(clock=1)
            self._lines(clock=0)
        bits = self._run()
        octets = [bits[start : start + 8] for start in range(0, len(bits), 8)]
        return bytes(int("".join(map(str, octet)), 2) for octet in octets)

    def _run(self) -> list[int]:
        """Have QEMU do what was gathered; return the data line as often as it was read."""
        assert self._machine.stdin
        assert self._machine.stdout
        levels = []
        while self._commands:
            batch, self._commands = self._commands[:500], self._commands[500:]
            self._machine.stdin.write("\n".join([*batch, ""]))
            self._machine.stdin.flush()
            for command in batch:
                answer = self._machine.stdout.readline().split()
                assert answer[:1] == ["OK"], (command, answer)
                if command.startswith("readl"):
                    levels.append(int(answer[1], 16) >> 1 & 1)
        return levels

    def read_all(self, size: int) -> bytes:
        self.start()
        self.send(ADDRESS, 0, 0)
        self.start()
        self.send(ADDRESS | 1)
        content = self.receive(size)
        self.stop()
        self._run()
        return content

    def write(self, offset: int, content: bytes) -> None:
        self.start()
        self.send(ADDRESS, *offset.to_bytes(2, "big"), *content)
        self.stop()
        self._run()


@contextmanager
def machine_with(eeprom: Path) -> Iterator[Bus]:
    """Run a machine whose EEPROM is in a file; at the end it is off."""
    size = eeprom.stat().st_size
    process = subprocess.Popen(
        [
            *(program("qemu-system-arm"), "-machine", "versatilepb", "-S", "-nodefaults"),
            *("-display", "none", "-audio", "none"),
            *("-qtest", "stdio", "-qtest-log", "none"),
            *("-blockdev", f"driver=raw,node-name=e,file.driver=file,file.filename={eeprom}"),
            *("-device", f"at24c-eeprom,bus=i2c,address=0x50,rom-size={size},drive=e"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Bus(process)
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    manifest, binary = tmp_path / "manifest.toml", tmp_path / "board.bin"
    manifest.write_text(MANIFEST)
    succeeds("pack", manifest, "--raw", "board", "-o", binary)
    assert binary.stat().st_size == 512
    return binary


def test_a_guest_reads_the_bytes_of_the_section(binary: Path) -> None:
    with machine_with(binary) as bus:
        content = bus.read_all(512)
    assert content == binary.read_bytes()
    board = CODEC.decode(content, Findings.strict()).board
    assert board
    assert board.serial_number == "0042"


def test_what_a_guest_writes_is_read_as_fields(binary: Path) -> None:
    changed = binary.with_name("changed.bin")
    setting = ("--set", "board.board.serial-number=4711")
    succeeds("pack", binary.with_name("manifest.toml"), "--raw", "board", "-o", changed, *setting)
    after = changed.read_bytes()
    with machine_with(binary) as bus:
        for offset in range(0, 64, 8):
            bus.write(offset, after[offset : offset + 8])
        assert bus.read_all(512) == after
    assert binary.read_bytes() == after
    assert b'serial-number = "4711"' in succeeds("show", binary, "--type", "ipmi-fru")
