"""E-ONIE: TlvInfo of network switches."""

from __future__ import annotations

import dataclasses
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings, cautions_of
from formats.eeprom.onie_tlv import CODEC, OnieTlv, Tlv, VendorExtension
from formats.eeprom.parts.ordering import stated_order
from formats.errors import (
    EmptyImageError,
    FieldError,
    ForeignImageError,
    FormatError,
    UnsupportedError,
)
from tests.support.models import models

from .support import check_bytes, check_model, damaged, with_tails

VECTOR = Path(__file__).parents[1] / "vectors" / "eeprom" / "onie-tlv-wacky-widget.hex"

#: Every type, with the number and the bytes that the table of the specification gives it.
SWITCH = OnieTlv(
    product_name="ES-4810",
    part_number="ES4810-54T",
    serial_number="SN0001",
    mac_1_base=bytes.fromhex("0200000000f0"),
    manufacture_date="02/29/2024 23:59:59",
    device_version=3,
    label_revision="R01",
    platform_name="x86_64-example_4810-r0",
    onie_version="2024.02",
    num_macs=258,
    manufacturer="Example",
    country_code="DE",
    vendor="Example Networks",
    diag_version="1.2",
    service_tag="TAG",
    vendor_extension=(VendorExtension(enterprise_number=8057, content=b"\x00abc"),),
)
TABLE = [
    (0x21, b"ES-4810"),
    (0x22, b"ES4810-54T"),
    (0x23, b"SN0001"),
    (0x24, b"\x02\x00\x00\x00\x00\xf0"),
    (0x25, b"02/29/2024 23:59:59"),
    (0x26, b"\x03"),
    (0x27, b"R01"),
    (0x28, b"x86_64-example_4810-r0"),
    (0x29, b"2024.02"),
    (0x2A, b"\x01\x02"),
    (0x2B, b"Example"),
    (0x2C, b"DE"),
    (0x2D, b"Example Networks"),
    (0x2E, b"1.2"),
    (0x2F, b"TAG"),
    (0xFD, b"\x00\x00\x1f\x79\x00abc"),
]


def by_hand(tlvs: list[tuple[int, bytes]], *, version: int = 1) -> bytes:
    """Build what the specification lays out: header, TLVs, and the CRC-32 of Python's zlib."""
    body = b"".join(bytes((code, len(value))) + value for code, value in tlvs) + b"\xfe\x04"
    start = b"TlvInfo\x00" + bytes((version,)) + (len(body) + 4).to_bytes(2, "big") + body
    return start + zlib.crc32(start).to_bytes(4, "big")


dates = st.datetimes(min_value=datetime(1000, 1, 1)).map(  # noqa: DTZ001
    lambda date: date.strftime("%m/%d/%Y %H:%M:%S")
)
unnamed = st.integers(1, 0xFC).filter(lambda code: not 0x21 <= code <= 0x2F)


@st.composite
def switches(draw: st.DrawFn) -> OnieTlv:
    others = st.lists(models(Tlv, type=unnamed), max_size=4).map(tuple)
    found: OnieTlv = draw(
        with_tails(
            models(
                OnieTlv,
                manufacture_date=st.none() | dates,
                other=others,
                text_sizes=st.just({}),
                order=st.just(()),
            )
        )
    )
    texts = {
        field.name.replace("_", "-"): len(value)
        for field, value in zip(dataclasses.fields(found), _named(found), strict=False)
        if isinstance(value, str) and len(value) < 255
    }
    sizes = {
        name: draw(st.integers(length + 1, 255))
        for name, length in texts.items()
        if draw(st.booleans())
    }
    found = dataclasses.replace(found, text_sizes=sizes)
    codes = [0x21 + index for index, value in enumerate(_named(found)) if value is not None]
    codes += [tlv.type for tlv in found.other] + [0xFD] * len(found.vendor_extension)
    order = draw(st.permutations(codes))
    types = iter(tlv.type for tlv in found.other)
    order = [code if code >= 0xFD or 0x21 <= code <= 0x2F else next(types) for code in order]
    return dataclasses.replace(found, order=stated_order(order, codes))


def _named(switch: OnieTlv) -> list[Any]:
    return [getattr(switch, field.name) for field in dataclasses.fields(switch)[:15]]


@given(switches())
def test_e_onie_any_model_is_written_and_read(switch: OnieTlv) -> None:
    check_model(CODEC, switch)


