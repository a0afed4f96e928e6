"""Fields at their places, and what is computed of them (E-LAY3, E-LAY7 to E-LAY9)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import construct

from formats.eeprom.framework.annotations import name_of
from formats.eeprom.layouts.declaration import Checksum, Constant, Count, Length, Placed, Skip
from formats.eeprom.layouts.streams import Site, Value, joined, read_value, write_value
from formats.eeprom.parts.gaps import lay_out
from formats.errors import FieldError, TruncatedImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.eeprom.framework.limits import ByteOrder
    from formats.eeprom.layouts.streams import Sink, Source

Piece = tuple[int, bytes, str]

#: What bytes between the fields of a group hold.
_NOTHING: Final = 0


@dataclass(frozen=True, slots=True)
class Around:
    """What is outside of the fields of a record.

    Attributes:
        pieces: Bytes at their offsets.
        fill: All other bytes.
        size: Bytes of it all; None for as many as the fields need.
    """

    pieces: tuple[Piece, ...] = ()
    fill: int = _NOTHING
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A field as it was declared, and what reads and writes it.

    Attributes:
        declared: What the layout says.
        value: Of fields that have one; None for those that are computed or skipped.
        size: Bytes; None if that depends on what is stored.
        order: The byte order of numbers.
        compute: Of a checksum: what it is over some bytes.
    """

    declared: Placed
    value: Value | None
    size: int | None
    order: ByteOrder
    compute: Callable[[bytes], bytes] | None = None

    @property
    def attribute(self) -> str:
        """The name of the field in the model."""
        assert self.value is not None
        return self.value.name.replace("-", "_")


class Record(construct.Construct):
    """Fields, as a dataclass."""

    def __init__(self, parts: tuple[Part, ...], model: type) -> None:
        super().__init__()
        self.parts = parts
        self.model = model

    # ------------------------------------------------------------------ reading

    def read(self, octets: bytes, site: Site) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """Return the values of the fields, and the ranges that they take.

        Args:
            octets: All that there is.
            site: Where it is.
        """
        reading = _Reading(self, octets, site)
        return reading.values, reading.taken

    def _parse(self, stream: Source, context: Any, path: str) -> Any:
        del context, path
        start = stream.tell()
        octets = stream.read()
        values, taken = self.read(octets, stream.site.within(start, ""))
        stream.seek(start + max((end for _, end in taken), default=0))
        return self.model(**values)

    # ------------------------------------------------------------------ writing

    def pieces(self, model: Any, path: str, around: Around) -> list[Piece]:
        """Return the bytes of all fields, each with its offset and path.

        Args:
            model: The values.
            path: Of all of them.
            around: What checksums find between the fields.

        Raises:
            FieldError: One cannot be stored.
        """
        return _Writing(self, model, path, around).pieces

    def _build(self, obj: Any, stream: Sink, context: Any, path: str) -> None:
        del context, path
        pieces = self.pieces(obj, stream.path, Around())
        stream.write(lay_out(pieces, None, _NOTHING) if pieces else b"")


def holds(part: Part, values: dict[str, Any]) -> bool:
    """Say whether a field is there, by the values of fields before it (E-LAY9)."""
    when = part.declared.when
    if when is None:
        return True
    value = values.get(when.field.replace("-", "_"))
    if isinstance(value, Enum):
        return name_of(value) == when.equals
    if isinstance(value, bool):
        return str(value).lower() == when.equals
    if isinstance(value, int):
        try:
            return value == int(when.equals, 0)
        except ValueError:
            return False
    return bool(value == when.equals)


