"""Any bytes on a connection: an answer or the end of it, never an exception (N30)."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore.nbd.credentials import NbdTls
from blobstore.nbd.exports import NbdDevice
from blobstore.nbd.server import NbdServer
from formats.devices.device import MemoryDevice
from formats.nbd.handshake import Handshake
from formats.nbd.model import (
    Begun,
    Ended,
    Export,
    ExportWanted,
    NamesWanted,
    Refused,
    Request,
    TlsWanted,
)
from formats.nbd.numbers import MAX_OPTION_SIZE, MAX_TRANSFER
from formats.nbd.transmission import Transmission
from tests.nbd.support import FLAGS, Client, contexts, go, option, request
from tests.support.effort import cases
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.nbd.sockets import Address

SIZE = 8192

_numbers = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))
_names = st.sampled_from(["", "w", "absent"])
_anything = st.binary(max_size=40)
_options = st.one_of(
    st.builds(option, _numbers, _anything),
    st.builds(go, _names),
    st.builds(contexts, _names, st.sampled_from(["base:allocation", "base:", "x"])),
    st.just(option(8)),
    st.just(option(5)),
    st.just(struct.pack(">QII", 0x49484156454F5054, 7, 2**32 - 1)),
    _anything,
)
_places = st.one_of(st.integers(0, SIZE + 10), st.integers(0, 2**64 - 1))
_lengths = st.one_of(st.integers(0, SIZE + 10), st.integers(0, 2**32 - 1))
_requests = st.one_of(
    st.builds(
        request,
        st.one_of(st.integers(0, 9), st.integers(0, 65535)),
        _places,
        _lengths,
        flags=st.one_of(st.integers(0, 31), st.integers(0, 65535)),
    ),
    st.builds(lambda at, data: request(1, at, data=data), _places, _anything),
    _anything,
)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """What a client sends: messages in any order, whole, damaged, or cut off."""
    said = draw(st.sampled_from([FLAGS, FLAGS, FLAGS, b"\0\0\0\1", b""]))
    said += b"".join(draw(st.lists(_options, max_size=4)))
    if draw(st.booleans()):
        said += draw(st.sampled_from([go("w"), option(1, b"w")]))
        said += b"".join(draw(st.lists(_requests, max_size=6)))
    damaged = bytearray(said)
    if damaged and draw(st.booleans()):
        damaged[draw(st.integers(0, len(damaged) - 1))] ^= draw(st.integers(1, 255))
    if draw(st.booleans()):
        del damaged[draw(st.integers(0, len(damaged))) :]
    return bytes(damaged)


def hold(data: bytes, sizes: list[int], *, requires_tls: bool = False) -> list[object]:
    """Let the protocol read a conversation in pieces; return what it made of it."""
    export = Export("w", SIZE, read_only=False)
    handshake = Handshake(requires_tls=requires_tls)
    reader: Handshake | Transmission = handshake
    events: list[object] = []
    at = 0
    for size in [*sizes, len(data)]:
        piece, at = data[at : at + size], at + size
        reader.receive(piece)
        while (event := reader.next_event()) is not None:
            events.append(event)
            if isinstance(event, Begun):
                reader = Transmission(event)
            elif isinstance(event, TlsWanted):
                handshake.begin_tls()
            elif isinstance(event, NamesWanted):
                handshake.tell_names(["w"])
            elif isinstance(event, ExportWanted):
                if event.name == "absent":
                    handshake.refuse_export("there is none", unknown=True)
                else:
                    handshake.tell_export(export)
            elif isinstance(event, Request):
                assert event.offset + event.length <= SIZE
                assert event.length <= MAX_TRANSFER
                assert len(event.data) == (event.length if event.command == 1 else 0)
    events.append(handshake.outgoing())
    return events


@settings(max_examples=cases(400, 20000), deadline=None)
@given(conversations(), st.lists(st.integers(1, 50), max_size=30))
def test_n30_any_bytes_are_understood_alike_in_pieces_of_any_size(
    said: bytes, sizes: list[int]
) -> None:
    def essence(events: list[object]) -> list[object]:
        # How much had come with the last option depends on the pieces.
        return [
            ("begun", e.structured, e.allocation) if isinstance(e, Begun) else e for e in events
        ]

    whole = essence(hold(said, []))
    assert essence(hold(said, sizes)) == whole
    ends = [event for event in whole if isinstance(event, Ended)]
    assert len(ends) <= 1
    assert not ends or whole[-2] == ends[0]


@settings(max_examples=cases(300, 20000), deadline=None)
@given(conversations(), st.lists(st.integers(1, 50), max_size=30))
def test_n31_no_bytes_reach_an_export_without_tls(said: bytes, sizes: list[int]) -> None:
    events = hold(said, sizes, requires_tls=True)
    begun = [number for number, event in enumerate(events) if isinstance(event, TlsWanted)]
    before = events[: begun[0]] if begun else events
    asked = (Begun, ExportWanted, NamesWanted, Request, Refused)
    assert not any(isinstance(event, asked) for event in before)
    assert len(begun) <= 1


def test_n3_n15_nothing_is_kept_for_announcements_beyond_the_limits() -> None:
    for limit, head, reader in (
        (MAX_OPTION_SIZE, struct.pack(">QII", 0x49484156454F5054, 7, 2**32 - 1), Handshake()),
        (
            MAX_TRANSFER,
            request(1, length=2**32 - 1),
            Transmission(Begun(Export("w", SIZE, read_only=False), False, False, b"")),
        ),
    ):
        reader.receive((FLAGS if isinstance(reader, Handshake) else b"") + head + bytes(limit))
        assert isinstance(reader.next_event(), Ended)
        assert len(reader._in) == 0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    path = tmp_path_factory.mktemp("nbd") / "s"
    device = NbdDevice("w", MemoryDevice(SIZE), writable=True)
    with NbdServer(path, device, handshake_time=5.0, stall_time=5.0):
        yield path


@settings(max_examples=cases(150, 5000), deadline=None)
@given(said=conversations())
def test_n30_server_survives_any_bytes(address: Address, said: bytes) -> None:
    # A timeout is not suppressed: the connection must end.
    with Client(address) as hostile, suppress(EOFError, ConnectionError):
        hostile.send(said)
        hostile.socket.shutdown(socket.SHUT_WR)
        while hostile.socket.recv(1 << 16):
            pass
    with Client(address) as other:
        other.begin("w")
        assert other.read(0, 10).error == 0


class Tls(NamedTuple):
    """A server with TLS that lets in any client, and the side of such a client."""

    address: Address
    context: ssl.SSLContext


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    parent = tmp_path_factory.mktemp("tls")
    directory = Authority().server(parent / "server")
    context = ssl.create_default_context(cafile=directory / "ca-cert.pem")
    device = NbdDevice("w", MemoryDevice(SIZE), writable=True)
    found = NbdTls.from_directory(directory, any_client=True)
    times = {"handshake_time": 5.0, "stall_time": 5.0}
    with NbdServer(parent / "s", device, tls=found, **times):  # type: ignore[arg-type]
        yield Tls(parent / "s", context)


def _records(data: bytes) -> bytes:
    """Return bytes as records of TLS, of every kind."""
    kinds = (20, 21, 22, 23, 24)
    return b"".join(
        bytes((kinds[number % 5], 3, 3)) + len(part).to_bytes(2, "big") + part
        for number, part in enumerate(data[n : n + 90] for n in range(0, len(data), 90))
    )


@settings(max_examples=cases(150, 5000), deadline=None)
@given(
    said=conversations(),
    where=st.sampled_from(["in the clear", "instead of TLS", "as records", "in TLS"]),
)
def test_n30_server_with_tls_survives_any_bytes(tls: Tls, said: bytes, where: str) -> None:
    with Client(tls.address) as hostile, suppress(EOFError, ConnectionError, ssl.SSLError):
        if where != "in the clear":
            hostile.greet()
        if where == "in TLS":
            hostile.begin_tls(tls.context)
            said = said[4:]
        elif where != "in the clear":
            hostile.ask(option(5))
        hostile.send(_records(said) if where == "as records" else said)
        raw = hostile.socket
        if isinstance(raw, ssl.SSLSocket):
            raw.unwrap()  # to the end of what the server still answers
        else:
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(1 << 16):
                pass
    with Client(tls.address) as other:
        other.begin("w", tls=tls.context)
        assert other.read(0, 10).error == 0


def test_n30_client_that_reads_nothing_disturbs_no_other(address: Address) -> None:
    with Client(address) as deaf, Client(address) as other:
        deaf.begin("w")
        deaf.socket.setblocking(False)
        with pytest.raises((BlockingIOError, EOFError)):
            while True:
                deaf.send(request(0, 0, SIZE) * 50)
        other.begin("w")
        assert other.write(5, b"data").error == 0
        assert other.read(5, 4).data == b"data"
