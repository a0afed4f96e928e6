"""The handshake (N1 to N10), byte by byte, without sockets."""

from __future__ import annotations

import struct

import pytest

from formats.nbd.handshake import Handshake
from formats.nbd.model import Begun, Ended, Export, ExportWanted, NamesWanted, TlsWanted
from formats.nbd.numbers import Option, OptionReply, TransmissionFlag
from tests.nbd.support import FLAGS, contexts, go, option, text

EXPORT = Export("w", 0x84000, read_only=False, can_trim=True, description="a window")
#: Written out from the protocol's document, not from the code.
GREETING = bytes.fromhex("4e42444d41474943 49484156454f5054 0003")
ACK, INVALID, UNSUP, PLATFORM, UNKNOWN = 1, 0x80000003, 0x80000001, 0x80000004, 0x80000006


def greeted(flags: bytes = FLAGS, *, requires_tls: bool = False) -> Handshake:
    """Return a handshake after the flags of both sides."""
    handshake = Handshake(requires_tls=requires_tls)
    assert handshake.outgoing() == GREETING
    handshake.receive(flags)
    assert handshake.next_event() is None
    return handshake


def replies(handshake: Handshake) -> list[tuple[int, int, bytes]]:
    """Return the option, type and data of each reply that is to be sent."""
    data = handshake.outgoing()
    found = []
    while data:
        assert data[:8] == bytes.fromhex("0003e889045565a9")
        number, kind, size = struct.unpack(">III", data[8:20])
        found.append((number, kind, data[20 : 20 + size]))
        data = data[20 + size :]
    return found


def kinds(handshake: Handshake, *sent: bytes) -> list[int]:
    """Return the types of the replies to options that are answered at once."""
    for one in sent:
        handshake.receive(one)
        assert handshake.next_event() is None
    return [kind for _, kind, _ in replies(handshake)]


def test_n1_greeting_is_that_of_the_fixed_newstyle_handshake() -> None:
    handshake = Handshake()
    assert handshake.outgoing() == GREETING
    assert handshake.outgoing() == b""
    assert handshake.next_event() is None


@pytest.mark.parametrize("flags", [0, 2, 4, 5, 7, 0x80000001])
def test_n2_connection_ends_for_flags_that_are_not_known(flags: int) -> None:
    handshake = Handshake()
    handshake.receive(flags.to_bytes(4, "big") + go("w"))
    assert handshake.next_event() == Ended(f"the client's flags are {flags:#x} [N2]")
    assert handshake.next_event() is None


def test_n3_wrong_magic_ends_the_connection() -> None:
    handshake = greeted()
    handshake.receive(option(Option.LIST, magic=1))
    event = handshake.next_event()
    assert isinstance(event, Ended)
    assert "[N3]" in event.reason


def test_n3_size_of_an_option_is_bounded_before_its_data_has_come() -> None:
    handshake = greeted()
    assert kinds(handshake, option(99, bytes(65536))) == [UNSUP]
    handshake.receive(struct.pack(">QII", 0x49484156454F5054, 99, 65537))
    assert handshake.next_event() == Ended("option 99 has 65537 bytes of data [N3]")


def test_n3_number_of_options_is_bounded() -> None:
    handshake = greeted()
    assert kinds(handshake, *[option(99)] * 256) == [UNSUP] * 256
    handshake.receive(option(99))
    assert isinstance(handshake.next_event(), Ended)


@pytest.mark.parametrize("number", [0, 4, 5, 11, 12, 0xFFFFFFFF])
def test_n4_unknown_option_is_unsupported_and_the_connection_goes_on(number: int) -> None:
    handshake = greeted()
    assert kinds(handshake, option(number, b"data")) == [UNSUP]
    assert kinds(handshake, option(Option.STRUCTURED_REPLY)) == [ACK]


@pytest.mark.parametrize(
    "sent",
    [
        option(Option.LIST, b"x"),
        option(Option.STRUCTURED_REPLY, b"x"),
        option(Option.GO),
        option(Option.GO, text("w")),
        option(Option.GO, text("w") + b"\0\1\0"),
        option(Option.GO, text("w") + b"\0\1\0\0\0"),
        option(Option.INFO, b"\xff\xff\xff\xff" + b"w"),
        option(Option.INFO, text(b"\xff") + b"\0\0"),
        option(Option.INFO, text(b"a\0b") + b"\0\0"),
        option(Option.INFO, text(b"n" * 4097) + b"\0\0"),
    ],
)
def test_n4_n5_data_without_the_form_of_its_option_is_invalid(sent: bytes) -> None:
    handshake = greeted()
    assert kinds(handshake, sent) == [INVALID]
    handshake.receive(go("w"))
    assert handshake.next_event() == ExportWanted("w", begins=True)


