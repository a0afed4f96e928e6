"""IPMI FRU information, version 1.0: a header and up to five areas (E-FRU1 to E-FRU11)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill
from formats.eeprom.fru_areas import (
    UNIT,
    BoardInfo,
    ChassisInfo,
    Offset,
    ProductInfo,
    decode_area,
    encode_area,
)
from formats.eeprom.fru_records import Record, decode_records, encode_records
from formats.eeprom.parts.checksums import check_zero_sum, zero_sum
from formats.eeprom.parts.gaps import Other, check_gaps, lay_out, others_as_pieces, read_gaps
from formats.eeprom.parts.recognising import require_content, require_size
from formats.errors import FieldError, ForeignImageError, UnsupportedError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer
    from formats.eeprom.framework.codec import Findings

_HEADER_SIZE: Final = 8
_VERSION: Final = 1

#: The areas in the order of the header, which is also that of those without an offset.
_AREAS: Final = ("internal_use", "chassis", "board", "product", "multirecords")


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalUse:
    """Data that only the part's own controller understands.

    Attributes:
        offset: Where it begins; None directly after the header.
        data: The bytes from after the format version to the next area.
    """

    offset: Offset | None = None
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IpmiFru:
    """The areas; None for an area that is absent.

    Attributes:
        internal_use: For the part's own controller.
        chassis: The chassis of the part.
        board: The part as a board.
        product: The part as a product.
        multirecords: Records of any kinds.
        multirecords_offset: Where they begin; None directly after the other areas.
        other: The bytes outside of the areas, in their order.
        fill: The value of unused bytes.
    """

    internal_use: InternalUse | None = None
    chassis: ChassisInfo | None = None
    board: BoardInfo | None = None
    product: ProductInfo | None = None
    multirecords: tuple[Record, ...] = ()
    multirecords_offset: Offset | None = None
    other: tuple[Other, ...] = ()
    fill: Fill = 0xFF


class IpmiFruCodec:
    """See `formats.eeprom.framework.codec.Codec`."""

    name: ClassVar[str] = "ipmi-fru"
    title: ClassVar[str] = "IPMI FRU information"
    model: ClassVar[type[IpmiFru]] = IpmiFru

    def decode(self, data: ReadableBuffer, report: Findings, /) -> IpmiFru:
        content = bytes(data)
        header = content[:_HEADER_SIZE]
        require_content(content, "FRU information", "E-FRU1")
        require_size(content, _HEADER_SIZE, "the FRU information", "E-FRU1")
        wrong = sum(header) & 0xFF
        if header[0] != _VERSION and wrong:
            raise ForeignImageError("the EEPROM has no FRU information", offset=0, rule="E-FRU1")
        if header[0] != _VERSION:
            raise UnsupportedError(
                f"the FRU has version {header[0]}", feature="FRU formats other than 1.0"
            )
        check_zero_sum(header, 7, "E-FRU1", "the checksum of the header", report)
        if header[6]:
            report.problem(6, "E-FRU1", "the byte before the header's checksum is not zero")
        return _Reader(content, report).read()

    def encode(self, model: IpmiFru, size: int | None, /) -> bytes:
        validate(model)
        areas = _encode_areas(model)
        header = bytes((_VERSION, *(areas.get(name, (0, b""))[0] // UNIT for name in _AREAS), 0))
        pieces = [(0, header + bytes((zero_sum(header),)), "")]
        pieces += [(offset, area, _path(name)) for name, (offset, area) in areas.items()]
        taken = [(0, _HEADER_SIZE), *((at, at + len(area)) for at, area in areas.values())]
        check_gaps(model.other, taken, model.fill)
        return lay_out([*pieces, *others_as_pieces(model.other)], size, model.fill)


CODEC: Final = IpmiFruCodec()


def _path(name: str) -> str:
    return name.replace("_", "-")


def _encode_areas(model: IpmiFru) -> dict[str, tuple[int, bytes]]:
    """Return offset and bytes of each area that is present, by its name."""
    areas: dict[str, tuple[int, bytes]] = {}
    position = _HEADER_SIZE

    def place(name: str, wanted: int | None, area: bytes) -> None:
        nonlocal position
        offset = position if wanted is None else wanted
        if offset > 0xFF * UNIT:
            raise FieldError(
                _path(name), f"would begin at {offset}, but the last possible offset is 2040"
            )
        areas[name] = (offset, area)
        position = -(-(offset + len(area)) // UNIT) * UNIT

    if model.internal_use:
        place(
            "internal_use",
            model.internal_use.offset,
            bytes((_VERSION,)) + model.internal_use.data,
        )
    for name, area in (
        ("chassis", model.chassis),
        ("board", model.board),
        ("product", model.product),
    ):
        if area:
            place(name, area.offset, encode_area(area, name))
    if model.multirecords:
        place("multirecords", model.multirecords_offset, encode_records(model.multirecords))
    elif model.multirecords_offset is not None:
        raise FieldError("multirecords-offset", "is given, but there are no multirecords")
    _check_internal_use(model, areas)
    return areas


def _check_internal_use(model: IpmiFru, areas: dict[str, tuple[int, bytes]]) -> None:
    """Check that the internal use area ends where it is read to end (E-FRU3)."""
    if not model.internal_use:
        return
    offset, area = areas["internal_use"]
    following = [begin for begin, _ in areas.values() if begin > offset]
    if following and min(following) != offset + len(area):
        raise FieldError(
            "internal-use.data",
            f"has {len(area) - 1} bytes, but it must fill all {min(following) - offset - 1} "
            "bytes to the next area",
        )
    if not following and area[1:].endswith(bytes((model.fill,))):
        raise FieldError(
            "internal-use.data", "ends with the fill byte, which is added after it: leave it out"
        )
    if not following and model.other:
        raise FieldError(
            "other", "is given, but the internal use area contains the bytes that follow it"
        )


class _Reader:
    def __init__(self, data: bytes, report: Findings) -> None:
        self._data = data
        self._report = report
        self._ends: dict[str, int] = {}

    def read(self) -> IpmiFru:
        offsets = self._offsets()
        found: dict[str, Any] = {}
        for name, kind in _WITH_FIELDS.items():
            if name in offsets:
                start = offsets[name]
                found[name], self._ends[name] = decode_area(kind, self._data, start, self._report)
        if "multirecords" in offsets:
            start = offsets["multirecords"]
            found["multirecords"], end = decode_records(self._data, start, self._report)
            self._ends["multirecords"] = end
        if "internal_use" in offsets:
            found["internal_use"] = self._internal_use(offsets)
        taken = [(0, _HEADER_SIZE), *((offsets[name], end) for name, end in self._ends.items())]
        taken.sort()
        fill = self._data[-1] if taken[-1][1] < len(self._data) else 0xFF
        for (_, end), (start, _) in itertools.pairwise(taken):
            if start < end:
                self._report.problem(start, "E-FRU2", "two areas overlap")
        found["other"] = read_gaps(self._data, taken, fill)
        return self._with_offsets(IpmiFru(**found, fill=fill), offsets)

    def _offsets(self) -> dict[str, int]:
        """Return the offset of each area that is present."""
        offsets = {}
        for number, name in enumerate(_AREAS, 1):
            offset = self._data[number] * UNIT
            if offset >= len(self._data):
                self._report.problem(number, "E-FRU2", f"the area {_path(name)} is beyond the end")
            elif offset:
                offsets[name] = offset
        return offsets

    def _internal_use(self, offsets: dict[str, int]) -> InternalUse:
        start = offsets["internal_use"]
        if self._data[start] != _VERSION:
            self._report.problem(start, "E-FRU3", f"the area has version {self._data[start]}")
        following = [offset for offset in offsets.values() if offset > start]
        content = self._data[start + 1 : min(following, default=len(self._data))]
        if not following and content:
            content = content.rstrip(content[-1:])
        self._ends["internal_use"] = start + 1 + len(content)
        return InternalUse(data=content)

    def _with_offsets(self, model: IpmiFru, offsets: dict[str, int]) -> IpmiFru:
        """Return the model with the offsets of areas that are not in their default places."""
        position = _HEADER_SIZE
        changes: dict[str, Any] = {}
        for name in _AREAS:
            if name not in offsets:
                continue
            if offsets[name] != position and name == "multirecords":
                changes["multirecords_offset"] = offsets[name]
            elif offsets[name] != position:
                changes[name] = replace(getattr(model, name), offset=offsets[name])
            position = -(-self._ends[name] // UNIT) * UNIT
        return replace(model, **changes)


_WITH_FIELDS: Final[dict[str, type[ChassisInfo | BoardInfo | ProductInfo]]] = {
    "chassis": ChassisInfo,
    "board": BoardInfo,
    "product": ProductInfo,
}
