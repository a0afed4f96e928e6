"""Requests and replies (N14 to N18), byte by byte, without sockets."""

from __future__ import annotations

import struct

import pytest

from formats.nbd.model import Begun, Ended, Export, Extent, Refused, Request
from formats.nbd.numbers import Command, CommandFlag, Errno
from formats.nbd.replies import Replies
from formats.nbd.transmission import Transmission
from tests.nbd.support import request

SIZE = 1 << 40


def transmission(
    *,
    structured: bool = True,
    read_only: bool = False,
    allocation: bool = True,
    size: int = SIZE,
    rest: bytes = b"",
) -> Transmission:
    export = Export("w", size, read_only=read_only)
    return Transmission(Begun(export, structured=structured, allocation=allocation, rest=rest))


def error_of(sent: bytes, of: Transmission | None = None) -> int:
    """Return the error of a request, 0 if it is right; the connection must go on."""
    reader = of or transmission()
    reader.receive(sent + request(Command.FLUSH, cookie=8))
    event = reader.next_event()
    assert isinstance(event, Request | Refused)
    assert event.cookie == 7
    assert reader.next_event() == Request(Command.FLUSH, 0, 8, 0, 0)
    assert reader.next_event() is None
    return event.error if isinstance(event, Refused) else 0


def test_n14_request_as_the_protocol_writes_it() -> None:
    reader = transmission()
    sent = bytes.fromhex("25609513 0001 0001 0102030405060708 0000000000001000 00000003") + b"abc"
    for byte in sent:
        assert reader.next_event() is None
        reader.receive(bytes([byte]))
        assert not reader.is_between_requests
    found = reader.next_event()
    assert found == Request(Command.WRITE, 1, 0x0102030405060708, 0x1000, 3, b"abc")
    assert reader.is_between_requests


def test_n14_what_came_with_the_last_option_is_read_first() -> None:
    reader = transmission(rest=request(Command.READ, 0, 1)[:10])
    reader.receive(request(Command.READ, 0, 1)[10:])
    assert reader.next_event() == Request(Command.READ, 0, 7, 0, 1)


@pytest.mark.parametrize("magic", [0, 0x25609514, 0x4E42444D])
def test_n14_wrong_magic_ends_the_connection(magic: int) -> None:
    reader = transmission()
    reader.receive(request(Command.READ, magic=magic) + request(Command.READ))
    event = reader.next_event()
    assert isinstance(event, Ended)
    assert "[N14]" in event.reason
    reader.receive(request(Command.READ))
    assert reader.next_event() is None


def test_n15_longest_write_is_32_mebibytes() -> None:
    data = bytes(32 << 20)
    assert error_of(request(Command.WRITE, data=data)) == 0
    reader = transmission()
    reader.receive(request(Command.WRITE, length=(32 << 20) + 1))
    assert isinstance(reader.next_event(), Ended)


def test_n15_longest_read_is_32_mebibytes() -> None:
    assert error_of(request(Command.READ, length=32 << 20)) == 0
    assert error_of(request(Command.READ, length=(32 << 20) + 1)) == Errno.EOVERFLOW
    small = transmission(size=100)
    assert error_of(request(Command.READ, length=(32 << 20) + 1), small) == Errno.EINVAL


@pytest.mark.parametrize("number", [8, 9, 255, 65535])
def test_n16_unknown_command_is_invalid(number: int) -> None:
    assert error_of(request(number)) == Errno.EINVAL


@pytest.mark.parametrize("flag", list(CommandFlag))
@pytest.mark.parametrize("command", [one for one in Command if one is not Command.DISC])
def test_n16_commands_have_their_flags_and_no_others(command: Command, flag: CommandFlag) -> None:
    length = 0 if command is Command.FLUSH else 4
    data = b"data" if command is Command.WRITE else b""
    has = {
        Command.READ: {CommandFlag.DF},
        Command.WRITE_ZEROES: {CommandFlag.NO_HOLE, CommandFlag.FAST_ZERO},
        Command.BLOCK_STATUS: {CommandFlag.REQ_ONE},
    }
    expected = 0 if flag in has.get(command, set()) | {CommandFlag.FUA} else Errno.EINVAL
    assert error_of(request(command, 0, length, data, flags=flag)) == expected


