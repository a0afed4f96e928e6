"""Bytes as people write them: hexadecimal, with what they put between the digits, and base64."""

from __future__ import annotations

import base64
import re
from typing import Final

_SEPARATORS: Final = re.compile(r"[\s:-]+")


def from_hex(text: str) -> bytes:
    """Return the bytes of hexadecimal text; spaces, colons and hyphens are left out.

    Raises:
        ValueError: It is something else.
    """
    digits = _SEPARATORS.sub("", text)
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise ValueError("is not hexadecimal text of whole bytes") from None


def from_base64(text: str) -> bytes:
    """Return the bytes of base64, which may have spaces and line ends in it.

    Raises:
        ValueError: It is something else.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise ValueError("is not base64") from None
