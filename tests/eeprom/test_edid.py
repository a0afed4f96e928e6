"""E-EDID: displays, and edid-decode as the judge of this project's output."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.edid import CODEC, Edid
from formats.eeprom.edid_descriptors import (
    AlphanumericDataString,
    Descriptor,
    DetailedTiming,
    DisplayDescriptor,
    DisplayProductName,
    DisplayProductSerialNumber,
    without_idle_padding,
)
from formats.eeprom.edid_extensions import CtaExtension, DataBlock, Extension
from formats.eeprom.framework.codec import Findings
from formats.errors import (
    EmptyImageError,
    FieldError,
    ForeignImageError,
    FormatError,
    TruncatedImageError,
    UnsupportedError,
)
from tests.support.foreign import ForeignProgramError, edid_decode
from tests.support.models import models

from .support import check_bytes, check_model, damaged, with_tails

VECTORS = Path(__file__).parents[1] / "vectors" / "eeprom"

FULL_HD = bytes.fromhex("023A801871382D40582C45000F282100001E")
DISPLAY = Edid(
    id_manufacturer_name="ABC",
    id_product_code=0x1234,
    week_of_manufacture=12,
    year_of_manufacture=2024,
    basic_display_parameters=bytes.fromhex("A5341D7806"),
    color_characteristics=bytes.fromhex("EE91A3544C99260F5054"),
    established_timings=bytes.fromhex("200000"),
    standard_timings=bytes.fromhex("81C0") + b"\x01" * 14,
    descriptors=(
        DetailedTiming(timing=FULL_HD),
        DisplayProductName(text="Example 24"),
        DisplayProductSerialNumber(text="SN00000000001"),
    ),
    extensions=(
        CtaExtension(
            underscan=True,
            basic_audio=True,
            native_formats=1,
            data_blocks=(
                DataBlock(tag=2, content=bytes((16, 4, 3, 1))),
                DataBlock(tag=1, content=bytes.fromhex("090707")),
                DataBlock(tag=4, content=bytes.fromhex("010000")),
                DataBlock(tag=7, content=bytes.fromhex("004A")),
            ),
            descriptors=(DetailedTiming(timing=FULL_HD),),
        ),
    ),
)


def with_sums(data: bytes) -> bytes:
    """Make every block of 128 bytes sum up to zero."""
    blocks = [data[at : at + 127] for at in range(0, len(data), 128)]
    return b"".join(block + bytes(((256 - sum(block) % 256) % 256,)) for block in blocks)


def change(data: bytes, at: int, octets: str) -> bytes:
    new = bytes.fromhex(octets)
    return with_sums(data[:at] + new + data[at + len(new) :])


timings = st.binary(min_size=18, max_size=18).filter(lambda octets: any(octets[:2]))
content = st.binary(min_size=13, max_size=13)
# Text, and what a dummy is, have their own places.
descriptors = st.lists(
    st.one_of(
        models(DetailedTiming, timing=timings),
        models(DisplayProductName),
        models(DisplayProductSerialNumber),
        models(AlphanumericDataString),
        models(DisplayDescriptor, tag=st.integers(0x11, 0xFB)),
        st.builds(DisplayDescriptor, tag=st.just(0xFC), content=st.just(b"\xe4" * 13)),
    ).map(without_idle_padding),
    max_size=4,
).map(tuple)
blocks = st.lists(models(DataBlock), max_size=2).map(tuple)
extensions = st.lists(
    st.one_of(
        models(
            CtaExtension,
            data_blocks=blocks,
            descriptors=descriptors.map(lambda found: found[:3]),
        ),
        models(Extension, tag=st.integers(3, 255)),
        models(Extension, tag=st.just(2), content=st.just(b"\x01\x04" + bytes(124))),
    ),
    max_size=3,
).map(tuple)


@st.composite
def displays(draw: st.DrawFn) -> Edid:
    year = draw(st.integers(1990, 2245))
    is_model_year = draw(st.booleans())
    found: Edid = draw(
        with_tails(
            models(
                Edid,
                descriptors=descriptors,
                extensions=extensions,
                year_of_manufacture=st.just(None if is_model_year else year),
                model_year=st.just(year if is_model_year else None),
                week_of_manufacture=st.just(0) if is_model_year else st.integers(0, 54),
            )
        )
    )
    return found


@given(displays())
def test_e_edid_any_model_is_written_and_read(display: Edid) -> None:
    check_model(CODEC, display)


@given(st.data())
def test_e_edid_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    check_bytes(CODEC, data.draw(damaged(CODEC.encode(DISPLAY, 300))))


@given(st.data())
def test_e_edid_damaged_bytes_with_right_sums_are_read_or_refused(data: st.DataObject) -> None:
    check_bytes(CODEC, with_sums(data.draw(damaged(CODEC.encode(DISPLAY, 256))).ljust(256)))


@given(st.binary(min_size=126, max_size=126))
def test_e_edid_any_cta_block_is_read_or_refused(octets: bytes) -> None:
    base = CODEC.encode(dataclasses.replace(DISPLAY, extensions=()), 128)
    check_bytes(CODEC, change(base, 126, "01") + with_sums(b"\x02" + octets + b"\x00"))


@pytest.mark.interop
def test_e_edid_decode_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    said = edid_decode(CODEC.encode(DISPLAY, None), tmp_path)
    assert "EDID conformity: PASS" in said
    assert "Warnings" not in said
    assert "Manufacturer: ABC" in said
    assert "Model: 4660" in said
    assert "Made in: week 12 of 2024" in said
    assert "Display Product Name: 'Example 24'" in said
    assert "Display Product Serial Number: 'SN00000000001'" in said
    assert "Extension blocks: 1" in said
    assert said.count("1920x1080   60.000000 Hz") == 3


@pytest.mark.interop
def test_e_edid_decode_sees_each_change(tmp_path: Path) -> None:
    changed = dataclasses.replace(
        DISPLAY,
        id_manufacturer_name="XYZ",
        id_serial_number=0x89ABCDEF,
        week_of_manufacture=0,
        year_of_manufacture=None,
        model_year=2025,
        descriptors=(*DISPLAY.descriptors[:2], AlphanumericDataString(text="asset 7")),
        extensions=(),
    )
    said = edid_decode(CODEC.encode(changed, None), tmp_path)
    assert "Manufacturer: XYZ" in said
    assert "Serial Number: 2309737967" in said
    assert "Model year: 2025" in said
    assert "Alphanumeric Data String: 'asset 7'" in said


@pytest.mark.interop
def test_e_edid2_edid_decode_and_we_find_the_same_wrong_checksum(tmp_path: Path) -> None:
    data = bytearray(CODEC.encode(DISPLAY, None))
    data[12] ^= 1
    with pytest.raises(ForeignProgramError):
        edid_decode(bytes(data), tmp_path)
    report = Findings.tolerant()
    CODEC.decode(data, report)
    (problem,) = report.problems
    assert (problem.offset, problem.rule) == (127, "E-EDID2")


def test_e_edid_what_qemu_makes_is_read() -> None:
    data = bytes.fromhex((VECTORS / "edid-qemu-vga.hex").read_text())
    found = CODEC.decode(data, Findings.strict())
    assert found.id_manufacturer_name == "RHT"
    assert (found.week_of_manufacture, found.year_of_manufacture) == (42, 2014)
    assert found.descriptors[3] == DisplayProductName(text="QEMU Monitor")
    dummy = DisplayDescriptor(tag=0x10, content=bytes(13))
    assert found.extensions == (
        CtaExtension(
            data_blocks=(DataBlock(tag=2, content=bytes.fromhex("7D6560591F61")),),
            descriptors=(dummy,) * 6,
        ),
    )
    assert CODEC.encode(found, len(data)) == data


@pytest.mark.parametrize(
    ("name", "maker", "text", "extensions"),
    [
        ("edid-auo-b116xan02", "AUO", "B116XAN02.0 ", []),
        # Thirteen characters, hence without an end; and its extension is DisplayID.
        ("edid-samsung-atna40ct06", "SDC", "ATNA40CT06-0 ", [0x70]),
    ],
)
def test_e_edid_panels_on_sale_are_read(
    name: str, maker: str, text: str, extensions: list[int]
) -> None:
    data = bytes.fromhex((VECTORS / f"{name}.hex").read_text())
    found = CODEC.decode(data, Findings.strict())
    assert found.id_manufacturer_name == maker
    assert getattr(found.descriptors[-1], "text", None) == text
    assert [getattr(block, "tag", None) for block in found.extensions] == extensions
    assert CODEC.encode(found, len(data)) == data


def test_e_edid1_other_things_are_told_apart() -> None:
    good = CODEC.encode(DISPLAY, None)
    for data, error in (
        (b"\xff" * 128, EmptyImageError),
        (b"\x00\xff\xff\xff\xff\xff\xff\x01" + good[8:], ForeignImageError),
        (good[:127], TruncatedImageError),
        (change(good, 18, "02"), UnsupportedError),
    ):
        with pytest.raises(error):
            CODEC.decode(data, Findings.tolerant())


def test_e_edid3_letters_take_five_bits() -> None:
    data = change(CODEC.encode(DISPLAY, None), 8, "4C2D")  # SAM, as in the PNP ID registry
    assert CODEC.decode(data, Findings.strict()).id_manufacturer_name == "SAM"
    for wrong in ("CC2D", "0000", "7FFF", "043B"):
        with pytest.raises(FormatError, match=r"not a manufacturer at byte 8 \[E-EDID3\]"):
            CODEC.decode(change(data, 8, wrong), Findings.strict())


def test_e_edid4_a_week_of_ff_makes_it_a_model_year() -> None:
    data = CODEC.encode(DISPLAY, None)
    found = CODEC.decode(change(data, 16, "FF23"), Findings.strict())
    assert (found.model_year, found.year_of_manufacture) == (2025, None)
    with pytest.raises(FormatError, match="55 is not a week at byte 16"):
        CODEC.decode(change(data, 16, "3723"), Findings.strict())


@pytest.mark.parametrize(
    ("octets", "descriptor"),
    [
        ("000000FC00 4142 0A 20202020202020202020", DisplayProductName(text="AB")),
        ("000000FC00 41424344454647484950515253", DisplayProductName(text="ABCDEFGHIPQRS")),
        ("000000FF00 2020 0A 20202020202020202020", DisplayProductSerialNumber(text="  ")),
        ("000000FE00 0A 202020202020202020202020", AlphanumericDataString(text="")),
        ("00000010 0000000000000000000000000001", None),
        ("000000FD 0A 384C1E53110A2020202020202020", None),
        # Code page 437, as the specification allows.
        ("000000FC00 81 0A 2020202020202020202020", None),
    ],
)
def test_e_edid5_descriptors_are_told_apart(octets: str, descriptor: Descriptor | None) -> None:
    given_octets = bytes.fromhex(octets)[:18]
    data = change(CODEC.encode(DISPLAY, None), 54, given_octets.hex())
    expected = descriptor or DisplayDescriptor(
        tag=given_octets[3], flags=given_octets[4], content=given_octets[5:]
    )
    found = CODEC.decode(data, Findings.strict())
    assert found.descriptors[0] == expected
    assert CODEC.encode(found, len(data)) == data


@pytest.mark.parametrize("padding", [0x00, 0x0A])
def test_e_edid5_text_may_be_filled_up_with_other_bytes(padding: int) -> None:
    # As displays have it that were not tested.
    octets = b"\x00\x00\x00\xfc\x00AB\x0a" + bytes((padding,)) * 10
    data = change(CODEC.encode(DISPLAY, None), 72, octets.hex())
    found = CODEC.decode(data, Findings.strict())
    assert found.descriptors[1] == DisplayProductName(text="AB", padding=padding)
    assert CODEC.encode(found, len(data)) == data


def test_e_edid5_text_that_is_followed_by_more_is_found_and_kept() -> None:
    data = change(CODEC.encode(DISPLAY, None), 72, "000000FC00 4142 0A 0A0A202020202020 2020")
    with pytest.raises(FormatError, match=r"at byte 77 \[E-EDID5\]"):
        CODEC.decode(data, Findings.strict())
    found = CODEC.decode(data, Findings.tolerant())
    assert CODEC.encode(found, len(data)) == data


def test_e_edid5_a_reserved_byte_of_a_descriptor_is_0() -> None:
    data = change(CODEC.encode(DISPLAY, None), 74, "01")
    with pytest.raises(FormatError, match=r"reserved byte .* at byte 74 \[E-EDID5\]"):
        CODEC.decode(data, Findings.strict())
    report = Findings.tolerant()
    assert CODEC.decode(data, report).descriptors[1] == DisplayProductName(text="Example 24")
    assert len(report.problems) == 1


def test_e_edid6_blocks_that_are_announced_have_to_be_there() -> None:
    data = CODEC.encode(DISPLAY, None)
    with pytest.raises(FormatError, match=r"384 bytes are announced.*at byte 126"):
        CODEC.decode(change(data, 126, "02"), Findings.strict())
    # HDMI Forum's EEODB: byte 126 says one, and there are two.
    more = data + with_sums(b"\x70" + bytes(127))
    found = CODEC.decode(more, Findings.strict())
    assert len(found.extensions) == 1
    assert found.tail[:1] == b"\x70"
    assert CODEC.encode(found, len(more)) == more


def test_e_edid7_old_and_foreign_blocks_are_kept() -> None:
    data = CODEC.encode(DISPLAY, None)
    for head in ("0201", "020300", "70", "F0"):
        block = bytes.fromhex(head).ljust(128, b"\x00")
        found = CODEC.decode(data[:128] + with_sums(block), Findings.strict())
        assert found.extensions == (Extension(tag=block[0], content=block[1:127]),)


@pytest.mark.parametrize(
    ("at", "octets", "rule"),
    [(2, "80", "E-EDID8"), (2, "05", "E-EDID9"), (4, "5F", "E-EDID9"), (126, "01", "E-EDID10")],
)
def test_e_edid8_to_10_a_block_that_breaks_a_rule_is_kept(at: int, octets: str, rule: str) -> None:
    data = change(CODEC.encode(DISPLAY, None), 128 + at, octets)
    with pytest.raises(FormatError, match=rule):
        CODEC.decode(data, Findings.strict())
    found = CODEC.decode(data, Findings.tolerant())
    assert isinstance(found.extensions[0], Extension)
    assert CODEC.encode(found, len(data)) == data


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"id_manufacturer_name": "abc"}, "id-manufacturer-name"),
        ({"id_product_code": 65536}, "id-product-code"),
        ({"model_year": 2024}, "year-of-manufacture"),
        ({"year_of_manufacture": None}, "year-of-manufacture"),
        ({"model_year": 2024, "year_of_manufacture": None}, "week-of-manufacture"),
        ({"descriptors": (DisplayProductName(text="x" * 14),)}, "descriptors[0].text"),
        ({"descriptors": (DetailedTiming(timing=bytes(18)),)}, "descriptors[0]"),
        ({"descriptors": (DisplayDescriptor(tag=0x10, content=bytes(13)),)}, "descriptors[0]"),
        ({"descriptors": DISPLAY.descriptors[:1] * 5}, "descriptors"),
        ({"extensions": (Extension(tag=2, content=b"\x03\x04" + bytes(124)),)}, "extensions[0]"),
        (
            {"extensions": (CtaExtension(descriptors=(DetailedTiming(timing=FULL_HD),) * 7),)},
            "extensions[0].descriptors",
        ),
        (
            {
                "extensions": (
                    CtaExtension(
                        data_blocks=(DataBlock(tag=1, content=bytes(31)),),
                        descriptors=(DetailedTiming(timing=FULL_HD),) * 6,
                    ),
                )
            },
            "extensions[0]",
        ),
        (
            {"extensions": (CtaExtension(descriptors=(DetailedTiming(timing=bytes(18)),)),)},
            "extensions[0]",
        ),
        ({"extensions": (CtaExtension(native_formats=16),)}, "extensions[0].native-formats"),
        ({"extensions": (CtaExtension(revision=256),)}, "extensions[0].revision"),
        ({"extensions": (CtaExtension(revision=2),)}, "extensions[0].revision"),
        (
            {"extensions": (CtaExtension(data_blocks=(DataBlock(tag=8),)),)},
            "extensions[0].data-blocks[0].tag",
        ),
    ],
)
def test_e_edid_what_cannot_be_written_is_named(changed: dict[str, Any], path: str) -> None:
    with pytest.raises(FieldError) as caught:
        CODEC.encode(dataclasses.replace(DISPLAY, **changed), None)
    assert caught.value.path == path
