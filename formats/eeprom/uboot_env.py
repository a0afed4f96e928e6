"""The environment of U-Boot: variables under a CRC (E-ENV1 to E-ENV5)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from msgspec import Meta

from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import ByteOrder, Fill, Tail, UInt8
from formats.eeprom.parts.padding import fill_up, split_rest
from formats.eeprom.parts.recognising import require_content, require_size
from formats.eeprom.uboot_env_search import (
    CRC_SIZE,
    HOW_IT_IS_FOUND,
    STEP,
    Place,
    compare_crc,
    find_all,
    find_at,
    looks_like_variables,
)
from formats.errors import FieldError, ForeignImageError, FormatError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer

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
        area_size: Bytes of the environment; None for all up to the end of the EEPROM.
        offset: Where it begins.
        front: The bytes before it, without fill bytes at their end.
        tail: The bytes after the variables in the area.
        outer_tail: The bytes after the area; the tail does not end with a fill byte.
        fill: The byte that fills the rest after each tail.
    """

    variables: Variables = field(default_factory=dict)
    flags: UInt8 | None = None
    byte_order: ByteOrder = ByteOrder.LITTLE
    area_size: Annotated[int, Meta(ge=CRC_SIZE + 1)] | None = None
    offset: Annotated[int, Meta(ge=0, multiple_of=STEP)] = 0
    front: bytes = b""
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
        require_content(content, "environment", "E-ENV1")
        require_size(content, CRC_SIZE + 1, "the environment", "E-ENV1")
        place = _search(content, report)
        end = place.offset + place.size
        start = place.offset + CRC_SIZE + place.has_flags
        variables, rest = decode_variables(content, start, end, report)
        # One fill byte serves all places; other bytes are a tail.
        tail, fill = split_rest(content[rest:end])
        blank = bytes((fill,))
        return UbootEnvironment(
            variables=variables,
            flags=content[start - 1] if place.has_flags else None,
            byte_order=place.byte_order,
            area_size=None if end == len(content) else place.size,
            offset=place.offset,
            front=content[: place.offset].rstrip(blank),
            tail=tail,
            outer_tail=content[end:].rstrip(blank),
            fill=fill,
        )

    def encode(self, model: UbootEnvironment, size: int | None, /) -> bytes:
        made = self._encode(model, size)
        is_usual = not model.offset and not (model.area_size or 0) % STEP
        if not is_usual and not _is_found(made, model.offset):
            raise FieldError(
                "offset" if model.offset else "area-size",
                "is such that the environment would not be found again",
                hint=HOW_IT_IS_FOUND,
            )
        return made

    def _encode(self, model: UbootEnvironment, size: int | None) -> bytes:
        validate(model)
        front = _front(model)
        room = None if size is None else size - len(front)
        if room is not None and room <= 0:
            raise FieldError("offset", f"is not inside the {size} bytes of the EEPROM")
        area = encode_area(model, model.area_size or room)
        if model.area_size is None:
            if model.outer_tail:
                raise FieldError("outer-tail", "is given, but area-size is not")
            return front + area
        try:
            return front + fill_up(area, room, tail=model.outer_tail, fill=model.fill)
        except FieldError as error:
            raise FieldError("outer-tail" if error.path else "", error.problem) from error


def _front(model: UbootEnvironment) -> bytes:
    """Return the bytes before the environment."""
    if len(model.front) > model.offset:
        raise FieldError("front", f"has {len(model.front)} bytes, but offset is {model.offset}")
    if model.front.endswith(bytes((model.fill,))):
        raise FieldError("front", "ends with the fill byte, which is added after it: leave it out")
    return model.front.ljust(model.offset, bytes((model.fill,)))


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
    room = None if size is None else size - CRC_SIZE - len(head)
    if room is not None and room < len(body) + len(model.tail):
        raise FieldError("", f"the variables need {len(body)} bytes, but there are {max(room, 0)}")
    filled = fill_up(body, room, tail=model.tail, fill=model.fill)
    crc = zlib.crc32(filled).to_bytes(CRC_SIZE, model.byte_order.value)
    return crc + head + filled


def _is_found(made: bytes, offset: int) -> bool:
    """Say whether the environment would be found where it was written (E-ENV4)."""
    try:
        return _search(made, Findings.strict()).offset == offset
    except FormatError:
        return False


def _search(content: bytes, report: Findings) -> Place:
    """Return where the environment is, or would be if its CRC were right (E-ENV1, E-ENV4)."""
    found = find_at(content, 0) or next(iter(find_all(content)), None)
    if found is not None:
        return found
    likely = next(looks_like_variables(content), None)
    if likely is None and content[CRC_SIZE : CRC_SIZE + 2].strip(b"\x00"):
        raise ForeignImageError("the EEPROM has no environment", offset=CRC_SIZE, rule="E-ENV1")
    offset, has_flags = likely or (0, False)
    place = Place(offset, len(content) - offset, has_flags, ByteOrder.LITTLE)
    compare_crc(content, place, "E-ENV1", report)
    return place


CODEC: Final = UbootEnvironmentCodec()
