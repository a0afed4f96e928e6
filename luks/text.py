"""Text in fixed fields of binary headers: UTF-8, ended by NUL unless it fills them."""

from __future__ import annotations


def decode_field(field: bytes) -> str:
    """Return a field's text for people; what is no UTF-8 becomes U+FFFD."""
    return field.partition(b"\0")[0].decode(errors="replace")


def encode_field(text: str, size: int, *, unchanged: bytes | None = None) -> bytes:
    """Return ``text`` as a field of ``size`` bytes.

    Args:
        text: Without NUL, and leaving room for one.
        size: Bytes of the field.
        unchanged: The field that ``text`` may have been decoded from: if it
            was, that is returned, so that odd bytes survive a rewrite.

    Raises:
        ValueError: The text contains NUL or is too long.
    """
    if unchanged is not None and decode_field(unchanged) == text:
        return unchanged
    data = text.encode()
    if b"\0" in data or len(data) >= size:
        raise ValueError(f"{text!r} does not fit into {size - 1} bytes of UTF-8 without NUL")
    return data.ljust(size, b"\0")
