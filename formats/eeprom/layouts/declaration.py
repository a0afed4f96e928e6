"""What a layout says: the fields of an EEPROM, as data (E-LAY1 to E-LAY12).

A layout is read like the fields of a manifest are, by the annotations of these classes: a table
that stands for a field names its class by ``kind``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from formats.eeprom.framework.limits import ByteOrder, UInt8

#: Bytes of the largest EEPROM that a layout describes.
MOST_BYTES = 16 << 20

Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$(?!\n)",
        max_length=64,
        description="in lower-case letters, digits and hyphens",
    ),
]
Offset = Annotated[int, Meta(ge=0, le=MOST_BYTES, description="bytes from the beginning")]
Size = Annotated[int, Meta(ge=1, le=MOST_BYTES, description="bytes")]
IntegerSize = Annotated[int, Meta(ge=1, le=16, description="bytes")]
Values = Annotated[Mapping[Name, int], Meta(min_length=1)]


class Charset(StrEnum):
    """How text is stored."""

    ASCII = "ascii"
    LATIN_1 = "latin-1"
    UTF_8 = "utf-8"
    UTF_16_LE = "utf-16-le"
    UTF_16_BE = "utf-16-be"


class DateForm(StrEnum):
    """How a date is stored."""

    BCD_YYMMDD = "bcd-yymmdd"
    BCD_YYYYMMDD = "bcd-yyyymmdd"
    BCD_YYWW = "bcd-yyww"
    ASCII_YYMMDD = "ascii-yymmdd"
    ASCII_YYYYMMDD = "ascii-yyyymmdd"
    ASCII_YYWW = "ascii-yyww"
    ASCII_WWYY = "ascii-wwyy"
    UNIX = "unix"
    FRU_MINUTES = "fru-minutes"


class UuidForm(StrEnum):
    """In which order the bytes of a UUID are stored."""

    RFC_4122 = "rfc-4122"
    MICROSOFT = "microsoft"


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """The condition of a field.

    Attributes:
        field: A number, an enumeration or a text that is declared before it.
        equals: Its value, as text.
    """

    field: Name
    equals: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What all fields have.

    Attributes:
        offset: From the beginning of what the field is in; None after the field before it.
        when: The field is there only if this holds.
    """

    offset: Offset | None = None
    when: When | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Named(Placed):
    """A field with a value.

    Attributes:
        name: What it is called in manifests.
        description: What it is, for people.
        default: Its value where a manifest leaves it out, as on a command line.
    """

    name: Name
    description: str = ""
    default: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsigned(Named):
    """A number from 0.

    Attributes:
        size: Bytes.
        byte_order: None for that of the layout.
        least: The least that is allowed.
        most: The most; None for what fits.
    """

    size: IntegerSize
    byte_order: ByteOrder | None = None
    least: Annotated[int, Meta(ge=0)] = 0
    most: Annotated[int, Meta(ge=0)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed(Named):
    """A number in two's complement.

    Attributes:
        size: Bytes.
        byte_order: None for that of the layout.
    """

    size: IntegerSize
    byte_order: ByteOrder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bit:
    """Some bits of a field.

    Attributes:
        name: None for bits that are reserved, and 0.
        width: How many; one bit without values is true or false.
        values: Names of the values, all others being refused.
    """

    name: Name | None = None
    width: Annotated[int, Meta(ge=1, le=128)] = 1
    values: Values | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bits(Named):
    """Bit fields, which together take all bits.

    Attributes:
        size: Bytes.
        byte_order: None for that of the layout.
        bits: From the highest one downwards.
    """

    size: IntegerSize
    byte_order: ByteOrder | None = None
    bits: Annotated[tuple[Bit, ...], Meta(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enumeration(Named):
    """One of several values, each with a name.

    Attributes:
        size: Bytes.
        byte_order: None for that of the layout.
        values: All that are allowed.
    """

    size: IntegerSize
    byte_order: ByteOrder | None = None
    values: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes(Named):
    """Any bytes.

    Attributes:
        size: How many; None if a length says it, or for all up to the end.
    """

    size: Size | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Named):
    """Text.

    Attributes:
        size: Bytes; None if a length says it, or for all up to the end.
        charset: How it is stored.
        padding: What fills the bytes after it.
        pattern: A regular expression for all of it.
    """

    size: Size | None = None
    charset: Charset = Charset.ASCII
    padding: UInt8 = 0
    pattern: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mac(Named):
    """A MAC address of six bytes, in the order of the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uuid(Named):
    """A UUID of sixteen bytes.

    Attributes:
        form: Microsoft's has the first three parts with the low byte first.
    """

    form: UuidForm = UuidForm.RFC_4122


@dataclass(frozen=True, slots=True, kw_only=True)
class Bcd(Named):
    """Decimal digits, two in a byte.

    Attributes:
        size: Bytes.
    """

    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Date(Named):
    """A date, as text: 2026-01-31, 2026-W05 or, with its time, 2026-01-31T12:00:00Z.

    Attributes:
        form: How it is stored.
        byte_order: Of forms that are numbers; None for that of the layout.
        unset: The byte of which all of it consists where no date is given.
    """

    form: DateForm
    byte_order: ByteOrder | None = None
    unset: UInt8 = 0xFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(Placed):
    """Bytes that are always the same; at offset 0 they are how the layout is recognised.

    Attributes:
        content: The bytes.
    """

    content: Annotated[bytes, Meta(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip(Placed):
    """Bytes without a meaning, which are kept where they stand on the top level.

    Attributes:
        size: How many.
    """

    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Length(Placed):
    """The size of a field after it, in bytes; or of all.

    Attributes:
        size: Bytes that it takes itself.
        byte_order: None for that of the layout.
        of: The field; None for all from the beginning up to the end of the last field.
        add: What it counts in addition.
        unit: Bytes for which it counts one.
    """

    size: IntegerSize
    byte_order: ByteOrder | None = None
    of: Name | None = None
    add: int = 0
    unit: Size = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Count(Placed):
    """The number of items of an array after it.

    Attributes:
        size: Bytes that it takes itself.
        byte_order: None for that of the layout.
        of: The array.
    """

    size: IntegerSize
    byte_order: ByteOrder | None = None
    of: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class Crc:
    """A CRC, by the parameters of the catalogue at reveng.sourceforge.io."""

    width: Annotated[int, Meta(ge=8, le=64, multiple_of=8)]
    poly: Annotated[int, Meta(ge=1)]
    init: Annotated[int, Meta(ge=0)] = 0
    refin: bool = False
    refout: bool = False
    xorout: Annotated[int, Meta(ge=0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum(Placed):
    """A checksum; bytes of its own in the range count as zeros.

    Attributes:
        algorithm: Its name; or `crc`.
        crc: Its parameters, instead of a name.
        byte_order: None for that of the layout.
        start: The first byte that it covers, from the beginning of what it is in.
        end: The offset after the last; None for everything before the checksum.
    """

    algorithm: str | None = None
    crc: Crc | None = None
    byte_order: ByteOrder | None = None
    start: Offset = 0
    end: Offset | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Array(Named):
    """Items of one kind.

    Attributes:
        item: The kind; its name is not used.
        count: How many; None if a count says it, or for as many as there are up to the end.
    """

    item: Field
    count: Annotated[int, Meta(ge=1, le=0xFFFF)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Named):
    """Fields that belong together; offsets in them count from its beginning.

    Attributes:
        fields: In their order.
    """

    fields: Annotated[tuple[Field, ...], Meta(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """A value of a list of types, lengths and values.

    Attributes:
        tag: Its type.
        value: Its kind, with the name of the field. It takes as many bytes as its length says.
    """

    tag: Annotated[int, Meta(ge=0)]
    value: Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Tlvs(Named):
    """Types, lengths and values; types that are not declared are kept.

    Attributes:
        tag_size: Bytes of a type.
        length_size: Bytes of a length.
        byte_order: Of both; None for that of the layout.
        counts_head: A length counts type and length, too.
        end: The type that ends them, which has no length; None if they end where a length
            or the content says.
        values: Those that are known.
    """

    tag_size: Annotated[int, Meta(ge=1, le=4)] = 1
    length_size: Annotated[int, Meta(ge=1, le=4)] = 1
    byte_order: ByteOrder | None = None
    counts_head: bool = False
    end: Annotated[int, Meta(ge=0)] | None = None
    values: tuple[Tagged, ...] = ()


Field = (
    Unsigned
    | Signed
    | Bits
    | Enumeration
    | Bytes
    | Text
    | Mac
    | Uuid
    | Bcd
    | Date
    | Constant
    | Skip
    | Length
    | Count
    | Checksum
    | Array
    | Group
    | Tlvs
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The layout of an EEPROM.

    Attributes:
        name: The type of sections with it.
        title: The same for people.
        source: Where its facts come from.
        size: Bytes that it always has; None for any number.
        fill: What unused bytes hold.
        byte_order: Of numbers that do not state another.
        field: The fields.
    """

    name: Name
    title: str = ""
    source: str = ""
    size: Size | None = None
    fill: UInt8 = 0xFF
    byte_order: ByteOrder = ByteOrder.LITTLE
    field: Annotated[tuple[Field, ...], Meta(min_length=1)]