def test_n16_df_needs_structured_replies() -> None:
    simple = transmission(structured=False)
    assert error_of(request(Command.READ, 0, 1, flags=CommandFlag.DF), simple) == Errno.EINVAL


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (Command.READ, Errno.EINVAL),
        (Command.WRITE, Errno.ENOSPC),
        (Command.TRIM, Errno.EINVAL),
        (Command.CACHE, Errno.EINVAL),
        (Command.WRITE_ZEROES, Errno.ENOSPC),
        (Command.BLOCK_STATUS, Errno.EINVAL),
    ],
)
def test_n16_range_lies_in_the_export(command: Command, error: Errno) -> None:
    data = b"data" if command is Command.WRITE else b""
    for offset, expected in ((96, 0), (97, error), (100, error), (2**64 - 1, error)):
        small = transmission(size=100)
        assert error_of(request(command, offset, 4, data), small) == expected


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
def test_n16_what_is_only_read_takes_no_changes(command: Command) -> None:
    data = b"data" if command is Command.WRITE else b""
    for offset in (0, 2**63):
        reader = transmission(read_only=True)
        assert error_of(request(command, offset, 4, data), reader) == Errno.EPERM


def test_n16_flush_has_no_range() -> None:
    assert error_of(request(Command.FLUSH, 1)) == Errno.EINVAL
    assert error_of(request(Command.FLUSH, 0, 1)) == Errno.EINVAL


def test_n16_block_status_needs_a_context_and_a_length() -> None:
    without = transmission(allocation=False)
    assert error_of(request(Command.BLOCK_STATUS, 0, 1), without) == Errno.EINVAL
    assert error_of(request(Command.BLOCK_STATUS, 0, 0)) == Errno.EINVAL


def test_n17_simple_replies() -> None:
    replies = Replies(structured=False)
    assert replies.done(0x0102030405060708) == bytes.fromhex("67446698 00000000 0102030405060708")
    assert replies.read(1, 2, 3) == bytes.fromhex("67446698 00000000 0000000000000001")
    failed = replies.failed(1, Errno.ENOSPC, "said to no one")
    assert failed == bytes.fromhex("67446698 0000001c 0000000000000001")


def test_n18_structured_replies() -> None:
    replies = Replies(structured=True)
    head = "668e33ef 0001 {:04x} 0000000000000001 {:08x}"
    assert replies.done(1) == bytes.fromhex(head.format(0, 0))
    assert replies.read(1, 0x1234, 10) == bytes.fromhex(head.format(1, 18) + "0000000000001234")
    assert replies.read(1, 0x1234, 0) == replies.done(1)
    failed = replies.failed(1, Errno.EIO, "torn")
    assert failed == bytes.fromhex(head.format(0x8001, 10) + "00000005 0004") + b"torn"
    extents = [Extent(4096, is_zero=True), Extent(512, is_zero=False)]
    assert replies.block_status(1, extents) == bytes.fromhex(
        head.format(5, 20) + "00000001 00001000 00000002 00000200 00000000"
    )


def test_n18_message_is_bounded_utf8() -> None:
    failed = Replies(structured=True).failed(1, Errno.EIO, "ö" * 40000 + "\udc80")
    (length,) = struct.unpack(">H", failed[24:26])
    assert len(failed) == 26 + length
    assert failed[26:].decode() == "ö" * 2048


def test_n21_disc_ends_without_an_answer() -> None:
    reader = transmission()
    reader.receive(request(Command.DISC) + request(Command.READ))
    assert reader.next_event() == Ended()
    assert reader.next_event() is None
