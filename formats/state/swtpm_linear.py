"""swtpm's linear file: a table, and after it several states of one TPM (F14, F15).

The rules are those of ``spec/foreign-state.md``.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from formats.errors import EmptyImageError, ForeignImageError, FormatError, TruncatedImageError
from formats.state.swtpm import Slot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from formats.devices.device import ReadableBuffer

#: What a linear file starts with.
MAGIC: Final = b"nilmptws"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sBxH")  # magic, version, header size
_PLACE: Final = struct.Struct("<III")  # offset, size of the state, size of the place
_SLOTS: Final = 15

HEADER_SIZE: Final = 192


def decode_linear(content: ReadableBuffer) -> dict[Slot, bytes]:
    """Return the states in a linear file, as they lie there (F14).

    Raises:
        EmptyImageError: It has no bytes, or no states.
        ForeignImageError: It is something else.
        TruncatedImageError: It ends too early.
        FormatError: Its table breaks a rule.
    """
    content = bytes(content)
    if not content.strip(b"\0"):
        raise EmptyImageError("the file of TPM states is empty", rule="F14")
    if content[:8] != MAGIC:
        raise ForeignImageError("the file is not a linear file of swtpm's", offset=0, rule="F14")
    if len(content) < HEADER_SIZE:
        raise TruncatedImageError("a linear file ends inside its header", rule="F14")
    _, version, header_size = _HEADER.unpack_from(content)
    if (version, header_size) != (_VERSION, HEADER_SIZE):
        raise FormatError(
            f"a linear file of version {version} with a header of {header_size} bytes",
            offset=8,
            rule="F14",
        )
    states: dict[Slot, bytes] = {}
    taken: list[tuple[int, int]] = [(0, HEADER_SIZE)]
    for number in range(_SLOTS):
        where = _HEADER.size + number * _PLACE.size
        offset, size, place = _PLACE.unpack_from(content, where)
        if not (offset or size or place):
            continue
        if number not in list(Slot):
            raise FormatError(f"slot {number} is in use", offset=where, rule="F14")
        if not 0 < size <= place:
            raise FormatError(
                f"slot {number} has {size} bytes in a place of {place}", offset=where, rule="F14"
            )
        if offset + place > len(content):
            raise TruncatedImageError(
                f"a linear file of {len(content)} bytes ends before slot {number} does, at byte "
                f"{offset + place}",
                rule="F14",
            )
        taken.append((offset, offset + place))
        states[Slot(number)] = content[offset : offset + size]
    taken.sort()
    for (_, end), (start, _) in pairwise(taken):
        if start < end:
            raise FormatError("places in a linear file overlap", offset=start, rule="F14")
    if not states:
        raise EmptyImageError("the linear file has no states", rule="F14")
    return states


def encode_linear(states: Mapping[Slot, bytes]) -> bytes:
    """Return a linear file of these states, none of them empty (F15)."""
    header = bytearray(HEADER_SIZE)
    _HEADER.pack_into(header, 0, MAGIC, _VERSION, HEADER_SIZE)
    body = bytearray()
    for slot in sorted(states):
        state = states[slot]
        place = 1 << (len(state) - 1).bit_length()
        at = _HEADER.size + slot * _PLACE.size
        _PLACE.pack_into(header, at, HEADER_SIZE + len(body), len(state), place)
        body += state + bytes(place - len(state))
    return bytes(header + body)
