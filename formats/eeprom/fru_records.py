"""Records in the multirecord area of an IPMI FRU (E-FRU8 to E-FRU10)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from formats.eeprom.framework.limits import Latin1, UInt8, UInt16
from formats.eeprom.parts.checksums import zero_sum
from formats.errors import FieldError

if TYPE_CHECKING:
    from formats.eeprom.framework.codec import Findings

Bits4 = Annotated[int, Meta(ge=0, le=0xF)]
Bits12 = Annotated[int, Meta(ge=0, le=0xFFF)]
Int16 = Annotated[int, Meta(ge=-0x8000, le=0x7FFF)]
ManufacturerId = Annotated[
    int, Meta(ge=0, le=0xFF_FFFF, description="IANA private enterprise number")
]

_HEADER_SIZE: Final = 5
_LAST: Final = 0x80
_FORMAT: Final = 2

_POWER_SUPPLY: Final = struct.Struct("<HHBBHHHHBBBBHBHB")
_DC: Final = struct.Struct("<BhhhHHH")
_COMPATIBILITY_SIZE: Final = 6
_UUID_SIZE: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSupplyInformation:
    """Type 0: input and output of a power supply. Watts, 10 mV, A, ms, Hz, s.

    `tachometer_or_polarity` is bit 4 of the flags: two pulses in a rotation, or that
    the failure signal is active while asserted.
    """

    overall_capacity: Bits12 = 0
    peak_va: UInt16 = 0
    inrush_current: UInt8 = 0
    inrush_interval: UInt8 = 0
    low_end_input_voltage_1: UInt16 = 0
    high_end_input_voltage_1: UInt16 = 0
    low_end_input_voltage_2: UInt16 = 0
    high_end_input_voltage_2: UInt16 = 0
    low_end_input_frequency: UInt8 = 0
    high_end_input_frequency: UInt8 = 0
    ac_dropout_tolerance: UInt8 = 0
    predictive_fail: bool = False
    power_factor_correction: bool = False
    autoswitch: bool = False
    hot_swap: bool = False
    tachometer_or_polarity: bool = False
    peak_capacity: Bits12 = 0
    hold_up_time: Bits4 = 0
    combined_voltage_1: Bits4 = 0
    combined_voltage_2: Bits4 = 0
    total_combined_capacity: UInt16 = 0
    predictive_fail_threshold: UInt8 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DcOutput:
    """Type 1: one output of a power supply. 10 mV, mV (ripple), mA."""

    output_number: Bits4
    standby: bool = False
    nominal_voltage: Int16 = 0
    maximum_negative_deviation: Int16 = 0
    maximum_positive_deviation: Int16 = 0
    ripple_and_noise: UInt16 = 0
    minimum_current_draw: UInt16 = 0
    maximum_current_draw: UInt16 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DcLoad:
    """Type 2: the load of a part on one output. 10 mV, mV (ripple), mA."""

    output_number: Bits4
    nominal_voltage: Int16 = 0
    minimum_voltage: Int16 = 0
    maximum_voltage: Int16 = 0
    ripple_and_noise: UInt16 = 0
    minimum_current_load: UInt16 = 0
    maximum_current_load: UInt16 = 0


class AccessType(IntEnum):
    """The meaning of the text in a management access record."""

    SYSTEM_MANAGEMENT_URL = 1
    SYSTEM_NAME = 2
    SYSTEM_PING_ADDRESS = 3
    COMPONENT_MANAGEMENT_URL = 4
    COMPONENT_NAME = 5
    COMPONENT_PING_ADDRESS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementAccess:
    """Type 3: how to reach the management of the system or the part."""

    access_type: AccessType
    text: Latin1


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemUniqueId:
    """Type 3 with sub-type 7: the UUID of the system, in the byte order of the record."""

    uuid: Annotated[bytes, Meta(min_length=_UUID_SIZE, max_length=_UUID_SIZE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCompatibility:
    """Type 4: parts that the part can replace."""

    manufacturer_id: ManufacturerId
    entity_id: UInt8
    compatibility_base: UInt8
    code_start: UInt8
    code_range_mask: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedCompatibility:
    """Type 5: likewise, for one manufacturer's parts."""

    manufacturer_id: ManufacturerId
    entity_id: UInt8
    compatibility_base: UInt8
    code_start: UInt8
    code_range_mask: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class OemRecord:
    """Types C0 to FF, which manufacturers define."""

    record_type: Annotated[int, Meta(ge=0xC0, le=0xFF)]
    manufacturer_id: ManufacturerId
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherRecord:
    """Any other type, or content that does not fit its type."""

    record_type: UInt8
    data: bytes = b""


