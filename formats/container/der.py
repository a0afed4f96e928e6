"""DER, strictly: just enough to write the container and to refuse what is not DER.

A `Reader` accepts exactly one encoding of each value: definite minimal lengths,
minimal INTEGERs, BOOLEAN 00 or FF. The values it accepts are therefore canonical
by construction. Unlike general decoders it can read the framing of a value whose
content lies outside the bytes at hand (`read_framing`).

Source: ITU-T X.690 (2021), sections 8 and 10.
"""

from __future__ import annotations

from typing import NoReturn

from formats.errors import FormatError

BOOLEAN, INTEGER, OCTET_STRING, NULL = 0x01, 0x02, 0x04, 0x05
ENUMERATED, UTF8_STRING, SEQUENCE = 0x0A, 0x0C, 0x30

#: Longest content that a length field may announce, in bytes.
MAX_LENGTH = (1 << 63) - 1


def framing(tag: int, length: int) -> bytes:
    """Return tag and length octets for ``length`` bytes of content."""
    if length < 0x80:
        return bytes((tag, length))
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets


def framing_of_total(tag: int, total: int) -> bytes:
    """Return the tag and length octets of a value of ``total`` bytes in all.

    Raises:
        ValueError: No value can have that size: 0, 1, 130, 259, 65540, ... bytes.
    """
    for octets in (2, 3, 4, 5, 6, 7, 8, 9, 10):
        head = framing(tag, max(0, total - octets))
        if len(head) == octets <= total:
            return head
    raise ValueError(f"no DER value is {total} bytes long")


def encode(tag: int, content: bytes) -> bytes:
    """Return the encoding of one value."""
    return framing(tag, len(content)) + content


def encode_integer(value: int) -> bytes:
    """Return an INTEGER; ``value`` must not be negative."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def read_framing(data: bytes, position: int) -> tuple[int, int, int]:
    """Read tag and length at ``position``; the content may lie outside ``data``.

    Returns:
        The tag, the position of the content, and its length in bytes.

    Raises:
        FormatError: The framing is truncated, has a tag above 30, is indefinite or is
            not minimal.
    """
    if position + 2 > len(data):
        _fail("truncated tag or length", position)
    tag, length = data[position], data[position + 1]
    if tag & 0x1F == 0x1F:
        _fail("multi-byte tag", position)
    position += 2
    if length < 0x80:
        return tag, position, length
    count = length & 0x7F
    if not 1 <= count <= 8 or position + count > len(data):
        _fail("indefinite, oversized or truncated length", position)
    length = int.from_bytes(data[position : position + count], "big")
    if length < 0x80 or length >> 8 * (count - 1) == 0:
        _fail("length is not minimal", position)
    if length > MAX_LENGTH:
        _fail("length is out of bounds", position)
    return tag, position + count, length


class Reader:
    """Reads the values in ``data[position:end]`` one after the other.

    Every method raises `FormatError` if the next value is not the expected one, and
    otherwise moves past it.
    """

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes, position: int = 0, end: int | None = None) -> None:
        self.data = data
        self.position = position
        self.end = len(data) if end is None else end

    def content(self, tag: int) -> bytes:
        """Return the content of the next value, which has this tag."""
        start, stop = self._span(tag)
        return self.data[start:stop]

    def enter(self, tag: int) -> Reader:
        """Return a reader of the content of the next value, which has this tag."""
        start, stop = self._span(tag)
        return Reader(self.data, start, stop)

    def octets(self, size: int) -> bytes:
        """Return the content of an OCTET STRING of ``size`` bytes."""
        content = self.content(OCTET_STRING)
        if len(content) != size:
            self._fail(f"OCTET STRING of {len(content)} bytes instead of {size}")
        return content

    def integer(self, lowest: int, highest: int, *, tag: int = INTEGER) -> int:
        """Return an INTEGER (or ENUMERATED, by ``tag``) within bounds."""
        content = self.content(tag)
        if not content or (len(content) > 1 and (content[0] == 0 and content[1] < 0x80)):
            self._fail("INTEGER is empty or not minimal")
        value = int.from_bytes(content, "big", signed=True)
        if len(content) > 1 and content[0] == 0xFF and content[1] >= 0x80:
            self._fail("INTEGER is not minimal")
        if not lowest <= value <= highest:
            self._fail(f"INTEGER {value} is not within {lowest} to {highest}")
        return value

    def boolean(self) -> bool:
        """Return a BOOLEAN."""
        content = self.content(BOOLEAN)
        if content not in (b"\x00", b"\xff"):
            self._fail("BOOLEAN is neither 00 nor FF")
        return content == b"\xff"

    def utf8(self) -> str:
        """Return a UTF8String."""
        content = self.content(UTF8_STRING)
        try:
            return content.decode()
        except UnicodeDecodeError:
            self._fail("UTF8String is not UTF-8")

    def next_tag(self) -> int:
        """Return the tag of the next value without moving, or -1 at the end."""
        return self.data[self.position] if self.position < self.end else -1

    def finish(self) -> None:
        """Check that nothing is left."""
        if self.position != self.end:
            self._fail(f"{self.end - self.position} bytes follow the last value")

    def _span(self, tag: int) -> tuple[int, int]:
        found, start, length = read_framing(self.data, self.position)
        if found != tag:
            self._fail(f"tag {found:02x} instead of {tag:02x}")
        stop = start + length
        if stop > self.end:
            self._fail(f"a value of {length} bytes does not fit into the one that holds it")
        self.position = stop
        return start, stop

    def _fail(self, message: str) -> NoReturn:
        _fail(message, self.position)


def _fail(message: str, position: int) -> NoReturn:
    raise FormatError(f"the container's DER is not valid: {message}", offset=position, rule="C1")