class _Reading:
    """One pass over the fields of a record."""

    def __init__(self, record: Record, octets: bytes, site: Site) -> None:
        self.values: dict[str, Any] = {}
        self.taken: list[tuple[int, int]] = []
        self._octets, self._site = octets, site
        self._sizes: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        at = 0
        later: list[tuple[Part, int]] = []
        for part in record.parts:
            if not holds(part, self.values):
                if part.value is not None:
                    self.values[part.attribute] = None
                continue
            start = at if part.declared.offset is None else part.declared.offset
            at = self._read(part, start)
            if isinstance(part.declared, Length | Checksum):
                later.append((part, start))
        for part, start in later:
            self._check(part, start)

    def _read(self, part: Part, start: int) -> int:
        declared = part.declared
        size = part.size
        if part.value is not None and size is None:
            size = self._sizes.get(part.value.name)
        end = len(self._octets) if size is None else start + size
        if end > len(self._octets) or start > len(self._octets):
            name = part.value.name if part.value else type(declared).__name__.lower()
            raise TruncatedImageError(
                f"{joined(self._site.path, name)} is cut short: it ends at byte"
                f" {self._site.base + end} of {self._site.base + len(self._octets)}",
                offset=self._site.base + len(self._octets),
                rule="E-LAY3",
            )
        octets = self._octets[start:end]
        if part.value is not None:
            end = self._value(part, part.value, octets, start, is_open=size is None)
        elif isinstance(declared, Skip):
            if self._site.path and octets.strip(bytes((_NOTHING,))):
                self._problem(start, "E-LAY3", "bytes without a meaning are not 0")
            return end
        elif isinstance(declared, Constant):
            if octets != declared.content:
                self._problem(
                    start, "E-LAY2", f"{octets.hex()} is in place of {declared.content.hex()}"
                )
        elif isinstance(declared, Count):
            self._counts[declared.of] = int.from_bytes(octets, part.order.value)
        elif isinstance(declared, Length) and declared.of is not None:
            number = int.from_bytes(octets, part.order.value) * declared.unit - declared.add
            if number < 0:
                self._problem(start, "E-LAY7", f"the size of {declared.of} is below 0")
            self._sizes[declared.of] = max(number, 0)
        self.taken.append((start, end))
        return end

    def _value(self, part: Part, value: Value, octets: bytes, start: int, *, is_open: bool) -> int:
        site = self._site.within(start, value.name)
        has_end = getattr(value.construct, "has_end", False)
        if is_open and self._site.blank is not None and not has_end:
            octets = octets.rstrip(self._site.blank)
            site = Site(site.base, site.path, site.report, blank=self._site.blank)
        if value.name in self._counts:
            site = Site(site.base, site.path, site.report, self._counts[value.name], site.blank)
        found, used = read_value(value, octets, site)
        if not is_open and part.size is None and used != len(octets):
            self._problem(start, "E-LAY7", f"{value.name} does not end where its length says")
            used = len(octets)
        self.values[part.attribute] = found
        return start + used

    def _check(self, part: Part, start: int) -> None:
        declared, stored = part.declared, self._octets[start : start + (part.size or 0)]
        if isinstance(declared, Length) and declared.of is None:
            end = max(end for _, end in self.taken)
            number = int.from_bytes(stored, part.order.value) * declared.unit - declared.add
            if number != end:
                self._problem(start, "E-LAY7", f"the length is {number}, and should be {end}")
        elif isinstance(declared, Checksum):
            assert part.compute is not None
            covered = _covered(self._octets, declared, start, part.size or 0)
            self._site.report.compare(
                self._site.base + start, "E-LAY8", "the checksum", stored, part.compute(covered)
            )

    def _problem(self, offset: int, rule: str, message: str) -> None:
        place = f"{self._site.path}: " if self._site.path else ""
        self._site.report.problem(self._site.base + offset, rule, place + message)


