"""QEMU's device for UEFI variables, unmodified, with a test in the place of the firmware.

QEMU's qtest protocol reads and writes the memory of a machine whose processor never runs. What
is written here is what firmware writes: the registers of ``uefi-vars-x64`` (QEMU's
``docs/specs/uefi-vars`` has them), and the messages of the UEFI variable services as edk2
defines them for its communication with management mode.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import uuid
from typing import TYPE_CHECKING, Any, Self

from tests.support.foreign import program

if TYPE_CHECKING:
    from pathlib import Path

_REGISTERS = 0xFEF10000  # on a q35 machine
_MAGIC, _COMMAND, _SIZE, _LOW, _HIGH = 0, 2, 4, 8, 12
_RESET, _MESSAGE = 1, 2
_IS_THERE = 0xEF1
_BUFFER, _BUFFER_SIZE = 0x200000, 0x10000
_SERVICE = uuid.UUID("ed32d533-99e6-4209-9cc0-2d72cdd998a7").bytes_le
_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_GET, _SET = 1, 3
#: Kept, for boot services and at run time.
_ATTRIBUTES = 7
NOT_FOUND = 1 << 63 | 14


class UefiVars:
    """A machine with nothing but variables, in a file of JSON."""

    def __init__(self, file: Path, sockets: Path) -> None:
        """Start it.

        Args:
            file: Of the variables.
            sockets: A directory for the socket.
        """
        path = sockets / "qtest"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            listening.settimeout(30)
            self.process = subprocess.Popen(
                [
                    *(program("qemu-system-x86_64"), "-machine", "q35", "-accel", "tcg", "-S"),
                    *("-display", "none", "-nodefaults", "-qtest", f"unix:{path}"),
                    *("-qtest-log", "none", "-device", f"uefi-vars-x64,jsonfile={file}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                self._socket, _ = listening.accept()
            except TimeoutError:
                self.process.kill()
                raise
        self._socket.settimeout(30)
        self._lines = self._socket.makefile("rb")
        assert int(self._say(f"readw {_REGISTERS + _MAGIC:#x}"), 16) == _IS_THERE
        self._write("w", _COMMAND, _RESET)
        self._write("l", _SIZE, _BUFFER_SIZE)
        self._write("l", _LOW, _BUFFER)
        self._write("l", _HIGH, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait(30)
        self._lines.close()
        self._socket.close()

    def set(self, name: str, data: bytes) -> None:
        """Set a variable; the device has written its file when this returns."""
        status, _ = self._ask(_SET, name, data, _ATTRIBUTES)
        assert status == 0, hex(status)

    def get(self, name: str) -> bytes | None:
        """Return a variable; None if there is none."""
        status, data = self._ask(_GET, name, bytes(4096), 0)
        assert status in (0, NOT_FOUND), hex(status)
        return None if status else data

    def _ask(self, function: int, name: str, data: bytes, attributes: int) -> tuple[int, bytes]:
        encoded = name.encode("utf-16-le") + bytes(2)
        access = _GLOBAL + struct.pack("<QQI", len(data), len(encoded), attributes)
        message = struct.pack("<QQ", function, 0) + access + encoded + data
        message = _SERVICE + struct.pack("<Q", len(message)) + message
        self._say(f"write {_BUFFER:#x} {len(message):#x} 0x{message.hex()}")
        self._write("w", _COMMAND, _MESSAGE)
        assert int(self._say(f"readw {_REGISTERS + _COMMAND:#x}"), 16) == 0
        reply = bytes.fromhex(self._say(f"read {_BUFFER:#x} {len(message):#x}")[2:])
        (status,) = struct.unpack_from("<Q", reply, 32)
        (size,) = struct.unpack_from("<Q", reply, 56)
        start = 76 + len(encoded)
        return status, reply[start : start + size]

    def _write(self, width: str, register: int, value: int) -> None:
        self._say(f"write{width} {_REGISTERS + register:#x} {value:#x}")

    def _say(self, line: str) -> Any:
        self._socket.sendall(line.encode() + b"\n")
        answer = self._lines.readline().split()
        if not answer:
            raise ConnectionResetError("QEMU ended")
        assert answer[0] == b"OK", answer
        return answer[1].decode() if len(answer) > 1 else ""