@pytest.mark.parametrize(("flags", "zeros"), [(3, 0), (1, 124)])
def test_n6_export_name_begins_at_once(flags: int, zeros: int) -> None:
    handshake = greeted(flags.to_bytes(4, "big"))
    handshake.receive(option(Option.EXPORT_NAME, b"w") + b"request")
    assert handshake.next_event() == ExportWanted("w", begins=True)
    handshake.tell_export(EXPORT)
    # HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN, CACHE, FAST_ZERO
    assert handshake.outgoing() == bytes.fromhex("0000000000084000 0ded") + bytes(zeros)
    begun = handshake.next_event()
    assert begun == Begun(EXPORT, structured=False, allocation=False, rest=b"request")
    assert handshake.next_event() is None


def test_n6_export_name_that_cannot_be_served_ends_the_connection() -> None:
    for name in (b"absent", b"\xff"):
        handshake = greeted()
        handshake.receive(option(Option.EXPORT_NAME, name))
        if handshake.next_event() == ExportWanted("absent", begins=True):
            handshake.refuse_export("there is none", unknown=True)
            assert handshake.next_event() == Ended("there is none")
        assert handshake.outgoing() == b""
        assert handshake.next_event() is None


def test_n7_abort_is_acknowledged() -> None:
    handshake = greeted()
    handshake.receive(option(Option.ABORT))
    assert handshake.next_event() == Ended()
    assert replies(handshake) == [(2, ACK, b"")]


def test_n7_list_names_all_exports() -> None:
    handshake = greeted()
    handshake.receive(option(Option.LIST))
    assert handshake.next_event() == NamesWanted()
    assert handshake.next_event() == NamesWanted()  # until it is answered
    handshake.tell_names(["a", "ö"])
    assert replies(handshake) == [(3, 2, text("a")), (3, 2, text("ö")), (3, ACK, b"")]
    assert handshake.next_event() is None


def test_n8_go_tells_size_flags_and_block_sizes() -> None:
    handshake = greeted()
    handshake.receive(go("w"))
    assert handshake.next_event() == ExportWanted("w", begins=True)
    handshake.tell_export(EXPORT)
    assert replies(handshake) == [
        (7, 3, bytes.fromhex("0000 0000000000084000 0ded")),
        (7, 3, bytes.fromhex("0003 00000001 00001000 02000000")),
        (7, ACK, b""),
    ]
    assert isinstance(handshake.next_event(), Begun)


def test_n8_info_tells_names_on_request_and_begins_nothing() -> None:
    handshake = greeted()
    handshake.receive(go("", 1, 2, 99, 0, number=Option.INFO))
    assert handshake.next_event() == ExportWanted("", begins=False)
    handshake.tell_export(EXPORT)
    told = {data[:2]: data[2:] for _, kind, data in replies(handshake) if kind == 3}
    assert told[b"\0\1"] == b"w"
    assert told[b"\0\2"] == b"a window"
    assert len(told) == 4
    assert handshake.next_event() is None


@pytest.mark.parametrize(("unknown", "kind"), [(True, UNKNOWN), (False, PLATFORM)])
def test_n8_refusal_says_why(unknown: bool, kind: int) -> None:
    handshake = greeted()
    handshake.receive(go("w"))
    handshake.next_event()
    handshake.refuse_export("because: ö" * 1000, unknown=unknown)
    [(_, found, message)] = replies(handshake)
    assert found == kind
    assert message.decode().startswith("because: ö")
    assert len(message) <= 4096
    assert handshake.next_event() is None


def begun_after(*sent: bytes) -> Begun:
    """Return what is agreed when these options come before GO; all exports are ``w``."""
    handshake = greeted()
    for one in (*sent, go("w")):
        handshake.receive(one)
        if isinstance(handshake.next_event(), ExportWanted):
            handshake.tell_export(EXPORT)
    event = handshake.next_event()
    assert isinstance(event, Begun)
    return event


STRUCTURED = option(Option.STRUCTURED_REPLY)


def test_n9_structured_replies_are_agreed_on() -> None:
    assert begun_after(STRUCTURED).structured
    assert not begun_after().structured


def test_n10_contexts_need_structured_replies() -> None:
    assert kinds(greeted(), contexts("w", "base:allocation")) == [INVALID]


