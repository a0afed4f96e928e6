"""Two copies of U-Boot's environment in one EEPROM (E-ENV6, E-ENV7)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from msgspec import Meta

from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import ByteOrder, Fill, Tail, UInt8
from formats.eeprom.parts.gaps import Other, check_gaps, lay_out, others_as_pieces, read_gaps
from formats.eeprom.parts.padding import BLANK, split_rest
from formats.eeprom.parts.recognising import require_content, require_size
from formats.eeprom.uboot_env import UbootEnvironment, Variables, decode_variables, encode_area
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

_HEAD_SIZE: Final = CRC_SIZE + 1  # the CRC, and the flags


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCopy:
    """One of the two copies.

    Attributes:
        flags: See E-ENV6.
        variables: In their order.
        tail: The bytes after the variables.
        fill: The byte that fills the rest.
    """

    flags: UInt8 = 1
    variables: Variables = field(default_factory=dict)
    tail: Tail = b""
    fill: Fill = 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class RedundantEnvironment:
    """Both copies.

    Attributes:
        first: The copy at the lower offset.
        second: The other one; None if its place is blank.
        byte_order: Of both CRCs.
        area_size: Bytes of each copy; None for half of the EEPROM.
        first_offset: Where the first copy begins.
        second_offset: Where the second one begins; None for the middle of the EEPROM.
        other: The bytes outside of the copies, in their order.
        fill: The byte that fills the rest outside of the copies.
    """

    first: EnvironmentCopy
    second: EnvironmentCopy | None = None
    byte_order: ByteOrder = ByteOrder.LITTLE
    area_size: Annotated[int, Meta(ge=_HEAD_SIZE + 1)] | None = None
    first_offset: Annotated[int, Meta(ge=0, multiple_of=STEP)] = 0
    second_offset: Annotated[int, Meta(ge=0, multiple_of=STEP)] | None = None
    other: tuple[Other, ...] = ()
    fill: Fill = BLANK


class RedundantEnvironmentCodec:
    """See `formats.eeprom.framework.codec.Codec`."""

    name: ClassVar[str] = "uboot-env-redundant"
    title: ClassVar[str] = "U-Boot environment, two copies"
    model: ClassVar[type[RedundantEnvironment]] = RedundantEnvironment

    def decode(self, data: ReadableBuffer, report: Findings, /) -> RedundantEnvironment:
        content = bytes(data)
        require_content(content, "environment", "E-ENV6")
        require_size(content, 2 * (_HEAD_SIZE + 1), "the pair of environments", "E-ENV6")
        places = _places(content, report)
        first, *seconds = (_copy(content, place, report) for place in places)
        middle, size = len(content) // 2, places[0].size
        is_half = size == middle and len(content) == 2 * middle
        taken = [(place.offset, place.offset + place.size) for place in places]
        fill = content[-1] if taken[-1][1] < len(content) else BLANK
        at = places[1].offset if seconds else None
        return RedundantEnvironment(
            first=first,
            second=seconds[0] if seconds else None,
            byte_order=places[0].byte_order,
            area_size=None if is_half else size,
            first_offset=places[0].offset,
            second_offset=None if at == middle else at,
            other=read_gaps(content, taken, fill),
            fill=fill,
        )

    def encode(self, model: RedundantEnvironment, size: int | None, /) -> bytes:
        validate(model)
        if size is None:
            size = _least_size(model)
        middle = size // 2
        area = model.area_size or middle
        if size % 2 and model.area_size is None:
            raise FieldError("", f"{size} bytes cannot be halved")
        pieces = [(model.first_offset, _encode("first", model.first, model, area), "first-offset")]
        if model.second is not None:
            offset = middle if model.second_offset is None else model.second_offset
            if offset <= model.first_offset:
                raise FieldError("second-offset", "is not after that of the first copy")
            made = _encode("second", model.second, model, area)
            pieces.append((offset, made, "second-offset"))
        elif model.second_offset is not None:
            raise FieldError("second-offset", "is given, but there is no second copy")
        taken = [(offset, offset + area) for offset, _, _ in pieces]
        check_gaps(model.other, taken, model.fill)
        made = lay_out([*pieces, *others_as_pieces(model.other)], size, model.fill)
        is_usual = model.area_size is None and not model.first_offset
        if not is_usual and not _are_found(made, taken):
            raise FieldError(
                "area-size",
                "and the offsets are such that the copies would not be found again",
                hint=HOW_IT_IS_FOUND,
            )
        return made


def _are_found(made: bytes, taken: list[tuple[int, int]]) -> bool:
    """Say whether the copies would be found where they were written (E-ENV7)."""
    try:
        found = _places(made, Findings.strict())
    except FormatError:
        return False
    return [(place.offset, place.offset + place.size) for place in found] == taken


def _places(content: bytes, report: Findings) -> list[Place]:
    """Return where the copies are: both halves, or where they are found (E-ENV6, E-ENV7).

    Raises:
        ForeignImageError: Nothing looks like a copy.
    """
    middle = len(content) // 2
    if not len(content) % 2:
        halves = [content[:middle], content[middle:]]
        found = [find_at(half, 0) for half in halves]
        whole = [
            Place(middle * index, place.size, place.has_flags, place.byte_order)
            for index, place in enumerate(found)
            if place is not None and place.has_flags and place.size == middle
        ]
        if len(whole) == 2 or (len(whole) == 1 and _is_blank(halves[1])):
            return _agreeing(whole, report)
    places = [place for place in find_all(content) if place.has_flags][:2]
    likely = [offset for offset, has_flags in looks_like_variables(content) if has_flags]
    if not places:
        if not likely:
            raise ForeignImageError("the EEPROM has no environment", offset=0, rule="E-ENV6")
        places = [Place(likely[0], middle, True, ByteOrder.LITTLE)]
        compare_crc(content, places[0], "E-ENV6", report)
    if len(places) == 1:
        places = _with_damaged(content, places[0], likely, report)
    return _agreeing(places, report)


def _is_blank(octets: bytes) -> bool:
    return not octets.strip(bytes((BLANK,)))


def _agreeing(places: list[Place], report: Findings) -> list[Place]:
    first, *others = places
    for other in others:
        if (other.size, other.byte_order) != (first.size, first.byte_order):
            report.problem(other.offset, "E-ENV6", "the copies have different sizes or byte orders")
    return places


def _with_damaged(content: bytes, whole: Place, likely: list[int], report: Findings) -> list[Place]:
    """Return the copy that is whole and, if there is one, another whose CRC is wrong."""
    for offset in likely:
        is_apart = offset + whole.size <= whole.offset or offset >= whole.offset + whole.size
        if is_apart and offset + whole.size <= len(content):
            other = Place(offset, whole.size, True, whole.byte_order)
            compare_crc(content, other, "E-ENV6", report)
            return sorted([whole, other], key=lambda place: place.offset)
    return [whole]


def _copy(content: bytes, place: Place, report: Findings) -> EnvironmentCopy:
    start, end = place.offset + _HEAD_SIZE, place.offset + place.size
    variables, rest = decode_variables(content, start, end, report)
    tail, fill = split_rest(content[rest:end])
    return EnvironmentCopy(flags=content[start - 1], variables=variables, tail=tail, fill=fill)


def _least_size(model: RedundantEnvironment) -> int:
    """Return the bytes of the least EEPROM for both copies."""
    copies = [("first", model.first), *([("second", model.second)] if model.second else [])]
    needed = max(len(_encode(path, copy, model, model.area_size)) for path, copy in copies)
    half = -(-needed // STEP) * STEP
    ends = [2 * half, model.first_offset + needed, (model.second_offset or 0) + needed]
    ends += [other.offset + len(other.data) for other in model.other]
    return -(-max(ends) // 2) * 2


def _encode(
    path: str, copy: EnvironmentCopy, model: RedundantEnvironment, size: int | None
) -> bytes:
    environment = UbootEnvironment(
        variables=copy.variables,
        flags=copy.flags,
        byte_order=model.byte_order,
        tail=copy.tail,
        fill=copy.fill,
    )
    try:
        return encode_area(environment, size)
    except FieldError as error:
        raise FieldError(f"{path}.{error.path}".rstrip("."), error.problem) from error


CODEC: Final = RedundantEnvironmentCodec()
