"""The handshake: options are read and answered until an export is chosen (N1 to N10, N31, N32)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from formats.nbd.buffer import Buffer
from formats.nbd.model import Begun, Ended, ExportWanted, NamesWanted, TlsWanted
from formats.nbd.numbers import (
    ALLOCATION_CONTEXT,
    ALLOCATION_ID,
    FIXED_NEWSTYLE,
    MAX_NAME_SIZE,
    MAX_OPTION_SIZE,
    MAX_OPTIONS,
    MAX_TRANSFER,
    NO_ZEROES,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    SERVER_MAGIC,
    Info,
    Option,
    OptionReply,
)
from formats.nbd.replies import message_bytes
from formats.nbd.structures import (
    EXPORT,
    GREETING,
    OPTION,
    OPTION_REPLY,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from formats.devices.device import ReadableBuffer
    from formats.nbd.model import Export

    Event = NamesWanted | ExportWanted | TlsWanted | Begun | Ended

_CLIENT_FLAGS: Final = struct.Struct(">I")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_RESERVED: Final = bytes(124)

#: Options that mean something before TLS, where that is required (N31).
_BEFORE_TLS: Final = (Option.STARTTLS, Option.ABORT)


class _InvalidOptionError(Exception):
    """The data of an option does not have its form; never leaves this module."""


class Handshake:
    """One client's handshake: `receive` what it sends, `next_event` until there is none.

    What is to be sent to it meanwhile, `outgoing` returns. After `NamesWanted` and
    `ExportWanted` their answer comes before the next event, and after `TlsWanted` TLS.
    After `Begun` and `Ended` there are no more events.
    """

    def __init__(self, *, requires_tls: bool = False) -> None:
        """Begin with the server's greeting in `outgoing`.

        Args:
            requires_tls: Whether the client has to begin TLS first (N31).
        """
        self._in = Buffer()
        self._out = bytearray(GREETING.pack(SERVER_MAGIC, OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES))
        self._flags: int | None = None  # the client's
        self._options = 0  # how many came
        self._has_tls = requires_tls
        self._lacks_tls = requires_tls  # until it begins
        self._tls_wanted = False
        self._structured = False
        self._context_export: str | None = None  # for which base:allocation was selected
        self._pending: _Question | None = None
        self._over: Begun | Ended | None = None
        self._told = False  # that it is over
        self._handlers: dict[Option, Callable[[Option, bytes], None]] = {
            Option.EXPORT_NAME: self._export_name,
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.STARTTLS: self._starttls,
            Option.INFO: self._info,
            Option.GO: self._info,
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._meta_context,
            Option.SET_META_CONTEXT: self._meta_context,
        }

    def receive(self, data: ReadableBuffer) -> None:
        """Take bytes that the client sent."""
        self._in.append(data)

    def outgoing(self) -> bytes:
        """Return what is to be sent now, once."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def next_event(self) -> Event | None:
        """Return what happened next; None until more was received."""
        while not (self._pending or self._tls_wanted or self._over):
            if self._told or not self._step():
                return None
        if self._pending:
            return self._pending.event
        if self._tls_wanted:
            return TlsWanted()
        over, self._over, self._told = self._over, None, True
        self._in.clear()
        return over

    def tell_names(self, names: Iterable[str]) -> None:
        """Answer `NamesWanted`: these are the exports."""
        question = self._take_question()
        for name in names:
            encoded = name.encode()
            self._reply(question.option, OptionReply.SERVER, _U32.pack(len(encoded)) + encoded)
        self._reply(question.option, OptionReply.ACK)

    def tell_export(self, export: Export) -> None:
        """Answer `ExportWanted`: it is this one."""
        question = self._take_question()
        question.tell(export)

    def refuse_export(self, message: str, *, unknown: bool) -> None:
        """Answer `ExportWanted`: it cannot be had.

        Args:
            message: Why, for people.
            unknown: Whether there is none of that name.
        """
        question = self._take_question()
        if question.option == Option.EXPORT_NAME:
            self._over = Ended(message)  # this option has no errors (N6)
            return
        error = OptionReply.ERR_UNKNOWN if unknown else OptionReply.ERR_PLATFORM
        self._reply(question.option, error, message_bytes(message))

    def begin_tls(self) -> None:
        """Answer `TlsWanted`: what is received from now on came within TLS."""
        if not self._tls_wanted:
            raise ValueError("the client does not want TLS")
        self._tls_wanted = self._lacks_tls = False

    # ---------------------------------------------------------- reading

    def _step(self) -> bool:
        """Go on by one message; return whether one was there."""
        if self._flags is None:
            return self._read_flags()
        option = self._read_option()
        if option is not None:
            self._handle(*option)
        return option is not None or self._over is not None

    def _read_flags(self) -> bool:
        if len(self._in) < _CLIENT_FLAGS.size:
            return False
        (flags,) = _CLIENT_FLAGS.unpack(self._in.take(_CLIENT_FLAGS.size))
        if flags & ~NO_ZEROES != FIXED_NEWSTYLE:
            self._over = Ended(f"the client's flags are {flags:#x} [N2]")
        self._flags = flags
        return True

    def _read_option(self) -> tuple[int, bytes] | None:
        """Return the next option and its data, or None: not here yet, or never."""
        head = self._in.peek(OPTION.size)
        if head is None:
            return None
        with head:
            magic, option, size = OPTION.unpack(head)
        if magic != OPTION_MAGIC:
            self._over = Ended(f"an option begins with {magic:#018x} [N3]")
        elif size > MAX_OPTION_SIZE:
            self._over = Ended(f"option {option} has {size} bytes of data [N3]")
        elif self._options == MAX_OPTIONS:
            self._over = Ended(f"the client sent more than {MAX_OPTIONS} options [N3]")
        if self._over or len(self._in) < OPTION.size + size:
            return None
        self._options += 1
        return option, self._in.take(OPTION.size + size, skip=OPTION.size)

    # --------------------------------------------------------- answering

    def _handle(self, option: int, data: bytes) -> None:
        if self._lacks_tls and option not in _BEFORE_TLS:
            if option == Option.EXPORT_NAME:
                self._over = Ended("the client did not begin TLS [N31]")
                return
            self._reply(option, OptionReply.ERR_TLS_REQD, message_bytes("begin TLS first [N31]"))
            return
        try:
            known = Option(option)
        except ValueError:
            self._reply(
                option, OptionReply.ERR_UNSUP, message_bytes(f"option {option} is not known")
            )
            return
        try:
            self._handlers[known](known, data)
        except _InvalidOptionError as error:
            if known is Option.EXPORT_NAME:
                self._over = Ended(str(error))
            else:
                self._reply(known, OptionReply.ERR_INVALID, message_bytes(str(error)))

    def _export_name(self, option: Option, data: bytes) -> None:
        name = _name(data)

        def tell(export: Export) -> None:
            self._out += EXPORT.pack(export.size, export.flags)
            if not (self._flags or 0) & NO_ZEROES:
                self._out += _RESERVED
            self._begin(export)

        self._pending = _Question(option, ExportWanted(name, begins=True), tell)

    def _abort(self, option: Option, _data: bytes) -> None:
        self._reply(option, OptionReply.ACK)
        self._over = Ended()

    def _list(self, option: Option, data: bytes) -> None:
        _require_no_data(data)
        self._pending = _Question(option, NamesWanted(), lambda _: None)

    def _starttls(self, option: Option, data: bytes) -> None:
        if not self._has_tls:
            message = message_bytes("this server has no TLS [N31]")
            self._reply(option, OptionReply.ERR_UNSUP, message)
            return
        _require_no_data(data)
        if not self._lacks_tls:
            raise _InvalidOptionError("TLS is there already [N32]")
        if self._in:
            # They did not come within TLS, so they are not to be answered there.
            self._over = Ended(f"{len(self._in)} bytes came after STARTTLS, too early [N32]")
            return
        self._reply(option, OptionReply.ACK)
        self._tls_wanted = True

    def _info(self, option: Option, data: bytes) -> None:
        reader = _Reader(data)
        name = _name(reader.text())
        wanted = {reader.u16() for _ in range(reader.u16())}
        reader.require_end()

        def tell(export: Export) -> None:
            block = max(4096, export.block_size)
            known = {
                Info.EXPORT: EXPORT.pack(export.size, export.flags),
                Info.BLOCK_SIZE: struct.pack(">III", 1, block, MAX_TRANSFER),
                Info.NAME: export.name.encode(),
                Info.DESCRIPTION: export.description.encode(),
            }
            for kind, content in known.items():
                if kind in wanted or kind in (Info.EXPORT, Info.BLOCK_SIZE):
                    self._reply(option, OptionReply.INFO, _U16.pack(kind) + content)
            self._reply(option, OptionReply.ACK)
            if option is Option.GO:
                self._begin(export)

        event = ExportWanted(name, begins=option is Option.GO)
        self._pending = _Question(option, event, tell)

    def _structured_reply(self, option: Option, data: bytes) -> None:
        _require_no_data(data)
        self._structured = True
        self._reply(option, OptionReply.ACK)

    def _meta_context(self, option: Option, data: bytes) -> None:
        if not self._structured:
            raise _InvalidOptionError("there are contexts after STRUCTURED_REPLY only [N10]")
        reader = _Reader(data)
        name = _name(reader.text())
        queries = [reader.text() for _ in range(reader.u32())]
        reader.require_end()
        selects = option is Option.SET_META_CONTEXT
        context = ALLOCATION_CONTEXT.encode()
        found = context in queries or (not selects and (not queries or b"base:" in queries))
        if selects:
            self._context_export = None

        def tell(export: Export) -> None:
            if selects and found:
                self._context_export = export.name
            if found:
                number = ALLOCATION_ID if selects else 0
                self._reply(option, OptionReply.META_CONTEXT, _U32.pack(number) + context)
            self._reply(option, OptionReply.ACK)

        self._pending = _Question(option, ExportWanted(name, begins=False), tell)

    def _begin(self, export: Export) -> None:
        self._over = Begun(
            export,
            structured=self._structured,
            allocation=self._context_export == export.name,
            rest=self._in.take(len(self._in)),
        )

    def _reply(self, option: int, kind: OptionReply, data: bytes = b"") -> None:
        self._out += OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data

    def _take_question(self) -> _Question:
        if self._pending is None:
            raise ValueError("the client asked for nothing")
        question, self._pending = self._pending, None
        return question


class _Question:
    """What waits for an answer."""

    __slots__ = ("event", "option", "tell")

    def __init__(
        self, option: Option, event: NamesWanted | ExportWanted, tell: Callable[[Export], None]
    ) -> None:
        """Ask ``event``, for ``option``; ``tell`` answers it with an export."""
        self.option = option
        self.event = event
        self.tell = tell


class _Reader:
    """Takes the data of an option apart."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def u16(self) -> int:
        return int.from_bytes(self._take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def text(self) -> bytes:
        """Return what a u32 of its length stands before."""
        return self._take(self.u32())

    def require_end(self) -> None:
        if self._at != len(self._data):
            raise _InvalidOptionError(f"{len(self._data) - self._at} bytes too many [N4]")

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise _InvalidOptionError(f"the data ends before {size} bytes at {self._at} [N4]")
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken


def _require_no_data(data: bytes) -> None:
    if data:
        raise _InvalidOptionError(f"{len(data)} bytes of data where there are none [N4]")


def _name(data: bytes) -> str:
    if len(data) > MAX_NAME_SIZE or b"\0" in data:
        raise _InvalidOptionError("the name is too long, or has a zero byte [N5]")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _InvalidOptionError("the name is not UTF-8 [N5]") from None
