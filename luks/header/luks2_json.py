"""The text of LUKS2's JSON area, and typed access to its content.

The standard library's `json` reads it, with two restrictions that the format requires and
`json` does not impose: no duplicate members, and bounded nesting (spec/decisions/0003). What
cryptsetup keeps of any token survives a rewrite as it is: NaN, numbers beyond a double's
range, and bytes that are not UTF-8, which are lone surrogates here, as in file names.

Source: LUKS2 On-Disk Format Specification 1.1, section 3.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from luks.errors import LuksHeaderError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Largest number of levels in the text, as in json-c. The content of an object or array,
#: including numbers and strings, is one level below it.
MAX_DEPTH: Final = 32
#: Largest number of levels in a token, which lies two levels deep in the metadata.
TOKEN_DEPTH: Final = MAX_DEPTH - 2

_MAX_UINT64: Final = 2**64 - 1
_DIGITS: Final = frozenset("0123456789")

# Escapes of JSON; `lone` is one that would stand for a byte that is not UTF-8.
_ESCAPE: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<lone>\\u[dD][cC][89a-fA-F][0-9a-fA-F])|\\.",
    re.DOTALL,
)
# Lone surrogates that do not stand for bytes: only an escape can express them.
_SURROGATE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class Number(float):
    """A number that is not an integer, or none at all, with the text that it is written as."""

    def __init__(self, text: str) -> None:
        """Take ``text``, such as ``1e400`` or ``NaN``, of which this is the value."""
        self.text = text

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Number) else super().__eq__(other)

    def __hash__(self) -> int:
        return super().__hash__()


def parse_area(area: bytes) -> dict[str, Any]:
    """Return the object that a JSON area holds.

    Args:
        area: The whole area: text, then NULs up to its end.

    Raises:
        LuksHeaderError: It does not hold such an object.
    """
    end = area.find(b"\0")
    if end < 0 or area.count(0, end) != len(area) - end:
        raise LuksHeaderError("the JSON text is not followed by zeros only", rule="L23")
    root = parse_object(area[:end])
    if is_deeper(root, MAX_DEPTH):
        raise LuksHeaderError(f"the JSON text has more than {MAX_DEPTH} levels", rule="L23")
    return root


def parse_object(text: bytes) -> dict[str, Any]:
    """Return the object in a JSON text, if a header can hold it.

    Raises:
        LuksHeaderError: It is not such an object.
    """
    if b"\0" in text:
        raise LuksHeaderError("the JSON text contains NUL", rule="L23")
    if not text.startswith(b"{"):
        raise LuksHeaderError("the JSON text does not begin with '{'", rule="L23")
    try:
        root = json.loads(
            _ESCAPE.sub(_no_byte, text.decode(errors="surrogateescape")),
            object_pairs_hook=_object,
            parse_constant=Number,
            parse_float=Number,
        )
    except (ValueError, RecursionError) as error:
        # The parser's own message would quote the text, which may contain secrets.
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise LuksHeaderError(f"the JSON text cannot be parsed{place}", rule="L23") from None
    value: dict[str, Any] = root
    return value


def format_area(root: dict[str, Any], size: int) -> bytes:
    """Return the JSON area of ``size`` bytes that holds ``root``.

    Raises:
        LuksHeaderError: It does not fit with a final NUL.
    """
    text = format_object(root)
    if len(text) >= size:
        raise LuksHeaderError(
            f"metadata of {len(text)} bytes do not fit into a JSON area of {size}", rule="L23"
        )
    return text.ljust(size, b"\0")


def format_object(value: Mapping[str, Any]) -> bytes:
    """Return the JSON text of an object, without white space; inverse of `parse_object`.

    Raises:
        ValueError, TypeError: It has a value that no JSON text expresses.
    """
    text = _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", _text(value))
    return text.encode(errors="surrogateescape")


def _text(value: object) -> str:
    """Return a value as text; `json` would not keep that of a number."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, Mapping):
        members = (f"{_text(str(name))}:{_text(member)}" for name, member in value.items())
        return f"{{{','.join(members)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _no_byte(match: re.Match[str]) -> str:
    """Replace what would be written as a byte by what json-c takes such an escape for."""
    return r"\ufffd" if match["lone"] else match[0]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise LuksHeaderError("the JSON text has a duplicate member", rule="L23")
    return value


def is_deeper(value: object, levels: int) -> bool:
    """Say whether a value has more than ``levels`` levels; a number or string has one."""
    level: list[Any] = [value]
    for _ in range(levels):
        level = [
            child
            for value in level
            if isinstance(value, dict | list | tuple)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True


class Node(NamedTuple):
    """A JSON object with its place for messages; every getter checks the type.

    Attributes:
        value: The object.
        place: Such as ``"keyslot 3"``.
    """

    value: dict[str, Any]
    place: str

    def has(self, name: str) -> bool:
        """Say whether the object has this member."""
        return name in self.value

    def text(self, name: str) -> str:
        """Return a string that is not empty."""
        value = self.value.get(name)
        if not isinstance(value, str) or not value:
            raise self._wrong(name, "a string that is not empty")
        return value

    def integer(self, name: str, minimum: int = 0, maximum: int = _MAX_UINT64) -> int:
        """Return a whole number within bounds."""
        value = self.any_integer(name)
        if not minimum <= value <= maximum:
            raise self._wrong(name, f"an integer from {minimum} to {maximum}")
        return value

    def any_integer(self, name: str) -> int:
        """Return a whole number."""
        value = self.value.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, "an integer")
        return value

    def uint64(self, name: str) -> int:
        """Return a 64-bit number, which LUKS2 stores as a string of decimal digits."""
        text = self.text(name)
        if not 0 < len(text) <= 20 or not _DIGITS.issuperset(text) or int(text) > _MAX_UINT64:
            raise self._wrong(name, "a 64-bit number as a decimal string")
        return int(text)

    def base64(self, name: str) -> bytes:
        """Return the bytes that a string encodes."""
        try:
            return binascii.a2b_base64(self.text(name), strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise self._wrong(name, "base64") from error

    def child(self, name: str) -> Node:
        """Return an object."""
        value = self.value.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Node(value, f"{self.place}.{name}")

    def words(self, name: str) -> tuple[str, ...]:
        """Return an array of strings."""
        value = self.value.get(name)
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self._wrong(name, "an array of strings")
        return tuple(value)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return an array of object numbers, which LUKS2 stores as strings."""
        return tuple(self._number(word) for word in self.words(name))

    def numbered(self, name: str, what: str) -> Iterator[tuple[int, Node]]:
        """Yield the members of an object that are numbered objects.

        Args:
            name: Such as ``"keyslots"``.
            what: The word for one of them in messages, such as ``"keyslot"``.
        """
        for key, value in self.child(name).value.items():
            number = self._number(key)
            if not isinstance(value, dict):
                raise LuksHeaderError(f"{what} {number} is not an object", rule="L24")
            yield number, Node(value, f"{what} {number}")

    def _number(self, text: str) -> int:
        # "00" or "+0" would be a second name for the same object.
        if len(text) > 3 or not text or not _DIGITS.issuperset(text) or str(int(text)) != text:
            raise LuksHeaderError(
                f"{self.place} refers to the invalid number {text[:16]!r}", rule="L24"
            )
        return int(text)

    def _wrong(self, name: str, expected: str) -> LuksHeaderError:
        found = "is not" if name in self.value else "is missing; it should be"
        return LuksHeaderError(f"{self.place}: {name!r} {found} {expected}", rule="L24")
