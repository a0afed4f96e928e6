"""The strict DER reader takes one encoding of each value (C1)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.container import der
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


@pytest.mark.parametrize(
    "length",
    [
        "80",  # indefinite, and not 0x80 bytes
        "8100",
        "817f",  # what fits into one octet stands in one
        "820080",
        "8200ff",  # the first octet is zero
        "84000000ff",
        "880000000000000080",
        "89000000000000000080",  # more octets than any size needs
        "ff",
    ],
)
def test_c1_a_length_has_one_form_whatever_follows(length: str) -> None:
    """With enough bytes after it for whatever a lax reader takes it for."""
    data = bytes.fromhex("04" + length) + bytes(300)
    with pytest.raises(FormatError, match="C1"):
        der.read_framing(data, 0)
    with pytest.raises(FormatError, match="C1"):
        der.Reader(data).content(der.OCTET_STRING)


@pytest.mark.parametrize("octets", range(1, 9))
def test_c1_the_octets_of_a_length_are_all_there(octets: int) -> None:
    head = der.framing(der.OCTET_STRING, (0x7F << 8 * (octets - 1)) | 0x80)
    assert len(head) == 2 + octets
    for end in range(len(head)):
        with pytest.raises(FormatError, match="truncated"):
            der.read_framing(bytes(5) + head[:end], 5)
    assert der.read_framing(bytes(5) + head, 5) == (
        der.OCTET_STRING,
        5 + len(head),
        (0x7F << 8 * (octets - 1)) | 0x80,
    )


def test_c1_the_longest_length() -> None:
    assert der.read_framing(bytes.fromhex("04887fffffffffffffff"), 0) == (4, 10, (1 << 63) - 1)
    for length in ("8000000000000000", "ffffffffffffffff"):
        with pytest.raises(FormatError, match="out of bounds"):
            der.read_framing(bytes.fromhex("0488" + length), 0)


@pytest.mark.parametrize("tag", range(256))
def test_c1_tags_of_one_byte_are_read(tag: int) -> None:
    encoding = bytes((tag, 1, 7))
    if tag & 0x1F == 0x1F:
        with pytest.raises(FormatError, match="multi-byte tag"):
            der.read_framing(encoding, 0)
    else:
        assert der.read_framing(encoding, 0) == (tag, 2, 1)


def test_the_tags_are_those_of_x680() -> None:
    names = ("BOOLEAN", "INTEGER", "OCTET_STRING", "NULL", "ENUMERATED", "UTF8_STRING", "SEQUENCE")
    assert [getattr(der, name) for name in names] == [1, 2, 4, 5, 10, 12, 0x30]


def test_a_reader_goes_from_value_to_value_and_no_further() -> None:
    inner = der.encode_integer(5) + der.encode(der.UTF8_STRING, b"name")
    data = der.encode(der.SEQUENCE, inner) + der.encode(der.OCTET_STRING, b"abc") + b"more"
    reader = der.Reader(data, 0, len(data) - 4)
    assert reader.next_tag() == der.SEQUENCE
    sequence = reader.enter(der.SEQUENCE)
    assert reader.next_tag() == der.OCTET_STRING
    assert sequence.next_tag() == der.INTEGER
    assert (sequence.integer(5, 5), sequence.utf8()) == (5, "name")
    sequence.finish()
    assert sequence.next_tag() == -1
    with pytest.raises(FormatError, match="does not fit into"):
        sequence.content(der.OCTET_STRING)
    assert reader.octets(3) == b"abc"
    reader.finish()
    assert reader.next_tag() == -1


@pytest.mark.parametrize(("content", "value"), [(b"\x00", False), (b"\xff", True)])
def test_c1_the_two_booleans(content: bytes, value: bool) -> None:
    assert der.Reader(der.encode(der.BOOLEAN, content)).boolean() is value


@pytest.mark.parametrize(("value", "taken"), [(2, False), (3, True), (9, True), (10, False)])
def test_c1_bounds_of_an_integer_are_within(value: int, taken: bool) -> None:
    for tag in (der.INTEGER, der.ENUMERATED):
        reader = der.Reader(der.encode(tag, bytes((value,))))
        if taken:
            assert reader.integer(3, 9, tag=tag) == value
        else:
            with pytest.raises(FormatError, match="is not within 3 to 9"):
                reader.integer(3, 9, tag=tag)


def test_c1_a_value_ends_within_what_holds_it() -> None:
    data = der.encode(der.SEQUENCE, bytes.fromhex("0402aa")) + b"bb"
    reader = der.Reader(data).enter(der.SEQUENCE)
    with pytest.raises(FormatError, match="does not fit into the one that holds it"):
        reader.content(der.OCTET_STRING)


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