@given(st.data())
def test_e_onie_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    check_bytes(CODEC, data.draw(damaged(CODEC.encode(SWITCH, 512))))


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=8)), max_size=12))
def test_e_onie_any_tlvs_are_read_or_refused(tlvs: list[tuple[int, bytes]]) -> None:
    check_bytes(CODEC, by_hand(tlvs) + b"\xff" * 4)


def test_e_onie1_to_7_every_type_is_where_the_specification_has_it() -> None:
    assert CODEC.encode(SWITCH, None) == by_hand(TABLE)
    assert CODEC.decode(by_hand(TABLE), Findings.strict()) == SWITCH


def test_e_onie_what_infix_writes_is_read() -> None:
    data = bytes.fromhex(VECTOR.read_text())
    found = CODEC.decode(data + b"\xff" * 100, Findings.strict())
    assert found == OnieTlv(
        product_name="Wacky Widget",
        serial_number="#1",
        manufacture_date="02/13/2024 11:29:52",
        order=(0x25,),
    )
    assert CODEC.encode(found, None) == data


def test_e_onie9_a_field_can_be_added_where_the_order_is_unusual() -> None:
    found = CODEC.decode(bytes.fromhex(VECTOR.read_text()), Findings.strict())
    more = dataclasses.replace(found, part_number="P", vendor="V")
    data = CODEC.encode(more, 256)
    assert CODEC.decode(data, Findings.strict()) == more
    assert data[11:].startswith(b"\x25\x13")
    assert data[32:].startswith(b"\x21\x0cWacky Widget\x22\x01P\x23\x02#1\x2d\x01V\xfe")


def test_e_onie1_other_things_are_told_apart() -> None:
    for data, error in (
        (b"\xff" * 256, EmptyImageError),
        (b"TlvInfx\x00\x01\x00\x06", ForeignImageError),
        (by_hand(TABLE, version=2), UnsupportedError),
    ):
        with pytest.raises(error):
            CODEC.decode(data, Findings.tolerant())


def test_e_onie2_the_length_is_big_endian_and_at_most_2048() -> None:
    # Some vendors' tools write it with the low byte first.
    swapped = bytearray(by_hand([(0x21, b"x")]))
    swapped[9:11] = swapped[9:11][::-1]
    with pytest.raises(FormatError, match="E-ONIE2"):
        CODEC.decode(swapped, Findings.strict())
    # 17 bytes around the TLVs, 7 times 257, and 232 make 2048.
    most = tuple(
        VendorExtension(enterprise_number=1, content=bytes(size)) for size in [251] * 7 + [226]
    )
    assert len(CODEC.encode(OnieTlv(vendor_extension=most), None)) == 2048
    larger = by_hand([(0xFD, bytes(255))] * 8)
    with pytest.raises(FormatError, match=r"has 2073 bytes, more than 2048 at byte 9"):
        CODEC.decode(larger, Findings.strict())
    assert len(CODEC.decode(larger, Findings.tolerant()).vendor_extension) == 8
    with pytest.raises(FieldError, match="2050 bytes are needed, but at most 2048"):
        CODEC.encode(OnieTlv(vendor_extension=most, product_name=""), None)


def test_e_onie3_a_tlv_that_runs_over_the_end_is_found() -> None:
    data = bytearray(by_hand([(0x21, b"abc"), (0x23, b"7")]))
    data[12] = 200
    report = Findings.tolerant()
    CODEC.decode(data, report)
    assert report.problems[0].rule == "E-ONIE3"
    assert report.problems[0].offset == 11


def test_e_onie4_the_crc_is_last_and_covers_its_own_head() -> None:
    data = bytearray(by_hand([(0x23, b"7")]))
    data[13] = ord("8")
    with pytest.raises(FormatError, match=r"CRC-32 is .* at byte 16 \[E-ONIE4\]"):
        CODEC.decode(data, Findings.strict())
    report = Findings.tolerant()
    assert CODEC.decode(data, report).serial_number == "8"
    without = b"TlvInfo\x00\x01\x00\x03\x23\x017"
    with pytest.raises(FormatError, match="the CRC-32 is missing"):
        CODEC.decode(without, Findings.strict())


