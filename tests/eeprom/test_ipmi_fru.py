"""E-FRU: IPMI FRU information; `test_ipmi_fru_readers` has what other programs say of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings
from formats.eeprom.fru_areas import BoardInfo, ChassisInfo, ProductInfo
from formats.eeprom.fru_records import (
    AccessType,
    BaseCompatibility,
    DcLoad,
    DcOutput,
    ExtendedCompatibility,
    ManagementAccess,
    OemRecord,
    OtherRecord,
    PowerSupplyInformation,
    Record,
    SystemUniqueId,
)
from formats.eeprom.fru_text import BcdPlus, Binary, SixBit, Text, decode_text, encode_text
from formats.eeprom.ipmi_fru import CODEC, InternalUse, IpmiFru
from formats.eeprom.parts.gaps import Other
from formats.errors import FieldError, ForeignImageError, FormatError, UnsupportedError

from .support import check_bytes, check_model, damaged, fills, latin1

BOARD = BoardInfo(
    mfg_date_time=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    manufacturer="Example",
    product_name=SixBit(text="BOARD 1 "),
    serial_number=BcdPlus(text="2026-00042"),
    part_number=Binary(data=b"\x01\x02"),
    fru_file_id="f1",
    custom=("extra",),
)
MACHINE = IpmiFru(
    internal_use=InternalUse(data=b"private"),
    chassis=ChassisInfo(chassis_type=23, part_number="CH-1", serial_number="0001"),
    board=BOARD,
    product=ProductInfo(
        manufacturer_name="Example", product_name="Server", version="1.0", asset_tag="A-7"
    ),
    multirecords=(
        PowerSupplyInformation(overall_capacity=750, peak_va=800, hot_swap=True, hold_up_time=2),
        DcOutput(output_number=1, standby=True, nominal_voltage=1200, ripple_and_noise=50),
        DcLoad(output_number=2, nominal_voltage=-1200, maximum_current_load=100),
        ManagementAccess(access_type=AccessType.SYSTEM_NAME, text="machine-7"),
        SystemUniqueId(uuid=bytes(range(16))),
        BaseCompatibility(manufacturer_id=0x1234, entity_id=7, compatibility_base=1, code_start=2),
        OemRecord(record_type=0xC0, manufacturer_id=10876, data=b"oem"),
        OtherRecord(record_type=0x30, data=b"?"),
    ),
)

# ---------------------------------------------------------------- strategies

_SIX_BIT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x5F), max_size=84)


def _plain(text: str) -> str:
    return text if len(text) != 1 or " " <= text <= "_" else text * 2


texts: st.SearchStrategy[Text] = st.one_of(
    latin1.map(lambda text: _plain(text[:63])),
    st.builds(Binary, data=st.binary(max_size=63)),
    st.builds(
        BcdPlus,
        text=st.lists(st.sampled_from("0123456789 .-"), max_size=63).map(lambda c: "".join(c) * 2),
    ),
    st.builds(
        SixBit,
        text=_SIX_BIT.filter(lambda text: len(text) != 1).map(
            lambda text: text + " " * (len(text) % 4 == 3)
        ),
    ),
)
paddings = st.binary(max_size=9).map(lambda padding: padding.rstrip(b"\x00"))


def areas(kind: type, **fields: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.builds(
        kind,
        size=st.none() | st.just(800),
        padding=paddings,
        custom=st.lists(texts, max_size=3).map(tuple),
        **fields,
    )


chassis = areas(
    ChassisInfo, chassis_type=st.integers(0, 255), part_number=texts, serial_number=texts
)
dates = st.datetimes(datetime(1996, 1, 2), datetime(2027, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
boards = areas(
    BoardInfo,
    mfg_date_time=st.none() | dates.map(lambda date: date.replace(second=0, microsecond=0)),
    manufacturer=texts,
    product_name=texts,
    serial_number=texts,
    part_number=texts,
    fru_file_id=texts,
)
products = areas(ProductInfo, manufacturer_name=texts, asset_tag=texts, version=texts)
bytes8, shorts = st.integers(0, 255), st.integers(0, 0xFFFF)
voltages, bits4 = st.integers(-0x8000, 0x7FFF), st.integers(0, 15)
blobs = st.binary(max_size=40)
ids = st.integers(0, 0xFFFFFF)
codes = {
    "manufacturer_id": ids,
    "entity_id": bytes8,
    "compatibility_base": bytes8,
    "code_start": bytes8,
    "code_range_mask": blobs,
}
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        PowerSupplyInformation,
        overall_capacity=st.integers(0, 0xFFF),
        low_end_input_voltage_1=shorts,
        predictive_fail=st.booleans(),
        tachometer_or_polarity=st.booleans(),
        peak_capacity=st.integers(0, 0xFFF),
        hold_up_time=bits4,
        combined_voltage_1=bits4,
        combined_voltage_2=bits4,
        predictive_fail_threshold=bytes8,
    ),
    st.builds(DcOutput, output_number=bits4, standby=st.booleans(), nominal_voltage=voltages),
    st.builds(DcLoad, output_number=bits4, minimum_voltage=voltages, ripple_and_noise=shorts),
    st.builds(ManagementAccess, access_type=st.sampled_from(AccessType), text=latin1),
    st.builds(SystemUniqueId, uuid=st.binary(min_size=16, max_size=16)),
    st.builds(BaseCompatibility, **codes),
    st.builds(ExtendedCompatibility, **codes),
    st.builds(OemRecord, record_type=st.integers(0xC0, 0xFF), manufacturer_id=ids, data=blobs),
    st.builds(OtherRecord, record_type=st.integers(6, 0xBF), data=blobs),
)


@st.composite
def machines(draw: st.DrawFn) -> IpmiFru:
    fill = draw(fills)
    model = IpmiFru(
        chassis=draw(st.none() | chassis),  # type: ignore[arg-type]
        board=draw(st.none() | boards),  # type: ignore[arg-type]
        product=None,
        multirecords=tuple(draw(st.lists(records, max_size=4))),
        fill=fill,
    )
    end = len(CODEC.encode(model, None))
    if draw(st.booleans()):
        content = draw(st.binary(max_size=20)).strip(bytes((fill,)))
        others = (Other(offset=end + draw(st.integers(0, 9)), data=content),) if content else ()
        return IpmiFru(
            chassis=model.chassis,
            board=model.board,
            multirecords=model.multirecords,
            other=others,
            fill=fill,
        )
    internal = draw(st.none() | st.sampled_from([b"private", b"x" * 15]))
    following = model.chassis or model.board or model.multirecords
    return IpmiFru(
        internal_use=InternalUse(data=internal) if internal and following else None,
        chassis=model.chassis,
        board=model.board,
        multirecords=model.multirecords,
        fill=fill,
    )


# -------------------------------------------------------------------- tests


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(machines())
def test_e_fru_any_model_is_written_and_read(model: IpmiFru) -> None:
    check_model(CODEC, model)


@settings(deadline=None)
@given(boards)
def test_e_fru4_any_board_is_written_and_read(board: BoardInfo) -> None:
    check_model(CODEC, IpmiFru(board=board))


@settings(deadline=None)
@given(products)
def test_e_fru4_any_product_is_written_and_read(product: ProductInfo) -> None:
    check_model(CODEC, IpmiFru(product=product))


def test_e_fru_everything_at_once_is_written_and_read() -> None:
    check_model(CODEC, MACHINE)


@given(st.binary(max_size=200) | damaged(CODEC.encode(MACHINE, 1024)))
def test_e_fru_any_bytes_are_read_or_refused(data: bytes) -> None:
    check_bytes(CODEC, data)


@given(st.data())
def test_e_fru_damage_behind_right_checksums_is_read_or_refused(data: st.DataObject) -> None:
    image = bytearray(data.draw(damaged(CODEC.encode(IpmiFru(board=BOARD), 128))))
    if len(image) < 128:
        return
    image[0:8] = CODEC.encode(IpmiFru(board=BOARD), 128)[:8]
    end = 8 + image[9] * 8
    if 8 < end <= 128:
        image[end - 1] = -sum(image[8 : end - 1]) & 0xFF
    check_bytes(CODEC, bytes(image))


def test_e_fru2_areas_may_lie_anywhere() -> None:
    model = IpmiFru(
        board=BoardInfo(offset=256, manufacturer="Example"),
        product=ProductInfo(offset=64, size=128, product_name="P1"),
        other=(Other(offset=40, data=b"between"), Other(offset=200, data=b"more")),
    )
    data = check_model(CODEC, model, room=400)
    assert data[256] == data[64] == 1
    assert data[40:47] == b"between"


def test_e_fru3_an_internal_use_area_without_another_ends_at_the_fill_bytes() -> None:
    check_model(CODEC, IpmiFru(internal_use=InternalUse(data=b"private data")))


def test_e_fru5_six_bit_text_is_as_in_the_specification() -> None:
    # Its section 13.3: "IPMI" is 29h DCh A6h.
    assert encode_text(SixBit(text="IPMI"), "") == bytes.fromhex("8329dca6")


def test_e_fru5_one_character_is_written_in_six_bits() -> None:
    assert encode_text("A", "") == bytes.fromhex("8121")
    assert decode_text(2, b"\x21", 0, Findings.strict()) == "A"
    # In UTF-16 it has two bytes, so nothing stands in the way of text.
    assert encode_text("A", "", is_unicode=True) == bytes.fromhex("c24100")
    assert encode_text(SixBit(text="A"), "", is_unicode=True) == bytes.fromhex("8121")
    product = ProductInfo(manufacturer_name="Acme", product_name="Thing", version="A")
    check_model(CODEC, IpmiFru(product=product))


def test_e_fru6_other_languages_have_utf_16() -> None:
    board = BoardInfo(language=10, manufacturer="\u03b1\u03b2", serial_number="0042")
    data = check_model(CODEC, IpmiFru(board=board))
    assert "\u03b1\u03b2".encode("utf-16-le") in data
    assert b"\xc40042" in data
    with pytest.raises(FieldError, match=r"board.manufacturer: '\u03b1' is not a character of ISO"):
        CODEC.encode(IpmiFru(board=BoardInfo(manufacturer="\u03b1\u03b2")), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "has one character"),
        (BcdPlus(text="123"), "that matches"),
        (SixBit(text="abc"), "that matches"),
        (SixBit(text="ABC"), "one more space"),
        (SixBit(text="A"), "give it as plain text"),
        (Binary(data=bytes(64)), "at most 63"),
        ("x" * 64, "at most 63 characters"),
    ],
)
def test_e_fru5_what_cannot_be_written_is_named(text: Text, message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        CODEC.encode(IpmiFru(board=BoardInfo(custom=("ok", text))), None)
    assert caught.value.path.startswith("board.custom[1]")


@pytest.mark.parametrize(
    ("model", "size", "path"),
    [
        (MACHINE, 200, ""),
        (IpmiFru(board=BoardInfo(size=8, manufacturer="Example")), None, "board.size"),
        (IpmiFru(board=BoardInfo(custom=("x" * 63,) * 40)), None, "board"),
        (IpmiFru(board=BoardInfo(padding=b"a\0")), None, "board.padding"),
        (IpmiFru(board=BoardInfo(offset=12)), None, "board.offset"),
        (
            IpmiFru(board=BoardInfo(), product=ProductInfo(offset=16)),
            None,
            "product",
        ),
        (IpmiFru(internal_use=InternalUse(data=b"ab"), board=BoardInfo()), None, "internal-use"),
        (IpmiFru(internal_use=InternalUse(data=b"\xff")), None, "internal-use.data"),
        (IpmiFru(multirecords_offset=64), None, "multirecords-offset"),
        (IpmiFru(other=(Other(offset=9, data=b"\xff"),)), None, "other[0].data"),
        (
            IpmiFru(other=(Other(offset=9, data=b"a"), Other(offset=12, data=b"b"))),
            None,
            "other[1]",
        ),
        (IpmiFru(multirecords=(OtherRecord(record_type=1, data=bytes(13)),)), None, "multirec"),
        (
            IpmiFru(board=BoardInfo(mfg_date_time=datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC))),
            None,
            "board.mfg-date-time",
        ),
        (
            IpmiFru(board=BoardInfo(mfg_date_time=datetime(2028, 1, 1, tzinfo=UTC))),
            None,
            "board.mfg-date-time",
        ),
    ],
)
def test_e_fru_what_cannot_be_written_is_named(model: IpmiFru, size: int | None, path: str) -> None:
    with pytest.raises(FieldError) as caught:
        CODEC.encode(model, size)
    assert caught.value.path.startswith(path)


@pytest.mark.parametrize(
    ("offset", "value", "rule"),
    [
        (7, 0, "E-FRU1"),
        (3, 0xF0, "E-FRU1"),
        (9, 200, "E-FRU4"),
        (20, 0x21, "E-FRU4"),
    ],
)
def test_e_fru_damage_is_named_and_read_around(offset: int, value: int, rule: str) -> None:
    data = bytearray(CODEC.encode(IpmiFru(board=BOARD, product=ProductInfo(version="7a")), 256))
    data[offset] = value
    with pytest.raises(FormatError) as caught:
        CODEC.decode(bytes(data), Findings.strict())
    assert caught.value.rule == rule
    report = Findings.tolerant()
    found = CODEC.decode(bytes(data), report)
    assert report.problems[0].rule == rule
    assert found.product
    assert found.product.version == "7a"


def test_e_fru1_what_is_no_fru_is_refused() -> None:
    with pytest.raises(ForeignImageError, match="has no FRU information"):
        CODEC.decode(bytes(range(1, 100))[1:], Findings.tolerant())
    with pytest.raises(UnsupportedError, match="version 2"):
        CODEC.decode(bytes.fromhex("02000000000000fe"), Findings.tolerant())


@pytest.mark.parametrize("kind", range(4))
def test_e_fru5_fields_are_what_their_type_says(kind: int) -> None:
    text = decode_text(kind, bytes.fromhex("29dc"), 0, Findings.tolerant())
    assert type(text) is [Binary, Binary, SixBit, str][kind]
