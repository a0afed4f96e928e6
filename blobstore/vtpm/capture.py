"""What a TPM is sent and answers, as a file for Wireshark and tcpdump (V104, V105).

A pcapng file of Ethernet frames: a TCP connection between two ports of 127.0.0.1, of
which one is 2321, by which Wireshark knows commands of a TPM. The form is that of
``swtpm --pcap``, so that its users' filters fit. Source: the pcapng draft of the IETF
(draft-ietf-opsawg-pcapng), RFC 791, RFC 9293 and swtpm's manual.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from secrets import randbelow
from typing import TYPE_CHECKING, Final

from formats.errors import device_error
from formats.logs import LateLogger

if TYPE_CHECKING:
    from pathlib import Path

_log = LateLogger(__name__)

_SECTION: Final = struct.pack("=IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, 0, 28)
_ETHERNET: Final = 1
_INTERFACE: Final = struct.pack("=IIHHII", 1, 20, _ETHERNET, 0, 0, 20)
_PACKET: Final = struct.Struct("=IIIIIII")
_PACKET_TYPE: Final = 6

# Two hardware addresses of zeros, and what follows is IPv4.
_FRAME: Final = bytes(12) + b"\x08\x00"
_IP: Final = struct.Struct(">BBHHHBBH4s4s")
_TCP: Final = struct.Struct(">HHIIBBHHH")
_LOOPBACK: Final = bytes((127, 0, 0, 1))
_TPM_PORT: Final = 2321
_CLIENT_PORTS: Final = range(50000, 55000)
_FIN, _SYN, _PUSH, _ACK = 1, 2, 8, 16
#: What IPv4 can carry in one packet, without both headers.
_LARGEST: Final = 0xFFFF - _IP.size - _TCP.size


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """Of ``--pcap``.

    Attributes:
        file: To append to; None is ``descriptor``.
        descriptor: To write to.
        truncate: Empty the file first.
        mode: Of the file.
        checksums: Compute those of the packets; otherwise they are zero.
    """

    file: Path | None = None
    descriptor: int | None = None
    truncate: bool = False
    mode: int = 0o640
    checksums: bool = False

    def open(self) -> Capture:
        """Begin to record.

        Raises:
            DeviceError: The file cannot be opened or written.
        """
        place = self.file if self.file is not None else f"descriptor {self.descriptor}"
        descriptor = self.descriptor
        try:
            if self.file is not None:
                how = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                descriptor = os.open(self.file, how, self.mode)
            assert descriptor is not None, "one of them is given"
            os.fchmod(descriptor, self.mode)
            if self.truncate:
                os.ftruncate(descriptor, 0)
                if self.file is None:
                    os.lseek(descriptor, 0, os.SEEK_SET)
            return Capture(descriptor, checksums=self.checksums)
        except OSError as error:
            raise device_error(error, f"cannot record to {place}") from error


class Capture:
    """A recording. One thread at a time uses it.

    It never fails a command: after the first error, which is logged, nothing more is recorded.
    """

    def __init__(self, descriptor: int, *, checksums: bool = False) -> None:
        """Write the beginning of the file and of the connection.

        Raises:
            OSError: It cannot be written.
        """
        self._descriptor = descriptor
        self._checksums = checksums
        self._client_port = _CLIENT_PORTS[randbelow(len(_CLIENT_PORTS))]
        # Of the bytes to come: from the client, from the TPM.
        self._numbers = [randbelow(1 << 32), randbelow(1 << 32)]
        self._write(_SECTION + _INTERFACE)
        self._exchange(_SYN)

    def command(self, data: bytes) -> None:
        """Record what the TPM is sent."""
        self._record(data, from_tpm=False)

    def response(self, data: bytes) -> None:
        """Record what it answers."""
        self._record(data, from_tpm=True)

    def close(self) -> None:
        """End the connection in the recording, and close the file. Twice is fine."""
        if self._descriptor < 0:
            return
        try:
            self._exchange(_FIN)
        except OSError:
            pass  # there is no one to tell, and a recording without an end can be read
        finally:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _record(self, data: bytes, *, from_tpm: bool) -> None:
        if self._descriptor < 0:
            return
        try:
            for start in range(0, len(data), _LARGEST):
                self._send(data[start : start + _LARGEST], _PUSH | _ACK, from_tpm=from_tpm)
        except OSError as error:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
            _log.warning("commands are not recorded any more: %s [V104]", error.strerror)

    def _exchange(self, flag: int) -> None:
        """Begin or end the connection: a flag from either side, and what confirms it."""
        self._send(b"", flag, from_tpm=False)
        self._send(b"", flag | _ACK, from_tpm=True)
        self._send(b"", _ACK, from_tpm=False)

    def _send(self, data: bytes, flags: int, *, from_tpm: bool) -> None:
        frame = _FRAME + self._packet(data, flags, from_tpm=from_tpm)
        padding = -len(frame) % 4
        now = time.time_ns() // 1000
        size = _PACKET.size + len(frame) + padding + 4
        head = _PACKET.pack(
            _PACKET_TYPE, size, 0, now >> 32, now & 0xFFFFFFFF, len(frame), len(frame)
        )
        self._write(head + frame + bytes(padding) + struct.pack("=I", size))
        step = len(data) + (1 if flags & (_SYN | _FIN) else 0)
        self._numbers[from_tpm] = self._numbers[from_tpm] + step & 0xFFFFFFFF

    def _packet(self, data: bytes, flags: int, *, from_tpm: bool) -> bytes:
        ports = (self._client_port, _TPM_PORT)
        sender, receiver = reversed(ports) if from_tpm else ports
        confirmed = 0 if flags == _SYN else self._numbers[not from_tpm]
        offset, window = _TCP.size // 4 << 4, 0xFFC4
        own = self._numbers[from_tpm]

        def segment(checksum: int) -> bytes:
            head = (sender, receiver, own, confirmed, offset, flags, window, checksum, 0)
            return _TCP.pack(*head) + data

        def header(checksum: int) -> bytes:
            size = _IP.size + _TCP.size + len(data)
            addresses = (_LOOPBACK, _LOOPBACK)
            return _IP.pack(0x45, 0x10, size, 0x069B, 0x4000, 64, 6, checksum, *addresses)

        if not self._checksums:
            return header(0) + segment(0)
        pseudo = _LOOPBACK + _LOOPBACK + struct.pack(">HH", 6, _TCP.size + len(data))
        return header(_checksum(header(0))) + segment(_checksum(pseudo + segment(0)))

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]


def _checksum(data: bytes) -> int:
    """Return the checksum of the Internet's protocols (RFC 1071)."""
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
