"""Text in fixed fields of binary headers: UTF-8, ended by NUL unless it fills them."""

from __future__ import annotations

from formats.errors import ArgumentError


def decode_field(field: bytes) -> str:
    """Return a field's text for display; bytes that are not UTF-8 become U+FFFD."""
    return field.partition(b"\0")[0].decode(errors="replace")


def encode_field(text: str, size: int, *, unchanged: bytes | None = None) -> bytes:
    """Return ``text`` as a field of ``size`` bytes.

    Args:
        text: Without NUL, and leaving room for one.
        size: Bytes of the field.
        unchanged: The field that ``text`` may have been decoded from. If so, it is
            returned, so that invalid bytes survive a rewrite.

    Raises:
        ArgumentError: The text contains NUL, is too long, or cannot be encoded.
    """
    if unchanged is not None and decode_field(unchanged) == text:
        return unchanged
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{text!r} is not valid Unicode text") from None
    if b"\0" in data or len(data) >= size:
        raise ArgumentError(f"{text!r} does not fit into {size - 1} bytes of UTF-8 without NUL")
    return data.ljust(size, b"\0")


def normal_uuid(text: str) -> str:
    """Return a UUID in its usual form.

    Raises:
        ArgumentError: It is not a UUID in any notation.
    """
    from uuid import UUID  # noqa: PLC0415  2 ms that few need

    try:
        return str(UUID(text))
    except ValueError:
        raise ArgumentError(f"{text!r} is not a UUID") from None
