"""A client of NBD by hand, which can also break the protocol."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import TYPE_CHECKING, NamedTuple, Self

from formats.nbd.numbers import (
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    Option,
    OptionReply,
)

if TYPE_CHECKING:
    from blobstore.nbd.sockets import Address

FLAGS = (3).to_bytes(4, "big")


def option(number: int, data: bytes = b"", *, magic: int = OPTION_MAGIC) -> bytes:
    """Return an option as it is sent."""
    return struct.pack(">QII", magic, number, len(data)) + data


def text(name: str | bytes) -> bytes:
    """Return a text with its length in front."""
    encoded = name.encode() if isinstance(name, str) else name
    return len(encoded).to_bytes(4, "big") + encoded


def go(name: str, *wanted: int, number: int = Option.GO) -> bytes:
    """Return the option GO, or INFO."""
    return option(number, text(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted))


def contexts(name: str, *queries: str, number: int = Option.SET_META_CONTEXT) -> bytes:
    """Return the option that selects or lists contexts."""
    count = len(queries).to_bytes(4, "big")
    return option(number, text(name) + count + b"".join(map(text, queries)))


def request(
    command: int,
    offset: int = 0,
    length: int = 0,
    data: bytes = b"",
    *,
    flags: int = 0,
    cookie: int = 7,
    magic: int = REQUEST_MAGIC,
) -> bytes:
    """Return a request as it is sent; the length of ``data`` unless one is given."""
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length or len(data)) + data


class Reply(NamedTuple):
    """What a request was answered with: 0 or an error, and what was read or said."""

    error: int
    data: bytes = b""


class Client:
    """A connection to a server; every method raises `EOFError` if it ended."""

    def __init__(self, address: Address, *, timeout: float = 20) -> None:
        """Connect, and do nothing."""
        family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        self.socket = socket.socket(family)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(address if isinstance(address, tuple) else str(address))
        except OSError:
            self.socket.close()
            raise
        self.structured = False

    def begin_tls(self, context: ssl.SSLContext) -> None:
        """Go on within TLS, after `greet`."""
        assert self.ask(option(Option.STARTTLS))[-1][0] == OptionReply.ACK
        self.shake_tls_hands(context)

    def shake_tls_hands(self, context: ssl.SSLContext) -> None:
        # Without TLS's own end, the end of a connection is an error.
        self.socket = context.wrap_socket(
            self.socket, server_hostname="localhost", suppress_ragged_eofs=False
        )

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        data = bytearray()
        while len(data) < size:
            try:
                piece = self.socket.recv(size - len(data))
            except (ConnectionError, ssl.SSLError) as error:
                raise EOFError from error
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except (ConnectionError, ssl.SSLError) as error:
            raise EOFError from error

    def greet(self) -> None:
        self.receive(18)
        self.send(FLAGS)

    def ask(self, sent: bytes) -> list[tuple[int, bytes]]:
        """Send an option; return its replies, up to the last."""
        self.send(sent)
        replies = []
        while True:
            magic, _, kind, size = struct.unpack(">QIII", self.receive(20))
            assert magic == OPTION_REPLY_MAGIC
            replies.append((kind, self.receive(size)))
            if kind == OptionReply.ACK or kind >> 31:
                return replies

    def begin(
        self, name: str, *, structured: bool = True, tls: ssl.SSLContext | None = None
    ) -> None:
        """Begin transmission with an export."""
        self.greet()
        if tls is not None:
            self.begin_tls(tls)
        if structured:
            self.structured = True
            assert self.ask(option(Option.STRUCTURED_REPLY))[-1][0] == OptionReply.ACK
            assert self.ask(contexts(name, "base:allocation"))[-1][0] == OptionReply.ACK
        replies = self.ask(go(name))
        if replies[-1][0] != OptionReply.ACK:
            raise LookupError(replies[-1])

    def reply(self, size: int = 0) -> Reply:
        """Return the next reply; simple ones have ``size`` bytes of data if they succeed."""
        if not self.structured:
            magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
            assert (magic, cookie) == (SIMPLE_REPLY_MAGIC, 7)
            return Reply(error, b"" if error else self.receive(size))
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.receive(20))
        assert (magic, flags, cookie) == (STRUCTURED_REPLY_MAGIC, 1, 7)
        data = self.receive(length)
        if kind == Chunk.ERROR:
            return Reply(int.from_bytes(data[:4], "big"), data[6:])
        return Reply(0, data[8:] if kind == Chunk.OFFSET_DATA else data)

    def read(self, offset: int, length: int) -> Reply:
        self.send(request(Command.READ, offset, length))
        return self.reply(length)

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> Reply:
        self.send(request(Command.WRITE, offset, data=data, flags=flags))
        return self.reply()

    def do(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0) -> Reply:
        self.send(request(command, offset, length, flags=flags))
        return self.reply()

    def flush(self) -> Reply:
        return self.do(Command.FLUSH)


def status(reply: Reply) -> list[tuple[int, int]]:
    """Return length and flags of each extent of a BLOCK_STATUS."""
    assert reply.error == 0
    assert reply.data[:4] == (1).to_bytes(4, "big")
    return list(struct.iter_unpack(">II", reply.data[4:]))