class _Writing:
    """One pass over the fields of a record that is written."""

    def __init__(self, record: Record, model: Any, path: str, around: Around) -> None:
        self.pieces: list[Piece] = []
        self._around = around
        self._path = path
        values = {
            part.attribute: getattr(model, part.attribute)
            for part in record.parts
            if part.value is not None
        }
        at = 0
        ranges: dict[str, tuple[int, int]] = {}
        later: list[tuple[Part, int]] = []
        for part in record.parts:
            is_there = holds(part, values)
            if part.value is not None and part.declared.when is not None:
                self._require(part, part.value.name, values, is_there=is_there)
            if not is_there:
                continue
            start = at if part.declared.offset is None else part.declared.offset
            octets = self._octets(part, values)
            at = start + len(octets)
            if isinstance(part.declared, Skip):
                continue
            if part.value is not None:
                ranges[part.value.name] = start, at
            elif not isinstance(part.declared, Constant):
                later.append((part, len(self.pieces)))
            name = "" if part.value is None else part.value.name
            self.pieces.append((start, octets, joined(path, name) if name else path))
        self._counts = {
            part.value.name: len(values[part.attribute] or ())
            for part in record.parts
            if part.value is not None and isinstance(values[part.attribute], tuple)
        }
        self._compute(later, ranges)

    def _require(self, part: Part, name: str, values: dict[str, Any], *, is_there: bool) -> None:
        when = part.declared.when
        assert when is not None
        if is_there and values[part.attribute] is None and not _may_be_none(part):
            raise FieldError(
                joined(self._path, name), f"is missing, and {when.field} is {when.equals}"
            )
        if not is_there and values[part.attribute] is not None:
            raise FieldError(
                joined(self._path, name), f"is given, but {when.field} is not {when.equals}"
            )

    def _octets(self, part: Part, values: dict[str, Any]) -> bytes:
        if part.value is not None:
            path = joined(self._path, part.value.name)
            return write_value(part.value, values[part.attribute], path)
        if isinstance(part.declared, Constant):
            return part.declared.content
        return bytes(part.size or 0)

    def _compute(self, later: list[tuple[Part, int]], ranges: dict[str, tuple[int, int]]) -> None:
        """Fill in lengths and counts, and then the checksums in their order (E4)."""
        end = max(start + len(octets) for start, octets, _ in self.pieces)
        for part, index in later:
            declared = part.declared
            if isinstance(declared, Count):
                self._store(index, part, self._counts[declared.of], declared.of)
            elif isinstance(declared, Length):
                first, last = (0, end) if declared.of is None else ranges.get(declared.of, (0, 0))
                number, rest = divmod(last - first + declared.add, declared.unit)
                if rest:
                    raise FieldError(
                        joined(self._path, declared.of or ""),
                        f"has {last - first} bytes, which is not a multiple of {declared.unit}",
                    )
                self._store(index, part, number, declared.of or "")
        for part, index in later:
            if isinstance(part.declared, Checksum):
                assert part.compute is not None
                start, octets, path = self.pieces[index]
                around = self._around
                image = lay_out([*self.pieces, *around.pieces], around.size, around.fill)
                covered = _covered(image, part.declared, start, len(octets))
                self.pieces[index] = start, part.compute(covered), path

    def _store(self, index: int, part: Part, number: int, name: str) -> None:
        start, octets, path = self.pieces[index]
        try:
            made = number.to_bytes(len(octets), part.order.value)
        except OverflowError:
            what = joined(self._path, name)
            raise FieldError(what, f"is too long: {number} does not fit in its length") from None
        self.pieces[index] = start, made, path


def _may_be_none(part: Part) -> bool:
    """Say whether None is a value of the field, as that of a date is (E-LAY6)."""
    assert part.value is not None
    return bool(getattr(part.value.construct, "may_be_none", False))


def _covered(octets: bytes, declared: Checksum, at: int, size: int) -> bytes:
    """Return what a checksum covers, its own bytes being zeros (E-LAY8)."""
    end = at if declared.end is None else min(declared.end, len(octets))
    covered = bytearray(octets[declared.start : end])
    first, last = at - declared.start, at - declared.start + size
    if 0 <= first < len(covered):
        covered[first:last] = bytes(min(last, len(covered)) - first)
    return bytes(covered)
