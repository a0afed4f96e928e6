"""The strict DER reader takes one encoding of each value (C1)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats import der
from formats.errors import FormatError


@given(st.integers(0, 1 << 70))
def test_c1_an_integer_reads_back(value: int) -> None:
    assert der.Reader(der.encode_integer(value)).integer(0, 1 << 70) == value


@given(st.sampled_from([der.OCTET_STRING, der.SEQUENCE, 0xA1]), st.binary(max_size=70_000))
def test_c1_a_value_reads_back(tag: int, content: bytes) -> None:
    reader = der.Reader(der.encode(tag, content))
    assert reader.content(tag) == content
    reader.finish()


@pytest.mark.parametrize(
    ("encoding", "read"),
    [
        ("048001000000", lambda r: r.content(der.OCTET_STRING)),  # indefinite length
        ("04810100", lambda r: r.content(der.OCTET_STRING)),  # length not minimal
        ("0482000100", lambda r: r.content(der.OCTET_STRING)),
        ("0489000000000000000001" + "00", lambda r: r.content(der.OCTET_STRING)),
        ("0488ffffffffffffffff", lambda r: r.content(der.OCTET_STRING)),
        ("0402", lambda r: r.content(der.OCTET_STRING)),  # truncated content
        ("04", lambda r: r.content(der.OCTET_STRING)),
        ("", lambda r: r.content(der.OCTET_STRING)),
        ("1f8101" + "00", lambda r: r.content(0x1F)),  # multi-byte tag
        ("0500", lambda r: r.content(der.OCTET_STRING)),  # another tag
        ("020200" + "7f", lambda r: r.integer(0, 255)),  # INTEGER not minimal
        ("0202ff80", lambda r: r.integer(-500, 255)),
        ("0200", lambda r: r.integer(0, 255)),  # INTEGER without content
        ("0201ff", lambda r: r.integer(0, 255)),  # negative
        ("02020100", lambda r: r.integer(0, 255)),  # too large
        ("010101", lambda r: r.boolean()),  # BOOLEAN 01
        ("01020000", lambda r: r.boolean()),
        ("0c01ff", lambda r: r.utf8()),
        ("040100", lambda r: r.octets(2)),
        ("0500", lambda r: r.finish()),  # something left
    ],
)
def test_c1_other_encodings_are_refused(encoding: str, read: object) -> None:
    assert callable(read)
    with pytest.raises(FormatError, match="C1"):
        read(der.Reader(bytes.fromhex(encoding)))


@given(st.integers(2, 1 << 40))
def test_framing_of_total_meets_every_total_but_the_gaps(total: int) -> None:
    gaps = {130} | {256**k + k + 2 for k in range(1, 6)}
    if total in gaps:
        with pytest.raises(ValueError, match="no DER value"):
            der.framing_of_total(der.OCTET_STRING, total)
        return
    head = der.framing_of_total(der.OCTET_STRING, total)
    tag, start, size = der.read_framing(head, 0)
    assert (tag, start, start + size) == (der.OCTET_STRING, len(head), total)


@pytest.mark.parametrize("total", [130, *(256**k + k + 2 for k in range(1, 8))])
def test_c4_no_whole_block_is_a_gap(total: int) -> None:
    with pytest.raises(ValueError, match="no DER value"):
        der.framing_of_total(der.OCTET_STRING, total)
    assert total % 512


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(FormatError):
        der.Reader(data).boolean()
    with suppress(FormatError):
        der.Reader(data).utf8()
    with suppress(FormatError):
        der.Reader(data).integer(0, 9)
