"""The environment of U-Boot: variables under a CRC (E-ENV1 to E-ENV5)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from msgspec import Meta

from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import ByteOrder, Fill, Tail, UInt8
from formats.eeprom.parts.padding import fill_up, split_rest
from formats.errors import FieldError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import ReadableBuffer
    from formats.eeprom.framework.codec import Findings

#: The size of an area that is not the whole EEPROM is a multiple of this, in bytes.
AREA_STEP: Final = 64

_CRC_SIZE: Final = 4
#: Characters of a variable that a message shows.
_SHOWN: Final = 40

VariableName = Annotated[str, Meta(pattern=r"^[^=\x00]+$")]
VariableValue = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
Variables = Mapping[VariableName, VariableValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class UbootEnvironment:
    """One environment.

    Attributes:
        variables: In their order.
        flags: The flags byte of the redundant kind; None for the other kind.
        byte_order: Of the CRC.
        area_size: Bytes of the environment; None for all of the EEPROM.
        tail: The bytes after the variables in the area.
        outer_tail: The bytes after the area; the tail does not end with a fill byte.
        fill: The byte that fills the rest after each tail.
    """

    variables: Variables = field(default_factory=dict)
    flags: UInt8 | None = None
    byte_order: ByteOrder = ByteOrder.LITTLE
    area_size: Annotated[int, Meta(ge=64, multiple_of=64)] | None = None
    tail: Tail = b""
    outer_tail: Tail = b""
    fill: Fill = 0xFF


class UbootEnvironmentCodec:
    """See `formats.eeprom.framework.codec.Codec`."""

    name: ClassVar[str] = "uboot-env"
    title: ClassVar[str] = "U-Boot environment"
    model: ClassVar[type[UbootEnvironment]] = UbootEnvironment

    def decode(self, data: ReadableBuffer, report: Findings, /) -> UbootEnvironment:
        content = bytes(data)
        if len(content) <= _CRC_SIZE:
            raise FormatError("the data is too short for an environment", offset=0, rule="E-ENV1")
        redundant, order, size = False, ByteOrder.LITTLE, len(content)
        found = _find_area(content)
        if found is None:
            report.problem(0, "E-ENV1", "the CRC is wrong")
        else:
            redundant, order, size = found
        start = _CRC_SIZE + redundant
        variables, end = decode_variables(content, start, size, report)
        rest, outer = content[end:size], content[size:]
        # One fill byte serves both places; other bytes are a tail.
        tail, fill = split_rest(rest)
        outer_tail = outer.rstrip(bytes((fill,)))
        return UbootEnvironment(
            variables=variables,
            flags=content[_CRC_SIZE] if redundant else None,
            byte_order=order,
            area_size=None if size == len(content) else size,
            tail=tail,
            outer_tail=outer_tail,
            fill=fill,
        )

    def encode(self, model: UbootEnvironment, size: int | None, /) -> bytes:
        validate(model)
        area = encode_area(model, model.area_size or size)
        if model.area_size is None:
            if model.outer_tail:
                raise FieldError("outer-tail", "is given, but area-size is not")
            return area
        try:
            return fill_up(area, size, tail=model.outer_tail, fill=model.fill)
        except FieldError as error:
            raise FieldError("outer-tail" if error.path else "", error.problem) from error


def decode_variables(
    data: bytes, start: int, end: int, report: Findings
) -> tuple[dict[str, str], int]:
    """Return the variables in a range, and the offset after the zero byte that ends them."""
    variables: dict[str, str] = {}
    while True:
        stop = data.find(b"\x00", start, end)
        if stop < 0:
            report.problem(start, "E-ENV2", "the variables have no zero byte at their end")
            return variables, end
        if stop == start:
            return variables, stop + 1
        try:
            entry = data[start:stop].decode()
        except UnicodeDecodeError as error:
            report.problem(start + error.start, "E-ENV2", "a variable is not valid UTF-8")
            entry = data[start:stop].decode(errors="replace")
        name, equals, value = entry.partition("=")
        if not (name and equals):
            report.problem(start, "E-ENV2", f"{_shown(entry)} is not a variable")
        elif name in variables:
            report.problem(start, "E-ENV2", f"variable {_shown(name)} occurs twice")
        else:
            variables[name] = value
        start = stop + 1


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."


def encode_area(model: UbootEnvironment, size: int | None) -> bytes:
    """Return the area of an environment, CRC and fill bytes included.

    Raises:
        FieldError: It does not fit.
    """
    entries = (f"{name}={value}\0".encode() for name, value in model.variables.items())
    head = b"" if model.flags is None else bytes((model.flags,))
    body = b"".join(entries) + b"\x00"
    room = None if size is None else size - _CRC_SIZE - len(head)
    if room is not None and room < len(body) + len(model.tail):
        raise FieldError("", f"the variables need {len(body)} bytes, but there are {max(room, 0)}")
    filled = fill_up(body, room, tail=model.tail, fill=model.fill)
    crc = zlib.crc32(filled).to_bytes(_CRC_SIZE, model.byte_order.value)
    return crc + head + filled


def _find_area(data: bytes) -> tuple[bool, ByteOrder, int] | None:
    """Return the kind, byte order and size of the environment whose CRC is right."""
    for redundant in (False, True):
        areas = list(_crcs(data, _CRC_SIZE + redundant))
        for order in ByteOrder:
            stored = int.from_bytes(data[:_CRC_SIZE], order.value)
            sizes = [size for size, crc in areas if crc == stored]
            if sizes:
                return redundant, order, sizes[-1]
    return None


def _crcs(data: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Yield each possible size of an area with its CRC; the whole EEPROM comes last."""
    ends = [*range(AREA_STEP, len(data), AREA_STEP), len(data)]
    crc = 0
    for end in ends:
        crc = zlib.crc32(data[start:end], crc)
        if end > start:
            yield end, crc
        start = max(start, end)


CODEC: Final = UbootEnvironmentCodec()