@pytest.mark.parametrize(
    ("tlvs", "message"),
    [
        ([(0x21, b"a"), (0x21, b"b")], "product-name occurs twice at byte 14"),
        ([(0x24, bytes(5))], "mac-1-base has 5 bytes"),
        ([(0x25, b"2024-02-13 11:29:52")], "manufacture-date is not written MM/DD/YYYY"),
        ([(0x25, b"02/30/2024 11:29:52")], "manufacture-date 02/30/2024 11:29:52 is not a date"),
        ([(0x2A, b"\x01")], "num-macs has 1 bytes instead of 2"),
        ([(0x2C, b"de")], "country-code is not a code"),
        ([(0x00, b"")], "type 0x00 cannot"),
        ([(0xFF, b"")], "type 0xff cannot"),
        ([(0xFD, b"abc")], "type 0xfd cannot"),
    ],
)
def test_e_onie5_to_7_wrong_values_are_named_and_shown(
    tlvs: list[tuple[int, bytes]], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        CODEC.decode(by_hand(tlvs), Findings.strict())
    report = Findings.tolerant()
    found = CODEC.decode(by_hand(tlvs), report)
    assert len(report.problems) == 1
    assert found.serial_number == "7" or found.other[-1] == Tlv(type=tlvs[-1][0], value=tlvs[-1][1])


def test_e_onie8_types_without_a_name_are_kept_and_warned_of() -> None:
    # What SpacemiT's boards have: the version of an SDK, and a Wi-Fi address.
    tlvs = [(0x23, b"7"), (0x40, b"2.1"), (0x60, bytes.fromhex("020000000001"))]
    found = CODEC.decode(by_hand(tlvs), Findings.strict())
    assert found.other == tuple(Tlv(type=code, value=value) for code, value in tlvs[1:])
    (caution,) = cautions_of(CODEC, found)
    assert "0x40, 0x60" in caution
    assert "E-ONIE8" in caution
    assert cautions_of(CODEC, SWITCH) == ()


def test_e_onie6_text_that_00_fills_up_keeps_its_size() -> None:
    # As a vendor of switches writes all of its texts.
    data = by_hand([(0x21, b"Switch\x00\x00"), (0x23, b"7".ljust(20, b"\x00")), (0x2C, b"US\x00")])
    found = CODEC.decode(data, Findings.strict())
    assert (found.product_name, found.serial_number, found.country_code) == ("Switch", "7", "US")
    assert found.text_sizes == {"product-name": 8, "serial-number": 20, "country-code": 3}
    assert CODEC.encode(found, len(data)) == data
    changed = dataclasses.replace(found, serial_number="1234567890123456789")
    assert len(CODEC.encode(changed, None)) == len(data)
    for change, message in (
        ({"serial_number": "x" * 20}, "serial-number: has 20 bytes, but its text-sizes allow at"),
        ({"serial_number": None}, "text-sizes.serial-number: is given, but the text is not"),
        ({"text_sizes": {"num-macs": 8}}, "the name 'num-macs' in it"),
    ):
        with pytest.raises(FieldError, match=message):
            CODEC.encode(dataclasses.replace(found, **change), None)


def test_e_onie6_an_address_that_linux_refuses_is_warned_of() -> None:
    (caution,) = cautions_of(CODEC, OnieTlv(mac_1_base=bytes(6)))
    assert "00:00:00:00:00:00" in caution


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"manufacture_date": "02/30/2024 00:00:00"}, "manufacture-date"),
        ({"manufacture_date": "2/3/2024 00:00:00"}, "manufacture-date"),
        ({"country_code": "DEU"}, "country-code"),
        ({"product_name": "x" * 256}, "product-name"),
        ({"product_name": "x\x00"}, "product-name"),
        ({"other": (Tlv(type=0x23),)}, "other[0].type"),
        ({"other": (Tlv(type=0xFE),)}, "other[0].type"),
        ({"order": (0x21,)}, "order"),
        ({"order": (0x22, 0x21)}, "order"),
        ({"order": (0x22, 0x22)}, "order"),
        ({"order": (0x40,)}, "order"),
        ({"other": (Tlv(type=1), Tlv(type=2)), "order": (2,)}, "order"),
        ({"order": tuple(code for code, _ in TABLE)}, "order"),
    ],
)
def test_e_onie9_what_cannot_be_written_is_named(change: dict[str, Any], path: str) -> None:
    with pytest.raises(FieldError) as caught:
        CODEC.encode(dataclasses.replace(SWITCH, **change), None)
    assert caught.value.path == path
