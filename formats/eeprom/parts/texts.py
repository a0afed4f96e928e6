"""Text and network addresses in fixed places, which several formats have."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

#: Printable ASCII. Python's ``$`` alone would let a final line feed pass.
PRINTABLE: Final = r"^[ -~]*$(?!\n)"
#: Characters that take one byte each (E6).
LATIN1: Final = r"^[\x00-\xff]*$"
#: The same without 00 at the end, which does not belong to the text.
LATIN1_WITHOUT_NUL: Final = r"^([\x00-\xff]*[\x01-\xff])?$(?!\n)"

#: Six bytes, in the order of the usual notation.
MacAddress = Annotated[
    bytes, Meta(min_length=6, max_length=6, description="a MAC address, such as 02:00:00:00:00:01")
]


def is_printable(octets: bytes) -> bool:
    """Say whether these are printable ASCII characters only."""
    return all(0x20 <= octet <= 0x7E for octet in octets)


def is_unicast(mac: bytes) -> bool:
    """Say whether a MAC address can belong to a device: it is neither zero nor a group's."""
    return any(mac) and not mac[0] & 1
