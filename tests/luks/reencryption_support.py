"""Small re-encryptions of every kind, and what a crash in the middle of one may leave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import luks
from formats.devices.device import MemoryDevice, read_exactly
from tests.luks.support import PASSPHRASE, PBKDF2, pattern
from tests.support.devices import Flush, Mark, RecordingDevice, Resize, Write, crash_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from formats.devices.device import BlockDevice, ReadableBuffer
    from tests.support.devices import CrashState, Event

KIB = 1 << 10
#: Permits payloads of which a part is plain.
PLAIN = luks.Policy(allow_unencrypted=True)


class TwinDevice(RecordingDevice):
    """One of two devices of which each notes when the other is used, as a mark."""

    other: TwinDevice | None = None

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        super().write(offset, data)
        self._tell()

    def flush(self) -> None:
        super().flush()
        self._tell()

    def resize(self, size: int, /) -> None:
        super().resize(size)
        self._tell()

    def _tell(self) -> None:
        if self.other is not None:
            self.other.mark(len(self.log))


class Begin(Protocol):
    """Begins a re-encryption on an image, and its detached header if there is one."""

    def __call__(self, image: BlockDevice, header: BlockDevice | None, /) -> luks.Reencryption:
        """Return it."""


@dataclass(frozen=True)
class Content:
    """What is on an image, and on its detached header if there is one."""

    image: bytes
    header: bytes | None = None

    def devices(self) -> tuple[MemoryDevice, MemoryDevice | None]:
        return MemoryDevice(self.image), None if self.header is None else MemoryDevice(self.header)


@dataclass(frozen=True)
class Case:
    """One kind of re-encryption.

    Attributes:
        name: For the test's id.
        make: Makes the image before, from the plaintext.
        begin: Begins the re-encryption.
        size: Bytes of the payload.
    """

    name: str
    make: Callable[[bytes], Content]
    begin: Begin
    size: int = 48 * KIB

    def __str__(self) -> str:
        return self.name

    @cached_property
    def plain(self) -> bytes:
        return pattern(self.name, self.size)

    @cached_property
    def before(self) -> Content:
        return self.make(self.plain)

    def place(self, content: Content) -> BlockDevice:
        """The device that has the header."""
        image, header = content.devices()
        return image if header is None else header

    @cached_property
    def recorded(self) -> Recording:
        """A whole run, from the beginning to the end."""
        before = self.before
        image = TwinDevice(before.image, resizable=True)
        header = None if before.header is None else TwinDevice(before.header, resizable=True)
        image.other = header
        if header is not None:
            header.other = image
        with self.begin(image, header) as running:
            started = len(image.log), 0 if header is None else len(header.log)
            running.run()
        return Recording(before, image, header, started)


@dataclass(frozen=True)
class Recording:
    """Everything that a run wrote.

    Attributes:
        started: How long the logs of image and header were when it had begun.
    """

    before: Content
    image: TwinDevice
    header: TwinDevice | None
    started: tuple[int, int]

    @property
    def after(self) -> Content:
        return Content(self.image.content, None if self.header is None else self.header.content)

    @property
    def begun(self) -> Content:
        """What was there when it had begun."""
        return self._cut(*self.started)

    def cuts(self) -> Iterator[Content]:
        """Yield what is there after each write since then, with all writes before it."""
        for image in range(self.started[0], len(self.image.log)):
            if isinstance(self.image.log[image], Write):
                other = _marked(self.image.log[: image + 1])
                yield self._cut(image + 1, max(other, self.started[1]))
        for header in range(self.started[1], 0 if self.header is None else len(self.header.log)):
            assert self.header is not None
            if isinstance(self.header.log[header], Write):
                other = _marked(self.header.log[: header + 1])
                yield self._cut(max(other, self.started[0]), header + 1)

    def _cut(self, image: int, header: int) -> Content:
        return Content(
            _all(self.before.image, self.image.log[:image]),
            None
            if self.header is None
            else _all(self.before.header or b"", self.header.log[:header]),
        )

    def states(self, *, samples: int, exhaustive: int = 3) -> Iterator[tuple[Content, bool]]:
        """Yield what a crash may leave, and whether the whole run lies before it.

        Of two devices each is torn while the other has what is durable, or all that it
        was given.
        """

        def torn(device: TwinDevice, before: bytes) -> Iterator[CrashState]:
            return crash_states(before, device.log, samples=samples, exhaustive=exhaustive)

        if self.header is None:
            for state in torn(self.image, self.before.image):
                yield Content(state.content), state.point == len(self.image.log)
            return
        header_before = self.before.header or b""
        for state in torn(self.image, self.before.image):
            for other in _at(self.header, header_before, _latest(state)):
                yield Content(state.content, other), False
        for state in torn(self.header, header_before):
            for other in _at(self.image, self.before.image, _latest(state)):
                yield Content(other, state.content), False
        yield self.after, True


def _latest(state: CrashState) -> int:
    """Return how many events of the other device lie before a crash."""
    return max((mark for mark in state.marks if isinstance(mark, int)), default=0)


def _marked(log: list[Event]) -> int:
    """Return how many events of the other device lie before the end of a log."""
    marks = (event.label for event in log if isinstance(event, Mark))
    return max((label for label in marks if isinstance(label, int)), default=0)


def _at(device: TwinDevice, before: bytes, events: int) -> set[bytes]:
    """Return what a device has after that many events: what is durable, and all of it."""
    log: list[Event] = device.log[:events]
    flushes = [n for n, event in enumerate(log, start=1) if isinstance(event, Flush)]
    return {_all(before, log[: max(flushes, default=0)]), _all(before, log)}


def _all(before: bytes, log: list[Event]) -> bytes:
    device = MemoryDevice(before)
    for event in log:
        if isinstance(event, Write):
            device.write(event.offset, event.data)
        elif isinstance(event, Resize):
            device.resize(event.size)
    return bytes(device.content)


def options(**changes: Any) -> luks.ReencryptionOptions:
    return luks.ReencryptionOptions(**{"kdf": PBKDF2, "hotzone_size": 16 * KIB, **changes})


def volume(plain: bytes, **changes: Any) -> Content:
    """An encrypted volume with this payload; detached if ``header`` is true."""
    detached = changes.pop("header", False)
    image, header = MemoryDevice(0), MemoryDevice(0) if detached else None
    made: dict[str, Any] = {
        "kdf": PBKDF2,
        "key_size": 32,
        "keyslots_size": 288 * KIB,
        "size": len(plain),
        "data_offset": 0 if detached else 320 * KIB,
    }
    with luks.format(image, PASSPHRASE, header=header, **{**made, **changes}) as payload:
        payload.write(0, plain)
    return Content(bytes(image.content), None if header is None else bytes(header.content))


def payload(content: Content, size: int) -> bytes:
    """Return the payload of an image that is plain, or opens, or is in the middle.

    Whatever is in the middle is resumed to its end first.
    """
    image, header = content.devices()
    place = image if header is None else header
    try:
        status = luks.reencryption_status(image, header=header)
    except luks.FormatError:
        # There is no header yet, or a detached one is being made.
        assert header is not None or not luks.is_luks(image)
        return bytes(image.content[:size])
    if status is not None:
        with luks.resume_reencryption(image, PASSPHRASE, header=header) as running:
            seen = read_exactly(running.volume, 0, size)
            running.run()
            assert read_exactly(running.volume, 0, size) == seen
    if not luks.load_header(place).digests:
        return bytes(image.content[:size])
    with luks.open(image, PASSPHRASE, header=header, policy=PLAIN) as opened:
        return opened.read(0, size)


def _reencryption(name: str, *, make: dict[str, Any] | None = None, **changes: Any) -> Case:
    def begin(image: BlockDevice, header: BlockDevice | None, /) -> luks.Reencryption:
        return luks.begin_reencryption(image, PASSPHRASE, header=header, options=options(**changes))

    return Case(name, lambda plain: volume(plain, **(make or {})), begin)


def _decryption(name: str, *, make: dict[str, Any] | None = None, **changes: Any) -> Case:
    def begin(image: BlockDevice, header: BlockDevice | None, /) -> luks.Reencryption:
        return luks.begin_decryption(image, PASSPHRASE, header=header, options=options(**changes))

    return Case(name, lambda plain: volume(plain, header=True, **(make or {})), begin)


def _shifted_decryption(name: str, size: int, **changes: Any) -> Case:
    """The header lies in a file of its own already, as an export leaves it."""

    def make(plain: bytes) -> Content:
        content = volume(plain, data_offset=OFFSET, keyslots_size=OFFSET - 32 * KIB)
        return Content(content.image, content.image[:OFFSET])

    def begin(image: BlockDevice, header: BlockDevice | None, /) -> luks.Reencryption:
        changed = options(data_shift=OFFSET, **changes)
        return luks.begin_decryption(image, PASSPHRASE, header=header, options=changed)

    return Case(name, make, begin, size)


def _encryption(
    name: str, *, header: bool = False, size: int = 48 * KIB, room: int = 0, **changes: Any
) -> Case:
    def begin(image: BlockDevice, place: BlockDevice | None, /) -> luks.Reencryption:
        made = luks.FormatOptions(
            kdf=PBKDF2,
            key_size=32,
            keyslots_size=OFFSET - 32 * KIB,
            data_offset=None if header else OFFSET,
        )
        changed = options(**changes)
        return luks.begin_encryption(
            image, PASSPHRASE, header=place, format_options=made, options=changed
        )

    def make(plain: bytes) -> Content:
        return Content(plain + bytes(room), b"" if header else None)

    return Case(name, make, begin, size)


#: Offset of payloads that move.
OFFSET = 168 * KIB
CBC = {"cipher": "aes-cbc-plain64", "key_size": 16}

CASES = (
    _reencryption("checksum-512", make={"sector_size": 512}),
    _reencryption("checksum-4096"),
    _reencryption("checksum-cbc-4096", make=CBC, cipher="aes-xts-plain64", key_size=32),
    _reencryption("checksum-to-cbc-4096", make={"sector_size": 512}, sector_size=4096, **CBC),
    _reencryption("journal", resilience="journal"),
    _reencryption("detached", make={"header": True}),
    _decryption("decrypt-checksum"),
    _decryption("decrypt-journal", resilience="journal"),
    _encryption("encrypt-detached", header=True),
    _encryption("encrypt-detached-journal", header=True, resilience="journal"),
    _encryption("encrypt", size=OFFSET + 20 * KIB),
    _encryption("encrypt-small", size=20 * KIB),
    _encryption("encrypt-odd", size=OFFSET + 5000),
    _encryption("encrypt-room", size=OFFSET + 16 * KIB, room=2 * OFFSET + 4096, grow=False),
    _shifted_decryption("decrypt-shift", OFFSET + 20 * KIB),
    _shifted_decryption("decrypt-shift-journal", OFFSET + 20 * KIB, resilience="journal"),
    _shifted_decryption("decrypt-shift-small", 16 * KIB),
)


def by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
