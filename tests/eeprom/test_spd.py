"""E-SPD: memory modules, and decode-dimms as the judge of this project's output."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom import spd_ddr3, spd_ddr4, spd_ddr5
from formats.eeprom.framework.codec import Findings
from formats.eeprom.spd import SpdCodec, SpdModule
from formats.eeprom.spd_ddr3 import SpdDdr3
from formats.eeprom.spd_ddr4 import SpdDdr4
from formats.eeprom.spd_ddr5 import SpdDdr5
from formats.errors import (
    EmptyImageError,
    FieldError,
    ForeignImageError,
    FormatError,
    TruncatedImageError,
)
from tests.support.foreign import decode_dimms
from tests.support.models import models

from .support import check_bytes, damaged

VECTOR = Path(__file__).parents[1] / "vectors" / "eeprom" / "spd-ddr4-kingston.hex"

# An 8 GiB DDR3-1600 UDIMM and an 8 GiB DDR4-3200 UDIMM by the tables of annexes K and L;
# decode-dimms says below that they are these.
_DDR3 = bytes.fromhex(
    "92100b02 04210009 03520108 0a00fc00 69786930 69111881 20083c3c 00f08305"
).ljust(117, b"\x00")
_DDR4 = bytes.fromhex(
    "23110c02 85210008 00600003 01030000 0000050d f8ff0200 6e6e6e11 006ef00a 2008000500a814282800"
).ljust(126, b"\x00")
_DDR5 = bytes.fromhex("30101202 04000062").ljust(510, b"\x00")

_MODULE: dict[str, Any] = {
    "module_manufacturer_id_code": bytes.fromhex("80CE"),
    "module_manufacturing_location": 0x21,
    "module_manufacturing_year": 2024,
    "module_manufacturing_week": 7,
    "module_serial_number": bytes.fromhex("01ABCDEF"),
    "module_part_number": "M378A1K43EB2-CWE",
    "dram_manufacturer_id_code": bytes.fromhex("80AD"),
}
DDR3 = SpdDdr3(parameters=_DDR3, module_revision_code=0x0123, **_MODULE)
DDR4 = SpdDdr4(
    parameters=_DDR4,
    module_parameters=bytes.fromhex("11010020").ljust(126, b"\x00"),
    module_revision_code=0x45,
    dram_stepping=0x67,
    **_MODULE,
)
DDR5 = SpdDdr5(parameters=_DDR5, module_revision_code=0x45, dram_stepping=0x67, **_MODULE)

Spd = tuple[SpdCodec[Any], Any]
MODULES: list[Spd] = [
    (spd_ddr3.CODEC, DDR3),
    (spd_ddr4.CODEC, DDR4),
    (spd_ddr5.CODEC, DDR5),
]
each = pytest.mark.parametrize(("codec", "module"), MODULES, ids=["ddr3", "ddr4", "ddr5"])


def crc(octets: bytes) -> int:
    """Divide by x¹⁶ + x¹² + x⁵ + 1, most significant bit first, as annex K spells it out."""
    remainder = 0
    for octet in octets:
        remainder ^= octet << 8
        for _ in range(8):
            remainder = remainder << 1 ^ (0x11021 if remainder & 0x8000 else 0)
    return remainder


def _odd(octet: int) -> int:
    return octet | (0x80 if octet.bit_count() % 2 == 0 else 0)


ids = st.one_of(
    st.sampled_from([b"\x00\x00", b"\xff\xff"]),
    st.tuples(st.integers(0, 127), st.integers(0, 127)).map(
        lambda pair: bytes(_odd(octet) for octet in pair)
    ),
)


@st.composite
def modules(draw: st.DrawFn) -> Spd:
    codec, example = draw(st.sampled_from(MODULES))
    start = example.parameters[:3]
    size = len(example.parameters) - 3
    dated = draw(st.booleans())
    part = b"" if draw(st.booleans()) else b"\x07"
    width = {spd_ddr3.CODEC: 18, spd_ddr4.CODEC: 20, spd_ddr5.CODEC: 30}[codec]
    module = draw(
        models(
            codec.model,
            parameters=st.binary(min_size=size, max_size=size).map(start.__add__),
            module_manufacturer_id_code=ids,
            dram_manufacturer_id_code=ids,
            module_manufacturing_year=st.integers(2000, 2099) if dated else st.none(),
            module_manufacturing_week=st.integers(0, 53) if dated else st.none(),
            module_part_number_octets=st.just(part.ljust(width) if part else None),
            **({"module_part_number": st.just("")} if part else {}),
        )
    )
    return codec, module


@given(modules())
def test_e_spd_any_model_is_written_and_read(spd: Spd) -> None:
    codec, module = spd
    data = codec.encode(module, None)
    assert codec.decode(data, Findings.strict()) == module
    check_bytes(codec, data)
    assert codec.encode(module, len(data)) == data


@given(st.data(), st.sampled_from(MODULES))
def test_e_spd_damaged_bytes_are_read_or_refused(data: st.DataObject, spd: Spd) -> None:
    codec, module = spd
    check_bytes(codec, data.draw(damaged(codec.encode(module, None))))


@given(st.binary(min_size=35, max_size=35))
def test_e_spd_any_identification_is_read_or_refused(octets: bytes) -> None:
    # Of DDR4, no checksum covers it.
    data = bytearray(spd_ddr4.CODEC.encode(DDR4, None))
    data[320:355] = octets
    check_bytes(spd_ddr4.CODEC, bytes(data))


@pytest.mark.interop
def test_e_spd_decode_dimms_reads_ddr3(tmp_path: Path) -> None:
    said = decode_dimms(spd_ddr3.CODEC.encode(DDR3, 256), tmp_path)
    assert said["EEPROM CRC of bytes 0-116"].startswith("OK")
    assert said["Fundamental Memory type"] == "DDR3 SDRAM"
    assert said["Size"] == "8192 MB"
    assert said["Module Manufacturer"] == "Samsung"
    assert said["DRAM Manufacturer"].startswith("SK Hynix")
    assert said["Manufacturing Location Code"] == "0x21"
    assert said["Manufacturing Date"] == "2024-W07"
    assert said["Assembly Serial Number"] == "0x01ABCDEF"
    assert said["Part Number"] == "M378A1K43EB2-CWE"
    assert said["Revision Code"] == "0x0123"


@pytest.mark.interop
def test_e_spd_decode_dimms_reads_ddr4(tmp_path: Path) -> None:
    said = decode_dimms(spd_ddr4.CODEC.encode(DDR4, 512), tmp_path)
    assert said["EEPROM CRC of bytes 0-125"].startswith("OK")
    assert said["EEPROM CRC of bytes 128-253"].startswith("OK")
    assert said["Fundamental Memory type"] == "DDR4 SDRAM"
    assert said["Size"] == "8192 MB"
    assert said["Module Manufacturer"] == "Samsung"
    assert said["DRAM Manufacturer"].startswith("SK Hynix")
    assert said["Manufacturing Date"] == "2024-W07"
    assert said["Assembly Serial Number"] == "0x01ABCDEF"
    assert said["Part Number"] == "M378A1K43EB2-CWE"
    assert said["Revision Code"] == "0x45"


@pytest.mark.interop
@pytest.mark.parametrize(("first", "covered"), [(0x92, "0-116"), (0x12, "0-125")])
def test_e_spd3_decode_dimms_and_we_agree_on_what_the_crc_covers(
    first: int, covered: str, tmp_path: Path
) -> None:
    module = dataclasses.replace(DDR3, parameters=bytes((first,)) + _DDR3[1:])
    data = spd_ddr3.CODEC.encode(module, None)
    assert decode_dimms(data, tmp_path)[f"EEPROM CRC of bytes {covered}"].startswith("OK")
    other = bytes.fromhex("01ABCDF0")
    next_one = spd_ddr3.CODEC.encode(dataclasses.replace(module, module_serial_number=other), None)
    said = decode_dimms(next_one, tmp_path)
    assert said[f"EEPROM CRC of bytes {covered}"].startswith("OK")
    assert said["Assembly Serial Number"] == "0x01ABCDF0"
    assert (next_one[126:128] == data[126:128]) is (covered == "0-116")
    # Patched by hand, the serial number breaks the checksum in one case only.
    patched = data[:122] + other + data[126:]
    said = decode_dimms(patched, tmp_path)
    assert ("OK" in said[f"EEPROM CRC of bytes {covered}"]) is (covered == "0-116")
    report = Findings.tolerant()
    spd_ddr3.CODEC.decode(patched, report)
    assert [problem.rule for problem in report.problems] == (
        [] if covered == "0-116" else ["E-SPD2"]
    )


def test_e_spd2_ddr5_is_where_jesd400_5_has_it() -> None:
    data = spd_ddr5.CODEC.encode(DDR5, 1024)
    by_hand = (
        _DDR5
        + crc(_DDR5).to_bytes(2, "little")
        + bytes.fromhex("80CE 21 24 07 01ABCDEF")
        + b"M378A1K43EB2-CWE".ljust(30)
        + bytes.fromhex("45 80AD 67")
        + bytes(85 + 384)
    )
    assert data == by_hand
    assert spd_ddr5.CODEC.decode(by_hand, Findings.strict()) == DDR5


@pytest.mark.interop
def test_e_spd_a_module_on_sale_is_read_as_decode_dimms_reads_it(tmp_path: Path) -> None:
    data = bytes.fromhex(VECTOR.read_text())
    found = spd_ddr4.CODEC.decode(data, Findings.strict())
    said = decode_dimms(data, tmp_path)
    assert found.module_part_number == said["Part Number"] == "KF3600C18D4/16GX"
    year, week = found.module_manufacturing_year, found.module_manufacturing_week
    assert f"{year}-W{week}" == said["Manufacturing Date"] == "2022-W32"
    serial = found.module_serial_number.hex().upper()
    assert f"0x{serial}" == said["Assembly Serial Number"] == "0x5D5AC798"
    assert found.module_manufacturer_id_code.hex() == "0198"
    assert said["Module Manufacturer"] == "Kingston"
    assert found.dram_manufacturer_id_code.hex() == "802c"
    assert said["DRAM Manufacturer"].startswith("Micron")
    assert found.dram_stepping == 0x45
    assert spd_ddr4.CODEC.encode(found, 512) == data


@each
def test_e_spd1_other_things_are_told_apart(codec: SpdCodec[Any], module: SpdModule) -> None:
    good = codec.encode(module, None)
    other = bytearray(good)
    other[2] = 0x08
    for data, error in (
        (b"\xff" * 512, EmptyImageError),
        (bytes(other), ForeignImageError),
        (good[:-1], TruncatedImageError),
        (good[:2], TruncatedImageError),
    ):
        with pytest.raises(error):
            codec.decode(data, Findings.tolerant())
    with pytest.raises(FormatError, match="continues after"):
        codec.decode(good + b"\xff", Findings.strict())
    with pytest.raises(FieldError, match=f"must have {len(good)} bytes, not 2048"):
        codec.encode(module, 2048)


def test_e_spd1_a_dump_of_one_page_says_what_to_do() -> None:
    # What the eeprom and at24 drivers show of a DDR4 module.
    with pytest.raises(TruncatedImageError) as caught:
        spd_ddr4.CODEC.decode(spd_ddr4.CODEC.encode(DDR4, None)[:256], Findings.tolerant())
    assert "ee1004" in str(caught.value.hint)


@each
def test_e_spd1_the_generations_are_not_taken_for_each_other(
    codec: SpdCodec[Any], module: SpdModule
) -> None:
    data = codec.encode(module, None).ljust(1024, b"\x00")
    for other, _ in MODULES:
        if other is not codec:
            with pytest.raises(ForeignImageError, match=r"byte 2 \[E-SPD1\]"):
                other.decode(data, Findings.tolerant())


@each
def test_e_spd2_each_wrong_crc_is_found(codec: SpdCodec[Any], module: SpdModule) -> None:
    good = codec.encode(module, None)
    places = {spd_ddr3.CODEC: [126], spd_ddr4.CODEC: [126, 254], spd_ddr5.CODEC: [510]}[codec]
    for place in places:
        data = bytearray(good)
        data[place - 2 if place != 126 else 60] ^= 0x10
        report = Findings.tolerant()
        found = codec.decode(data, report)
        assert [(problem.offset, problem.rule) for problem in report.problems] == [
            (place, "E-SPD2")
        ]
        # Written again, it is right.
        codec.decode(codec.encode(found, None), Findings.strict())


@each
def test_e_spd4_to_6_what_manufacturers_leave_open_is_kept(
    codec: SpdCodec[Any], module: SpdModule
) -> None:
    blank = dataclasses.replace(
        module,
        module_manufacturer_id_code=b"\xff\xff",
        dram_manufacturer_id_code=b"\x00\x00",
        module_manufacturing_year=None,
        module_manufacturing_week=None,
        module_part_number="",
        module_part_number_octets=b"ABC".ljust(
            {"spd-ddr3": 18, "spd-ddr4": 20, "spd-ddr5": 30}[codec.name], b"\x00"
        ),
    )
    data = codec.encode(blank, None)
    assert codec.decode(data, Findings.strict()) == blank


@pytest.mark.parametrize(
    ("at", "octets", "rule"),
    [
        (320, "80CF", "E-SPD4"),
        (350, "00AD", "E-SPD4"),
        (323, "2454", "E-SPD5"),
        (323, "2A07", "E-SPD5"),
    ],
)
def test_e_spd4_and_5_wrong_identification_is_found(at: int, octets: str, rule: str) -> None:
    data = bytearray(spd_ddr4.CODEC.encode(DDR4, None))
    data[at : at + 2] = bytes.fromhex(octets)
    with pytest.raises(FormatError, match=rf"at byte {at} \[{rule}\]"):
        spd_ddr4.CODEC.decode(data, Findings.strict())
    assert spd_ddr4.CODEC.decode(data, Findings.tolerant()).module_part_number


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"parameters": _DDR3.ljust(126, b"\x00")}, "parameters"),
        ({"parameters": _DDR4[:-1]}, "parameters"),
        ({"module_manufacturer_id_code": b"\x80\xcf"}, "module-manufacturer-id-code"),
        ({"module_manufacturing_year": None}, "module-manufacturing-week"),
        ({"module_manufacturing_year": 1999}, "module-manufacturing-year"),
        ({"module_manufacturing_week": 54}, "module-manufacturing-week"),
        ({"module_serial_number": b"\x01"}, "module-serial-number"),
        ({"module_part_number": "x" * 21}, "module-part-number"),
        ({"module_part_number": "x "}, "module-part-number"),
        ({"module_part_number": "é"}, "module-part-number"),
        ({"module_part_number_octets": bytes(20)}, "module-part-number"),
        (
            {"module_part_number": "", "module_part_number_octets": bytes(19)},
            "module-part-number-octets",
        ),
        (
            {"module_part_number": "", "module_part_number_octets": b"x" * 20},
            "module-part-number-octets",
        ),
    ],
)
def test_e_spd_what_cannot_be_written_is_named(change: dict[str, Any], path: str) -> None:
    with pytest.raises(FieldError) as caught:
        spd_ddr4.CODEC.encode(dataclasses.replace(DDR4, **change), None)
    assert caught.value.path == path


def test_e_spd7_a_serial_number_is_in_the_order_of_its_text() -> None:
    assert spd_ddr3.CODEC.encode(DDR3, None)[122:126].hex() == "01abcdef"


def test_e_spd8_overclocking_profiles_are_kept() -> None:
    profile = b"\x0c\x4a\x01\x20" + bytes(range(124))
    module = dataclasses.replace(DDR4, end_user=profile)
    assert spd_ddr4.CODEC.encode(module, None)[384:] == profile
