"""Lists of a layout: arrays, and types with lengths and values (E-LAY10, E-LAY11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import construct

from formats.eeprom.layouts.streams import Value, read_value, write_value
from formats.eeprom.layouts.values import invalid
from formats.eeprom.parts.ordering import arrange, stated_order
from formats.errors import FieldError

if TYPE_CHECKING:
    from formats.eeprom.framework.limits import ByteOrder
    from formats.eeprom.layouts.declaration import Tlvs
    from formats.eeprom.layouts.streams import Sink, Site, Source


class Items(construct.Construct):
    """An array, as a tuple."""

    def __init__(self, item: Value, count: int | None) -> None:
        super().__init__()
        self._item, self._count = item, count

    def _parse(self, stream: Source, context: Any, path: str) -> tuple[Any, ...]:
        del context, path
        octets, site = stream.getvalue(), stream.site
        count = self._count if site.count is None else site.count
        found: list[Any] = []
        at = 0
        while len(found) < count if count is not None else at < len(octets):
            size = self._item.size
            part = octets[at:] if size is None else octets[at : at + size]
            where = site.within(at, f"[{len(found)}]")
            value, used = read_value(self._item, part, where)
            if not used:
                raise invalid("has an item without a byte")
            found.append(value)
            at += used
        stream.seek(at)
        return tuple(found)

    def _build(self, obj: tuple[Any, ...], stream: Sink, context: Any, path: str) -> None:
        del context, path
        if self._count is not None and len(obj) != self._count:
            raise invalid(f"has {len(obj)} items instead of {self._count}")
        for index, value in enumerate(obj):
            stream.write(write_value(self._item, value, f"{stream.path}[{index}]"))


class TypedValues(construct.Construct):
    """Types, lengths and values, as a dataclass with a field for each type that is known.

    The model has the fields ``other``, a tuple of types that are not known, and ``order``.
    """

    def __init__(
        self, declared: Tlvs, order: ByteOrder, known: dict[int, Value], models: tuple[type, type]
    ) -> None:
        super().__init__()
        self.has_end = declared.end is not None
        self._declared, self._order, self._known = declared, order, known
        self._model, self._other = models

    def _parse(self, stream: Source, context: Any, path: str) -> Any:
        del context, path
        octets, site = stream.getvalue(), stream.site
        values: dict[str, Any] = {}
        other: list[Any] = []
        tags: list[int] = []
        at = 0
        while True:
            entry = self._entry(octets, at, site)
            if entry is None:
                break
            tag, start, end = entry
            if start == end and tag == self._declared.end:
                at = end
                break
            tags.append(tag)
            known = self._known.get(tag)
            name = "" if known is None else known.name.replace("-", "_")
            if known is None or name in values:
                if known is not None:
                    site.report.problem(site.base + at, "E-LAY11", f"{known.name} occurs twice")
                other.append(self._other(type=tag, value=octets[start:end]))
            else:
                found, used = read_value(known, octets[start:end], site.within(start, known.name))
                if used != end - start:
                    site.report.problem(
                        site.base + start,
                        "E-LAY11",
                        f"{site.path}.{known.name} has {end - start} bytes instead of {used}",
                    )
                values[name] = found
            at = end
        stream.seek(at)
        usual = [tag for tag, value in self._known.items() if _attribute(value) in values]
        usual += [entry.type for entry in other]
        return self._model(**values, other=tuple(other), order=stated_order(tags, usual))

    def _entry(self, octets: bytes, at: int, site: Site) -> tuple[int, int, int] | None:
        """Return the type of an entry, where its value begins, and where it ends."""
        declared = self._declared
        if at >= len(octets):
            if declared.end is not None:
                site.report.problem(
                    site.base + at, "E-LAY11", f"{site.path} does not end with {declared.end:#x}"
                )
            return None
        tag = int.from_bytes(octets[at : at + declared.tag_size], self._order.value)
        start = at + declared.tag_size
        if tag == declared.end:
            return tag, start, start
        length = int.from_bytes(octets[start : start + declared.length_size], self._order.value)
        start += declared.length_size
        end = start + length - (start - at if declared.counts_head else 0)
        if start > len(octets) or not start <= end <= len(octets):
            site.report.problem(
                site.base + at, "E-LAY11", f"{site.path}: type {tag:#x} has an impossible length"
            )
            return None
        return tag, start, end

    def _build(self, obj: Any, stream: Sink, context: Any, path: str) -> None:
        del context, path
        declared = self._declared
        stored = [
            (tag, write_value(value, found, f"{stream.path}.{value.name}"))
            for tag, value in self._known.items()
            if (found := getattr(obj, _attribute(value))) is not None
        ]
        for index, entry in enumerate(obj.other):
            if entry.type in self._known or entry.type == declared.end:
                raise FieldError(
                    f"{stream.path}.other[{index}].type", f"is {entry.type:#x}, which has a name"
                )
            stored.append((entry.type, entry.value))
        for tag, octets in arrange(stored, obj.order, tuple(self._known)):
            head = declared.tag_size + declared.length_size
            length = len(octets) + (head if declared.counts_head else 0)
            try:
                stream.write(tag.to_bytes(declared.tag_size, self._order.value))
                stream.write(length.to_bytes(declared.length_size, self._order.value))
            except OverflowError:
                raise FieldError(
                    stream.path, f"type {tag:#x} with {len(octets)} bytes does not fit"
                ) from None
            stream.write(octets)
        if declared.end is not None:
            stream.write(declared.end.to_bytes(declared.tag_size, self._order.value))


def _attribute(value: Value) -> str:
    return value.name.replace("-", "_")