Record = (
    PowerSupplyInformation
    | DcOutput
    | DcLoad
    | ManagementAccess
    | SystemUniqueId
    | BaseCompatibility
    | ExtendedCompatibility
    | OemRecord
    | OtherRecord
)


def encode_records(records: tuple[Record, ...]) -> bytes:
    """Return a multirecord area.

    Raises:
        FieldError: A record is too long, or would be read as another kind.
    """
    area = b""
    for number, record in enumerate(records):
        path = f"multirecords[{number}]"
        kind, data = _content_of(record)
        if len(data) > 0xFF:
            raise FieldError(path, f"has {len(data)} bytes, but at most 255 are possible")
        if _record_of(kind, data) != record:
            raise FieldError(path, f"its content is a record of another kind, of type {kind}")
        flags = _FORMAT | (_LAST if number == len(records) - 1 else 0)
        head = bytes((kind, flags, len(data)))
        area += head + _checksums(head, data) + data
    return area


def _checksums(head: bytes, content: bytes) -> bytes:
    """Return the checksums of a record's content and of its header (E-FRU8)."""
    of_content = zero_sum(content)
    return bytes((of_content, zero_sum((*head, of_content))))


def decode_records(data: bytes, start: int, report: Findings) -> tuple[tuple[Record, ...], int]:
    """Return the records that start at an offset, and the offset after the last."""
    records: list[Record] = []
    while True:
        header = data[start : start + _HEADER_SIZE]
        if len(header) < _HEADER_SIZE or start + _HEADER_SIZE + header[2] > len(data):
            report.problem(start, "E-FRU8", "the last record is missing")
            return tuple(records), min(start, len(data))
        kind, flags, size = header[:3]
        content = data[start + _HEADER_SIZE : start + _HEADER_SIZE + size]
        computed = _checksums(header[:3], content)
        if sum(header) & 0xFF and header[3] != computed[0]:
            # Its size is as doubtful as the rest: where the next one begins is not known.
            report.problem(start, "E-FRU8", "both checksums of a record are wrong")
            return tuple(records), start
        what = "the pair of checksums of a record"
        report.compare(start + 3, "E-FRU8", what, header[3:], computed)
        if flags & ~_LAST != _FORMAT:
            report.problem(start + 1, "E-FRU8", f"a record has format {flags & ~_LAST}")
        records.append(_record_of(kind, content))
        start += _HEADER_SIZE + size
        if flags & _LAST:
            return tuple(records), start


def _record_of(kind: int, data: bytes) -> Record:
    """Return the record with a type and content, an `OtherRecord` if they disagree."""
    record: Record = OtherRecord(record_type=kind, data=data)
    if kind == 0 and len(data) == _POWER_SUPPLY.size:
        record = _power_supply(data)
    elif kind == 1 and len(data) == _DC.size:
        first, *values = _DC.unpack(data)
        record = DcOutput(
            output_number=first & 0xF,
            standby=bool(first & 0x80),
            nominal_voltage=values[0],
            maximum_negative_deviation=values[1],
            maximum_positive_deviation=values[2],
            ripple_and_noise=values[3],
            minimum_current_draw=values[4],
            maximum_current_draw=values[5],
        )
    elif kind == 2 and len(data) == _DC.size:
        first, *values = _DC.unpack(data)
        record = DcLoad(
            output_number=first & 0xF,
            nominal_voltage=values[0],
            minimum_voltage=values[1],
            maximum_voltage=values[2],
            ripple_and_noise=values[3],
            minimum_current_load=values[4],
            maximum_current_load=values[5],
        )
    elif kind == 3 and data and data[0] in set(AccessType):
        record = ManagementAccess(access_type=AccessType(data[0]), text=data[1:].decode("latin-1"))
    elif kind == 3 and len(data) == 1 + _UUID_SIZE and data[0] == 7:
        record = SystemUniqueId(uuid=data[1:])
    elif kind in (4, 5) and len(data) >= _COMPATIBILITY_SIZE:
        model = BaseCompatibility if kind == 4 else ExtendedCompatibility
        record = model(
            manufacturer_id=int.from_bytes(data[:3], "little"),
            entity_id=data[3],
            compatibility_base=data[4],
            code_start=data[5],
            code_range_mask=data[6:],
        )
    elif kind >= 0xC0 and len(data) >= 3:
        record = OemRecord(
            record_type=kind, manufacturer_id=int.from_bytes(data[:3], "little"), data=data[3:]
        )
    # Reserved bits that are set have no place in the model.
    return (
        record if _content_of(record) == (kind, data) else OtherRecord(record_type=kind, data=data)
    )


