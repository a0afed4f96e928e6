"""Text in IPMI FRU areas: a type/length byte, and one of four encodings (E-FRU5, E-FRU6)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from formats.errors import FieldError

if TYPE_CHECKING:
    from formats.eeprom.framework.codec import Findings

#: The byte that ends the fields of an area.
END_OF_FIELDS: Final = 0xC1
#: The largest number of bytes in a field.
MAX_SIZE: Final = 63

_BINARY, _BCD_PLUS, _SIX_BIT, _TEXT = range(4)
_BCD_CHARACTERS: Final = "0123456789 -."
_FIRST_SIX_BIT: Final = 0x20
_SIX_BIT_TEXT: Final = "^[ -_]*$"


@dataclass(frozen=True, slots=True, kw_only=True)
class BcdPlus:
    """Digits, spaces, hyphens and points, two in a byte."""

    text: Annotated[str, Meta(pattern=r"^(?:[0-9 .-]{2})*$", max_length=2 * MAX_SIZE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SixBit:
    """Characters from space to underscore, capital letters only, four in three bytes.

    Where plain text is in ISO 8859-1, one character needs no `SixBit`: it is stored so.
    """

    text: Annotated[str, Meta(pattern=_SIX_BIT_TEXT, max_length=MAX_SIZE * 8 // 6)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """Bytes."""

    data: Annotated[bytes, Meta(max_length=MAX_SIZE)] = b""


#: A field. Plain text is in ISO 8859-1 or, depending on the area's language, in UTF-16.
Text = Annotated[str, Meta(max_length=MAX_SIZE)] | BcdPlus | SixBit | Binary


def encode_text(text: Text, path: str, *, is_unicode: bool = False) -> bytes:
    """Return a field with its type/length byte.

    Args:
        text: The field.
        path: Of the field, for messages.
        is_unicode: Whether plain text is in UTF-16 here.

    Raises:
        FieldError: It cannot be written.
    """
    if isinstance(text, Binary):
        kind, content = _BINARY, text.data
    elif isinstance(text, BcdPlus):
        kind, content = _BCD_PLUS, _encode_bcd(text.text)
    elif isinstance(text, SixBit):
        kind, content = _SIX_BIT, _encode_six_bit(text.text, path)
    else:
        kind, content = _TEXT, _encode_plain(text, path, is_unicode=is_unicode)
    if kind == _SIX_BIT and len(content) == 1 and not is_unicode:
        raise FieldError(path, "has one character: give it as plain text, which is stored so")
    if kind == _TEXT and len(content) == 1 and re.search(_SIX_BIT_TEXT, str(text)):
        # The length byte of one character of text would end all fields.
        kind, content = _SIX_BIT, _encode_six_bit(str(text), path)
    if len(content) > MAX_SIZE:
        raise FieldError(path, f"needs {len(content)} bytes, but at most {MAX_SIZE} are possible")
    if kind == _TEXT and len(content) == 1:
        raise FieldError(
            path,
            "has one character, and its length byte would end all fields",
            hint="write it as a capital letter, or add a space"
            ', or give it as { kind = "binary", data = … }',
        )
    return bytes((kind << 6 | len(content),)) + content


def decode_text(
    kind: int, content: bytes, offset: int, report: Findings, *, is_unicode: bool = False
) -> Text:
    """Return the field with a type, which is in the upper two bits of its type/length byte."""
    if kind == _BINARY:
        return Binary(data=content)
    if kind == _BCD_PLUS:
        digits = [digit for byte in content for digit in divmod(byte, 16)]
        if any(digit >= len(_BCD_CHARACTERS) for digit in digits):
            report.problem(offset, "E-FRU5", "a text is not valid BCD plus")
            return Binary(data=content)
        return BcdPlus(text="".join(_BCD_CHARACTERS[digit] for digit in digits))
    if kind == _SIX_BIT:
        number, count = int.from_bytes(content, "little"), len(content) * 8 // 6
        if number >> 6 * count:
            report.problem(offset, "E-FRU5", "there are bits after the last character")
        codes = (number >> 6 * index & 0x3F for index in range(count))
        text = "".join(chr(_FIRST_SIX_BIT + code) for code in codes)
        return text if len(text) == 1 and not is_unicode else SixBit(text=text)
    if not is_unicode:
        return content.decode("latin-1")
    try:
        return content.decode("utf-16-le")
    except UnicodeDecodeError:
        report.problem(offset, "E-FRU6", "a text is not valid UTF-16")
        return content.decode("latin-1")


def _encode_bcd(text: str) -> bytes:
    digits = [_BCD_CHARACTERS.index(character) for character in text]
    return bytes(high << 4 | low for high, low in zip(digits[::2], digits[1::2], strict=True))


def _encode_six_bit(text: str, path: str) -> bytes:
    size = -(-len(text) * 6 // 8)
    if size * 8 // 6 != len(text):
        raise FieldError(
            path, f"has {len(text)} characters, but six-bit text needs one more space: add it"
        )
    number = 0
    for index, character in enumerate(text):
        number |= (ord(character) - _FIRST_SIX_BIT) << 6 * index
    return number.to_bytes(size, "little")


def _encode_plain(text: str, path: str, *, is_unicode: bool) -> bytes:
    try:
        return text.encode("utf-16-le" if is_unicode else "latin-1")
    except UnicodeEncodeError as error:
        alphabet = "UTF-16" if is_unicode else "ISO 8859-1, which this language uses"
        raise FieldError(path, f"{text[error.start]!r} is not a character of {alphabet}") from None
