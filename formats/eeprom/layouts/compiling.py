"""A declaration becomes a model, and constructs that read and write it (E-LAY1, E-LAY12)."""

from __future__ import annotations

import dataclasses
import functools
import keyword
import re
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast

import construct
from msgspec import Meta

from formats.eeprom.framework.fields import parse_value
from formats.eeprom.framework.limits import ByteOrder, UInt8
from formats.eeprom.framework.reading import PlainReader
from formats.eeprom.layouts import declaration as declared
from formats.eeprom.layouts.algorithms import compute_of
from formats.eeprom.layouts.lists import Items, TypedValues
from formats.eeprom.layouts.records import Part, Record
from formats.eeprom.layouts.streams import Value
from formats.eeprom.layouts.values import (
    BitFields,
    DateText,
    Digits,
    Member,
    PaddedText,
    UuidOctets,
    date_size,
    integer,
)
from formats.eeprom.parts.texts import MacAddress
from formats.errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Iterable

F = TypeVar("F")

#: Names that plain data or models use themselves.
_RESERVED: Final = ("kind", "other", "fill", "order")

_DATE_TEXT: Final = r"^\d{4}-(\d\d-\d\d(T\d\d:\d\d:\d\dZ)?|W\d\d)$(?!\n)"


def _class_name(*names: str) -> str:
    return "".join(part.capitalize() for name in names for part in name.split("-"))