@pytest.mark.parametrize(
    ("queries", "selects", "lists"),
    [
        (("base:allocation",), True, True),
        (("qemu:dirty-bitmap:x", "base:allocation"), True, True),
        (("base:",), False, True),
        ((), False, True),
        (("qemu:",), False, False),
        (("base:allocation2",), False, False),
    ],
)
def test_n10_only_context_is_base_allocation(
    queries: tuple[str, ...], selects: bool, lists: bool
) -> None:
    for number, found, context_id in (
        (Option.SET_META_CONTEXT, selects, 1),
        (Option.LIST_META_CONTEXT, lists, 0),
    ):
        handshake = greeted()
        handshake.receive(STRUCTURED + contexts("w", *queries, number=number))
        assert handshake.next_event() == ExportWanted("w", begins=False)
        handshake.tell_export(EXPORT)
        [_, *given, last] = replies(handshake)
        assert last == (number, ACK, b"")
        context = context_id.to_bytes(4, "big") + b"base:allocation"
        assert given == [(number, OptionReply.META_CONTEXT, context)] * found


def test_n10_selection_is_for_one_export_and_forgotten_by_the_next() -> None:
    select = contexts("w", "base:allocation")
    assert begun_after(STRUCTURED, select).allocation
    assert not begun_after(STRUCTURED, select, contexts("w")).allocation
    assert not begun_after(STRUCTURED, contexts("w", "base:allocation", number=9)).allocation
    handshake = greeted()
    handshake.receive(STRUCTURED + select + go("other"))
    handshake.next_event()
    handshake.tell_export(EXPORT)
    handshake.next_event()
    handshake.tell_export(Export("other", 1, read_only=True))
    begun = handshake.next_event()
    assert isinstance(begun, Begun)
    assert not begun.allocation


def test_n12_what_is_only_read_has_no_flags_of_writing() -> None:
    flag = TransmissionFlag
    flags = Export("b", 1, read_only=True).flags
    assert flags == 0x587 | flag.READ_ONLY
    assert not Export("v", 1, read_only=False).flags & flag.SEND_TRIM


def test_answer_without_a_question_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="asked for nothing"):
        greeted().tell_names([])


TLS_REQD = 0x80000005


@pytest.mark.parametrize(
    "sent", [option(3), go("w"), option(8), contexts("w"), option(99), option(6, b"not its form")]
)
def test_n31_before_tls_every_option_needs_it(sent: bytes) -> None:
    handshake = greeted(requires_tls=True)
    assert kinds(handshake, sent) == [TLS_REQD]


def test_n31_before_tls_export_name_and_abort_end_the_connection() -> None:
    handshake = greeted(requires_tls=True)
    handshake.receive(option(1, b"w"))
    assert handshake.next_event() == Ended("the client did not begin TLS [N31]")
    assert replies(handshake) == []
    other = greeted(requires_tls=True)
    other.receive(option(2))
    assert other.next_event() == Ended()
    assert [kind for _, kind, _ in replies(other)] == [ACK]


def test_n31_without_tls_starttls_is_not_supported() -> None:
    assert kinds(greeted(), option(5), option(5, b"data")) == [UNSUP, UNSUP]


def test_n32_tls_begins_after_its_acknowledgement() -> None:
    handshake = greeted(requires_tls=True)
    assert kinds(handshake, option(5, b"data")) == [INVALID]
    handshake.receive(option(5))
    assert handshake.next_event() == TlsWanted()
    assert replies(handshake) == [(5, ACK, b"")]
    assert handshake.next_event() == TlsWanted()  # until it has begun
    handshake.begin_tls()
    assert kinds(handshake, option(5), option(8)) == [INVALID, ACK]
    handshake.receive(go("w"))
    assert handshake.next_event() == ExportWanted("w", begins=True)


def test_n32_nothing_said_before_tls_holds_within() -> None:
    handshake = greeted(requires_tls=True)
    assert kinds(handshake, option(8), contexts("w", "base:allocation")) == [TLS_REQD] * 2
    handshake.receive(option(5))
    handshake.next_event()
    handshake.begin_tls()
    replies(handshake)
    handshake.receive(go("w"))
    handshake.next_event()
    handshake.tell_export(EXPORT)
    begun = handshake.next_event()
    assert isinstance(begun, Begun)
    assert (begun.structured, begun.allocation) == (False, False)


def test_n32_bytes_between_starttls_and_tls_end_the_connection() -> None:
    handshake = greeted(requires_tls=True)
    handshake.receive(option(5) + go("w"))
    ended = handshake.next_event()
    assert isinstance(ended, Ended)
    assert "[N32]" in ended.reason
    assert replies(handshake) == []
    with pytest.raises(ValueError, match="does not want TLS"):
        handshake.begin_tls()
