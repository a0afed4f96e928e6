"""Commands and responses as a pcapng file (V104)."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from blobstore.vtpm import swtpm_options as options
from blobstore.vtpm.capture import Capture, CaptureOptions
from tests.support.cli import fails
from tests.vtpm import commands
from tests.vtpm.support import NOT_NEED_INIT, STARTED, key_of, vtpm_of

FIN, SYN, PUSH, ACK = 1, 2, 8, 16
STARTUP = commands.plain(0x144, bytes(2))


class Packet(NamedTuple):
    ports: tuple[int, int]
    numbers: tuple[int, int]
    flags: int
    checksums: tuple[int, int]
    data: bytes
    whole: bytes


def blocks(content: bytes) -> list[tuple[int, bytes]]:
    """Return the types and bodies of pcapng's blocks, whose length is at both ends."""
    found, at = [], 0
    while at < len(content):
        kind, size = struct.unpack_from("=II", content, at)
        assert size % 4 == 0
        assert struct.unpack_from("=I", content, at + size - 4) == (size,)
        found.append((kind, content[at + 8 : at + size - 4]))
        at += size
    return found


def packets(content: bytes) -> list[Packet]:
    found = []
    for kind, body in blocks(content):
        if kind == 0x0A0D0D0A:
            assert body == struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, 0)
        elif kind == 1:
            assert body == struct.pack("=HHI", 1, 0, 0)
        else:
            assert kind == 6
            interface, _, _, size, original = struct.unpack_from("=IIIII", body)
            assert (interface, original) == (0, size)
            frame = body[20 : 20 + size]
            assert frame[:14] == bytes(12) + b"\x08\x00"
            ip, tcp = frame[14:34], frame[34:54]
            assert ip[0] == 0x45
            assert struct.unpack_from(">H", ip, 2) == (size - 14,)
            assert ip[9] == 6
            assert ip[12:] == bytes((127, 0, 0, 1)) * 2
            source, target, number, confirmed, offset, flags = struct.unpack_from(">HHIIBB", tcp)
            assert offset == 0x50
            sums = struct.unpack_from(">H", ip, 10)[0], struct.unpack_from(">H", tcp, 16)[0]
            ports, numbers = (source, target), (number, confirmed)
            found.append(Packet(ports, numbers, flags, sums, frame[54:], frame[14:]))
    return found


def ones_complement(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    return total % 0xFFFF


@pytest.mark.parametrize("checksums", [False, True])
def test_v104_a_recording_is_a_connection_of_tcp(tmp_path: Path, *, checksums: bool) -> None:
    file = tmp_path / "pcap"
    capture = CaptureOptions(file=file, checksums=checksums).open()
    said = [b"command", b"ok", b"x" * 70_000, b""]
    for command, response in (said[:2], said[2:]):
        capture.command(command)
        capture.response(response)
    capture.close()
    capture.close()
    found = packets(file.read_bytes())
    client = found[0].ports[0]
    assert client in range(50000, 55000)
    assert [one.flags for one in found[:3]] == [SYN, SYN | ACK, ACK]
    assert [one.flags for one in found[-3:]] == [FIN, FIN | ACK, ACK]
    assert {one.flags for one in found[3:-3]} == {PUSH | ACK}
    following: dict[int, int] = {}
    for one in found:
        assert set(one.ports) == {client, 2321}
        own, other = one.ports
        assert one.numbers[0] == following.get(own, one.numbers[0])
        if one.flags != SYN:
            assert one.numbers[1] == following[other]
        step = len(one.data) + bool(one.flags & (SYN | FIN))
        following[own] = (one.numbers[0] + step) % (1 << 32)
        if checksums:
            assert ones_complement(one.whole[:20]) == 0
            pseudo = one.whole[12:20] + struct.pack(">HH", 6, len(one.whole) - 20)
            assert ones_complement(pseudo + one.whole[20:]) == 0
        else:
            assert one.checksums == (0, 0)
    sent = b"".join(one.data for one in found if one.ports[1] == 2321)
    assert sent == said[0] + said[2]


def test_v104_files_have_the_sizes_of_swtpms(image: Path, tmp_path: Path) -> None:
    """With TPM2_Startup, and TPM2_Shutdown which is sent at the end: as its own test expects."""
    file = tmp_path / "pcap"
    with vtpm_of(image, *NOT_NEED_INIT, "--pcap", f"file={file},mode=0654") as tpm:
        assert (file.stat().st_size, file.stat().st_mode & 0o777) == (312, 0o654)
        client = tpm.connect()
        client.send(STARTUP)
        client.close()
        assert file.stat().st_size == 508
        assert tpm.end() == 0
    assert file.stat().st_size == 508 + 196 + 264
    assert packets(file.read_bytes())[3].data == STARTUP
    with vtpm_of(image, *NOT_NEED_INIT, "--pcap", f"file={file},mode=633,checksums") as tpm:
        assert file.stat().st_mode & 0o777 == 0o633
        assert tpm.end() == 0
    assert file.stat().st_size == 968 + 312 + 264
    with vtpm_of(image, *STARTED, "--pcap", f"file={file},truncate") as tpm:
        assert (file.stat().st_size, file.stat().st_mode & 0o777) == (508, 0o640)
        assert tpm.end() == 0


def test_v104_a_recording_that_fails_fails_no_command(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    capture = Capture(writing)
    capture.command(b"one")
    os.close(reading)
    capture.command(b"two")
    capture.response(b"three")
    capture.close()
    assert caplog.text.count("not recorded any more") == 1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(writing)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file=a", CaptureOptions(file=Path("a"))),
        (
            "fd=5,truncate,mode=0600,checksums",
            CaptureOptions(descriptor=5, truncate=True, mode=0o600, checksums=True),
        ),
    ],
)
def test_v104_options_are_those_of_swtpm(text: str, expected: CaptureOptions) -> None:
    assert options.parse_capture(text) == expected


def test_v104_what_is_not_an_option_is_refused(image: Path, tmp_path: Path) -> None:
    for text in ("", "truncate", "file=a,fd=5", "file=a,mode=8", "file=a,level=1", "fd=x"):
        with pytest.raises(ValueError, match=r"not|name"):
            options.parse_capture(text)
    arguments = ("--key-file", key_of(image), *STARTED, "-p", "1")
    assert fails("vtpm", image, *arguments, "--pcap", f"file={tmp_path}/no/file") == 20