def _content_of(record: Record) -> tuple[int, bytes]:
    """Return a record's type and content."""
    if isinstance(record, PowerSupplyInformation):
        return 0, _power_supply_bytes(record)
    if isinstance(record, DcOutput):
        return 1, _DC.pack(
            record.output_number | record.standby << 7,
            record.nominal_voltage,
            record.maximum_negative_deviation,
            record.maximum_positive_deviation,
            record.ripple_and_noise,
            record.minimum_current_draw,
            record.maximum_current_draw,
        )
    if isinstance(record, DcLoad):
        return 2, _DC.pack(
            record.output_number,
            record.nominal_voltage,
            record.minimum_voltage,
            record.maximum_voltage,
            record.ripple_and_noise,
            record.minimum_current_load,
            record.maximum_current_load,
        )
    if isinstance(record, ManagementAccess):
        return 3, bytes((record.access_type,)) + record.text.encode("latin-1")
    if isinstance(record, SystemUniqueId):
        return 3, b"\x07" + record.uuid
    if isinstance(record, BaseCompatibility | ExtendedCompatibility):
        codes = (record.entity_id, record.compatibility_base, record.code_start)
        content = record.manufacturer_id.to_bytes(3, "little") + bytes(codes)
        kind = 4 if isinstance(record, BaseCompatibility) else 5
        return kind, content + record.code_range_mask
    if isinstance(record, OemRecord):
        return record.record_type, record.manufacturer_id.to_bytes(3, "little") + record.data
    return record.record_type, record.data


def _power_supply(data: bytes) -> PowerSupplyInformation:
    values = _POWER_SUPPLY.unpack(data)
    flags, peak, voltages = values[11], values[12], values[13]
    return PowerSupplyInformation(
        overall_capacity=values[0] & 0xFFF,
        peak_va=values[1],
        inrush_current=values[2],
        inrush_interval=values[3],
        low_end_input_voltage_1=values[4],
        high_end_input_voltage_1=values[5],
        low_end_input_voltage_2=values[6],
        high_end_input_voltage_2=values[7],
        low_end_input_frequency=values[8],
        high_end_input_frequency=values[9],
        ac_dropout_tolerance=values[10],
        predictive_fail=bool(flags & 1),
        power_factor_correction=bool(flags & 2),
        autoswitch=bool(flags & 4),
        hot_swap=bool(flags & 8),
        tachometer_or_polarity=bool(flags & 16),
        peak_capacity=peak & 0xFFF,
        hold_up_time=peak >> 12,
        combined_voltage_1=voltages >> 4,
        combined_voltage_2=voltages & 0xF,
        total_combined_capacity=values[14],
        predictive_fail_threshold=values[15],
    )


def _power_supply_bytes(record: PowerSupplyInformation) -> bytes:
    flags = (
        record.predictive_fail
        | record.power_factor_correction << 1
        | record.autoswitch << 2
        | record.hot_swap << 3
        | record.tachometer_or_polarity << 4
    )
    return _POWER_SUPPLY.pack(
        record.overall_capacity,
        record.peak_va,
        record.inrush_current,
        record.inrush_interval,
        record.low_end_input_voltage_1,
        record.high_end_input_voltage_1,
        record.low_end_input_voltage_2,
        record.high_end_input_voltage_2,
        record.low_end_input_frequency,
        record.high_end_input_frequency,
        record.ac_dropout_tolerance,
        flags,
        record.peak_capacity | record.hold_up_time << 12,
        record.combined_voltage_1 << 4 | record.combined_voltage_2,
        record.total_combined_capacity,
        record.predictive_fail_threshold,
    )
