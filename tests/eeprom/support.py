"""What every codec has to hold (E1, E3, E5)."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st

from formats.eeprom.framework.codec import Codec, Findings
from formats.errors import FormatError, UnsupportedError

#: Text of which every character is a byte.
latin1 = st.text(st.characters(max_codepoint=0xFF))
fills = st.sampled_from([0x00, 0xFF, 0x20])


def tails(fill: int) -> st.SearchStrategy[bytes]:
    """Draw tails that do not end with the fill byte."""
    return st.binary(max_size=20).map(lambda tail: tail.rstrip(bytes((fill,))))


macs = st.binary(min_size=6, max_size=6).filter(lambda mac: any(mac) and not mac[0] & 1)


def with_tails(drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw models whose tail may stand in front of their fill byte."""
    return drawn.map(
        lambda model: dataclasses.replace(model, tail=model.tail.rstrip(bytes((model.fill,))))
    )


def check_model(codec: Codec[Any], model: Any, room: int = 16) -> bytes:
    """E3: a model that is encoded into a larger size is decoded to an equal one."""
    least = codec.encode(model, None)
    data = codec.encode(model, len(least) + room)
    assert len(data) == len(least) + room
    assert codec.decode(data, Findings.strict()) == model
    check_bytes(codec, data)
    return data


def check_bytes(codec: Codec[Any], data: bytes) -> Any:
    """E1, E3: bytes decode and encode to the same, or fail cleanly, tolerantly as well."""
    found = None
    with suppress(FormatError, UnsupportedError):
        found = codec.decode(data, Findings.strict())
    if found is not None:
        assert codec.encode(found, len(data)) == data
    tolerant = Findings.tolerant()
    with suppress(FormatError, UnsupportedError):
        shown = codec.decode(memoryview(data), tolerant)
        assert tolerant.problems or shown == found
    return found


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw damaged variants of some bytes: changed in some places, or cut."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        if changed:
            place = draw(st.integers(0, len(changed) - 1))
            changed[place] = draw(st.integers(0, 255))
    end = draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))
    return bytes(changed[:end])