class Compiler:
    """Makes what a layout says."""

    def __init__(self, layout: declared.Layout) -> None:
        """Compile the fields of ``layout``."""
        self._layout = layout
        self._names = [layout.name]

    def record(self) -> Record:
        """Return the whole layout, whose model has the bytes outside of its fields as well.

        Raises:
            FieldError: The layout contradicts itself; the path says where.
        """
        from formats.eeprom.parts.gaps import Other  # noqa: PLC0415  only the outermost has gaps

        extra: list[tuple[str, Any, Any]] = [
            ("other", tuple[Other, ...], ()),
            ("fill", UInt8, self._layout.fill),
        ]
        return self._record(self._layout.field, "field", self._layout.title, extra)

    def _record(
        self,
        fields: tuple[declared.Field, ...],
        path: str,
        title: str,
        extra: Iterable[tuple[str, Any, Any]] = (),
    ) -> Record:
        paths = [f"{path}[{index}]" for index in range(len(fields))]
        self._check_names(fields, paths, {name for name, _, _ in extra})
        parts = tuple(map(self._part, fields, paths))
        self._check_references(fields, parts, paths)
        columns = [
            self._column(part, place)
            for part, place in zip(parts, paths, strict=True)
            if part.value is not None
        ]
        columns += [
            (name, kind, dataclasses.field(default=default)) for name, kind, default in extra
        ]
        return Record(parts, self._dataclass(columns, title))

    def _dataclass(self, columns: list[tuple[str, Any, Any]], title: str) -> type:
        name = _class_name(*self._names)
        return dataclasses.make_dataclass(
            name,
            columns,
            frozen=True,
            slots=True,
            kw_only=True,
            namespace={"__doc__": title or f"Fields of {self._names[-1]}.", "__module__": __name__},
        )

    def _column(self, part: Part, path: str) -> tuple[str, Any, Any]:
        """Return a field of the dataclass: its name, its annotation and its default."""
        assert part.value is not None
        annotation, default = part.value.annotation, getattr(part.declared, "default", None)
        if part.declared.when is not None:
            annotation = annotation | None
        if default is not None:
            try:
                plain = parse_value(default, annotation, f"{path}.default")
                value = PlainReader(None).value(plain, annotation, f"{path}.default")
            except FieldError as error:
                raise FieldError(f"{path}.default", error.problem) from error
            return part.attribute, annotation, dataclasses.field(default=value)
        if part.declared.when is not None or isinstance(part.value.construct, DateText):
            return part.attribute, annotation, dataclasses.field(default=None)
        return part.attribute, annotation, dataclasses.field()

    # --------------------------------------------------------------- fields

    def _part(self, field: declared.Field, path: str) -> Part:
        order = getattr(field, "byte_order", None) or self._layout.byte_order
        if isinstance(field, declared.Named):
            value = self._value(field, path)
            return Part(field, value, value.size, order)
        if isinstance(field, declared.Constant):
            return Part(field, None, len(field.content), order)
        if isinstance(field, declared.Checksum):
            compute, size = compute_of(field, order, path)
            return Part(field, None, size, order, compute)
        return Part(field, None, field.size, order)

    def _value(self, field: declared.Named, path: str) -> Value:
        if keyword.iskeyword(field.name) or field.name in _RESERVED:
            raise FieldError(f"{path}.name", f"{field.name} is reserved: choose another name")
        return self._made(field, path)

    @functools.singledispatchmethod
    def _made(self, field: declared.Named, path: str) -> Value:
        """Return what reads and writes a field, by the class of its declaration."""
        raise NotImplementedError(path, type(field))

    def _described(self, annotation: Any, field: declared.Named, **limits: Any) -> Any:
        if field.description:
            limits["description"] = field.description
        return Annotated[annotation, Meta(**limits)] if limits else annotation

    def _order(self, field: Any) -> ByteOrder:
        return cast("ByteOrder", field.byte_order or self._layout.byte_order)

    @_made.register
    def _unsigned(self, field: declared.Unsigned, path: str) -> Value:
        most = (1 << 8 * field.size) - 1
        if field.most is not None and not field.least <= field.most <= most:
            raise FieldError(
                f"{path}.most", f"is from {field.least} to {most} in {field.size} bytes"
            )
        limits = {"ge": field.least, "le": most if field.most is None else field.most}
        if most >= 1 << 63 and field.most is None:
            limits.pop("le")  # msgspec has no larger limits
        number = _WithinLimits(integer(field.size, self._order(field)), field.least, field.most)
        return Value(field.name, number, self._described(int, field, **limits), field.size)

    @_made.register
    def _signed(self, field: declared.Signed, path: str) -> Value:
        del path
        half = 1 << 8 * field.size - 1
        limits = {"ge": -half, "le": half - 1} if half <= 1 << 63 else {}
        number = integer(field.size, self._order(field), signed=True)
        return Value(field.name, number, self._described(int, field, **limits), field.size)

    @_made.register
    def _enumeration(self, field: declared.Enumeration, path: str) -> Value:
        kind = self._enum(field.values, (field.name,), 8 * field.size, path)
        numbers = integer(field.size, self._order(field))
        return Value(field.name, Member(numbers, kind), self._described(kind, field), field.size)

    def _enum(self, values: Any, names: tuple[str, ...], width: int, path: str) -> type[IntEnum]:
        if len(set(values.values())) < len(values):
            raise FieldError(f"{path}.values", "has two names for one value")
        for name, value in values.items():
            if not 0 <= value < 1 << width:
                raise FieldError(f"{path}.values.{name}", f"{value} does not fit in {width} bits")
        members = {name.replace("-", "_"): value for name, value in values.items()}
        return cast("type[IntEnum]", IntEnum(_class_name(*self._names, *names), members))

    @_made.register
    def _bits(self, field: declared.Bits, path: str) -> Value:
        width = sum(bit.width for bit in field.bits)
        if width != 8 * field.size:
            raise FieldError(f"{path}.bits", f"have {width} bits in all, not {8 * field.size}")
        kinds: dict[str, type] = {}
        columns: list[tuple[str, Any, Any]] = []
        subcons = []
        for index, bit in enumerate(field.bits):
            name = f"_{index}" if bit.name is None else bit.name.replace("-", "_")
            subcons.append(name / construct.BitsInteger(bit.width))
            if bit.name is None:
                continue
            if name in kinds:
                raise FieldError(f"{path}.bits[{index}].name", f"{bit.name} occurs twice")
            annotation: Any = Annotated[int, Meta(ge=0, le=(1 << min(bit.width, 63)) - 1)]
            kinds[name] = int
            if bit.values is not None:
                where = f"{path}.bits[{index}]"
                annotation = kinds[name] = self._enum(
                    bit.values, (field.name, bit.name), bit.width, where
                )
            elif bit.width == 1:
                annotation = kinds[name] = bool
            columns.append((name, annotation, _zero(kinds[name])))
        self._names.append(field.name)
        model = self._dataclass(columns, field.description)
        self._names.pop()
        bits = construct.BitStruct(*subcons)
        if self._order(field) is ByteOrder.LITTLE and field.size > 1:
            bits = construct.ByteSwapped(bits)
        return Value(field.name, BitFields(bits, model, kinds), model, field.size)

    @_made.register
    def _bytes(self, field: declared.Bytes, path: str) -> Value:
        del path
        octets = construct.GreedyBytes if field.size is None else construct.Bytes(field.size)
        limits = {} if field.size is None else {"min_length": field.size, "max_length": field.size}
        return Value(field.name, octets, self._described(bytes, field, **limits), field.size)

    @_made.register
    def _text(self, field: declared.Text, path: str) -> Value:
        limits: dict[str, Any] = {} if field.size is None else {"max_length": field.size}
        if field.pattern is not None:
            try:
                re.compile(field.pattern)
            except re.error as error:
                raise FieldError(f"{path}.pattern", f"is not a pattern: {error}") from None
            limits["pattern"] = rf"^(?:{field.pattern})$(?!\n)"
        octets = construct.GreedyBytes if field.size is None else construct.Bytes(field.size)
        text = PaddedText(octets, field.size, field.charset, field.padding)
        return Value(field.name, text, self._described(str, field, **limits), field.size)

    @_made.register
    def _mac(self, field: declared.Mac, path: str) -> Value:
        del path
        return Value(field.name, construct.Bytes(6), MacAddress, 6)

    @_made.register
    def _uuid(self, field: declared.Uuid, path: str) -> Value:
        del path
        annotation = Annotated[
            bytes,
            Meta(min_length=16, max_length=16, description=field.description or "a UUID"),
        ]
        return Value(field.name, UuidOctets(field.form), annotation, 16)

    @_made.register
    def _bcd(self, field: declared.Bcd, path: str) -> Value:
        del path
        pattern = rf"^[0-9]{{{2 * field.size}}}$(?!\n)"
        digits = Digits(construct.Bytes(field.size))
        return Value(field.name, digits, self._described(str, field, pattern=pattern), field.size)

    @_made.register
    def _date(self, field: declared.Date, path: str) -> Value:
        del path
        text = DateText(field.form, self._order(field), field.unset)
        annotation = self._described(str, field, pattern=_DATE_TEXT) | None
        return Value(field.name, text, annotation, date_size(field.form))

    @_made.register
    def _group(self, field: declared.Group, path: str) -> Value:
        self._names.append(field.name)
        record = self._record(field.fields, f"{path}.fields", field.description)
        self._names.pop()
        return Value(field.name, record, record.model, _size_of(record.parts))

    @_made.register
    def _array(self, field: declared.Array, path: str) -> Value:
        if not isinstance(field.item, declared.Named):
            raise FieldError(f"{path}.item", "has no value: an array has items with values")
        if isinstance(field.item, declared.Array):
            raise FieldError(f"{path}.item", "is an array: put it in a group")
        self._names.append(field.name)
        item = self._value(field.item, f"{path}.item")
        self._names.pop()
        size = None if field.count is None or item.size is None else field.count * item.size
        limits = (
            {} if field.count is None else {"min_length": field.count, "max_length": field.count}
        )
        annotation = self._described(tuple[item.annotation, ...], field, **limits)  # type: ignore[name-defined]
        return Value(field.name, Items(item, field.count), annotation, size)

    @_made.register
    def _tlvs(self, field: declared.Tlvs, path: str) -> Value:
        known: dict[int, Value] = {}
        self._names.append(field.name)
        paths = [f"{path}.values[{index}].value" for index in range(len(field.values))]
        self._check_names([entry.value for entry in field.values], paths, {"other", "order"})
        for entry, place in zip(field.values, paths, strict=True):
            if not isinstance(entry.value, declared.Named):
                raise FieldError(place, "has no value")
            if entry.tag in known or entry.tag == field.end:
                raise FieldError(place, f"has the type {entry.tag:#x}, which occurs twice")
            known[entry.tag] = self._value(entry.value, place)
        other = self._other_type(field)
        columns: list[tuple[str, Any, Any]] = [
            (value.name.replace("-", "_"), value.annotation | None, dataclasses.field(default=None))
            for value in known.values()
        ]
        columns.append(("other", tuple[other, ...], dataclasses.field(default=())))  # type: ignore[valid-type]
        columns.append(("order", tuple[int, ...], dataclasses.field(default=())))
        model = self._dataclass(columns, field.description)
        self._names.pop()
        values = TypedValues(field, self._order(field), known, (model, other))
        return Value(field.name, values, model, None)

    def _other_type(self, field: declared.Tlvs) -> type:
        most = (1 << 8 * field.tag_size) - 1
        longest = (1 << 8 * field.length_size) - 1
        self._names.append("other")
        made = self._dataclass(
            [
                ("type", Annotated[int, Meta(ge=0, le=most)], dataclasses.field()),
                (
                    "value",
                    Annotated[bytes, Meta(max_length=longest)],
                    dataclasses.field(default=b""),
                ),
            ],
            "A value of a type that the layout does not name.",
        )
        self._names.pop()
        return made

    # --------------------------------------------------------------- checks

    def _check_names(
        self, fields: Iterable[declared.Field], paths: Iterable[str], taken: set[str]
    ) -> None:
        for field, path in zip(fields, paths, strict=True):
            name = getattr(field, "name", None)
            if name is not None and name in taken:
                raise FieldError(f"{path}.name", f"{name} occurs twice")
            taken.add(name or "")

    def _check_references(
        self, fields: tuple[declared.Field, ...], parts: tuple[Part, ...], paths: list[str]
    ) -> None:
        sized: set[str] = set()
        values = {
            part.value.name: (index, part.value) for index, part in enumerate(parts) if part.value
        }
        for index, (field, path) in enumerate(zip(fields, paths, strict=True)):
            if field.when is not None:
                at, _ = values.get(field.when.field, (index, None))
                if at >= index:
                    raise FieldError(f"{path}.when", f"no field {field.when.field} is before it")
            if not isinstance(field, declared.Length | declared.Count) or field.of is None:
                continue
            at, value = values.get(field.of, (-1, None))
            if value is None or at < index:
                raise FieldError(f"{path}.of", f"no field {field.of} is after it")
            is_open = isinstance(value.construct, Items) and value.size is None
            if isinstance(field, declared.Count) and not is_open:
                raise FieldError(f"{path}.of", f"{field.of} is not an array without a count")
            if isinstance(field, declared.Length) and value.size is not None:
                raise FieldError(f"{path}.of", f"{field.of} always has {value.size} bytes")
            sized.add(field.of)
        self._check_ends(fields, parts, paths, sized)

    def _check_ends(
        self,
        fields: tuple[declared.Field, ...],
        parts: tuple[Part, ...],
        paths: list[str],
        sized: set[str],
    ) -> None:
        """Check that only the last field goes on to the end."""
        for index, (part, path) in enumerate(zip(parts, paths, strict=True)):
            if part.value is None or part.size is not None or part.value.name in sized:
                continue
            finds_end = getattr(part.value.construct, "has_end", False) or isinstance(
                part.value.construct, Record
            )
            following = [field for field in fields[index + 1 :] if field.offset is None]
            if following and not finds_end:
                raise FieldError(path, f"{part.value.name} has no size, and fields follow it")


class _WithinLimits(construct.Adapter):
    """A number whose declaration allows fewer than fit."""

    def __init__(self, numbers: construct.Construct, least: int, most: int | None) -> None:
        super().__init__(numbers)
        self._least, self._most = least, most

    def _decode(self, obj: int, context: Any, path: str) -> int:
        del context, path
        if obj < self._least or (self._most is not None and obj > self._most):
            raise construct.ValidationError(f"is {obj}, which is not allowed")
        return obj

    def _encode(self, obj: int, context: Any, path: str) -> int:
        del context, path
        return obj


def _zero(kind: type) -> Any:
    """Return the field of a dataclass for bits, which are 0 where nothing is given."""
    if kind in (int, bool):
        return dataclasses.field(default=kind(0))
    member = next((member for member in kind if member == 0), None)  # type: ignore[attr-defined]
    return dataclasses.field() if member is None else dataclasses.field(default=member)


def _size_of(parts: tuple[Part, ...]) -> int | None:
    """Return the bytes that fields take, if that is always the same."""
    at = end = 0
    for part in parts:
        if part.size is None or part.declared.when is not None:
            return None
        start = at if part.declared.offset is None else part.declared.offset
        at = start + part.size
        end = max(end, at)
    return end
