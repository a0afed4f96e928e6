"""Bytes and options to values: commands, requests and what swtpm's options say."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.vtpm import control
from blobstore.vtpm import swtpm_options as options
from blobstore.vtpm.commands import (
    Command,
    Startup,
    encode_response,
    split_command,
    startup_command,
)
from blobstore.vtpm.control import Code, Request
from formats.errors import FormatError
from formats.state.swtpm import TpmVersion
from tests.support.cli import blobstore as blobstore_command
from tests.support.cli import fails
from tests.vtpm.support import STARTED, key_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vtpm.md"
MOST = 4096


def split_all(
    received: bytes, version: TpmVersion = TpmVersion.TPM_2
) -> tuple[list[Command], bytes]:
    found = []
    while pair := split_command(received, version, MOST):
        command, size = pair
        found.append(command)
        received = received[size:]
        if command.too_long:
            break
    return found, received


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.none() | st.integers(0, 255)), max_size=5),
    st.integers(0, 400),
)
def test_v20_v22_a_stream_of_commands_is_cut_where_they_end(
    commands: list[tuple[bytes, int | None]], cut: int
) -> None:
    stream, expected = b"", []
    for parameters, locality in commands:
        body = struct.pack(">HII", 0x8001, 10 + len(parameters), 0x17B) + parameters
        prefix = b"" if locality is None else struct.pack(">IBI", 8, locality, len(body))
        stream += prefix + body
        expected.append(Command(body, locality))
    assert split_all(stream) == (expected, b"")
    # The same, in two pieces.
    first, rest = split_all(stream[:cut])
    second, left = split_all(rest + stream[cut:])
    assert (first + second, left) == (expected, b"")


@given(st.binary(max_size=60))
def test_v20_any_bytes_make_commands_or_wait_for_more(received: bytes) -> None:
    for version in TpmVersion:
        found, rest = split_all(received, version)
        assert sum(len(c.body) for c in found) + len(rest) <= len(received)
        for command in found:
            assert 10 <= len(command.body) <= MOST
            assert encode_response(b"r" * 10, command)[:14].endswith(b"r" * 10)


def test_v21_of_what_is_too_long_there_is_the_header() -> None:
    header = struct.pack(">HII", 0x8001, MOST + 1, 0x144)
    assert split_command(header + b"more", TpmVersion.TPM_2, MOST) == (
        Command(header, None, True),
        10,
    )


def test_v22_a_tpm_12_takes_no_prefix() -> None:
    prefixed = struct.pack(">IBI", 8, 0, 12) + struct.pack(">HII", 0xC1, 12, 0x99) + b"\0\1"
    found = split_command(prefixed, TpmVersion.TPM_12, MOST)
    assert found is not None
    assert found[0].too_long


def test_startups() -> None:
    assert startup_command(TpmVersion.TPM_2, Startup.CLEAR) == bytes.fromhex(
        "80010000000c000001440000"
    )
    assert startup_command(TpmVersion.TPM_12, Startup.DEACTIVATED) == bytes.fromhex(
        "00c10000000c000000990003"
    )
    assert startup_command(TpmVersion.TPM_12, Startup.NONE) is None
    with pytest.raises(ValueError, match="no startup-deactivated"):
        startup_command(TpmVersion.TPM_2, Startup.DEACTIVATED)


@given(st.integers(0, 0x20), st.binary(max_size=40))
def test_v50_any_message_is_a_request_or_refused(code: int, body: bytes) -> None:
    message = struct.pack(">I", code) + body
    try:
        request = control.decode_request(message)
    except ValueError:
        assert code not in set(Code)
        return
    except FormatError:
        return
    assert request.code == code
    assert control.needed(message) <= len(message)


def test_v50_requests() -> None:
    cases = {
        "00000002 00000001": Request(Code.INIT, value=1),
        "00000005 03": Request(Code.SET_LOCALITY, value=3),
        "00000005 03000000": Request(Code.SET_LOCALITY, value=3),
        "00000007 00000002 6162": Request(Code.HASH_DATA, data=b"ab"),
        "0000000c 00000001 00000002 00000010": Request(
            Code.GET_STATE_BLOB, value=1, blob_type=2, offset=16
        ),
        "0000000d 00000000 00000001 00000003 787978": Request(
            Code.SET_STATE_BLOB, blob_type=1, data=b"xyx"
        ),
        "00000012 0000000000000007 00000004 00000000": Request(Code.GET_INFO, value=7, offset=4),
        "00000013 0000012c": Request(Code.LOCK_STORAGE, value=300),
    }
    for text, expected in cases.items():
        message = bytes.fromhex(text)
        assert control.decode_request(message) == expected
        for size in range(control.needed(message)):
            # Whoever asks how many bytes it takes never asks for too many.
            assert size < control.needed(message[:size]) <= control.needed(message)


def test_v51_lengths_that_nobody_needs() -> None:
    for code, before in ((Code.HASH_DATA, b""), (Code.SET_STATE_BLOB, bytes(8))):
        head = struct.pack(">I", code) + before
        assert control.needed(head + struct.pack(">I", 512 << 10)) == len(head) + 4 + (512 << 10)
        for length in ((512 << 10) + 1, 0xFFFFFFFF):
            with pytest.raises(FormatError, match="V51"):
                control.needed(head + struct.pack(">I", length))


def test_v52_information_in_pieces() -> None:
    text = b"x" * 5000
    first = control.information(text, 0)
    assert struct.unpack_from(">III", first) == (0, 5001, 3072)
    second = control.information(text, 3072)
    assert struct.unpack_from(">III", second) == (0, 5001, 5001 - 3072)
    assert first[12:] + second[12:] == text + b"\0"
    with pytest.raises(FormatError):
        control.information(text, 5000)


# ------------------------------------------------------------------- options


def test_v60_channels() -> None:
    unix = options.parse_control("type=unixio,path=/run/tpm,mode=0600,uid=64055,gid=108,terminate")
    assert (unix.path, unix.mode, unix.owner) == (Path("/run/tpm"), 0o600, (64055, 108))
    assert unix.terminate
    assert options.parse_control("type=unixio,path=/a,uid=-1,gid=8").owner == (-1, 8)
    assert options.parse_control("type=unixio,clientfd=5").connected == 5
    assert options.parse_control("type=tcp,fd=5").listening == 5
    server = options.parse_server("port=2321,bindaddr=::1,ifname=lo,disconnect")
    assert (server.port, server.address, server.interface) == (2321, "::1", "lo")
    assert server.disconnect
    assert options.parse_server("type=tcp,port=1").address == "127.0.0.1"
    assert options.parse_server("type=tcp,fd=7").connected == 7
    for wrong in (
        "path=/run/tpm",
        "type=unixio",
        "type=unixio,port=1",
        "type=unixio,path=/a,fd=3",
        "type=tcp,path=/a",
        "type=tcp,port=0",
        "type=tcp,port=65536",
        "type=tcp,port=x",
        "type=unixio,path=/a,mode=1777",
        "type=unixio,path=/a,mode=0888",
        "type=unixio,path=/a,path=/b",
        "type=unixio,path=",
        "type=serial,path=/a",
        "type=unixio,path=/a,disconnect",
        "type=unixio,fd=-1",
        "type=unixio,path=/a,uid=-2",
    ):
        with pytest.raises(ValueError):
            options.parse_control(wrong)


def test_v60_flags_and_words() -> None:
    assert options.parse_flags("not-need-init") == options.Flags(needs_init=False)
    assert options.parse_flags("startup-clear,disable-auto-shutdown") == options.Flags(
        needs_init=False, startup=Startup.CLEAR, auto_shutdown=False
    )
    assert options.parse_flags("startup-none").needs_init
    assert options.parse_migration("incoming,release-lock-outgoing") == {
        "incoming",
        "release-lock-outgoing",
    }
    assert options.parse_log("file=-").silent
    assert options.parse_log("fd=3,level=5,prefix=tpm: ").descriptor == 3
    assert options.parse_log("file=/a,truncate").truncate
    assert options.parse_pid("fd=4") == 4
    for parse, wrong in (
        (options.parse_flags, "startup-clear,startup-state"),
        (options.parse_flags, "need-init"),
        (options.parse_locality, "allow"),
        (options.parse_migration, ""),
        (options.parse_log, "file=/a,level=x"),
        (options.parse_log, "file=/a,fd=3"),
        (options.parse_log, "file=/a,level=-1"),
        (options.parse_log, "fd=-1"),
        (options.parse_pid, "/run/pid"),
    ):
        with pytest.raises(ValueError):
            parse(wrong)


def test_v60_wrong_usage_is_said_as_such(image: Path) -> None:
    for arguments in (
        [],
        ["--print-states"],
        [image],
        [image, "--server", "type=unixio,path=/tmp/x"],
        [image, "--ctrl", "type=unixio"],
        [image, "--port", "1", "--fd", "3"],
        [image, "--port", "1", "--flags", "startup-sometimes"],
        [image, "--port", "1", "--name", "\n", "--flags", "not-need-init"],
        [image, "--port", "1", "--flags", "not-need-init", "--runas", "nobody-of-that-name"],
        [image, "--key", "file=x"],
    ):
        assert fails("vtpm", *arguments) == 2, arguments


def test_v60_descriptors_that_are_none_are_named(image: Path) -> None:
    for wrong in (
        ["--port", "1", "--log", "fd=77"],
        ["--ctrl", "type=unixio,fd=77"],
        ["--fd", "77"],
    ):
        done = blobstore_command("vtpm", image, "--key-file", key_of(image), *STARTED, *wrong)
        assert (done.returncode, b"descriptor 77" in done.stderr) == (20, True), done.stderr


def test_every_option_of_the_page_is_there() -> None:
    said = blobstore_command("vtpm", "--help").stdout.decode()
    page = PAGE.read_text()
    commands = re.findall(r"blobstore vtpm .*?(?=\n[a-z`#]|\n```|\"$)", page, re.DOTALL)
    used = {option for text in commands for option in re.findall(r"(?<![\w-])--[a-z-]+", text)}
    used |= set(re.findall(r"`(--[a-z-]+)[ `=]", page)) - {"--key"}
    assert len(used) > 8
    assert not [option for option in sorted(used) if option not in said]
