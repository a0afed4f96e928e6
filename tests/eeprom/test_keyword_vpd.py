"""E-KW: IBM's keyword VPD."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings
from formats.eeprom.keyword_vpd import CODEC, KeywordVpd
from formats.errors import FieldError, FormatError

from .support import check_bytes, check_model, damaged, fills, latin1, tails

# The keywords of openbmc/openpower-vpd-parser's test/keyword_vpd_parser_test/kw_vpd_test.cpp
# (Apache-2.0), which also says at which offsets of its vpd.dat the tags are.
KNOWN = KeywordVpd(
    identifier="x" * 16,
    keywords={
        "WI": "\x00",
        "FL": "P2   ",
        "SM": "\x82P2-D4      2SSC\x81P2-D5      2SSC\x80P2-D7      2SSC\x83P2-D8      2SSC",
        "B2": "P\x05\x07`s\x00r\x00\x00\x00\x00\x00\x00\x00\x01\x00",
        "MF": "\x00\x10",
        "VZ": "03",
        "PN": "01KU724",
        "FN": " 01KU724",
        "CE": "1",
        "SN": "YH30BG78B014",
        "CC": "2D37",
    },
)

names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=2, max_size=2)


@st.composite
def models(draw: st.DrawFn) -> KeywordVpd:
    fill = draw(fills)
    values = latin1.map(lambda text: text[:255])
    return KeywordVpd(
        identifier=draw(latin1),
        keywords=draw(st.dictionaries(names, values, min_size=1, max_size=5)),
        tail=draw(tails(fill)),
        fill=fill,
    )


def test_e_kw_tags_are_where_the_parser_of_openbmc_has_them() -> None:
    data = CODEC.encode(KNOWN, 256)
    assert (data[0], data[19], data[177], data[179]) == (0x82, 0x84, 0x79, 0x78)
    assert sum(data[19:177]) + data[178] & 0xFF == 0
    assert check_bytes(CODEC, data) == KNOWN


@given(models())
def test_e_kw_any_model_is_written_and_read(model: KeywordVpd) -> None:
    check_model(CODEC, model)


@given(st.binary(max_size=200) | damaged(CODEC.encode(KNOWN, 256)))
def test_e_kw_any_bytes_are_read_or_refused(data: bytes) -> None:
    check_bytes(CODEC, data)


@pytest.mark.parametrize(
    ("offset", "value", "rule"),
    [
        (0, 0x83, "E-KW1"),
        (19, 0x85, "E-KW1"),
        (20, 0x00, "E-KW2"),
        (24, 0x32, "E-KW2"),
        (177, 0x80, "E-KW3"),
        (178, 0xB1, "E-KW3"),
        (179, 0x79, "E-KW3"),
    ],
)
def test_e_kw_the_damage_of_the_parsers_tests_is_found(offset: int, value: int, rule: str) -> None:
    data = bytearray(CODEC.encode(KNOWN, 256))
    data[offset] = value
    with pytest.raises(FormatError) as caught:
        CODEC.decode(bytes(data), Findings.strict())
    assert caught.value.rule == rule


def test_e_kw_there_is_a_keyword() -> None:
    with pytest.raises(FieldError, match="at least one"):
        CODEC.encode(KeywordVpd(identifier="", keywords={}), None)
