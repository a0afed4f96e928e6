"""The 18-byte descriptors of EDID: timings, and text of displays (E-EDID5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Final

from msgspec import Meta

from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.limits import UInt8
from formats.eeprom.parts.texts import PRINTABLE, is_printable
from formats.errors import FieldError

SIZE: Final = 18
COUNT: Final = 4
_TEXT_SIZE: Final = 13
_END, _UNUSED = b"\x0a", b" "
_SPACE: Final = 0x20
_DUMMY: Final = b"\x00\x00\x00\x10" + bytes(14)

Text = Annotated[str, Meta(max_length=_TEXT_SIZE, pattern=PRINTABLE)]
Padding = Annotated[int, Meta(ge=0, le=0xFF, description="what fills the bytes after the 0a")]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailedTiming:
    """A timing, as it is stored.

    Attributes:
        timing: Its pixel clock, the first two bytes, is not 0.
    """

    timing: Annotated[bytes, Meta(min_length=SIZE, max_length=SIZE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayProductName:
    """The name of the display."""

    text: Text
    padding: Padding = _SPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayProductSerialNumber:
    """The serial number of the display, as text."""

    text: Text
    padding: Padding = _SPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphanumericDataString:
    """Any text."""

    text: Text
    padding: Padding = _SPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayDescriptor:
    """A descriptor of another kind, as it is stored.

    Attributes:
        tag: Its kind, byte 3.
        flags: Byte 4, which limits of ranges use.
        content: Bytes 5 to 17.
    """

    tag: UInt8
    flags: UInt8 = 0
    content: Annotated[bytes, Meta(min_length=_TEXT_SIZE, max_length=_TEXT_SIZE)]


Descriptor = (
    DetailedTiming
    | DisplayProductName
    | DisplayProductSerialNumber
    | AlphanumericDataString
    | DisplayDescriptor
)
_TextDescriptor = DisplayProductName | DisplayProductSerialNumber | AlphanumericDataString
_TEXTS: Final[dict[int, type[_TextDescriptor]]] = {
    0xFC: DisplayProductName,
    0xFE: AlphanumericDataString,
    0xFF: DisplayProductSerialNumber,
}
_TAGS: Final = {kind: tag for tag, kind in _TEXTS.items()}


def decode_descriptors(octets: bytes, at: int, report: Findings) -> tuple[Descriptor, ...]:
    """Return the descriptors of a base block, without the dummies after them.

    Args:
        octets: Four times 18 bytes.
        at: Where they are in the EEPROM, for the report.
        report: Collects the problems.
    """
    each = [octets[start : start + SIZE] for start in range(0, COUNT * SIZE, SIZE)]
    while each and each[-1] == _DUMMY:
        each.pop()
    return tuple(
        decode_descriptor(octets, at + SIZE * index, report) for index, octets in enumerate(each)
    )


def encode_descriptors(descriptors: tuple[Descriptor, ...]) -> bytes:
    """Return the descriptors of a base block, four times 18 bytes.

    Raises:
        FieldError: One would be read as something else.
    """
    made = b""
    for index, descriptor in enumerate(descriptors):
        octets = encode_descriptor(descriptor)
        is_last = index == len(descriptors) - 1
        if (is_last and octets == _DUMMY) or (
            decode_descriptor(octets, 0, Findings.tolerant()) != without_idle_padding(descriptor)
        ):
            raise FieldError(f"descriptors[{index}]", "is of another kind")
        made += octets
    return made + _DUMMY * (COUNT - len(descriptors))


def decode_descriptor(octets: bytes, at: int, report: Findings) -> Descriptor:
    """Return the descriptor in 18 bytes; text that breaks a rule stays as it is stored."""
    if octets[:2] != b"\x00\x00":
        return DetailedTiming(timing=octets)
    tag, flags, content = octets[3], octets[4], octets[5:]
    if octets[2]:
        report.problem(at + 2, "E-EDID5", "a reserved byte of a descriptor is not 0")
    if tag in _TEXTS and not flags:
        text, end, unused = content.partition(_END)
        padding = unused[:1] or _UNUSED
        if unused.strip(padding):
            report.problem(at + 5, "E-EDID5", "text does not end with 0a and equal bytes")
        elif is_printable(text) and (end or len(text) == _TEXT_SIZE):
            return _TEXTS[tag](text=text.decode("ascii"), padding=padding[0])
    return DisplayDescriptor(tag=tag, flags=flags, content=content)


def without_idle_padding(descriptor: Descriptor) -> Descriptor:
    """Return the descriptor, without its padding if its text leaves no byte to fill."""
    if isinstance(descriptor, _TextDescriptor) and len(descriptor.text) >= _TEXT_SIZE - 1:
        return replace(descriptor, padding=_SPACE)
    return descriptor


def encode_descriptor(descriptor: Descriptor) -> bytes:
    """Return the 18 bytes of a descriptor."""
    if isinstance(descriptor, DetailedTiming):
        return descriptor.timing
    if isinstance(descriptor, DisplayDescriptor):
        return bytes((0, 0, 0, descriptor.tag, descriptor.flags)) + descriptor.content
    text = descriptor.text.encode("ascii")
    if len(text) < _TEXT_SIZE:
        text = (text + _END).ljust(_TEXT_SIZE, bytes((descriptor.padding,)))
    return bytes((0, 0, 0, _TAGS[type(descriptor)], 0)) + text
