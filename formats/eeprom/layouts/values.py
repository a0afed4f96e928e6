"""Single values of a layout, each as a `construct.Construct` (E-LAY4 to E-LAY6).

The parsed value of each is the one that the model holds. What does not fit is a
`construct.ValidationError` whose text continues "the field …".
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

import construct

from formats.eeprom.framework.limits import ByteOrder
from formats.eeprom.layouts.declaration import Charset, DateForm, UuidForm

if TYPE_CHECKING:
    from enum import IntEnum

_FRU_EPOCH: Final = dt.datetime(1996, 1, 1, tzinfo=dt.UTC)
_ASCII_DATES: Final = {
    DateForm.ASCII_YYMMDD: "yymmdd",
    DateForm.ASCII_YYYYMMDD: "yyyymmdd",
    DateForm.ASCII_YYWW: "yyww",
    DateForm.ASCII_WWYY: "wwyy",
}
_BCD_DATES: Final = {
    DateForm.BCD_YYMMDD: "yymmdd",
    DateForm.BCD_YYYYMMDD: "yyyymmdd",
    DateForm.BCD_YYWW: "yyww",
}
_CENTURY: Final = 2000
_LAST_WEEK: Final = 53


def invalid(message: str) -> construct.ValidationError:
    """Return the error of a value that does not fit."""
    return construct.ValidationError(message)


def integer(size: int, order: ByteOrder, *, signed: bool = False) -> construct.Construct:
    """Return a whole number of so many bytes."""
    return construct.BytesInteger(size, signed=signed, swapped=order is ByteOrder.LITTLE)


class Member(construct.Adapter):
    """A member of an enumeration."""

    def __init__(self, numbers: construct.Construct, kind: type[IntEnum]) -> None:
        super().__init__(numbers)
        self._kind = kind

    def _decode(self, obj: int, context: Any, path: str) -> IntEnum:
        del context, path
        try:
            return self._kind(obj)
        except ValueError:
            raise invalid(f"has the value {obj:#x}, which no name stands for") from None

    def _encode(self, obj: IntEnum, context: Any, path: str) -> int:
        del context, path
        return int(obj)


class BitFields(construct.Adapter):
    """Bits, as a dataclass."""

    def __init__(self, bits: construct.Construct, model: type, kinds: dict[str, type]) -> None:
        """Read and write the named bits of a `construct.BitStruct`.

        Args:
            bits: Reserved ones have names that begin with an underscore.
            model: The dataclass.
            kinds: Of each of its fields: `bool`, `int`, or an enumeration.
        """
        super().__init__(bits)
        self._model = model
        self._kinds = kinds

    def _decode(self, obj: Any, context: Any, path: str) -> Any:
        del context, path
        values = {}
        for name, number in obj.items():
            if name in self._kinds:
                try:
                    values[name] = self._kinds[name](number)
                except ValueError:
                    raise invalid(f"has {number} in {name}, which no name stands for") from None
            elif number and not name.startswith("_io"):
                raise invalid("has reserved bits that are not 0")
        return self._model(**values)

    def _encode(self, obj: Any, context: Any, path: str) -> dict[str, int]:
        del context, path
        reserved = {sub.name: 0 for sub in self.subcon_bits() if sub.name not in self._kinds}
        return reserved | {name: int(getattr(obj, name)) for name in self._kinds}

    def subcon_bits(self) -> list[construct.Construct]:
        """Return the constructs of the bits, in their order."""
        inner: Any = self.subcon
        while not hasattr(inner, "subcons"):
            inner = inner.subcon
        return list(inner.subcons)


class PaddedText(construct.Adapter):
    """Text, and bytes that fill up the rest."""

    def __init__(
        self, octets: construct.Construct, size: int | None, charset: Charset, padding: int
    ) -> None:
        super().__init__(octets)
        self._size, self._charset, self._padding = size, charset, bytes((padding,))

    def _decode(self, obj: bytes, context: Any, path: str) -> str:
        del context, path
        octets = bytes(obj) if self._size is None else self._without_padding(bytes(obj))
        try:
            text = octets.decode(self._charset.value)
        except UnicodeDecodeError:
            raise invalid(f"is not {self._charset.value} text") from None
        if self._encode(text, None, "") != obj:
            raise invalid("does not end as its padding says")
        return text

    def _without_padding(self, octets: bytes) -> bytes:
        width = len("x".encode(self._charset.value))
        end = len(octets)
        while end >= width and octets[end - width : end] == self._padding * width:
            end -= width
        return octets[:end]

    def _encode(self, obj: str, context: Any, path: str) -> bytes:
        del context, path
        try:
            octets = obj.encode(self._charset.value)
        except UnicodeEncodeError as error:
            raise invalid(
                f"{obj[error.start]!r} is not a character of {self._charset.value}"
            ) from None
        if self._size is None:
            return octets
        if len(octets) > self._size:
            raise invalid(f"takes {len(octets)} bytes, and there are {self._size}")
        if octets.endswith(self._padding) and len(octets) <= self._size:
            raise invalid("ends with the byte that fills up the rest, which would be cut off")
        return octets.ljust(self._size, self._padding)


class UuidOctets(construct.Adapter):
    """The bytes of a UUID, in the order of its text."""

    def __init__(self, form: UuidForm) -> None:
        super().__init__(construct.Bytes(16))
        self._is_mixed = form is UuidForm.MICROSOFT

    def _decode(self, obj: bytes, context: Any, path: str) -> bytes:
        del context, path
        if not self._is_mixed:
            return obj
        return obj[3::-1] + obj[5:3:-1] + obj[7:5:-1] + obj[8:]

    def _encode(self, obj: bytes, context: Any, path: str) -> bytes:
        return self._decode(obj, context, path)  # it is its own reverse


class Digits(construct.Adapter):
    """Binary-coded decimals, as text."""

    def _decode(self, obj: bytes, context: Any, path: str) -> str:
        del context, path
        digits = bytes(obj).hex()
        if not digits.isdecimal():
            raise invalid(f"is {digits}, which has other than decimal digits")
        return digits

    def _encode(self, obj: str, context: Any, path: str) -> bytes:
        del context, path
        return bytes.fromhex(obj)


class DateText(construct.Adapter):
    """A date, as ISO 8601 has it, or None."""

    def __init__(self, form: DateForm, order: ByteOrder, unset: int) -> None:
        super().__init__(construct.Bytes(date_size(form)))
        self._form, self._order = form, order
        self._unset = bytes((unset,)) * date_size(form)

    def _decode(self, obj: bytes, context: Any, path: str) -> str | None:
        octets = bytes(obj)
        if octets == self._unset:
            return None
        message = f"is {octets.hex()}, which is not a date"
        try:
            text = self._text(octets)
            again = self._encode(text, context, path)
        except (ValueError, OverflowError, construct.ValidationError):
            raise invalid(message) from None
        if again != octets:
            raise invalid(message)
        return text

    def _text(self, octets: bytes) -> str:
        if self._form is DateForm.UNIX:
            moment = dt.datetime.fromtimestamp(self._number(octets), dt.UTC)
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        if self._form is DateForm.FRU_MINUTES:
            moment = _FRU_EPOCH + dt.timedelta(minutes=self._number(octets))
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        pattern = _BCD_DATES.get(self._form) or _ASCII_DATES[self._form]
        digits = octets.hex() if self._form in _BCD_DATES else octets.decode("ascii")
        parts = {letter: int(_part(digits, pattern, letter)) for letter in set(pattern)}
        year = parts["y"] + (0 if pattern.count("y") == 4 else _CENTURY)
        return (
            f"{year:04}-W{parts['w']:02}"
            if "w" in parts
            else (f"{year:04}-{parts['m']:02}-{parts['d']:02}")
        )

    def _number(self, octets: bytes) -> int:
        return int.from_bytes(octets, self._order.value)

    def _encode(self, obj: str | None, context: Any, path: str) -> bytes:
        del context, path
        if obj is None:
            return self._unset
        try:
            made = self._octets(obj)
        except (ValueError, OverflowError):
            raise invalid(f"{obj} is not a date that {self._form.value} can hold") from None
        if made == self._unset:
            raise invalid(f"{obj} would be read as no date")
        return made

    def _octets(self, text: str) -> bytes:
        if self._form in (DateForm.UNIX, DateForm.FRU_MINUTES):
            moment = dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)
            if self._form is DateForm.UNIX:
                number, rest = int(moment.timestamp()), 0
            else:
                number, rest = divmod(int((moment - _FRU_EPOCH).total_seconds()), 60)
            if rest:
                raise ValueError("it has seconds")
            return number.to_bytes(date_size(self._form), self._order.value)
        pattern = _BCD_DATES.get(self._form) or _ASCII_DATES[self._form]
        year, values = _calendar(text, "w" in pattern)
        if "yyyy" not in pattern:
            if not _CENTURY <= year < _CENTURY + 100:
                raise ValueError("it is in another century")
            year -= _CENTURY
        values["y"] = f"{year:0{pattern.count('y')}}"
        digits = "".join(values[letter] for letter in dict.fromkeys(pattern))
        return bytes.fromhex(digits) if self._form in _BCD_DATES else digits.encode("ascii")


def date_size(form: DateForm) -> int:
    """Return the bytes that a date takes."""
    if form in _BCD_DATES:
        return len(_BCD_DATES[form]) // 2
    return len(_ASCII_DATES[form]) if form in _ASCII_DATES else {"unix": 4}.get(form.value, 3)


def _part(digits: str, pattern: str, letter: str) -> str:
    part = digits[pattern.index(letter) : pattern.rindex(letter) + 1]
    if not part.isdecimal() or not part.isascii():
        raise ValueError("it has other than digits")
    return part


def _calendar(text: str, has_week: bool) -> tuple[int, dict[str, str]]:
    """Return the year, and the other parts as two digits each."""
    if has_week:
        year, separator, week = text.partition("-W")
        if not separator or len(week) != 2 or not 1 <= int(week) <= _LAST_WEEK:
            raise ValueError("it is not a week")
        return int(year), {"w": week}
    day = dt.date.fromisoformat(text)
    return day.year, {"m": f"{day.month:02}", "d": f"{day.day:02}"}
